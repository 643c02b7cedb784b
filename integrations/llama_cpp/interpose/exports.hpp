// Functions of llama.cpp's names, which hosts reach in place of its own.
#ifndef SINKCACHE_INTERPOSE_EXPORTS_HPP
#define SINKCACHE_INTERPOSE_EXPORTS_HPP

#include "host.hpp"
#include "layout.hpp"
#include "registry.hpp"

#include <memory>

namespace sinkcache {
namespace interpose {

/** The Served of a context or memory; NULL where llama.cpp's own function is to be called. */
template <class T>
std::shared_ptr<Served> served(T *of) {
    return registry().find(of);
}

/**
 * Calls llama.cpp's own function with a struct as it came, of whatever size. `Result` and the types before the struct
 * are those of the function.
 */
template <class Result, class Function, class T, class... Before>
Result pass_on(Function *function, const Oversized<T> &last, Before... before) {
    const auto oversized = reinterpret_cast<Result (*)(Before..., Oversized<T>)>(reinterpret_cast<void *>(function));
    return oversized(before..., last);
}

/** A function that is found under llama.cpp's name, but takes its structs as Oversized. */
#define SINKCACHE_EXPORTED_AS(name) __asm__(name) __attribute__((visibility("default")))

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_EXPORTS_HPP

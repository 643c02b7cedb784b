// Whether the host's llama.cpp has the structs that this library was compiled with.
#ifndef SINKCACHE_INTERPOSE_LAYOUT_HPP
#define SINKCACHE_INTERPOSE_LAYOUT_HPP

#include "host.hpp"

#include <cstddef>
#include <string>

namespace sinkcache {
namespace interpose {

/**
 * A struct that is passed by value, and what a newer llama.cpp may have behind it. As an argument it is read from
 * memory, so that it can be passed on whole even if the host's struct has another size: what is too much is ignored.
 */
template <class T>
struct Oversized {
    T known;
    /** Of the caller's stack, which goes on behind an argument. */
    std::byte more[256];
};

/** What differs from the structs and numbers this library was compiled with; empty if nothing does. */
std::string layout_problem(const HostApi &calls);

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_LAYOUT_HPP

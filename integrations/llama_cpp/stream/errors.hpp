// Errors of the adapter: thrown to the caller, and stored where nothing can be thrown.
#ifndef SINKCACHE_LLAMA_ERRORS_HPP
#define SINKCACHE_LLAMA_ERRORS_HPP

#include "sinkcache.hpp"

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace sinkcache {
namespace llama_cpp {

/** A model or graph that the adapter does not support, and why. LlamaContext converts it into sinkcache::Error. */
struct NotSupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/** Throws NotSupported unless `condition` holds. */
inline void require(bool condition, const char *reason) {
    if (!condition) {
        throw NotSupported(reason);
    }
}

/** The same with a reason that reason() composes when it is needed: graphs are read often, errors are rare. */
template <class Reason, class = decltype(std::string(std::declval<Reason>()()))>
void require(bool condition, const Reason &reason) {
    if (!condition) {
        throw NotSupported(reason());
    }
}

/** @throws Error SKC_STATUS_INVALID_CONFIG */
[[noreturn]] void invalid_config(const std::string &reason);

/** @throws Error SKC_STATUS_INVALID_ARGUMENT */
[[noreturn]] void invalid_argument(const std::string &reason);

/** The first error inside llama_decode, stored until the caller can get it: nothing may be thrown through llama.cpp. */
class DeferredError {
public:
    /** Stores an error unless there is one already. Any thread. */
    void set(skc_status status, const std::string &text);
    /** Any thread. */
    bool is_set() const noexcept { return set_.load(std::memory_order_acquire); }
    /** Throws the stored error, if any, and clears it. */
    void rethrow();

private:
    std::atomic<bool> set_{false};
    std::mutex mutex_;
    skc_status status_ = SKC_STATUS_OK;
    std::string text_;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_ERRORS_HPP

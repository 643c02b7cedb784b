#include "errors.hpp"

namespace sinkcache {
namespace llama_cpp {

void invalid_config(const std::string &reason) { throw Error(SKC_STATUS_INVALID_CONFIG, reason); }

void invalid_argument(const std::string &reason) { throw Error(SKC_STATUS_INVALID_ARGUMENT, reason); }

void DeferredError::set(skc_status status, const std::string &text) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!set_.load(std::memory_order_relaxed)) {
        status_ = status;
        text_ = text;
        set_.store(true, std::memory_order_release);
    }
}

void DeferredError::rethrow() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (set_.exchange(false)) {
        throw Error(status_, text_);
    }
}

}  // namespace llama_cpp
}  // namespace sinkcache

#include "deep_stack.hpp"

#include <cstring>
#include <exception>
#include <pthread.h>
#include <stdexcept>
#include <string>

namespace inflight {
namespace {

struct Caller {
    const std::function<void()> &call;
    std::exception_ptr error;

    static void *run(void *self) {
        auto &caller = *static_cast<Caller *>(self);
        try {
            caller.call();
        } catch (...) {
            caller.error = std::current_exception();
        }
        return nullptr;
    }
};

}  // namespace

void call_with_stack(std::size_t bytes, const std::function<void()> &call) {
    // Stacks are whole pages; 64 KiB is a multiple of all pages in use.
    constexpr std::size_t STEP = 64 << 10;
    Caller caller{call, nullptr};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    int failed = pthread_attr_setstacksize(&attributes, (bytes + STEP - 1) / STEP * STEP);
    pthread_t thread;
    if (failed == 0) {
        failed = pthread_create(&thread, &attributes, Caller::run, &caller);
    }
    pthread_attr_destroy(&attributes);
    if (failed != 0) {
        throw std::runtime_error("a stack of " + std::to_string(bytes) + " bytes is not to be had: " +
                                 std::strerror(failed));
    }
    pthread_join(thread, nullptr);
    if (caller.error) {
        std::rethrow_exception(caller.error);
    }
}

}  // namespace inflight

#include "op_loop.hpp"

namespace sinkcache {
namespace llama_cpp {

void OpLoop::parallel_for(void *self, std::uint32_t n, skc_task_fn task, void *data) noexcept {
    auto &loop = *static_cast<OpLoop *>(self);
    {
        const std::lock_guard<std::mutex> lock(loop.mutex_);
        loop.task_ = task;
        loop.data_ = data;
        loop.next_ = 0;
        loop.n_ = n;
    }
    while (loop.run_task()) {
    }
    // All have begun. Those that other threads have begun must end before the cache may go on.
    while (loop.n_running_.load(std::memory_order_acquire) != 0) {
        std::this_thread::yield();
    }
}

/** Runs a task that no thread has begun. @return false if there is none */
bool OpLoop::run_task() noexcept {
    std::uint32_t index = 0;
    skc_task_fn task = nullptr;
    void *data = nullptr;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (next_ == n_) {
            return false;
        }
        index = next_++;
        task = task_;
        data = data_;
        n_running_.fetch_add(1, std::memory_order_relaxed);
    }
    task(data, index);
    n_running_.fetch_sub(1, std::memory_order_release);
    return true;
}

}  // namespace llama_cpp
}  // namespace sinkcache

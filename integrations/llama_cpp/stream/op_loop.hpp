// A parallel loop on the threads that ggml runs an op with.
#ifndef SINKCACHE_LLAMA_OP_LOOP_HPP
#define SINKCACHE_LLAMA_OP_LOOP_HPP

#include "sinkcache.hpp"

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

namespace sinkcache {
namespace llama_cpp {

/**
 * The parallel loop of a cache whose calls are made by the first thread of an op, while the others help. Calls outside
 * of ops run on the calling thread alone. One op at a time.
 */
class OpLoop {
public:
    /**
     * Called once by each of the `nth` threads of an op: `call()` runs in the first, the others run tasks of the loops
     * that it begins, and return when it has. Another op may begin once all have returned. `call` must not throw.
     */
    template <class Call>
    void run(int ith, int nth, const Call &call) {
        if (ith == 0) {
            call();
            is_over_.store(true, std::memory_order_release);
        }
        while (!is_over_.load(std::memory_order_acquire)) {
            if (!run_task()) {
                std::this_thread::yield();
            }
        }
        if (n_left_.fetch_add(1, std::memory_order_acq_rel) + 1 == nth) {
            n_left_.store(0, std::memory_order_relaxed);
            is_over_.store(false, std::memory_order_release);
        }
    }

    /** The loop that caches get, with the OpLoop as `self`. */
    static void parallel_for(void *self, std::uint32_t n, skc_task_fn task, void *data) noexcept;

private:
    bool run_task() noexcept;

    std::atomic<bool> is_over_{false};
    std::atomic<int> n_left_{0};
    std::mutex mutex_;
    /** The loop under way: its tasks from next_ to n_ - 1 have not begun. */
    skc_task_fn task_ = nullptr;
    void *data_ = nullptr;
    std::uint32_t next_ = 0, n_ = 0;
    std::atomic<std::uint32_t> n_running_{0};
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_OP_LOOP_HPP

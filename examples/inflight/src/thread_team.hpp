// The threads of an engine: matrix products and attention share them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace inflight {

/**
 * Divides loops among threads, the caller among them. Units of a loop are taken as threads are free; the caller waits
 * for units that another thread has begun, never for a thread that has not woken up. Between two loops the others spin
 * for a few microseconds, then sleep. One loop at a time.
 */
class ThreadTeam {
public:
    /** `threads` with the caller. Throws std::runtime_error if the system does not give as many. */
    explicit ThreadTeam(std::size_t threads);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam &) = delete;
    ThreadTeam &operator=(const ThreadTeam &) = delete;

    std::size_t size() const { return workers_.size() + 1; }

    /** Calls body(unit) once for each unit below `n`, 2^32 - 1 at most. It must not throw. */
    template <class Body>
    void run(std::size_t n, const Body &body) {
        if (workers_.empty() || n < 2) {
            for (std::size_t unit = 0; unit < n; unit++) {
                body(unit);
            }
            return;
        }
        share(static_cast<std::uint32_t>(n),
              [](const void *self, std::size_t unit) { (*static_cast<const Body *>(self))(unit); }, &body);
    }

private:
    using Call = void (*)(const void *body, std::size_t unit);

    std::vector<std::thread> workers_;
    /** The number of the loop in the upper half; in the lower one, how many of its units nobody has taken. */
    alignas(64) std::atomic<std::uint64_t> ticket_{0};
    // Of the loop. Threads read them while it has units left.
    std::atomic<std::uint32_t> units_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<const void *> body_{nullptr};
    alignas(64) std::atomic<std::uint32_t> done_{0};
    alignas(64) std::atomic<std::uint32_t> asleep_{0};
    std::atomic<bool> ends_{false};
    std::mutex mutex_;
    std::condition_variable wake_;

    void share(std::uint32_t n, Call call, const void *body);
    bool take_unit();
    void end();
    void work();
    bool wait_for_loop(std::uint64_t seen);
};

}  // namespace inflight

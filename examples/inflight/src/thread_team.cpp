#include "thread_team.hpp"

#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>

namespace inflight {
namespace {

constexpr std::uint64_t LOOP = std::uint64_t{1} << 32;
/** As long as the cache's own pool: longer than what one thread does between two loops. */
constexpr auto SPIN = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadTeam::ThreadTeam(std::size_t threads) {
    try {
        for (std::size_t i = 1; i < threads; i++) {
            workers_.emplace_back([this] { work(); });
        }
    } catch (const std::system_error &error) {
        const std::size_t started = workers_.size() + 1;
        end();
        throw std::runtime_error("only " + std::to_string(started) + " of " + std::to_string(threads) +
                                 " threads could be started: " + error.code().message());
    }
}

ThreadTeam::~ThreadTeam() { end(); }

void ThreadTeam::end() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ends_ = true;
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) {
        worker.join();
    }
}

void ThreadTeam::share(std::uint32_t n, Call call, const void *body) {
    units_.store(n, std::memory_order_relaxed);
    call_.store(call, std::memory_order_relaxed);
    body_.store(body, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_ = (ticket_.load(std::memory_order_relaxed) / LOOP + 1) * LOOP + n;
    if (asleep_ > 0) {
        {
            // A thread that has seen no loop is then waiting already.
            const std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_.notify_all();
    }
    while (take_unit()) {
    }
    for (unsigned spins = 0; done_.load(std::memory_order_acquire) != n; spins++) {
        pause();
        if (spins > 1000) {
            // The other thread may need this processor.
            std::this_thread::yield();
        }
    }
}

/** Returns false if no unit is left. */
bool ThreadTeam::take_unit() {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket % LOOP != 0) {
        // Of this loop, if the ticket is still the same below: the next one begins when no unit is left.
        const std::uint32_t n = units_.load(std::memory_order_relaxed);
        const Call call = call_.load(std::memory_order_relaxed);
        const void *body = body_.load(std::memory_order_relaxed);
        if (ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) {
            call(body, n - static_cast<std::size_t>(ticket % LOOP));
            done_.fetch_add(1, std::memory_order_release);
            return true;
        }
    }
    return false;
}

void ThreadTeam::work() {
    std::uint64_t seen = 0;
    while (wait_for_loop(seen)) {
        seen = ticket_ / LOOP;
        while (take_unit()) {
        }
    }
}

/** Returns false when the team ends. */
bool ThreadTeam::wait_for_loop(std::uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + SPIN;
    do {
        for (unsigned i = 0; i < 64; i++) {
            if (ticket_ / LOOP != seen) {
                return true;
            }
            pause();
        }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_++;
    wake_.wait(lock, [&] { return ends_ || ticket_ / LOOP != seen; });
    asleep_--;
    return !ends_;
}

}  // namespace inflight

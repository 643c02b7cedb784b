// Work that has been enqueued and not executed yet. It is executed when a call waits for it, in an order drawn at
// random from those that its dependencies permit.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "random.hpp"

namespace skc_shim {

struct Context;

// A kernel, a copy, or an empty join. Returns the empty string, or an error message with which the context fails.
using Work = std::function<std::string()>;

struct Op {
    Work work;
    Context* context = nullptr;
    uint32_t unmet = 0;  // dependencies that have not completed
    std::vector<std::shared_ptr<Op>> next;
    bool done = false;
};
using OpRef = std::shared_ptr<Op>;

// Guarded by the driver's mutex, which is released while work is executed.
class Queue {
public:
    explicit Queue(uint64_t seed) : random_(seed) {}

    // Work that may begin when all `dependencies` (NULLs are ignored) have completed.
    OpRef submit(Context* context, Work work, const std::vector<OpRef>& dependencies);
    void wait(std::unique_lock<std::mutex>& lock, const OpRef& op);
    void wait_all(std::unique_lock<std::mutex>& lock, const Context* context);
    // A device also works while no call waits for it: executes an operation, or none, at random.
    void maybe_advance(std::unique_lock<std::mutex>& lock);
    // Executes work while too much of it is pending.
    void limit_pending(std::unique_lock<std::mutex>& lock);

private:
    bool run_one(std::unique_lock<std::mutex>& lock);
    void run_one_or_wait(std::unique_lock<std::mutex>& lock);

    Random random_;
    std::vector<OpRef> ready_;
    size_t pending_ = 0;
    std::condition_variable changed_;
};

}  // namespace skc_shim

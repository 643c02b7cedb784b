// Work that has been asked for and not been done yet. It is done when somebody waits for it, in an order drawn from
// those that its dependencies allow.
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

// A kernel, a copy, a join. Returns the empty string, or why the device is lost.
using Work = std::function<std::string()>;

struct Op {
    Work work;
    Context* context = nullptr;
    uint32_t unmet = 0;  // dependencies that are not done
    std::vector<std::shared_ptr<Op>> next;
    bool done = false;
};
using OpRef = std::shared_ptr<Op>;

// All of it is guarded by the driver's mutex, which is given up while work is being done.
class Queue {
public:
    explicit Queue(uint64_t seed) : random_(seed) {}

    // Work that may begin when all of `after` (NULLs are allowed) is done.
    OpRef submit(Context* context, Work work, const std::vector<OpRef>& after);
    void wait(std::unique_lock<std::mutex>& lock, const OpRef& op);
    void wait_all(std::unique_lock<std::mutex>& lock, const Context* context);
    // A device does not stand still while nobody waits: does a piece of work, perhaps.
    void maybe_advance(std::unique_lock<std::mutex>& lock);
    // Keeps what is pending bounded.
    void relieve(std::unique_lock<std::mutex>& lock);

private:
    bool run_one(std::unique_lock<std::mutex>& lock);
    void step(std::unique_lock<std::mutex>& lock);

    Random random_;
    std::vector<OpRef> ready_;
    size_t pending_ = 0;
    std::condition_variable changed_;
};

}  // namespace skc_shim

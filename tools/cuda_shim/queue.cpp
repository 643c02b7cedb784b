#include "queue.hpp"

#include "driver.hpp"

namespace skc_shim {
namespace {

constexpr size_t kMaxPending = 4096;

}  // namespace

OpRef Queue::submit(Context* context, Work work, const std::vector<OpRef>& dependencies) {
    auto op = std::make_shared<Op>();
    op->work = std::move(work);
    op->context = context;
    for (const OpRef& dependency : dependencies) {
        if (!dependency || dependency->done) continue;
        dependency->next.push_back(op);
        ++op->unmet;
    }
    if (op->unmet == 0) ready_.push_back(op);
    ++pending_;
    ++context->pending;
    return op;
}

bool Queue::run_one(std::unique_lock<std::mutex>& lock) {
    if (ready_.empty()) return false;
    std::swap(ready_[random_.below(static_cast<uint32_t>(ready_.size()))], ready_.back());
    OpRef op = std::move(ready_.back());
    ready_.pop_back();
    Work work = std::move(op->work);
    op->work = nullptr;
    if (work && op->context->failed == CUDA_SUCCESS) {
        lock.unlock();
        std::string error = work();
        work = nullptr;
        lock.lock();
        if (!error.empty()) op->context->fail(error);
    }
    op->done = true;
    for (OpRef& next : op->next) {
        if (--next->unmet == 0) ready_.push_back(next);
    }
    op->next.clear();
    --pending_;
    --op->context->pending;
    changed_.notify_all();
    return true;
}

// Executes an operation; if none is ready, waits until another thread has executed one.
void Queue::run_one_or_wait(std::unique_lock<std::mutex>& lock) {
    if (!run_one(lock)) changed_.wait(lock);
}

void Queue::wait(std::unique_lock<std::mutex>& lock, const OpRef& op) {
    while (op && !op->done) run_one_or_wait(lock);
}

void Queue::wait_all(std::unique_lock<std::mutex>& lock, const Context* context) {
    while (context->pending != 0) run_one_or_wait(lock);
}

void Queue::maybe_advance(std::unique_lock<std::mutex>& lock) {
    if (random_.below(2) == 0) run_one(lock);
}

void Queue::limit_pending(std::unique_lock<std::mutex>& lock) {
    while (pending_ > kMaxPending && run_one(lock)) {
    }
}

}  // namespace skc_shim

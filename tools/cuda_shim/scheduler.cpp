#include "scheduler.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "runtime.hpp"
#include "warp_ops.hpp"

namespace skc_shim {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

// What a fiber executes: one kernel call after another, as launches reuse it.
void Scheduler::thread_main() {
    DeviceThread* self = current_thread();
    Scheduler* scheduler = self->scheduler;
    entered(scheduler->host_);
    for (;;) {
        scheduler->launch_->kernel(scheduler->launch_->params);
        require_wait(self, "the end");
        self->warp->returned |= lane_bit(*self);
        scheduler->suspend(self);
    }
}

void Scheduler::suspend(DeviceThread* self) {
    Warp* warp = self->warp;
    while (warp && warp->to_run == 0) warp = end_pass(*warp);
    if (!warp) {
        leave_to(host_, self);
        return;
    }
    while ((warp->to_run >> (warp->next % 32) & 1) == 0) warp->next += warp->stride;
    DeviceThread* next = warp->lanes[warp->next % 32];
    warp->to_run &= ~(1u << warp->next % 32);
    if (next == self) return;
    // Most of the time of a switch goes into cache misses on the other thread's state.
    const DeviceThread* after = warp->lanes[(warp->next + warp->stride) % 32];
    __builtin_prefetch(&after->stack_pointer);
    __builtin_prefetch(after->stack_pointer);
    skc_shim_switch(&self->stack_pointer, next->stack_pointer);
    entered(host_);
}

void Scheduler::fail(const DeviceThread& at, const char* reason) {
    std::snprintf(error_, sizeof error_, "block (%u, %u, %u) of (%u, %u, %u), thread %u: %s", at.block[0], at.block[1],
                  at.block[2], at.grid[0], at.grid[1], at.grid[2], at.index, reason);
    leave_to(host_, const_cast<DeviceThread*>(&at));
    __builtin_unreachable();
}

void Scheduler::begin_pass(Warp& warp, uint32_t lanes) {
    uint32_t r = random.next();
    warp.to_run = lanes;
    warp.next = r % 32;
    warp.stride = r >> 8 | 1;
}

// Gives `block` the next block of the grid. False if there is none.
bool Scheduler::load_next_block(Block& block) {
    if (n_loaded_ == n_blocks_) return false;
    ++n_loaded_;
    uint64_t number = next_block_;
    next_block_ = (next_block_ + block_stride_) % n_blocks_;
    const uint32_t* grid = launch_->grid;
    block.index[0] = static_cast<uint32_t>(number % grid[0]);
    block.index[1] = static_cast<uint32_t>(number / grid[0] % grid[1]);
    block.index[2] = static_cast<uint32_t>(number / grid[0] / grid[1]);
    block.waiting = 0;
    block.returned = 0;
    std::memset(block.shared.get(), 0xFF, launch_->shared_bytes);
    for (Warp& warp : block.warps) {
        for (DeviceThread* thread : warp.lanes) {
            std::memcpy(thread->block, block.index, sizeof thread->block);
            thread->copies->clear();
            thread->after_wait = !launch_->programmatic;
        }
        warp.arrived = 0;
        warp.yielded = 0;
        warp.returned = 0;
        warp.priority = random.next() % 4 == 0 ? 0 : random.next();
        begin_pass(warp, kAllLanes);
        ready_.push_back(&warp);
    }
    return true;
}

Warp* Scheduler::pick_ready_warp() {
    if (ready_.empty()) return nullptr;
    if (!by_priority_) return ready_[random.below(static_cast<uint32_t>(ready_.size()))];
    return *std::max_element(ready_.begin(), ready_.end(),
                             [](const Warp* a, const Warp* b) { return a->priority < b->priority; });
}

void Scheduler::remove_ready(const Warp& warp) {
    for (Warp*& ready : ready_) {
        if (ready != &warp) continue;
        ready = ready_.back();
        ready_.pop_back();
        return;
    }
}

// Called when all lanes of a pass have run. Returns the warp to run next; NULL when the grid has ended.
Warp* Scheduler::end_pass(Warp& warp) {
    Block& block = *warp.block;
    if (warp.yielded) {
        uint32_t lanes = warp.yielded;
        warp.yielded = 0;
        begin_pass(warp, lanes);
        return pick_ready_warp();
    }
    if (warp.arrived != 0) return complete_sync(warp);
    remove_ready(warp);
    ++block.returned;
    if (block.waiting != 0 && block.waiting + block.returned == block.warps.size()) {
        fail(*warp.lanes[0], "threads have returned while others wait at block_sync");
    }
    if (block.returned == block.warps.size()) load_next_block(block);
    return pick_ready_warp();
}

// Ends the launch with an error unless all lanes have arrived at the same SyncOp.
void Scheduler::check_convergence(const Warp& warp) {
    const DeviceThread& first = *warp.lanes[__builtin_ctz(warp.arrived)];
    char text[256];
    if (warp.returned) {
        std::snprintf(text, sizeof text, "waits at %s (line %d) while lanes of its warp (mask %08x) have returned",
                      name_of(first.op), first.line, warp.returned);
        fail(first, text);
    }
    for (const DeviceThread* thread : warp.lanes) {
        if (thread->op == first.op && thread->line == first.line) continue;
        std::snprintf(text, sizeof text, "divergent: waits at %s (line %d), lane %u of its warp at %s (line %d)",
                      name_of(first.op), first.line, thread->lane, name_of(thread->op), thread->line);
        fail(first, text);
    }
}

// Executes the SyncOp that the lanes of a warp wait at; block_sync waits for the other warps first.
Warp* Scheduler::complete_sync(Warp& warp) {
    check_convergence(warp);
    Block& block = *warp.block;
    const DeviceThread& first = *warp.lanes[0];
    SyncOp op = first.op;
    warp.arrived = 0;
    begin_pass(warp, kAllLanes);
    if (op == SyncOp::block_sync) {
        remove_ready(warp);
        ++block.waiting;
        if (block.waiting == block.warps.size()) {
            block.waiting = 0;
            for (Warp& waiting : block.warps) ready_.push_back(&waiting);
        } else if (block.waiting + block.returned == block.warps.size()) {
            fail(first, "waits at block_sync while threads of its block have returned");
        }
        return pick_ready_warp();
    }
    execute(op, warp.lanes);
    return !by_priority_ && random.next() % 4 == 0 ? pick_ready_warp() : &warp;
}

// Draws the order of blocks. Returns an error message for a launch that cannot run.
std::string Scheduler::prepare(const Launch& launch) {
    if (launch.threads == 0 || launch.threads % 32 != 0 || launch.threads > 1024) {
        return "blocks of " + std::to_string(launch.threads) + " threads: the shim runs whole warps, up to 32";
    }
    launch_ = &launch;
    random = Random(launch.seed);
    n_blocks_ = uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
    n_loaded_ = 0;
    error_[0] = 0;
    ready_.clear();
    if (n_blocks_ == 0) return "an empty grid";
    next_block_ = random.next() % n_blocks_;
    do {
        block_stride_ = 1 + random.next() % n_blocks_;
    } while (std::gcd(block_stride_, n_blocks_) != 1);
    by_priority_ = random.below(3) != 0;
    return {};
}

// Memory and threads of a block, the first of them on stack `first_thread`.
void Scheduler::create_block(Block& block, size_t first_thread) {
    // malloc aligns as device code may expect and no better, and AddressSanitizer sees accesses beyond the end.
    block.shared.reset(static_cast<uint8_t*>(std::malloc(launch_->shared_bytes)));
    block.warps.resize(launch_->threads / 32);
    for (uint32_t i = 0; i < launch_->threads; ++i) {
        size_t stack = first_thread + i;
        Warp& warp = block.warps[i / 32];
        DeviceThread* thread = fibers_.at(stack, thread_main);
        if (copies_.size() <= stack) copies_.push_back(std::make_unique<AsyncCopies>());
        warp.block = &block;
        warp.lanes[i % 32] = thread;
        thread->runtime = &kRuntime;
        thread->scheduler = this;
        thread->copies = copies_[stack].get();
        thread->warp = &warp;
        thread->index = i;
        thread->lane = i % 32;
        thread->shared = block.shared.get();
        thread->shared_bytes = launch_->shared_bytes;
        std::memcpy(thread->grid, launch_->grid, sizeof thread->grid);
    }
}

std::string Scheduler::run(const Launch& launch) {
    std::string error = prepare(launch);
    if (!error.empty()) return error;
    // Blocks that run at the same time.
    static constexpr uint32_t kConcurrent[8] = {1, 1, 2, 2, 3, 3, 4, 4};
    uint64_t concurrent = std::min<uint64_t>(kConcurrent[random.below(8)], n_blocks_);
    blocks_.clear();
    blocks_.resize(concurrent);
    for (size_t i = 0; i < blocks_.size(); ++i) {
        create_block(blocks_[i], i * launch.threads);
        load_next_block(blocks_[i]);
    }
    Warp* warp = pick_ready_warp();
    DeviceThread* first = warp->lanes[warp->next % 32];
    warp->to_run &= ~lane_bit(*first);
    enter(host_, first);
    if (error_[0]) {
        fibers_.reset(thread_main);
        return std::string(error_) + " [SKC_SHIM_SEED=" + std::to_string(base_seed()) + "]";
    }
    return {};
}

}  // namespace skc_shim

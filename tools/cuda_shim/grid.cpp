// How blocks are run: a few at a time, in random order. Each thread is a fiber. A warp is run in passes: its lanes one
// after another in random order, each up to its next meeting point. When all have met there, the meeting is held and the
// next pass begins. Which warp goes on is drawn anew now and then, or, in most launches, goes by priorities drawn at the
// start, so that some warps fall far behind.

#include "grid.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "copies.hpp"
#include "fiber.hpp"
#include "meetings.hpp"
#include "random.hpp"

namespace skc_shim {

constexpr uint32_t kAll = 0xFFFFFFFFu;

struct Block;

struct Warp {
    Block* block = nullptr;
    Lane* lanes[32] = {};
    // Sets of lanes, one bit each.
    uint32_t todo = 0;      // to be run in this pass
    uint32_t arrived = 0;   // at a meeting point
    uint32_t paused = 0;    // to be run in the next pass of the same meeting
    uint32_t finished = 0;  // returned from the kernel
    // The order of a pass: turn, turn + stride, ... modulo 32.
    uint32_t turn = 0;
    uint32_t stride = 1;
    uint32_t priority = 0;
};

struct Block {
    std::vector<Warp> warps;
    std::unique_ptr<uint8_t, void (*)(void*)> shared{nullptr, std::free};
    uint32_t index[3] = {};
    uint32_t waiting = 0;   // warps at block_sync
    uint32_t finished = 0;  // warps
};

struct Engine {
    std::string run(const Launch& launch);
    // What a lane calls when it can go no further, having said why in its warp's sets. Returns when it may go on.
    void leave(Lane* self);
    [[noreturn]] void fail(const Lane& at, const char* reason);
    [[noreturn]] static void start();

    Random random{1};
    bool by_priority = false;

private:
    bool begin_block(Block& block);
    void begin_pass(Warp& warp, uint32_t lanes);
    Warp* settle(Warp& warp);
    Warp* meet(Warp& warp);
    Warp* any_ready();
    void unready(const Warp& warp);

    const Launch* launch_ = nullptr;
    Fibers fibers_;
    std::vector<std::unique_ptr<Copies>> copies_;
    std::vector<Block> blocks_;
    std::vector<Warp*> ready_;
    uint64_t n_blocks_ = 0, begun_ = 0, next_block_ = 0, block_stride_ = 1;
    HostStack host_;
    char error_[512] = {};
};

namespace {

uint32_t bit(const Lane& lane) { return 1u << lane.lane; }

// In a programmatic launch the kernel before may still run.
void need_begun(Lane* self, const char* what) {
    if (self->begun) return;
    char text[128];
    std::snprintf(text, sizeof text, "%s before begin_kernel, in a programmatic launch", what);
    self->engine->fail(*self, text);
}

void runtime_begin(Lane* self) { self->begun = true; }

void runtime_meet(Lane* self, Meet meet, int line) {
    need_begun(self, name_of(meet));
    self->meet = meet;
    self->line = line;
    if (const char* reason = arrive(meet, *self)) {
        char text[128];
        std::snprintf(text, sizeof text, "%s (line %d)", reason, line);
        self->engine->fail(*self, text);
    }
    self->warp->arrived |= bit(*self);
    self->engine->leave(self);
}

void runtime_pause(Lane* self) {
    need_begun(self, "an atomic");
    if (self->engine->random.next() % 4 != 0) return;
    self->warp->paused |= bit(*self);
    self->warp->priority = self->engine->random.next();
    self->engine->leave(self);
}

void runtime_fail(Lane* self, const char* reason) { self->engine->fail(*self, reason); }

void runtime_copy(Lane* self, void* shared, const void* global, bool valid) {
    need_begun(self, "copy_async16");
    auto to = reinterpret_cast<uintptr_t>(shared), base = reinterpret_cast<uintptr_t>(self->shared);
    if (to % 16 != 0) self->engine->fail(*self, "copy_async16: the destination is not aligned to 16 bytes");
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        self->engine->fail(*self, "copy_async16: the source is not aligned to 16 bytes");
    }
    if (to < base || to + 16 > base + self->shared_bytes) {
        self->engine->fail(*self, "copy_async16: the destination lies outside shared memory");
    }
    bool early = self->engine->random.next() % 2 != 0;
    self->copies->issue(static_cast<uint8_t*>(shared), static_cast<const uint8_t*>(global), valid, early);
}

void runtime_commit(Lane* self) { self->copies->commit(); }
void runtime_wait(Lane* self, uint32_t pending) { self->copies->wait(pending); }

constexpr Runtime kRuntime = {runtime_meet, runtime_pause, runtime_copy, runtime_commit, runtime_wait, runtime_begin, runtime_fail};

}  // namespace

void Engine::start() {
    Lane* self = this_lane();
    Engine* engine = self->engine;
    entered(engine->host_);
    for (;;) {
        engine->launch_->kernel(engine->launch_->params);
        need_begun(self, "the end");
        self->warp->finished |= bit(*self);
        engine->leave(self);
    }
}

void Engine::leave(Lane* self) {
    Warp* warp = self->warp;
    while (warp && warp->todo == 0) warp = settle(*warp);
    if (!warp) {
        leave_to(host_, self);
        return;
    }
    while ((warp->todo >> (warp->turn % 32) & 1) == 0) warp->turn += warp->stride;
    Lane* next = warp->lanes[warp->turn % 32];
    warp->todo &= ~(1u << warp->turn % 32);
    if (next == self) return;
    // Most of a switch is waiting for the other lane's cache lines.
    const Lane* after = warp->lanes[(warp->turn + warp->stride) % 32];
    __builtin_prefetch(&after->stack_pointer);
    __builtin_prefetch(after->stack_pointer);
    skc_shim_switch(&self->stack_pointer, next->stack_pointer);
    entered(host_);
}

void Engine::fail(const Lane& at, const char* reason) {
    std::snprintf(error_, sizeof error_, "block (%u, %u, %u) of (%u, %u, %u), thread %u: %s", at.block[0], at.block[1],
                  at.block[2], at.grid[0], at.grid[1], at.grid[2], at.thread, reason);
    leave_to(host_, const_cast<Lane*>(&at));
    __builtin_unreachable();
}

void Engine::begin_pass(Warp& warp, uint32_t lanes) {
    uint32_t r = random.next();
    warp.todo = lanes;
    warp.turn = r % 32;
    warp.stride = r >> 8 | 1;
}

// Loads the next block of the grid, if there is one.
bool Engine::begin_block(Block& block) {
    if (begun_ == n_blocks_) return false;
    ++begun_;
    uint64_t number = next_block_;
    next_block_ = (next_block_ + block_stride_) % n_blocks_;
    const uint32_t* grid = launch_->grid;
    block.index[0] = static_cast<uint32_t>(number % grid[0]);
    block.index[1] = static_cast<uint32_t>(number / grid[0] % grid[1]);
    block.index[2] = static_cast<uint32_t>(number / grid[0] / grid[1]);
    block.waiting = block.finished = 0;
    std::memset(block.shared.get(), 0xFF, launch_->shared_bytes);
    for (Warp& warp : block.warps) {
        for (Lane* lane : warp.lanes) {
            std::memcpy(lane->block, block.index, sizeof lane->block);
            lane->copies->clear();
            lane->begun = !launch_->programmatic;
        }
        warp.arrived = warp.paused = warp.finished = 0;
        warp.priority = random.next() % 4 == 0 ? 0 : random.next();
        begin_pass(warp, kAll);
        ready_.push_back(&warp);
    }
    return true;
}

Warp* Engine::any_ready() {
    if (ready_.empty()) return nullptr;
    if (!by_priority) return ready_[random.below(static_cast<uint32_t>(ready_.size()))];
    return *std::max_element(ready_.begin(), ready_.end(), [](const Warp* a, const Warp* b) { return a->priority < b->priority; });
}

void Engine::unready(const Warp& warp) {
    for (Warp*& ready : ready_) {
        if (ready != &warp) continue;
        ready = ready_.back();
        ready_.pop_back();
        return;
    }
}

// A pass has ended. Returns the warp to run next; NULL when the grid has ended.
Warp* Engine::settle(Warp& warp) {
    Block& block = *warp.block;
    if (warp.paused) {
        uint32_t again = warp.paused;
        warp.paused = 0;
        begin_pass(warp, again);
        return any_ready();
    }
    if (warp.arrived == 0) {
        unready(warp);
        ++block.finished;
        if (block.waiting != 0 && block.waiting + block.finished == block.warps.size()) {
            fail(*warp.lanes[0], "threads have returned while others wait at block_sync");
        }
        if (block.finished == block.warps.size()) begin_block(block);
        return any_ready();
    }
    return meet(warp);
}

// All lanes have met, or some have returned.
Warp* Engine::meet(Warp& warp) {
    Block& block = *warp.block;
    const Lane& first = *warp.lanes[__builtin_ctz(warp.arrived)];
    char text[256];
    if (warp.finished) {
        std::snprintf(text, sizeof text, "waits at %s (line %d) while lanes of its warp (mask %08x) have returned",
                      name_of(first.meet), first.line, warp.finished);
        fail(first, text);
    }
    for (const Lane* lane : warp.lanes) {
        if (lane->meet == first.meet && lane->line == first.line) continue;
        std::snprintf(text, sizeof text, "divergent: waits at %s (line %d), lane %u of its warp at %s (line %d)",
                      name_of(first.meet), first.line, lane->lane, name_of(lane->meet), lane->line);
        fail(first, text);
    }
    Meet kind = first.meet;
    warp.arrived = 0;
    begin_pass(warp, kAll);
    if (kind == Meet::block_sync) {
        unready(warp);
        ++block.waiting;
        if (block.waiting == block.warps.size()) {
            block.waiting = 0;
            for (Warp& waiting : block.warps) ready_.push_back(&waiting);
        } else if (block.waiting + block.finished == block.warps.size()) {
            fail(first, "waits at block_sync while threads of its block have returned");
        }
        return any_ready();
    }
    hold(kind, warp.lanes);
    return !by_priority && random.next() % 4 == 0 ? any_ready() : &warp;
}

std::string Engine::run(const Launch& launch) {
    if (launch.threads == 0 || launch.threads % 32 != 0 || launch.threads > 1024) {
        return "blocks of " + std::to_string(launch.threads) + " threads: the shim runs whole warps, up to 32";
    }
    launch_ = &launch;
    random = Random(launch.seed);
    n_blocks_ = uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
    begun_ = 0;
    error_[0] = 0;
    ready_.clear();
    if (n_blocks_ == 0) return "an empty grid";
    next_block_ = random.next() % n_blocks_;
    do block_stride_ = 1 + random.next() % n_blocks_;
    while (std::gcd(block_stride_, n_blocks_) != 1);

    by_priority = random.below(3) != 0;
    // Blocks that run at the same time.
    static constexpr uint32_t kAtOnce[8] = {1, 1, 2, 2, 3, 3, 4, 4};
    uint64_t at_once = kAtOnce[random.below(8)];
    if (at_once > n_blocks_) at_once = n_blocks_;
    blocks_.clear();
    blocks_.resize(at_once);
    size_t lanes = 0;
    for (Block& block : blocks_) {
        // As aligned as device code may expect and no better, and no longer: AddressSanitizer sees the end.
        block.shared.reset(static_cast<uint8_t*>(std::malloc(launch.shared_bytes)));
        block.warps.resize(launch.threads / 32);
        for (Warp& warp : block.warps) {
            warp.block = &block;
            for (uint32_t l = 0; l < 32; ++l, ++lanes) {
                Lane* lane = warp.lanes[l] = fibers_.at(lanes, start);
                if (copies_.size() <= lanes) copies_.push_back(std::make_unique<Copies>());
                lane->runtime = &kRuntime;
                lane->engine = this;
                lane->copies = copies_[lanes].get();
                lane->warp = &warp;
                lane->thread = static_cast<uint32_t>(&warp - block.warps.data()) * 32 + l;
                lane->lane = l;
                lane->shared = block.shared.get();
                lane->shared_bytes = launch.shared_bytes;
                std::memcpy(lane->grid, launch.grid, sizeof lane->grid);
            }
        }
        begin_block(block);
    }
    Warp* warp = any_ready();
    Lane* first = warp->lanes[warp->turn % 32];
    warp->todo &= ~bit(*first);
    enter(host_, first);
    if (error_[0]) {
        fibers_.reset(start);
        return std::string(error_) + " [SKC_SHIM_SEED=" + std::to_string(base_seed()) + "]";
    }
    return {};
}

uint64_t base_seed() {
    static const uint64_t seed = [] {
        const char* text = std::getenv("SKC_SHIM_SEED");
        return text ? std::strtoull(text, nullptr, 0) : 1;
    }();
    return seed;
}

std::string run_grid(const Launch& launch) {
    // Engines keep their stacks; there are as many as threads have run grids at the same time.
    static std::mutex mutex;
    static std::vector<std::unique_ptr<Engine>> idle;
    std::unique_ptr<Engine> engine;
    {
        std::lock_guard lock(mutex);
        if (!idle.empty()) {
            engine = std::move(idle.back());
            idle.pop_back();
        }
    }
    if (!engine) engine = std::make_unique<Engine>();
    std::string error = engine->run(launch);
    std::lock_guard lock(mutex);
    idle.push_back(std::move(engine));
    return error;
}

}  // namespace skc_shim

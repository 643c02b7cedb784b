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

// Begins the block at an index of the grid.
void Scheduler::load_block(Block& block, const uint32_t (&index)[3]) {
    std::memcpy(block.index, index, sizeof block.index);
    block.waiting = 0;
    block.returned = 0;
    block.read_by_others = false;
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
}

// Gives `cluster` the next blocks of the grid. False if there are none.
bool Scheduler::load_next_cluster(Cluster& cluster) {
    if (n_loaded_ == n_clusters_) return false;
    ++n_loaded_;
    uint64_t number = next_cluster_;
    next_cluster_ = (next_cluster_ + cluster_stride_) % n_clusters_;
    cluster.waiting = 0;
    cluster.returned = 0;
    cluster.ended = 0;
    cluster.syncs = 0;
    const uint32_t* size = launch_->cluster;
    const uint64_t clusters[2] = {launch_->grid[0] / size[0], launch_->grid[1] / size[1]};
    const uint64_t first[3] = {number % clusters[0] * size[0], number / clusters[0] % clusters[1] * size[1],
                               number / clusters[0] / clusters[1] * size[2]};
    for (uint32_t rank = 0; rank < cluster.blocks.size(); ++rank) {
        const uint32_t index[3] = {static_cast<uint32_t>(first[0]) + rank % size[0],
                                   static_cast<uint32_t>(first[1]) + rank / size[0] % size[1],
                                   static_cast<uint32_t>(first[2]) + rank / size[0] / size[1]};
        load_block(cluster.blocks[rank], index);
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
    Cluster& cluster = *block.cluster;
    ++cluster.returned;
    if (cluster.waiting != 0 && cluster.waiting + cluster.returned == cluster.warps()) {
        fail(*warp.lanes[0], "threads have returned while others wait at cluster_sync");
    }
    if (block.returned == block.warps.size()) end_block(block);
    return pick_ready_warp();
}

// Called when all warps of a block have returned. Its memory is reused when all blocks of its cluster have ended.
void Scheduler::end_block(Block& block) {
    if (block.read_by_others) {
        fail(*block.warps[0].lanes[0], "ends after its shared memory was read by others, without cluster_sync between");
    }
    Cluster& cluster = *block.cluster;
    if (++cluster.ended == cluster.blocks.size()) load_next_cluster(cluster);
}

// Whatever order blocks run in, a cluster_sync must lie between their beginning and the first load from another, and
// between the last load and their end.
const void* Scheduler::cluster_memory(const DeviceThread& at, uint32_t rank, uint32_t offset, uint32_t bytes) {
    Block& own = *at.warp->block;
    Cluster& cluster = *own.cluster;
    if (rank >= cluster.blocks.size()) fail(at, "a load from a block that the cluster has not");
    if (offset % bytes != 0) fail(at, "a load from a cluster's shared memory is not aligned to its bytes");
    if (offset + uint64_t{bytes} > launch_->shared_bytes) fail(at, "a load from outside a block's shared memory");
    Block& block = cluster.blocks[rank];
    if (&block != &own) {
        if (cluster.syncs == 0) fail(at, "a load from another block's shared memory before any cluster_sync");
        if (block.returned == block.warps.size()) fail(at, "a load from the shared memory of a block that has ended");
        block.read_by_others = true;
    }
    return block.shared.get() + offset;
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

// A warp has come to cluster_sync: the last one lets all of them go on.
void Scheduler::wait_for_cluster(const Warp& warp) {
    Cluster& cluster = *warp.block->cluster;
    ++cluster.waiting;
    if (cluster.waiting == cluster.warps()) {
        cluster.waiting = 0;
        ++cluster.syncs;
        for (Block& block : cluster.blocks) {
            block.read_by_others = false;
            for (Warp& waiting : block.warps) ready_.push_back(&waiting);
        }
    } else if (cluster.waiting + cluster.returned == cluster.warps()) {
        fail(*warp.lanes[0], "waits at cluster_sync while threads of its cluster have returned");
    }
}

// Executes the SyncOp that the lanes of a warp wait at; block_sync and cluster_sync wait for the other warps first.
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
    if (op == SyncOp::cluster_sync) {
        remove_ready(warp);
        wait_for_cluster(warp);
        return pick_ready_warp();
    }
    execute(op, warp.lanes);
    return !by_priority_ && random.next() % 4 == 0 ? pick_ready_warp() : &warp;
}

// Draws the order of clusters. Returns an error message for a launch that cannot run.
std::string Scheduler::prepare(const Launch& launch) {
    if (launch.threads == 0 || launch.threads % 32 != 0 || launch.threads > 1024) {
        return "blocks of " + std::to_string(launch.threads) + " threads: the shim runs whole warps, up to 32";
    }
    launch_ = &launch;
    random = Random(launch.seed);
    uint64_t n_blocks = uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
    uint64_t cluster_size = uint64_t{launch.cluster[0]} * launch.cluster[1] * launch.cluster[2];
    n_loaded_ = 0;
    error_[0] = 0;
    ready_.clear();
    if (n_blocks == 0) return "an empty grid";
    n_clusters_ = n_blocks / cluster_size;
    next_cluster_ = random.next() % n_clusters_;
    do {
        cluster_stride_ = 1 + random.next() % n_clusters_;
    } while (std::gcd(cluster_stride_, n_clusters_) != 1);
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
        thread->cluster_size = static_cast<uint32_t>(block.cluster->blocks.size());
        std::memcpy(thread->grid, launch_->grid, sizeof thread->grid);
    }
}

std::string Scheduler::run(const Launch& launch) {
    std::string error = prepare(launch);
    if (!error.empty()) return error;
    // Blocks that run at the same time; at least a cluster's.
    static constexpr uint32_t kConcurrent[8] = {1, 1, 2, 2, 3, 3, 4, 4};
    uint32_t cluster_size = launch.cluster[0] * launch.cluster[1] * launch.cluster[2];
    uint64_t concurrent = (kConcurrent[random.below(8)] + cluster_size - 1) / cluster_size;
    clusters_.clear();
    clusters_.resize(std::min(concurrent, n_clusters_));
    size_t first_thread = 0;
    for (Cluster& cluster : clusters_) {
        cluster.blocks.resize(cluster_size);
        for (Block& block : cluster.blocks) {
            block.cluster = &cluster;
            create_block(block, first_thread);
            first_thread += launch.threads;
        }
        load_next_cluster(cluster);
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

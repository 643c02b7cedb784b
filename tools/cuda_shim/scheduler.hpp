// In which order the threads of a grid run.
//
// A few blocks run at a time, in random order; those of a cluster together, from the first to the last. Each thread is
// a fiber. A warp runs in passes: its lanes one after another in random order, each up to its next SyncOp. When all
// have arrived there, it is executed and the next pass begins. The warp that runs next is drawn at random, or, in most
// launches, has the highest of priorities drawn at the start, so that some warps fall far behind.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "async_copy.hpp"
#include "fiber.hpp"
#include "grid.hpp"
#include "random.hpp"

namespace skc_shim {

struct Block;

struct Warp {
    Block* block = nullptr;
    DeviceThread* lanes[32] = {};
    // Sets of lanes, one bit each.
    uint32_t to_run = 0;    // in this pass
    uint32_t arrived = 0;   // at a SyncOp
    uint32_t yielded = 0;   // to run on before the others' SyncOp is executed
    uint32_t returned = 0;  // from the kernel
    // The order of a pass: next, next + stride, ... modulo 32.
    uint32_t next = 0;
    uint32_t stride = 1;
    uint32_t priority = 0;
};

struct Cluster;

struct Block {
    Cluster* cluster = nullptr;
    std::vector<Warp> warps;
    std::unique_ptr<uint8_t, void (*)(void*)> shared{nullptr, std::free};
    uint32_t index[3] = {};
    uint32_t waiting = 0;   // warps at block_sync
    uint32_t returned = 0;  // warps
    bool read_by_others = false;  // its shared memory, since the last cluster_sync
};

// Blocks that read each other's shared memory: one in a launch without clusters.
struct Cluster {
    std::vector<Block> blocks;  // by rank
    uint32_t waiting = 0;       // warps at cluster_sync
    uint32_t returned = 0;      // warps
    uint32_t ended = 0;         // blocks
    uint32_t syncs = 0;         // that all of it has passed

    size_t warps() const { return blocks.size() * blocks[0].warps.size(); }
};

class Scheduler {
public:
    // Runs a grid to its end. Returns the empty string, or an error message.
    std::string run(const Launch& launch);

    // Called by a thread that has recorded in its warp why it cannot go on. Returns when it can.
    void suspend(DeviceThread* self);
    // `bytes` bytes at an offset in the shared memory of block `rank` of the thread's cluster.
    const void* cluster_memory(const DeviceThread& at, uint32_t rank, uint32_t offset, uint32_t bytes);
    // Ends the launch with an error at this thread.
    [[noreturn]] void fail(const DeviceThread& at, const char* reason);

    Random random{1};

private:
    [[noreturn]] static void thread_main();
    std::string prepare(const Launch& launch);
    void create_block(Block& block, size_t first_thread);
    void load_block(Block& block, const uint32_t (&index)[3]);
    bool load_next_cluster(Cluster& cluster);
    void end_block(Block& block);
    void begin_pass(Warp& warp, uint32_t lanes);
    Warp* end_pass(Warp& warp);
    Warp* complete_sync(Warp& warp);
    void wait_for_cluster(const Warp& warp);
    void check_convergence(const Warp& warp);
    Warp* pick_ready_warp();
    void remove_ready(const Warp& warp);

    const Launch* launch_ = nullptr;
    Fibers fibers_;
    std::vector<std::unique_ptr<AsyncCopies>> copies_;
    std::vector<Cluster> clusters_;
    std::vector<Warp*> ready_;
    bool by_priority_ = false;
    // Clusters are taken in the order next, next + stride, ... modulo their number.
    uint64_t n_clusters_ = 0;
    uint64_t n_loaded_ = 0;
    uint64_t next_cluster_ = 0;
    uint64_t cluster_stride_ = 1;
    HostStack host_;
    char error_[512] = {};
};

inline uint32_t lane_bit(const DeviceThread& thread) { return 1u << thread.lane; }

}  // namespace skc_shim

// State of a launch, its blocks and their warps.
#pragma once

#include <string>
#include <unordered_map>

#include "module.hpp"

namespace ptx {

// SKC_PTX_RACE, SKC_PTX_SCHEDULE ...: see README.md.
struct Options {
    int race = 1;      // 1: a race fails the launch, 2: it is reported only, 0: races are not looked for
    int schedule = 1;  // 0: lowest pc first, 1: random among diverged lanes, 2: warps are split at random too
    int mma = 0;       // 0: sums are exact and rounded once, 1: cut off in blocks of 8
    int approx = 0;    // 0: ex2, rcp and lg2 are correctly rounded, 1: off by up to 2 ulp
    std::string out;   // folder of statistics and reports
    static const Options& get() { return options; }
    static const Options options;
};

// An allocation, and its cells for the race detector.
struct Range {
    uintptr_t begin, end;
    void* shadow;
};

// Thrown where a launch goes wrong.
struct Error {
    std::string text;
};

// ---- Happens-before: see race.cpp

// What a thread, or all threads of a block, know of other blocks.
struct Knowledge {
    std::unordered_map<u32, u32> blocks;   // accesses of a block before this epoch are known
    std::unordered_map<u64, u32> warps;    // (block << 16 | warp): accesses of a warp before this bar.warp.sync of it
    std::unordered_map<u64, u32> threads;  // (block << 16 | thread): that thread's own accesses up to this number
    void merge(const Knowledge& other);
};

// The cells of memory: what is known of the last accesses to so many bytes as Kernel::cell_bytes.

// Of shared memory. Epochs are those of the block and of the warp.
struct SharedCell {
    u32 w_epoch = 0, w_warp_epoch = 0, r_epoch = 0, r_warps = 0, r_warp_epoch = 0, r_lanes = 0;
    u32 w_pc = 0, r_pc = 0;
    u16 w_thread = 0;
    u16 pending = 0;  // a cp.async is on its way
    u32 other_phase = 0, other_pc = 0;  // of the last read by another block
};

struct WriteRecord {
    u32 block, epoch, warp_epoch, own, pc;
    u16 thread;
    bool atomic;
};

// Of one block.
struct ReadRecord {
    u32 block, epoch, warp_epoch, warps, lanes, own, pc;
    u16 thread;  // the last one
    bool atomic;
};

// Of device memory. It begins as zeros, and what an earlier launch has left does not count.
struct GlobalCell {
    u32 launch;
    bool written, read;
    u32 others;  // reads of other blocks: index in Launch::readers, plus one
    WriteRecord w;
    ReadRecord r;
};

struct Launch;
struct Block;

// Lanes of a warp that are at the same instruction.
struct Group {
    u32 pc;
    u32 mask;
    bool waiting;  // for other lanes, at a collective
};

// A cp.async of a warp.
struct Copy {
    u32 mask;
    u32 group[32];
    u32 to[32];
    const u8* from[32];
    u8 bytes[32];  // read; the rest of `size` is zeros
    u8 size;
    bool early;  // data was read when it was issued
    u8 data[32][16];
    u32 pc;
};

struct Warp {
    Block* block = nullptr;
    Launch* launch = nullptr;
    u32 index = 0;
    std::vector<u8> storage;
    u8* r = nullptr;     // registers: 32 lanes of each
    std::vector<u32> p;  // predicates: a bit per lane
    std::vector<Group> groups;
    u32 live = 0;
    bool at_barrier = false;
    bool arrived = false;     // at a barrier of the cluster ...
    bool at_cluster = false;  // ... and waits there
    u32 epoch = 1;   // of bar.warp.sync
    u32 pc = 0;      // of the instruction that runs
    u32 waited = 0;  // lanes that have executed griddepcontrol.wait
    std::vector<Copy> copies;
    u32 committed[32] = {};
    u64 executed = 0, lanes_executed = 0;
    size_t range = 0;  // last allocation hit

    template <class T>
    T* reg(u32 at) {
        return reinterpret_cast<T*>(r + at);
    }
    u32 tid(u32 lane) const { return index * 32 + lane; }
    [[noreturn]] void fail(const std::string& what) const;
    u8* global(u64 address, u32 bytes, u32 lane);
    u8* shared(u64 address, u32 bytes, u32 lane);
    // An address that mapa has made, or one of the own window. The block whose memory it is, and the place in it.
    u8* cluster_shared(u64 address, u32 bytes, u32 lane, Block*& of);
};

// Blocks that run at the same time: one in a launch without clusters.
struct Cluster {
    std::vector<Block*> blocks;  // by rank
    u32 ended = 0;
};

struct Block {
    Launch* launch = nullptr;
    u32 id = 0;
    u32 coordinate[3] = {};
    std::shared_ptr<Cluster> cluster;
    u32 rank = 0;  // in the cluster
    bool ended = false;
    std::vector<u8> memory;  // shared
    std::vector<std::unique_ptr<Warp>> warps;
    std::vector<SharedCell> cells;
    u32 epoch = 1, first_epoch = 1;  // of bar.sync
    u32 cluster_epoch = 1;           // the epoch that began with the last barrier of the cluster
    u32 phase = 1;                   // of barriers of the cluster
    u32 other_phase = 0, other_pc = 0;  // of the last read of its shared memory by another block
    Knowledge known;
    std::unordered_map<u32, Knowledge> acquired;  // by thread, since the last barrier
    std::unordered_map<u32, u32> own;             // by thread: releases so far
    // By thread: what its relaxed stores publish since its last fence, and what its next fence acquires.
    std::unordered_map<u32, Knowledge> fenced, relaxed;
};

struct Launch {
    const Module* module = nullptr;
    Kernel* kernel = nullptr;
    const u8* params = nullptr;
    u32 grid[3] = {};
    u32 cluster[3] = {1, 1, 1};  // blocks of a cluster: they divide the grid
    u32 threads = 0;
    u32 shared_bytes = 0;
    bool programmatic = false;
    u64 random = 1;
    u32 serial = 0;
    std::vector<Range> ranges;
    std::string race;                              // the first that was found
    std::unordered_map<u64, Knowledge> locations;  // what releases at an address have published
    std::vector<std::vector<ReadRecord>> readers;  // of cells that several blocks read
    void start(u64 seed) {
        random = seed | 1;
        for (int i = 0; i < 8; ++i) below(2);
    }
    u32 below(u32 n) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return static_cast<u32>((random >> 16) % n);
    }
};

// ---- race.cpp
void shared_access(Warp& w, u32 address, u32 bytes, u32 lane, bool write, bool collective = false);
// A read of another block's shared memory.
void other_shared_read(Warp& w, Block& of, u32 address, u32 bytes, u32 lane);
void shared_pending(Warp& w, u32 address, u32 bytes, u32 lane, bool begin);
void global_access(Warp& w, const u8* address, u32 bytes, u32 lane, bool write, bool atomic = false);
void release_at(Warp& w, u64 address, u32 lane);
void acquire_at(Warp& w, u64 address, u32 lane);
// What relaxed accesses and fences do together.
void store_relaxed(Warp& w, u64 address, u32 lane);
void load_relaxed(Warp& w, u64 address, u32 lane);
void fence(Warp& w, u32 lane);
void warp_barrier_passed(Warp& w);
void barrier_passed(Block& b);
void cluster_barrier_passed(Cluster& c);
void block_ended(Block& b);
void report(Warp& w, const std::string& kind, u32 pc, u32 other_pc, const std::string& detail);
std::string where(const Launch& l, u32 pc);

// ---- grid.cpp: runs a launch; the empty string, or what went wrong.
std::string run(Launch& launch);

}  // namespace ptx

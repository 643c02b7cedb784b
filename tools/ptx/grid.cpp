// Runs the blocks of a launch: several at once, their warps in random order, diverged lanes in random order until they
// meet.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "warp.hpp"

namespace ptx {

const Options Options::options = [] {
    Options o;
    auto number = [](const char* name, u64 other) {
        const char* text = std::getenv(name);
        return text && *text ? std::strtoull(text, nullptr, 10) : other;
    };
    o.race = static_cast<int>(number("SKC_PTX_RACE", 1));
    o.mma = static_cast<int>(number("SKC_PTX_MMA", 0));
    o.approx = static_cast<int>(number("SKC_PTX_APPROX", 0));
    o.schedule = static_cast<int>(number("SKC_PTX_SCHEDULE", 1));
    if (const char* out = std::getenv("SKC_PTX_OUT")) o.out = out;
    return o;
}();

void Warp::fail(const std::string& what) const {
    throw Error{what + " at " + where(*launch, pc) + ", block " + std::to_string(block->id) + " (" +
                std::to_string(block->coordinate[0]) + "," + std::to_string(block->coordinate[1]) + "," +
                std::to_string(block->coordinate[2]) + ") warp " + std::to_string(index)};
}

u8* Warp::global(u64 address, u32 bytes, u32 lane) {
    if (arrived) fail("an access between arrival at a barrier of the cluster and its wait is not done");
    auto& ranges = launch->ranges;
    if (range < ranges.size() && address >= ranges[range].begin && address + bytes <= ranges[range].end)
        return reinterpret_cast<u8*>(address);
    auto it =
        std::upper_bound(ranges.begin(), ranges.end(), address, [](u64 a, const Range& r) { return a < r.begin; });
    if (it != ranges.begin()) {
        --it;
        if (address >= it->begin && address + bytes <= it->end) {
            range = static_cast<size_t>(it - ranges.begin());
            return reinterpret_cast<u8*>(address);
        }
    }
    char text[120];
    std::snprintf(text, sizeof text, "global access of %u bytes at 0x%llx by thread %u is in no allocation", bytes,
                  static_cast<unsigned long long>(address), tid(lane));
    fail(text);
}

u8* Warp::shared(u64 address, u32 bytes, u32 lane) {
    if (arrived) fail("an access between arrival at a barrier of the cluster and its wait is not done");
    if (address < kSharedBase || address + bytes > kSharedBase + u64{launch->shared_bytes}) {
        char text[120];
        std::snprintf(text, sizeof text, "shared access of %u bytes at offset %lld of %u by thread %u", bytes,
                      static_cast<long long>(address) - kSharedBase, launch->shared_bytes, tid(lane));
        fail(text);
    }
    if (address % bytes != 0)
        fail("misaligned shared access of " + std::to_string(bytes) + " bytes by thread " + std::to_string(tid(lane)));
    return block->memory.data() + (address - kSharedBase);
}

u8* Warp::cluster_shared(u64 address, u32 bytes, u32 lane, Block*& of) {
    u64 rank = address >> kRankShift;
    if (rank > block->cluster->blocks.size()) fail("an address of no block of the cluster");
    of = rank ? block->cluster->blocks[rank - 1] : block;
    u8* own = shared(address & ((1u << kRankShift) - 1), bytes, lane);
    if (of->ended) fail("shared memory of a block that has ended, read by thread " + std::to_string(tid(lane)));
    return of->memory.data() + (own - block->memory.data());
}

namespace {

void merge(Warp& w) {
    auto& g = w.groups;
    for (size_t i = 0; i < g.size(); ++i) {
        for (size_t j = i + 1; j < g.size();) {
            if (g[i].pc == g[j].pc) {
                g[i].mask |= g[j].mask;
                g[i].waiting = false;
                g[j] = g.back();
                g.pop_back();
            } else {
                ++j;
            }
        }
    }
}

// The group of lanes that goes on; -1: all wait.
int choose(Warp& w) {
    int lowest = -1;
    u32 n = 0;
    for (size_t k = 0; k < w.groups.size(); ++k) {
        if (w.groups[k].waiting) continue;
        ++n;
        if (lowest < 0 || w.groups[k].pc < w.groups[static_cast<size_t>(lowest)].pc) lowest = static_cast<int>(k);
    }
    int schedule = Options::get().schedule;
    if (n < 2 || schedule == 0 || (schedule == 1 && w.launch->below(2))) return lowest;
    u32 pick = w.launch->below(n);
    for (size_t k = 0; k < w.groups.size(); ++k) {
        if (!w.groups[k].waiting && pick-- == 0) return static_cast<int>(k);
    }
    return lowest;
}

void stuck(Warp& w) {
    std::string text = "lanes wait at different places for ever:";
    for (const Group& g : w.groups) {
        char mask[20];
        std::snprintf(mask, sizeof mask, " %08x at ", g.mask);
        text += mask + where(*w.launch, g.pc);
    }
    w.fail(text);
}

void run_group(Warp& w, size_t k, int& budget) {
    const Instruction* code = w.launch->kernel->code.data();
    // Lanes need not run together: some may go ahead.
    if (Options::get().schedule == 2 && w.launch->below(12) == 0) {
        u32 some = w.groups[k].mask & static_cast<u32>(w.launch->random >> 7);
        if (some && some != w.groups[k].mask) {
            Group rest = w.groups[k];
            rest.mask &= ~some;
            w.groups[k].mask = some;
            w.groups.push_back(rest);
        }
    }
    u32 pc = w.groups[k].pc, mask = w.groups[k].mask;
    for (;;) {
        const Instruction& i = code[pc];
        u32 m = mask;
        if (i.guard >= 0) m &= i.negated ? ~w.p[static_cast<u32>(i.guard)] : w.p[static_cast<u32>(i.guard)];
        w.pc = pc;
        ++i.hits;
        ++w.executed;
        w.lanes_executed += static_cast<u32>(__builtin_popcount(m));
        switch (i.flow) {
            case Flow::plain:
                if (m) i.run(w, i, m);
                ++pc;
                break;
            case Flow::branch:
                if (m == mask) {
                    pc = i.target;
                } else if (m == 0) {
                    ++pc;
                } else {
                    w.groups[k] = {pc + 1, mask & ~m, false};
                    w.groups.push_back({i.target, m, false});
                    merge(w);
                    --budget;
                    return;
                }
                break;
            case Flow::exit:
                w.live &= ~m;
                for (Group& g : w.groups) g.waiting = false;
                if (m == mask) {
                    w.groups.erase(w.groups.begin() + static_cast<long>(k));
                    return;
                }
                mask &= ~m;
                ++pc;
                break;
            case Flow::collective: {
                u32 needed = ~0u;
                if (i.has_member_mask) {
                    const u32* masks = w.reg<u32>(i.operands[kMemberMask]);
                    needed = masks[__builtin_ctz(mask)];
                    for (u32 l = 0; l < 32; ++l) {
                        if (mask >> l & 1 && masks[l] != needed) w.fail("lanes give different member masks");
                    }
                }
                if (m != mask) w.fail("a collective under a guard that lanes do not share");
                if (needed & ~w.live) w.fail("the member mask of a collective has lanes that have ended");
                if (mask & ~needed) w.fail("a lane outside the member mask executes a collective");
                if ((mask & needed) != needed) {
                    w.groups[k] = {pc, mask, true};
                    merge(w);
                    return;
                }
                i.run(w, i, m);
                ++pc;
                break;
            }
            case Flow::cta_barrier:
                if (m != mask) w.fail("bar.sync under a guard that lanes do not share");
                if (mask != w.live) {
                    w.groups[k] = {pc, mask, true};
                    merge(w);
                    return;
                }
                w.groups[k] = {pc + 1, mask, false};
                w.at_barrier = true;
                return;
            case Flow::cluster_arrive:
            case Flow::cluster_wait:
                if (m != mask) w.fail("barrier.cluster under a guard that lanes do not share");
                if (mask != w.live) {
                    w.groups[k] = {pc, mask, true};
                    merge(w);
                    return;
                }
                ++pc;
                if (w.arrived == (i.flow == Flow::cluster_arrive)) w.fail("arrivals and waits do not alternate");
                if (i.flow == Flow::cluster_arrive) {
                    w.arrived = true;
                    break;
                }
                w.groups[k] = {pc, mask, false};
                w.at_cluster = true;
                return;
        }
        if (code[pc].leader) {
            --budget;
            if (w.groups.size() > 1 || budget <= 0 || Options::get().schedule == 2) {
                w.groups[k] = {pc, mask, false};
                if (w.groups.size() > 1) merge(w);
                return;
            }
        }
    }
}

void run_warp(Warp& w, int budget) {
    while (budget > 0 && !w.groups.empty() && !w.at_barrier && !w.at_cluster) {
        int k = choose(w);
        if (k < 0) stuck(w);
        run_group(w, static_cast<size_t>(k), budget);
    }
}

void begin(Block& b, Launch& l, u32 id, u32 slot) {
    const Kernel& kernel = *l.kernel;
    b.launch = &l;
    b.id = id;
    b.ended = false;
    b.coordinate[0] = id % l.grid[0];
    b.coordinate[1] = id / l.grid[0] % l.grid[1];
    b.coordinate[2] = id / l.grid[0] / l.grid[1];
    b.memory.resize(l.shared_bytes + 16);
    std::memset(b.memory.data(), slot % 2 ? 0xFF : 0x5A, b.memory.size());
    b.first_epoch = b.cluster_epoch = ++b.epoch;
    ++b.phase;
    if (Options::get().race && b.cells.size() < b.memory.size()) b.cells.resize(b.memory.size());
    for (SharedCell& c : b.cells) c.pending = 0;
    b.known = {};
    b.acquired.clear();
    b.own.clear();
    b.fenced.clear();
    b.relaxed.clear();
    b.warps.resize(l.threads / 32);
    for (u32 i = 0; i < b.warps.size(); ++i) {
        if (!b.warps[i]) b.warps[i] = std::make_unique<Warp>();
        Warp& w = *b.warps[i];
        w.block = &b;
        w.launch = &l;
        w.index = i;
        if (w.storage.size() < kernel.register_bytes + 64) w.storage.resize(kernel.register_bytes + 64);
        w.r = w.storage.data() + (64 - reinterpret_cast<uintptr_t>(w.storage.data()) % 64) % 64;
        w.p.assign(kernel.n_predicates + 1, l.below(2) ? ~0u : 0);
        for (const Constant& c : kernel.constants) {
            for (u32 lane = 0; lane < 32; ++lane) {
                if (c.bytes == 2) w.reg<u16>(c.at)[lane] = static_cast<u16>(c.value);
                if (c.bytes == 4) w.reg<u32>(c.at)[lane] = static_cast<u32>(c.value);
                if (c.bytes == 8) w.reg<u64>(c.at)[lane] = c.value;
            }
        }
        w.groups = {{0, ~0u, false}};
        w.live = ~0u;
        w.at_barrier = w.at_cluster = w.arrived = false;
        w.waited = 0;
        ++w.epoch;
        w.copies.clear();
        std::fill(w.committed, w.committed + 32, 0);
        w.executed = w.lanes_executed = 0;
        w.range = 0;
    }
}

// Lets the blocks of a cluster go on when all that have not ended wait at its barrier.
void pass_cluster_barrier(Cluster& c) {
    for (Block* b : c.blocks) {
        for (auto& w : b->warps) {
            if (!w->groups.empty() && !w->at_cluster) return;
        }
    }
    for (Block* b : c.blocks) {
        for (auto& w : b->warps) {
            // The ISA lets threads end; here it is a mistake.
            if (w->live != ~0u) report(*w, "barrier.cluster after threads of the cluster have ended", w->pc, w->pc, "");
            w->at_cluster = w->arrived = false;
        }
    }
    cluster_barrier_passed(c);
}

// Whether the block has ended.
bool advance(Block& b, Launch& l) {
    u32 n = 0, alive = 0, at_cluster = 0;
    for (auto& w : b.warps) {
        alive += !w->groups.empty();
        n += !w->groups.empty() && !w->at_barrier && !w->at_cluster;
        at_cluster += w->at_cluster;
    }
    if (alive == 0) {
        for (auto& w : b.warps) {
            if (!w->copies.empty())
                report(*w, "the thread ended with a cp.async on its way", w->copies[0].pc, w->copies[0].pc, "");
        }
        block_ended(b);
        return true;
    }
    if (n == 0 && at_cluster != 0) {
        if (at_cluster != alive) b.warps[0]->fail("warps wait at bar.sync and at barrier.cluster for ever");
        pass_cluster_barrier(*b.cluster);
        return false;
    }
    if (n == 0) {
        for (auto& w : b.warps) {
            if (w->live != ~0u) report(*b.warps[0], "bar.sync after threads of the block have ended", w->pc, w->pc, "");
            w->at_barrier = false;
        }
        barrier_passed(b);
        return false;
    }
    u32 pick = l.below(n);
    for (auto& w : b.warps) {
        if (!w->groups.empty() && !w->at_barrier && !w->at_cluster && pick-- == 0) {
            run_warp(*w, static_cast<int>(1 + l.below(l.below(4) ? 24 : 400)));
            break;
        }
    }
    return false;
}

}  // namespace

std::string run(Launch& l) {
    thread_local std::vector<std::unique_ptr<Block>> pool;
    const u32* size = l.cluster;
    const u32 blocks = size[0] * size[1] * size[2];
    const u32 columns = l.grid[0] / size[0], rows = l.grid[1] / size[1];
    u64 total = u64{columns} * rows * (l.grid[2] / size[2]);
    u32 most = std::max(l.below(3) == 0 ? 1 : 2 + l.below(5), blocks);
    u64 next = 0;
    std::vector<Block*> resident;
    std::vector<Block*> idle;
    while (pool.size() < most) pool.push_back(std::make_unique<Block>());
    for (auto& b : pool) idle.push_back(b.get());
    // Clusters begin in any order: a stride that visits all.
    u64 stride = 1 + l.below(static_cast<u32>(std::min<u64>(total, 1000)));
    while (std::__gcd(stride, total) != 1) ++stride;
    u64 at = l.below(static_cast<u32>(std::min<u64>(total, 1u << 30)));
    ++l.kernel->launches;
    try {
        while (next < total || !resident.empty()) {
            while (next < total && resident.size() + blocks <= most && idle.size() >= blocks) {
                auto cluster = std::make_shared<Cluster>();
                u64 x = at % columns * size[0], y = at / columns % rows * size[1], z = at / columns / rows * size[2];
                for (u32 rank = 0; rank < blocks; ++rank) {
                    u64 id = x + rank % size[0] +
                             l.grid[0] * (y + rank / size[0] % size[1] + l.grid[1] * (z + rank / size[0] / size[1]));
                    Block* b = idle.back();
                    idle.pop_back();
                    cluster->blocks.push_back(b);
                    begin(*b, l, static_cast<u32>(id), static_cast<u32>(l.below(2)));
                    b->cluster = cluster;
                    b->rank = rank;
                    resident.push_back(b);
                }
                at = (at + stride) % total;
                ++next;
            }
            u32 k = l.below(static_cast<u32>(resident.size()));
            if (advance(*resident[k], l)) {
                for (auto& w : resident[k]->warps) {
                    l.kernel->warp_instructions += w->executed;
                    l.kernel->lane_instructions += w->lanes_executed;
                }
                Block& ended = *resident[k];
                ended.ended = true;
                resident[k] = resident.back();
                resident.pop_back();
                // A block's memory is not used again while others of its cluster may read it.
                if (++ended.cluster->ended == blocks) {
                    for (Block* b : ended.cluster->blocks) idle.push_back(b);
                }
            }
        }
    } catch (const Error& e) {
        return e.text;
    }
    return Options::get().race == 1 ? l.race : "";
}

}  // namespace ptx

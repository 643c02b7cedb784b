// Happens-before, per access. Within a block: bar.sync orders all of it, bar.warp.sync the lanes of a warp, program
// order a thread; nothing else does (shfl, vote, ldmatrix and mma order no memory). Within a cluster: barrier.cluster
// orders all of its blocks. Between blocks: release and acquire of atomics, with what those barriers order before the
// one and after the other. A cp.async writes at some time between its issue and its thread's wait: until then its
// target belongs to nobody.

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <set>

#include "warp.hpp"

namespace ptx {

void Knowledge::merge(const Knowledge& other) {
    for (const auto& [block, epoch] : other.blocks) blocks[block] = std::max(blocks[block], epoch);
    for (const auto& [warp, epoch] : other.warps) warps[warp] = std::max(warps[warp], epoch);
    for (const auto& [thread, own] : other.threads) threads[thread] = std::max(threads[thread], own);
}

std::string where(const Launch& l, u32 pc) {
    const Instruction& i = l.kernel->code[pc];
    auto f = l.module->files.find(i.file);
    std::string file = f == l.module->files.end() ? "?" : f->second;
    return file + ":" + std::to_string(i.file_line) + " [ptx " + std::to_string(i.line) + ": " + i.text + "]";
}

void report(Warp& w, const std::string& kind, u32 pc, u32 other_pc, const std::string& detail) {
    static std::mutex mutex;
    static std::set<std::string> seen;
    const Launch& l = *w.launch;
    std::string key = l.kernel->label + " " + l.kernel->name + ": " + kind + "\n    now:    " + where(l, pc) +
                      "\n    before: " + where(l, other_pc);
    if (w.launch->race.empty()) w.launch->race = "RACE " + key;
    std::lock_guard<std::mutex> lock(mutex);
    if (!seen.insert(key).second || seen.size() > 500) return;
    std::string text = "RACE " + key + "\n    " + detail + "\n";
    std::fputs(text.c_str(), stderr);
    if (!Options::get().out.empty()) {
        if (FILE* f = std::fopen((Options::get().out + "/races.txt").c_str(), "a")) {
            std::fputs(text.c_str(), f);
            std::fclose(f);
        }
    }
}

namespace {

std::string detail_of(const Warp& w, u32 lane, u32 other_block, u32 other_thread, u64 address) {
    char text[200];
    std::snprintf(text, sizeof text, "block %u thread %u at 0x%llx; before: block %u thread %u; launch %u", w.block->id,
                  w.tid(lane), static_cast<unsigned long long>(address), other_block, other_thread, w.launch->serial);
    return text;
}

}  // namespace

void shared_access(Warp& w, u32 at, u32 bytes, u32 lane, bool write, bool collective) {
    Block& b = *w.block;
    u32 thread = w.tid(lane), warp_bit = 1u << w.index;
    const u32 cell = w.launch->kernel->cell_bytes;
    for (u32 c = at / cell; c <= (at + bytes - 1) / cell; ++c) {
        SharedCell& s = b.cells[c];
        if (s.pending) {
            report(w,
                   write ? "shared written while a cp.async to it is on its way"
                         : "shared read while a cp.async to it is on its way",
                   w.pc, s.w_pc, detail_of(w, lane, b.id, s.w_thread, c * cell));
        }
        bool written = s.w_epoch >= b.first_epoch;
        if (!write && !written) {
            report(w, "shared read before anything was written", w.pc, w.pc, detail_of(w, lane, b.id, 0, c * cell));
        }
        if (written && s.w_epoch == b.epoch && (s.w_thread != thread || (collective && !write))) {
            bool ordered = s.w_thread / 32 == w.index && s.w_warp_epoch < w.epoch;
            if (!ordered) {
                report(w, write ? "shared write after write" : "shared read after write", w.pc, s.w_pc,
                       detail_of(w, lane, b.id, s.w_thread, c * cell));
            }
        }
        if (write) {
            if (s.other_phase == b.phase) {
                report(w, "shared write after read by another block of the cluster", w.pc, s.other_pc,
                       detail_of(w, lane, b.id, s.w_thread, c * cell));
            }
            if (s.r_epoch == b.epoch) {
                bool others = (s.r_warps & ~warp_bit) != 0;
                bool mates = (s.r_warps & warp_bit) && s.r_warp_epoch == w.epoch && (s.r_lanes & ~(1u << lane)) != 0;
                if (others || mates) {
                    report(w, "shared write after read", w.pc, s.r_pc,
                           detail_of(w, lane, b.id, others ? 999 : w.index * 32, c * cell));
                }
            }
            s.w_epoch = b.epoch;
            s.w_warp_epoch = w.epoch;
            s.w_thread = static_cast<u16>(thread);
            s.w_pc = w.pc;
        } else {
            u32 lanes = collective ? ~0u : 1u << lane;
            if (s.r_epoch != b.epoch) {
                s.r_epoch = b.epoch;
                s.r_warps = 0;
                s.r_warp_epoch = 0;
            }
            s.r_warps |= warp_bit;
            if (s.r_warp_epoch != w.epoch) s.r_lanes = 0;
            s.r_warp_epoch = w.epoch;
            s.r_lanes |= lanes;
            s.r_pc = w.pc;
        }
    }
}

void other_shared_read(Warp& w, Block& of, u32 at, u32 bytes, u32 lane) {
    const u32 cell = w.launch->kernel->cell_bytes;
    for (u32 c = at / cell; c <= (at + bytes - 1) / cell; ++c) {
        SharedCell& s = of.cells[c];
        bool written = s.w_epoch >= of.first_epoch;
        const char* wrong = s.pending ? "shared memory of another block read while a cp.async to it is on its way"
                            : !written ? "shared memory of another block read before anything was written"
                            : s.w_epoch >= of.cluster_epoch ? "shared read after write by another block of the cluster"
                                                            : nullptr;
        if (wrong) report(w, wrong, w.pc, written ? s.w_pc : w.pc, detail_of(w, lane, of.id, s.w_thread, c * cell));
        s.other_phase = of.phase;
        s.other_pc = w.pc;
    }
    of.other_phase = of.phase;
    of.other_pc = w.pc;
}

void shared_pending(Warp& w, u32 at, u32 bytes, u32 lane, bool begin) {
    if (begin) shared_access(w, at, bytes, lane, true);
    Block& b = *w.block;
    const u32 cell = w.launch->kernel->cell_bytes;
    for (u32 c = at / cell; c <= (at + bytes - 1) / cell; ++c) {
        SharedCell& s = b.cells[c];
        s.pending = begin;
        s.w_epoch = b.epoch;
        s.w_warp_epoch = w.epoch;
        s.w_thread = static_cast<u16>(w.tid(lane));
        if (begin) s.w_pc = w.pc;
    }
}

namespace {

// An access of one lane to device memory.
struct GlobalAccess {
    Warp& w;
    u32 lane;
    u32 thread;
    u32 own;  // releases of the thread so far
    bool atomic;
};

// Whether a thread knows what another block has done. `one_warp`: by one warp, whose barriers tell too; `single`: by
// one thread, whose own releases do.
struct Told {
    u32 block, epoch, warp_epoch, thread, own;
    bool one_warp, single;

    bool by(const Knowledge& k) const {
        auto b = k.blocks.find(block);
        if (b != k.blocks.end() && b->second > epoch) return true;
        auto w = k.warps.find(u64{block} << 16 | thread / 32);
        if (one_warp && w != k.warps.end() && w->second > warp_epoch) return true;
        if (!single) return false;
        auto t = k.threads.find(u64{block} << 16 | thread);
        return t != k.threads.end() && t->second >= own;
    }
    bool to(const GlobalAccess& a) const {
        const Block& b = *a.w.block;
        if (by(b.known)) return true;
        if (b.acquired.empty()) return false;
        auto acquired = b.acquired.find(a.thread);
        return acquired != b.acquired.end() && by(acquired->second);
    }
};

bool one_bit(u32 x) { return (x & (x - 1)) == 0; }

bool is_before(const WriteRecord& r, const GlobalAccess& a) {
    const Block& b = *a.w.block;
    if (r.block != b.id) return Told{r.block, r.epoch, r.warp_epoch, r.thread, r.own, true, true}.to(a);
    return r.thread == a.thread || r.epoch < b.epoch || (r.thread / 32 == a.w.index && r.warp_epoch < a.w.epoch);
}

bool is_before(const ReadRecord& r, const GlobalAccess& a) {
    const Block& b = *a.w.block;
    if (r.block != b.id) {
        bool one_warp = one_bit(r.warps);
        return Told{r.block, r.epoch, r.warp_epoch, r.thread, r.own, one_warp, one_warp && one_bit(r.lanes)}.to(a);
    }
    if (r.epoch != b.epoch) return true;
    u32 own_warp = 1u << a.w.index;
    bool mates = (r.warps & own_warp) && r.warp_epoch == a.w.epoch && (r.lanes & ~(1u << a.lane));
    return !(r.warps & ~own_warp) && !mates;
}

void check_readers(const GlobalAccess& a, const GlobalCell& g, u64 address) {
    auto check = [&](const ReadRecord& r) {
        if ((a.atomic && r.atomic) || is_before(r, a)) return;
        report(a.w, "global write after read", a.w.pc, r.pc, detail_of(a.w, a.lane, r.block, r.thread, address));
    };
    if (g.read) check(g.r);
    if (!g.others) return;
    for (const ReadRecord& r : a.w.launch->readers[g.others - 1]) {
        if (!g.read || r.block != g.r.block) check(r);
    }
}

// Puts the reads of another block aside, and finds this block's where they have been put aside before.
void change_reader(const GlobalAccess& a, GlobalCell& g) {
    auto& readers = a.w.launch->readers;
    if (!g.others) {
        readers.emplace_back();
        g.others = static_cast<u32>(readers.size());
    }
    auto& list = readers[g.others - 1];
    auto of = [&](u32 block) {
        return std::find_if(list.begin(), list.end(), [&](const ReadRecord& r) { return r.block == block; });
    };
    auto old = of(g.r.block);
    if (old == list.end()) {
        list.push_back(g.r);
    } else {
        *old = g.r;
    }
    auto own = of(a.w.block->id);
    g.read = own != list.end();
    if (g.read) g.r = *own;
}

void record_read(const GlobalAccess& a, GlobalCell& g) {
    const Block& b = *a.w.block;
    if (g.read && g.r.block != b.id) change_reader(a, g);
    ReadRecord& r = g.r;
    r.atomic = a.atomic && (!g.read || r.atomic);
    if (!g.read || r.epoch != b.epoch) r.warps = r.lanes = r.warp_epoch = 0;
    if (r.warp_epoch != a.w.epoch) r.lanes = 0;
    g.read = true;
    r.block = b.id;
    r.epoch = b.epoch;
    r.warp_epoch = a.w.epoch;
    r.warps |= 1u << a.w.index;
    r.lanes |= 1u << a.lane;
    r.own = a.own;
    r.thread = static_cast<u16>(a.thread);
    r.pc = a.w.pc;
}

}  // namespace

void global_access(Warp& w, const u8* address, u32 bytes, u32 lane, bool write, bool atomic) {
    Launch& l = *w.launch;
    Block& b = *w.block;
    if (l.programmatic && !(w.waited >> lane & 1)) {
        report(w, "global access before griddepcontrol.wait", w.pc, w.pc, "");
    }
    Range& range = l.ranges[w.range];  // just hit
    if (!range.shadow) return;
    u32 thread = w.tid(lane);
    auto own = b.own.find(thread);
    GlobalAccess a{w, lane, thread, own == b.own.end() ? 0 : own->second, atomic};
    auto* cells = static_cast<GlobalCell*>(range.shadow);
    const u32 cell = l.kernel->cell_bytes;
    u64 first = (reinterpret_cast<uintptr_t>(address) - range.begin) / cell;
    u64 last = (reinterpret_cast<uintptr_t>(address) + bytes - 1 - range.begin) / cell;
    for (u64 c = first; c <= last; ++c) {
        GlobalCell& g = cells[c];
        if (g.launch != l.serial) {
            g.launch = l.serial;
            g.written = g.read = false;
            g.others = 0;
        }
        u64 at = range.begin + c * cell;
        if (g.written && !(g.w.atomic && atomic) && !is_before(g.w, a)) {
            report(w, write ? "global write after write" : "global read after write", w.pc, g.w.pc,
                   detail_of(w, lane, g.w.block, g.w.thread, at));
        }
        if (write) {
            check_readers(a, g, at);
            g.written = true;
            g.w = {b.id, b.epoch, w.epoch, a.own, w.pc, static_cast<u16>(thread), atomic};
        } else {
            record_read(a, g);
        }
    }
}

namespace {

// All that the thread knows, its own accesses so far included.
Knowledge knowledge_of(Block& b, u32 thread) {
    Knowledge k = b.known;
    auto a = b.acquired.find(thread);
    if (a != b.acquired.end()) k.merge(a->second);
    k.blocks[b.id] = b.epoch;  // everything before the last barrier
    k.warps[u64{b.id} << 16 | thread / 32] = b.warps[thread / 32]->epoch;
    k.threads[u64{b.id} << 16 | thread] = b.own[thread]++;
    return k;
}

}  // namespace

void release_at(Warp& w, u64 address, u32 lane) {
    w.launch->locations[address].merge(knowledge_of(*w.block, w.tid(lane)));
}

void acquire_at(Warp& w, u64 address, u32 lane) {
    auto known = w.launch->locations.find(address);
    if (known != w.launch->locations.end()) w.block->acquired[w.tid(lane)].merge(known->second);
}

void store_relaxed(Warp& w, u64 address, u32 lane) {
    auto fenced = w.block->fenced.find(w.tid(lane));
    if (fenced != w.block->fenced.end()) w.launch->locations[address].merge(fenced->second);
}

void load_relaxed(Warp& w, u64 address, u32 lane) {
    auto known = w.launch->locations.find(address);
    if (known != w.launch->locations.end()) w.block->relaxed[w.tid(lane)].merge(known->second);
}

void fence(Warp& w, u32 lane) {
    Block& b = *w.block;
    u32 thread = w.tid(lane);
    auto relaxed = b.relaxed.find(thread);
    if (relaxed != b.relaxed.end()) {
        b.acquired[thread].merge(relaxed->second);
        b.relaxed.erase(relaxed);
    }
    b.fenced[thread] = knowledge_of(b, thread);
}

void warp_barrier_passed(Warp& w) {
    ++w.epoch;
    Block& b = *w.block;
    if (b.acquired.empty()) return;
    Knowledge all;
    for (u32 lane = 0; lane < 32; ++lane) {
        auto own = b.acquired.find(w.tid(lane));
        if (own != b.acquired.end()) all.merge(own->second);
    }
    if (all.blocks.empty()) return;
    for (u32 lane = 0; lane < 32; ++lane) b.acquired[w.tid(lane)] = all;
}

void barrier_passed(Block& b) {
    ++b.epoch;
    for (auto& [thread, k] : b.acquired) b.known.merge(k);
    b.acquired.clear();
}

void cluster_barrier_passed(Cluster& c) {
    Knowledge all;
    for (Block* b : c.blocks) {
        barrier_passed(*b);
        b->cluster_epoch = b->epoch;
        ++b->phase;
        all.merge(b->known);
        all.blocks[b->id] = b->epoch;
    }
    for (Block* b : c.blocks) b->known.merge(all);
}

void block_ended(Block& b) {
    if (b.other_phase == b.phase) {
        report(*b.warps[0], "the block ended after its shared memory was read by another of the cluster, unordered",
               b.warps[0]->pc, b.other_pc, "");
    }
}

}  // namespace ptx

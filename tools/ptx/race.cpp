// Happens-before, per access. Within a block: bar.sync orders all of it, bar.warp.sync the lanes of a warp, program
// order a thread; nothing else does (shfl, vote, ldmatrix and mma order no memory). Between blocks: release and acquire
// of atomics. A cp.async writes at some time between its issue and its thread's wait: until then its target belongs to
// nobody.

#include <sys/mman.h>

#include <cstdio>
#include <mutex>
#include <set>

#include "warp.hpp"

namespace ptx {

void Knowledge::merge(const Knowledge& other) {
    for (auto& [b, e] : other.blocks) blocks[b] = std::max(blocks[b], e);
    for (auto& [t, o] : other.threads) threads[t] = std::max(threads[t], o);
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

bool knows(const Knowledge& k, u32 block, u32 epoch, u64 thread_key, u32 own, bool one_thread) {
    auto b = k.blocks.find(block);
    if (b != k.blocks.end() && b->second > epoch) return true;
    if (!one_thread) return false;
    auto t = k.threads.find(thread_key);
    return t != k.threads.end() && t->second >= own;
}

// Whether this thread has been told of what another block did.
bool told(Warp& w, u32 lane, u32 block, u32 epoch, u32 thread, u32 own, bool one_thread) {
    Block& b = *w.block;
    u64 key = u64{block} << 16 | thread;
    if (knows(b.known, block, epoch, key, own, one_thread)) return true;
    if (b.acquired.empty()) return false;
    auto a = b.acquired.find(w.tid(lane));
    return a != b.acquired.end() && knows(a->second, block, epoch, key, own, one_thread);
}

bool one_lane(u32 lanes) { return (lanes & (lanes - 1)) == 0; }

}  // namespace

void global_access(Warp& w, const u8* address, u32 bytes, u32 lane, bool write, bool atomic) {
    Launch& l = *w.launch;
    Block& b = *w.block;
    if (l.programmatic && !(w.waited >> lane & 1))
        report(w, "global access before griddepcontrol.wait", w.pc, w.pc, "");
    Range& range = l.ranges[w.range];  // just hit
    if (!range.shadow) return;
    auto* cells = static_cast<GlobalCell*>(range.shadow);
    const u32 cell = l.kernel->cell_bytes;
    u64 first = (reinterpret_cast<uintptr_t>(address) - range.begin) / cell;
    u64 last = (reinterpret_cast<uintptr_t>(address) + bytes - 1 - range.begin) / cell;
    u32 thread = w.tid(lane), warp_bit = 1u << w.index;
    u32 own = b.own.empty() ? 0 : (b.own.count(thread) ? b.own[thread] : 0);
    for (u64 c = first; c <= last; ++c) {
        GlobalCell& g = cells[c];
        if (g.launch != l.serial) {
            g.launch = l.serial;
            g.written = g.read = g.many = g.atomic = g.r_atomic = 0;
        }
        u64 shown = range.begin + c * cell;
        if (g.written && !(g.atomic && atomic)) {
            bool ordered;
            if (g.w_block == b.id) {
                ordered = g.w_thread == thread || g.w_epoch < b.epoch ||
                          (g.w_thread / 32 == w.index && g.w_warp_epoch < w.epoch);
            } else {
                ordered = told(w, lane, g.w_block, g.w_epoch, g.w_thread, g.w_own, true);
            }
            if (!ordered) {
                report(w, write ? "global write after write" : "global read after write", w.pc, g.w_pc,
                       detail_of(w, lane, g.w_block, g.w_thread, shown));
            }
        }
        if (write) {
            auto check = [&](u32 block, u32 epoch, u32 warp_epoch, u32 warps, u32 lanes, u32 r_own, u32 pc,
                             u32 r_thread, bool r_atomic) {
                if (atomic && r_atomic) return;
                bool ordered;
                if (block == b.id) {
                    bool others = epoch == b.epoch && (warps & ~warp_bit);
                    bool mates =
                        epoch == b.epoch && (warps & warp_bit) && warp_epoch == w.epoch && (lanes & ~(1u << lane));
                    ordered = !others && !mates;
                } else {
                    ordered = told(w, lane, block, epoch, r_thread, r_own, one_lane(warps) && one_lane(lanes));
                }
                if (!ordered)
                    report(w, "global write after read", w.pc, pc, detail_of(w, lane, block, r_thread, shown));
            };
            if (g.read)
                check(g.r_block, g.r_epoch, g.r_warp_epoch, g.r_warps, g.r_lanes, g.r_own, g.r_pc, g.r_thread,
                      g.r_atomic);
            if (g.many) {
                for (const ReadRecord& r : l.readers[reinterpret_cast<uintptr_t>(&g)]) {
                    if (r.block != g.r_block)
                        check(r.block, r.epoch, r.warp_epoch, r.warps, r.lanes, r.own, r.pc, r.thread, r.atomic);
                }
            }
            g.written = 1;
            g.atomic = atomic;
            g.w_block = b.id;
            g.w_epoch = b.epoch;
            g.w_warp_epoch = w.epoch;
            g.w_own = own;
            g.w_pc = w.pc;
            g.w_thread = static_cast<u16>(thread);
        } else {
            if (g.read && g.r_block != b.id) {
                // Kept aside; a block that comes back is found again there.
                auto& list = l.readers[reinterpret_cast<uintptr_t>(&g)];
                ReadRecord was{g.r_block, g.r_epoch, g.r_warp_epoch, g.r_warps, g.r_lanes,
                               g.r_own,   g.r_pc,    g.r_thread,     g.r_atomic};
                bool found = false;
                for (ReadRecord& r : list) {
                    if (r.block == was.block) r = was, found = true;
                }
                if (!found) list.push_back(was);
                g.many = 1;
                g.read = 0;
                for (ReadRecord& r : list) {
                    if (r.block == b.id) {
                        g.r_epoch = r.epoch, g.r_warp_epoch = r.warp_epoch, g.r_warps = r.warps, g.r_lanes = r.lanes;
                        g.r_atomic = r.atomic;
                        g.read = 1;
                    }
                }
            }
            g.r_atomic = atomic && (!g.read || g.r_atomic);
            if (!g.read || g.r_epoch != b.epoch) {
                g.r_warps = 0;
                g.r_lanes = 0;
                g.r_warp_epoch = 0;
            }
            g.read = 1;
            g.r_block = b.id;
            g.r_epoch = b.epoch;
            if (g.r_warp_epoch != w.epoch) g.r_lanes = 0;
            g.r_warp_epoch = w.epoch;
            g.r_warps |= warp_bit;
            g.r_lanes |= 1u << lane;
            g.r_own = own;
            g.r_thread = static_cast<u16>(thread);
            g.r_pc = w.pc;
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

void barrier_passed(Block& b) {
    ++b.epoch;
    for (auto& [thread, k] : b.acquired) b.known.merge(k);
    b.acquired.clear();
}

}  // namespace ptx

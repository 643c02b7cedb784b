// Loads, stores, atomics.
#include <cstring>

#include "instruction_table.hpp"
#include "warp.hpp"

namespace ptx {
namespace {

u64 address_of(Warp& w, const Instruction& i, u32 at, u32 lane) {
    u64 base = i.wide_address ? w.reg<u64>(at)[lane] : w.reg<u32>(at)[lane];
    return base + static_cast<u64>(i.offset);
}

// The place of an access, checked.
u8* place(Warp& w, const Instruction& i, u64 address, u32 bytes, u32 lane, bool write) {
    if (i.cluster) {
        Block* of = nullptr;
        u8* p = w.cluster_shared(address, bytes, lane, of);
        u32 offset = static_cast<u32>(p - of->memory.data());
        if (!Options::get().race) return p;
        if (of == w.block) {
            shared_access(w, offset, bytes, lane, write);
        } else {
            other_shared_read(w, *of, offset, bytes, lane);
        }
        return p;
    }
    if (i.space == Space::shared) {
        u8* p = w.shared(address, bytes, lane);
        if (Options::get().race) shared_access(w, static_cast<u32>(address - kSharedBase), bytes, lane, write);
        return p;
    }
    if (i.space == Space::param) {
        if (write || address + bytes > w.launch->kernel->param_bytes) w.fail("access outside the parameters");
        if (address % bytes != 0) w.fail("misaligned access to parameters");
        return const_cast<u8*>(w.launch->params + address);
    }
    if (address % bytes != 0)
        w.fail("misaligned global access of " + std::to_string(bytes) + " bytes at ..." +
               std::to_string(address % 256));
    u8* p = w.global(address, bytes, lane);
    if (Options::get().race) global_access(w, p, bytes, lane, write, i.ordering != Ordering::weak);
    return p;
}

void load(Warp& w, const Instruction& i, u32 m) {
    u32 total = u32{i.bytes} * i.count, at = i.operands[kAddress];
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        u64 address = address_of(w, i, at, l);
        const u8* p = place(w, i, address, total, l, false);
        if (i.ordering == Ordering::relaxed && Options::get().race) load_relaxed(w, address, l);
        for (u32 e = 0; e < i.count; ++e) {
            u64 x = 0;
            std::memcpy(&x, p + e * i.bytes, i.bytes);
            if (i.sign && i.bytes < 8) {
                u32 shift = 64 - 8 * i.bytes;
                x = static_cast<u64>(static_cast<i64>(x << shift) >> shift);
            }
            std::memcpy(w.r + i.operands[e] + l * i.width[e], &x, i.width[e]);
        }
    }
}

// The same where elements and registers are of one common kind each.
template <class Element, class Register>
void load_fast(Warp& w, const Instruction& i, u32 m) {
    const u32 total = sizeof(Element) * i.count;
    const bool checked = Options::get().race;
    if (checked && i.space != Space::param) return load(w, i, m);
    const u8* from[32];
    const u64* wide = w.reg<u64>(i.operands[kAddress]);
    const u32* narrow = w.reg<u32>(i.operands[kAddress]);
    u8* shared = w.block->memory.data();
    const u64 shared_end = kSharedBase + u64{w.launch->shared_bytes};
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        u64 address = (i.wide_address ? wide[l] : narrow[l]) + static_cast<u64>(i.offset);
        if (i.space == Space::shared && address >= kSharedBase && address + total <= shared_end &&
            (address & (total - 1)) == 0) {
            from[l] = shared + (address - kSharedBase);
        } else {
            from[l] = place(w, i, address, total, l, false);
        }
    }
    for (u32 e = 0; e < i.count; ++e) {
        Register* d = w.reg<Register>(i.operands[e]);
        for (u32 l = 0; l < 32; ++l) {
            if (!(m >> l & 1)) continue;
            Element x;
            std::memcpy(&x, from[l] + e * sizeof(Element), sizeof x);
            d[l] = x;
        }
    }
}

void store(Warp& w, const Instruction& i, u32 m) {
    u32 total = u32{i.bytes} * i.count, at = i.operands[kAddress];
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        u64 address = address_of(w, i, at, l);
        u8* p = place(w, i, address, total, l, true);
        for (u32 e = 0; e < i.count; ++e) std::memcpy(p + e * i.bytes, w.r + i.operands[e] + l * i.width[e], i.bytes);
        if (i.ordering == Ordering::relaxed && Options::get().race) store_relaxed(w, address, l);
    }
}

template <class F>
void atomic(Warp& w, const Instruction& i, u32 m, F f) {
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        u64 address = address_of(w, i, i.operands[kAddress], l);
        if (address % 4 != 0) w.fail("misaligned atomic");
        if (i.space == Space::shared) w.fail("atomics on shared memory are not done");
        u8* p = w.global(address, 4, l);
        if (Options::get().race) {
            global_access(w, p, 4, l, true, true);
            // What is published does not hold what is learnt by the same instruction; the chain goes on in the
            // location.
            if (i.ordering == Ordering::acq_rel) {
                release_at(w, address, l);
                acquire_at(w, address, l);
            }
        }
        u32 old;
        std::memcpy(&old, p, 4);
        u32 now = f(old, w.reg<u32>(i.operands[1])[l]);
        std::memcpy(p, &now, 4);
        w.reg<u32>(i.operands[0])[l] = old;
    }
}

void atomic_inc(Warp& w, const Instruction& i, u32 m) {
    atomic(w, i, m, [](u32 r, u32 s) { return r >= s ? 0 : r + 1; });
}
void atomic_add(Warp& w, const Instruction& i, u32 m) {
    atomic(w, i, m, [](u32 r, u32 s) { return r + s; });
}
void atomic_exch(Warp& w, const Instruction& i, u32 m) {
    atomic(w, i, m, [](u32, u32 s) { return s; });
}

}  // namespace

Handler load_handler(const Instruction& i) {
    if (i.sign || i.cluster || i.ordering != Ordering::weak) return load;
    bool same = true;
    for (u32 e = 1; e < i.count; ++e) same = same && i.width[e] == i.width[0];
    if (!same) return load;
    if (i.bytes == 4 && i.width[0] == 4) return load_fast<u32, u32>;
    if (i.bytes == 2 && i.width[0] == 2) return load_fast<u16, u16>;
    if (i.bytes == 2 && i.width[0] == 4) return load_fast<u16, u32>;
    if (i.bytes == 8 && i.width[0] == 8) return load_fast<u64, u64>;
    if (i.bytes == 4 && i.width[0] == 8) return load_fast<u32, u64>;
    return load;
}
Handler store_handler() { return store; }
Handler atomic_handler(const std::string& operation) {
    if (operation == "inc") return atomic_inc;
    if (operation == "add") return atomic_add;
    if (operation == "exch") return atomic_exch;
    return nullptr;
}

void fence(Warp& w, const Instruction&, u32 m) {
    if (!Options::get().race) return;
    for (u32 l = 0; l < 32; ++l) {
        if (m >> l & 1) fence(w, l);
    }
}

// mapa: where the own block has an address of its shared memory, another has the same.
void map_to_rank(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        u32 address = w.reg<u32>(i.operands[1])[l], rank = w.reg<u32>(i.operands[2])[l];
        if (address < kSharedBase || address >= 1u << kRankShift) w.fail("mapa of an address that is not shared");
        if (rank >= w.block->cluster->blocks.size()) w.fail("mapa: the cluster has no block " + std::to_string(rank));
        w.reg<u32>(i.operands[0])[l] = (rank + 1) << kRankShift | address;
    }
}

void grid_wait(Warp& w, const Instruction&, u32 m) { w.waited |= m; }
void grid_launch(Warp& w, const Instruction&, u32 m) {
    if (m & ~w.waited) report(w, "griddepcontrol.launch_dependents before griddepcontrol.wait", w.pc, w.pc, "");
}

}  // namespace ptx

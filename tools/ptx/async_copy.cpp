// cp.async: data arrives when its thread waits for its group, not before. Until then the target holds garbage.
#include <cstring>

#include "instruction_table.hpp"
#include "warp.hpp"

namespace ptx {

void copies_issue(Warp& w, const Instruction& i, u32 mask) {
    w.copies.emplace_back();
    Copy& c = w.copies.back();
    c.mask = mask;
    c.early = w.launch->below(2) == 0;
    c.pc = w.pc;
    c.size = i.bytes;
    const u32* to = w.reg<u32>(i.operands[0]);
    const u64* from = w.reg<u64>(i.operands[1]);
    const u32* bytes = w.reg<u32>(i.operands[2]);
    for (u32 l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        u8* target = w.shared(to[l], i.bytes, l);
        u32 n = bytes[l];
        if (n > i.bytes) w.fail("cp.async: src-size above cp-size");
        c.to[l] = static_cast<u32>(target - w.block->memory.data());
        c.bytes[l] = static_cast<u8>(n);
        c.group[l] = w.committed[l];
        if (from[l] % i.bytes != 0) w.fail("cp.async: source is not aligned to " + std::to_string(i.bytes) + " bytes");
        c.from[l] = n ? w.global(from[l], n, l) : nullptr;
        if (Options::get().race) {
            shared_pending(w, c.to[l], i.bytes, l, true);
            if (n) global_access(w, c.from[l], n, l, false);
        }
        if (c.early && n) std::memcpy(c.data[l], c.from[l], n);
        std::memset(target, 0xFF, i.bytes);
    }
}

void copies_commit(Warp& w, const Instruction&, u32 mask) {
    for (u32 l = 0; l < 32; ++l) w.committed[l] += mask >> l & 1;
}

void copies_wait(Warp& w, const Instruction& i, u32 mask) {
    u32 n = static_cast<u32>(i.offset);
    size_t kept = 0;
    for (size_t k = 0; k < w.copies.size(); ++k) {
        Copy& c = w.copies[k];
        for (u32 l = 0; l < 32; ++l) {
            // Of the groups 0 .. committed the newest n may go on.
            if (!(c.mask & mask & 1u << l) || c.group[l] + n >= w.committed[l]) continue;
            c.mask &= ~(1u << l);
            u8* to = w.block->memory.data() + c.to[l];
            std::memset(to, 0, c.size);
            if (c.bytes[l]) std::memcpy(to, c.early ? c.data[l] : c.from[l], c.bytes[l]);
            if (Options::get().race) {
                u32 pc = w.pc;
                w.pc = c.pc;
                shared_pending(w, c.to[l], c.size, l, false);
                if (c.bytes[l]) {
                    w.global(reinterpret_cast<u64>(c.from[l]), c.bytes[l], l);
                    global_access(w, c.from[l], c.bytes[l], l, false);
                }
                w.pc = pc;
            }
        }
        if (c.mask) {
            if (kept != k) w.copies[kept] = c;
            ++kept;
        }
    }
    w.copies.resize(kept);
}

}  // namespace ptx

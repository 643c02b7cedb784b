// skc_fork_copy: copies K and V of forked sequences, all slots that have ever been written, and their lists of ranges.
// The counters follow in skc_edit, which checks the same, unchanged state.
//
// Grid: entries, layers (loop), blocks over bytes (loop). 128 threads. Shared: EDIT_SHARED bytes of scratch.
#pragma once

#include "edit.cuh"
#include "stored_rows.cuh"

// Copies n vectors as one of the threads of the grid's z blocks.
SKC_DEVICE void copy_vectors(U32x4* to, const U32x4* from, u64 n) {
    u64 step = (u64)grid_z() * 128;
    for (u64 i = (u64)block_z() * 128 + thread(); i < n; i += 4 * step) {
        // Four loads before the first store: their latencies overlap.
        U32x4 x[4];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (i + j * step < n) x[j] = from[i + j * step];
        }
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (i + j * step < n) to[i + j * step] = x[j];
        }
    }
}

// Copies n bytes, a multiple of 4, from and to multiples of 16.
SKC_DEVICE void copy_bytes(u8* to, const u8* from, u64 n) {
    copy_vectors((U32x4*)to, (const U32x4*)from, n / 16);
    u64 left = n % 16 / 4;
    if (block_z() == 0 && thread() < left) {
        u64 at = n / 16 * 4 + thread();
        ((u32*)to)[at] = ((const u32*)from)[at];
    }
}

// Consecutive slots of one head, and the same of another.
struct SlotCopy {
    u64 src_head;
    u64 dst_head;
    u64 slot;
    u64 n;
};

// Copies rows of `row_bytes`. A head begins at a multiple of 16 bytes, a row perhaps not: up to 12 bytes before the
// first one are copied too, which belong to a slot of the same heads.
SKC_DEVICE void copy_rows_of_head(u8* to, const u8* from, u32 row_bytes, const SlotCopy& c) {
    u64 begin = c.slot * row_bytes;
    u64 aligned = begin / 16 * 16;
    copy_bytes(to + aligned, from + aligned, begin - aligned + c.n * row_bytes);
}

SKC_DEVICE void copy_slots(const SkcStore& store, const SlotCopy& c) {
    StoredRow from = stored_row(store, c.src_head, 0);
    StoredRow to = stored_row(store, c.dst_head, 0);
    copy_rows_of_head(to.codes, from.codes, store.row_codes, c);
    // mutant: fork_without_scales
    copy_rows_of_head((u8*)to.scales, (const u8*)from.scales, store.row_scales, c);
}

SKC_KERNEL(128, skc_fork_copy, SkcRowEdit) {
    begin_kernel();
    u64* scratch = (u64*)shared_memory();
    const SkcEdit& edit = p.edit;
    EditTarget t = find_target(edit, block_x(), scratch);
    if (!t.active) return;
    if (check_edit(edit, t, lengths_of(edit, t.src, scratch), scratch) != 0) return;
    for (u32 layer = block_y(); layer < edit.n_layers; layer += grid_y()) {
        const SkcSeq& seq = edit.seqs[(u64)layer * edit.batch.n_seqs + t.src];
        Ring ring = edit_ring(edit, layer);
        UsedSlots used = ring_used_slots(ring, seq);
        if (seq.n_ranges > 0) { // mutant: fork_without_ranges
            u64 bytes = seq.n_ranges * sizeof(SkcRange);
            copy_bytes((u8*)edit_ranges(edit, layer, t.dst), (const u8*)edit_ranges(edit, layer, t.src), bytes);
        }
        for (u32 which = 0; which < 2; ++which) {
            const SkcStore& store = p.stores[2 * (u64)layer + which];
            for (u32 head = 0; head < p.n_kv_heads; ++head) {
                u64 src_head = (u64)t.src * p.n_kv_heads + head;
                u64 dst_head = (u64)t.dst * p.n_kv_heads + head;
                // Without room for pins both are one run of slots.
                copy_slots(store, {src_head, dst_head, 0, used.fixed + (ring.max_pinned == 0 ? used.ring : 0)});
                if (ring.max_pinned > 0) copy_slots(store, {src_head, dst_head, ring_fixed_slots(ring), used.ring});
            }
        }
    }
}

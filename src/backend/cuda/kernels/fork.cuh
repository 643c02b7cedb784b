// skc_fork_copy: copies K and V of forked sequences, all slots that have ever been written. The counters follow in
// skc_edit, which checks the same, unchanged state.
//
// Grid: entries, layers (loop), blocks over bytes (loop). 128 threads. Shared: EDIT_SHARED bytes of scratch.
#pragma once

#include "edit.cuh"

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

SKC_KERNEL(128, skc_fork_copy, SkcFork) {
    begin_kernel();
    u64* scratch = (u64*)shared_memory();
    const SkcEdit& edit = p.edit;
    EditTarget t = find_target(edit, block_x(), scratch);
    if (!t.active) return;
    if (check_edit(edit, t, lengths_of(edit, t.src, scratch), scratch) != 0) return;
    for (u32 layer = block_y(); layer < edit.n_layers; layer += grid_y()) {
        SkcStore store = p.stores[layer];
        u64 written = edit.seqs[(u64)layer * edit.batch.n_seqs + t.src].highest;
        u64 slots = min_u64(written, store.slots);
        for (u32 which = 0; which < 2; ++which) {
            u8* base = which == 0 ? store.k : store.v;
            // Heads hold a multiple of 8 elements of 2 or 4 bytes: slots are multiples of 16 bytes.
            u64 slot_bytes = which == 0 ? store.k_slot : store.v_slot;
            u64 head_bytes = store.slots * slot_bytes;
            for (u32 head = 0; head < p.n_kv_heads; ++head) {
                u8* from = base + ((u64)t.src * p.n_kv_heads + head) * head_bytes;
                u8* to = base + ((u64)t.dst * p.n_kv_heads + head) * head_bytes;
                copy_vectors((U32x4*)to, (const U32x4*)from, slots * slot_bytes / 16);
            }
        }
    }
}

// skc_fork_copy: K and V of forked sequences, as far as slots have ever been written. The counters follow in skc_edit, which
// checks the same unchanged state.
//
// Grid: entries, layers (loop), blocks over bytes (loop). 128 threads. 64 bytes of shared memory.
#pragma once

#include "edit.cuh"

SKC_KERNEL(128, skc_fork_copy, SkcFork) {
    begin_kernel();
    u64* scratch = (u64*)shared_memory();
    const SkcEdit& edit = p.edit;
    Target t = find_target(edit, block_x(), scratch);
    if (!t.live) return;
    u64 shortest = 0;
    if (check_edit(edit, t, scratch, &shortest) != 0) return;
    for (u32 layer = block_y(); layer < edit.n_layers; layer += grid_y()) {
        SkcStore store = p.stores[layer];
        u64 written = edit.seqs[(u64)layer * edit.batch.n_seqs + t.src].highest;
        u64 slots = min_u64(written, store.slots);
        for (u32 which = 0; which < 2; ++which) {
            u8* base = which == 0 ? store.k : store.v;
            u64 slot = which == 0 ? store.k_slot : store.v_slot;
            // Heads hold a multiple of 8 elements: slots are multiples of 16 bytes, and so is everything here.
            u64 quads = slots * slot / 16;
            for (u32 head = 0; head < p.n_kv_heads; ++head) {
                const Quad* from = (const Quad*)(base + ((u64)t.src * p.n_kv_heads + head) * store.slots * slot);
                Quad* to = (Quad*)(base + ((u64)t.dst * p.n_kv_heads + head) * store.slots * slot);
                u64 step = (u64)grid_z() * 128;
                for (u64 i = (u64)block_z() * 128 + thread(); i < quads; i += 4 * step) {
                    // Four loads wait for memory together.
                    Quad x[4];
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) {
                        if (i + j * step < quads) x[j] = from[i + j * step];
                    }
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) {
                        if (i + j * step < quads) to[i + j * step] = x[j];
                    }
                }
            }
        }
    }
}

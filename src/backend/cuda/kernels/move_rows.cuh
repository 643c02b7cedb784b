// skc_move_rows: moves rows of K and V to their slots after a pin or an evict_range. The counters and lists follow in
// skc_edit, which checks the same, unchanged state. A block moves all rows of one head, since each may lie where
// another has to go.
//
// Grid: entries, layers (loop), K and V of heads (loop). 128 threads. Shared: EDIT_SHARED bytes of scratch.
#pragma once

#include "edit.cuh"
#include "stored_rows.cuh"

// Vectors that a thread loads before it stores the first: their latencies overlap.
constexpr u32 MOVE_UNROLL = 8;

// Moves n vectors to another place, which may overlap: from the end that nothing is written over. The whole block must
// call it.
template <class Vector>
SKC_DEVICE void move_vectors(u8* to, const u8* from, u64 n) {
    bool up = to > from;
    for (u64 begin = 0; begin < n; begin += MOVE_UNROLL * 128) {
        Vector x[MOVE_UNROLL];
#pragma unroll
        for (u32 j = 0; j < MOVE_UNROLL; ++j) {
            u64 i = begin + 128 * j + thread();
            if (i < n) x[j] = ((const Vector*)from)[up ? n - 1 - i : i];
        }
        // What this round writes over has been read by then: by itself, or by a round or a move before.
        block_sync(); // mutant: rows_moved_before_they_are_read
#pragma unroll
        for (u32 j = 0; j < MOVE_UNROLL; ++j) {
            u64 i = begin + 128 * j + thread();
            if (i < n) ((Vector*)to)[up ? n - 1 - i : i] = x[j];
        }
    }
}

// Moves n rows of `row_bytes`, a multiple of 4, from slot `from` on to those from slot `to` on. The whole block must
// call it.
SKC_DEVICE void move_slots(u8* head, u32 row_bytes, u64 from, u64 to, u64 n) {
    if (row_bytes == 0) return;
    u8* source = head + from * row_bytes;
    u8* place = head + to * row_bytes;
    if (row_bytes % 16 == 0) {
        move_vectors<U32x4>(place, source, n * row_bytes / 16);
    } else {
        move_vectors<u32>(place, source, n * row_bytes / 4);
    }
}

SKC_KERNEL(128, skc_move_rows, SkcRowEdit) {
    begin_kernel();
    u64* scratch = (u64*)shared_memory();
    const SkcEdit& edit = p.edit;
    EditTarget t = find_target(edit, block_x(), scratch);
    if (!t.active) return;
    if (check_edit(edit, t, lengths_of(edit, t.dst, scratch), scratch) != 0) return;
    for (u32 layer = block_y(); layer < edit.n_layers; layer += grid_y()) {
        RangeEdit moved = find_range_edit(edit, t, layer);
        if (!moved.changes()) continue;
        Ring ring = edit_ring(edit, layer);
        const SkcSeq& seq = edit.seqs[(u64)layer * edit.batch.n_seqs + t.dst];
        RangeList list = edit_list(edit, layer, t.dst);
        for (u32 i = block_z(); i < 2 * p.n_kv_heads; i += grid_z()) {
            const SkcStore& store = p.stores[2 * (u64)layer + i % 2];
            StoredRow head = stored_row(store, (u64)t.dst * p.n_kv_heads + i / 2, 0);
            range_moves(moved, ring, seq, list, [&](u64 from, u64 to, u64 n) {
                move_slots(head.codes, store.row_codes, from, to, n);
                move_slots((u8*)head.scales, store.row_scales, from, to, n); // mutant: moved_without_scales
            });
        }
    }
}

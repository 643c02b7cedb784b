// skc_attend_decode and skc_step_decode: few queries, many keys; the second stores the queries' own tokens as well, so that a
// decode step is one launch. Keys are split among the blocks of z and in each among its warps, which stream tiles of their
// own; the last block of an entry's head to finish merges all splits in order.
//
// Grid: entries, KV heads, splits. 32 x DECODE_WARPS threads. Shared: DECODE_SHARED bytes, of a step STEP_SHARED.
#pragma once

#include "new_tokens.cuh"
#include "split_merge.cuh"

// Finds and checks entry block_x() of a step, as an append does; its queries then are those of the new tokens. What is
// refused is reported and counted here. The whole block must call it.
SKC_DEVICE Queries find_step(const SkcStep& p, const Ring& ring, u64* scratch) {
    const SkcLayer& l = p.attend.layer;
    const SkcBatch& b = p.attend.batch;
    i32 id = batch_id(b, block_x());
    u32 place = id >= 0 && (u32)id < b.n_seqs ? (u32)id : 0;
    // On their way while the rows of entries before it are counted.
    SkcSeq seq = l.seqs[place];
    u64 start = l.starts[place];
    Entry e = find_entry(b, block_x(), scratch, WARPS);
    Advance a = advance_of(l, b, ring, e, seq, start);
    Queries q = {e.row + b.at, seq.len, a.m, start, seq.floor, e.seq, !a.skip && a.status == 0};
    if (q.live || a.skip) return q;
    if (thread() == 0 && block_y() == 0 && block_z() == 0) {
        // Skipped twice, as in the two calls that this one stands for; the first tells what it was.
        for (u32 call = 0; call < 2; ++call) report_advance(l, b, block_x(), e, a);
    }
    // An id that is none, or another entry's, has no counters of its own to change.
    if (!e.own) return q;
    block_sync();
    if (thread() == 0) arrive(l, b, e.seq, a, grid_y() * grid_z());
    return q;
}

// `step` is used by a step only.
template <bool STEP>
SKC_DEVICE void decode(const SkcAttend& p, const SkcStep* step) {
    begin_kernel();
    constexpr u32 STAGES = DECODE_STAGES(SKC_DIM);
    constexpr u32 TILE = DECODE_KEYS * ROW;
    const SkcLayer& l = p.layer;
    // For the window, then for the sinks.
    u8* queries = shared_memory();
    u8* stages = shared_memory() + 2 * DECODE_COLUMNS * ROW;
    u8* scratch = stages + STAGES * DECODE_STAGE(SKC_DIM);
    Ring ring = ring_of(l);
    Queries q = STEP ? find_step(*step, ring, (u64*)scratch) : find_queries(p, ring, (u64*)scratch, WARPS);
    if (!q.live) return;
    u32 kv_head = block_y();
    u64 last = q.first + q.m - 1;
    u64 oldest = ring.n_sink + query_evicted(ring, q, q.first);
    Span window = span_of(l, ring, q.seq, kv_head, false, oldest, last);
    Span sinks = span_of(l, ring, q.seq, kv_head, true, oldest, last);
    // Tiles of the sinks come first; the block's share of all.
    u32 sink_tiles = (sinks.n + 15) / 16;
    u32 tiles = sink_tiles + (window.n + 15) / 16;
    u32 share = (tiles + p.n_splits - 1) / p.n_splits;
    u32 begin = block_z() * share, end = (u32)min_u64((u64)begin + share, tiles);
    u32 mine = begin + warp();
    u8* own = stages + warp() * 2 * TILE;
    Fresh fresh = {shared_memory() + DECODE_SHARED(SKC_DIM), 0, 0, sink_tiles, begin, end};
    if (STEP) {
        // The new tokens are not in memory yet, and copies must not wait for them.
        fresh.in_sinks = (u32)min_u64(saturating_sub(ring.n_sink, q.first), q.m);
        fresh.in_window = (u32)q.m - fresh.in_sinks;
        sinks.n -= fresh.in_sinks;
        window.n -= fresh.in_window; // mutant: step_reads_old_slots
    }

    auto copy = [&](u32 tile, u32 stage) {
        if (tile < end) {
            u8* k = own + stage * DECODE_STAGE(SKC_DIM);
            bool in_sinks = tile < sink_tiles;
            u32 first = (in_sinks ? tile : tile - sink_tiles) * DECODE_KEYS;
            Span span = {window.base, in_sinks ? sinks.first_slot : window.first_slot, in_sinks ? sinks.wrap : window.wrap,
                         in_sinks ? sinks.origin : window.origin, in_sinks ? sinks.n : window.n, in_sinks};
            copy_tile<DECODE_KEYS, 32>(l, span, first, k, k + TILE, lane());
        }
        copy_async_commit();
    };
    // Keys are on their way while queries are turned.
    for (u32 i = 0; i + 1 < STAGES; ++i) copy(mine + i * WARPS, i);
    // Columns beyond the last are zeros, and see nothing.
    u32 columns = (u32)q.m * GROUP;
    for (u32 i = columns * ROW / 16 + thread(); i < DECODE_COLUMNS * ROW / 16; i += DECODE_THREADS) {
        ((Quad*)queries)[i] = ((Quad*)(queries + DECODE_COLUMNS * ROW))[i] = {0, 0, 0, 0};
    }
    for (u32 i = thread(); i < 2 * (u32)q.m * (DIM / 2); i += DECODE_THREADS) {
        u32 pair = i % (DIM / 2), index = i / (DIM / 2) / 2;
        bool for_sinks = i / (DIM / 2) % 2 != 0;
        u64 token = q.first + index;
        u8* to = queries + (for_sinks ? DECODE_COLUMNS : 0) * ROW + index * GROUP * ROW;
        load_query_pair<GROUP>(p, q, token, kv_head, 0, GROUP, pair, for_sinks, query_evicted(ring, q, token), to);
    }
    if (STEP) load_fresh<DECODE_THREADS>(fresh, *step, q, oldest, kv_head);
    block_sync(); // mutant: decode_missing_barrier
    if (STEP) {
        store_fresh<DECODE_THREADS>(fresh, l, ring, q, oldest, window.base);
        // All threads have read the counters. Here the atomic waits for memory together with the first tiles.
        if (thread() == 0) arrive(l, p.batch, q.seq, {q.m, 0, false}, grid_y() * grid_z());
    }

    Decode d;
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) d.acc[s][i] = 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) d.column[i] = {minus_infinity(), 0.0f};
    d.scorer = scorer_of(l);
    bool in_sinks = mine < sink_tiles;
    load_columns(d, queries + (in_sinks ? DECODE_COLUMNS : 0) * ROW);
    aim(d, p, ring, q, kv_head, in_sinks, oldest);
    u32 stage = 0;
    for (u32 tile = mine; tile < end; tile += WARPS) {
        copy_async_wait<STAGES - 2>(); // mutant: copies_not_waited_for
        warp_sync();
        // Into the stage that was read in the round before.
        copy(tile + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
        if (in_sinks && tile >= sink_tiles) {
            in_sinks = false;
            load_columns(d, queries);
            aim(d, p, ring, q, kv_head, false, oldest);
        }
        u8* k = own + stage * DECODE_STAGE(SKC_DIM);
        u32 first = (in_sinks ? tile : tile - sink_tiles) * DECODE_KEYS;
        if (STEP) {
            u32 stored = in_sinks ? sinks.n : window.n, n = in_sinks ? fresh.in_sinks : fresh.in_window;
            // mutant: step_without_its_own_key
            if (n != 0 && first + DECODE_KEYS > stored) patch_tile(fresh, k, k + TILE, first, stored, in_sinks ? 0 : fresh.in_sinks, n);
        }
        add_tile(d, k, k + TILE, first);
        stage = (stage + 1) % STAGES;
    }
    copy_async_wait<0>();
    block_sync();

    // Warps meet in shared memory, where the stages were.
    WarpParts parts = {(float*)stages};
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        Column c = d.column[i];
        for (u32 mask = 4; mask < 32; mask *= 2) c.sum += shuffle_xor(c.sum, mask);
        u32 column = 2 * (lane() % 4) + i;
        float* sums = parts.sums(warp(), column);
#pragma unroll
        for (u32 s = 0; s < STEPS; ++s) {
            sums[16 * s + lane() / 4] = d.acc[s][i];
            sums[16 * s + lane() / 4 + 8] = d.acc[s][2 + i];
        }
        if (lane() < 4) *parts.column(warp(), column) = c;
    }
    block_sync();
    Column* merged = (Column*)(parts.at + WARPS * WarpParts::SIZE);
    if (p.n_splits == 1) {
        store_columns(p, q, kv_head, parts, WARPS, merged);
        return;
    }
    u64 place = (u64)block_x() * l.n_kv_heads + kv_head;
    SplitParts all = {p.partials + place * p.n_splits * SplitParts::SIZE};
    merge_columns(parts, WARPS, columns, merged);
    for (u32 i = thread(); i < columns * (DIM / 4); i += DECODE_THREADS) {
        u32 column = i / (DIM / 4), dim = i % (DIM / 4) * 4;
        float x[4];
        merge_dims(parts, WARPS, column, dim, merged[column].max, x);
        *(Four*)(all.sums(block_z(), column) + dim) = {x[0], x[1], x[2], x[3]};
    }
    if (thread() < columns) *all.column(block_z(), thread()) = merged[thread()];
    // The barrier puts the block's writes before thread 0's release, and its acquire before their reads: nobody else needs
    // a fence, which would wait for all of the block's traffic.
    block_sync();
    u32* arrived = (u32*)scratch;
    if (thread() == 0) *arrived = atomic_inc(&p.counters[place], p.n_splits - 1);
    block_sync();
    if (*arrived != p.n_splits - 1) return; // mutant: merge_before_all_arrived
    store_columns(p, q, kv_head, all, p.n_splits, merged);
}

SKC_KERNEL(DECODE_THREADS, skc_attend_decode, SkcAttend) { decode<false>(p, nullptr); }

SKC_KERNEL(DECODE_THREADS, skc_step_decode, SkcStep) { decode<true>(p.attend, &p); }

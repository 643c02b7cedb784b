// skc_attend_decode and skc_step_decode: few queries, many keys. The second also appends the queries' own tokens, so
// that a decode step is one launch. The keys of a KV head are split among the blocks of z (KV split), a block's tiles
// among its warps, each of which has a pipeline of its own. The last block of a KV head to finish merges all splits in
// order.
//
// Grid: entries, KV heads, splits. 32 x DECODE_WARPS threads. Shared: DECODE_SHARED bytes, of a step STEP_SHARED.
#pragma once

#include "split_merge.cuh"

#if SKC_FEATURES & 4
#include "decode_segments.cuh"
#else
#include "decode_window.cuh"
#endif

// Finds and checks entry block_x() of a step as an append does; its queries are those of the new tokens. Of an invalid
// entry this reports and counts the arrivals. The whole block must call it.
SKC_DEVICE Queries find_step(const SkcStep& p, u64* scratch) {
    const SkcLayer& l = p.attend.layer;
    const SkcBatch& b = p.attend.batch;
    Entry e = find_entry(b, block_x(), scratch, WARPS);
    Counters c = read_counters(l, e);
    AppendPlan a = plan_append(l, b, e, c);
    Queries q = {e.row + b.chunk_begin, c.seq.len, a.m, c.start, c.seq.floor, e.seq, !a.skip && a.status == 0};
    if (q.active || a.skip) return q;
    if (thread() == 0 && block_y() == 0 && block_z() == 0) {
        // A step stands for an append and an attend, each of which would have counted the entry.
        for (u32 call = 0; call < 2; ++call) report_append(l, b, e, a);
    }
    // An entry with an invalid id, or with the id of an earlier entry, has no counters to change.
    if (!e.owns_seq) return q;
    block_sync();
    if (thread() == 0) arrive(l, b, e.seq, a, grid_y() * grid_z());
    return q;
}

// `step` is used by a step only.
template <bool STEP>
SKC_DEVICE void decode(const SkcAttend& p, const SkcStep* step) {
    begin_kernel();
    const SkcLayer& l = p.layer;
    DecodeBlock<KeyTiles> b;
    b.queries = shared_memory();
    b.stages = shared_memory() + 2 * DECODE_COLUMNS * ROW_BYTES;
    u8* scratch = b.stages + STAGES * STAGE_BYTES;
    Queries q = STEP ? find_step(*step, (u64*)scratch) : find_queries(p, (u64*)scratch, WARPS);
    if (!q.active) return;
    u32 kv_head = block_y();
    WindowTokens tokens = {ring_of(l).n_sink + query_evicted(ring_of(l), q, q.first), q.first + q.m - 1};
    b.d = {q, kv_head};
    b.keys = key_tiles(l, b.d, tokens, p.n_splits);
    u8* new_rows = shared_memory() + DECODE_SHARED(SKC_TYPE, SKC_DIM);
    NewTokens new_tokens = {new_rows, q.first, b.keys.newest_from(l, q), (u32)q.m, 0, b.keys.share};
    if (STEP) {
        // The new tokens are not in memory yet: no copy may read their slots.
        new_tokens.n_sinks = (u32)min_u64(saturating_sub(ring_of(l).n_sink, q.first), q.m);
        b.keys.leave_out(new_tokens.n_sinks, new_tokens.n - new_tokens.n_sinks);
    }
    // The first keys are copied while queries are loaded and rotated.
    for (u32 i = 0; i + 1 < STAGES; ++i) start_tile(l, b, b.keys.share.begin + warp() + i * WARPS, i);
    load_queries(p, b);
    if (STEP) load_new_tokens<DECODE_THREADS>(new_tokens, *step, q, kv_head);
    block_sync(); // mutant: decode_missing_barrier
    if (STEP) {
        store_new_tokens<DECODE_THREADS>(new_tokens, l, b.d.head(l));
        // All threads have read the counters. The atomic's latency overlaps with the first tiles'.
        if (thread() == 0) arrive(l, p.batch, q.seq, {q.m, 0, false}, grid_y() * grid_z());
    }
    DecodeColumns c = run_tiles<STEP>(p, b, new_tokens);
    copy_async_wait<0>();
    block_sync();
    // The warps' partial results are merged in shared memory, where the stages were.
    WarpPartials warps = {(float*)b.stages, WARPS};
    DecodeStats* merged = (DecodeStats*)warps.end();
    store_warp_partial(warps, c);
    block_sync();
    if (p.n_splits == 1) {
        store_rows(p, b.d, warps, merged);
        return;
    }
    u64 head = (u64)block_x() * l.n_kv_heads + kv_head;
    SplitPartials splits = {p.partials + head * p.n_splits * SplitPartials::SIZE, p.n_splits};
    store_split_partial(splits, warps, (u32)q.m * GROUP, merged);
    // The barrier orders the block's writes before thread 0's release, and thread 0's acquire before the block's reads.
    // So no other thread needs a fence, which would wait for all of the block's memory traffic.
    block_sync();
    u32* arrived = (u32*)scratch;
    if (thread() == 0) *arrived = atomic_inc(&p.split_arrivals[head], p.n_splits - 1);
    block_sync();
    if (*arrived != p.n_splits - 1) return; // mutant: merge_before_all_arrived
    store_rows(p, b.d, splits, merged);
}

SKC_KERNEL(DECODE_THREADS, skc_attend_decode, SkcAttend) { decode<false>(p, nullptr); }

SKC_KERNEL(DECODE_THREADS, skc_step_decode, SkcStep) { decode<true>(p.attend, &p); }

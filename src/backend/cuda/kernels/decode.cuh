// skc_attend_decode and skc_step_decode: few queries, many keys. The second also appends the queries' own tokens, so
// that a decode step is one launch. The keys of a KV head are split among the blocks of z (KV split), a block's tiles
// among its warps, each of which has a pipeline of its own. The last block of a KV head to finish merges all splits in
// order.
//
// Grid: entries, KV heads, splits. 32 x DECODE_WARPS threads. Shared: DECODE_SHARED bytes, of a step STEP_SHARED.
#pragma once

#include "new_tokens.cuh"
#include "split_merge.cuh"

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

// What a block works on.
struct DecodeBlock {
    DecodeQueries d;
    KeyRange sinks;
    KeyRange window;
    TileShare share;
    u8* queries;  // shared memory: the columns' queries rotated for window keys, then for sink keys
    u8* stages;   // shared memory: the warps' tiles
};

// The range that tile `tile` belongs to: field by field, so that it stays in registers.
SKC_DEVICE KeyRange range_of_tile(const DecodeBlock& b, u32 tile) {
    bool sinks = tile < b.share.sink_tiles;
    KeyRange r;
    r.head = b.window.head;
    r.first_slot = sinks ? b.sinks.first_slot : b.window.first_slot;
    r.end_slot = sinks ? b.sinks.end_slot : b.window.end_slot;
    r.wrap_slot = sinks ? b.sinks.wrap_slot : b.window.wrap_slot;
    r.n = sinks ? b.sinks.n : b.window.n;
    r.sinks = sinks;
    return r;
}

// The first key of a tile in its range.
SKC_DEVICE u32 first_key(const DecodeBlock& b, u32 tile) {
    return (tile < b.share.sink_tiles ? tile : tile - b.share.sink_tiles) * DECODE_KEYS;
}

// The calling warp's tile in a stage.
SKC_DEVICE KvTile warp_tile(const DecodeBlock& b, u32 stage) {
    constexpr u32 K_BYTES = tile_bytes<KeyForm>(DECODE_KEYS);
    constexpr u32 V_BYTES = tile_bytes<ValueForm>(DECODE_KEYS);
    u8* k = b.stages + warp() * (K_BYTES + V_BYTES) + stage * STAGE_BYTES;
    return {k, k + K_BYTES};
}

// Starts copying a tile into a stage, and commits the copies as a group. Beyond the block's share the group is empty.
SKC_DEVICE void start_tile(const SkcLayer& l, const DecodeBlock& b, u32 tile, u32 stage) {
    if (tile < b.share.end) {
        copy_tile<DECODE_KEYS, 32>(l, range_of_tile(b, tile), first_key(b, tile), warp_tile(b, stage), lane());
    }
    copy_async_commit();
}

// Loads the block's queries into shared memory. Columns beyond the last are zeros.
SKC_DEVICE void load_queries(const SkcAttend& p, const DecodeBlock& b) {
    const Queries& q = b.d.q;
    u8* for_window = b.queries;
    u8* for_sinks = b.queries + DECODE_COLUMNS * ROW_BYTES;
    u32 columns = (u32)q.m * GROUP;
    for (u32 i = columns * ROW_BYTES / 16 + thread(); i < DECODE_COLUMNS * ROW_BYTES / 16; i += DECODE_THREADS) {
        ((U32x4*)for_window)[i] = {0, 0, 0, 0};
        ((U32x4*)for_sinks)[i] = {0, 0, 0, 0};
    }
    // Heads of a token are loaded in parts where a warp loads them, so that all warps have some.
    constexpr u32 PARTS = QUANTISED(SKC_TYPE) && GROUP > 1 ? 2 : 1;
    constexpr u32 HEADS = (GROUP + PARTS - 1) / PARTS;
    // Items: for window and sinks, of each token.
    for (u32 i = thread(); i < (u32)q.m * 2 * PARTS * QUERY_ITEMS; i += DECODE_THREADS) {
        u32 part = i / QUERY_ITEMS;
        u32 first = part % PARTS * HEADS;
        u32 index = part / PARTS / 2;
        bool sinks = part / PARTS % 2 != 0;
        u32 n = GROUP - first < HEADS ? GROUP - first : HEADS;
        u8* to = (sinks ? for_sinks : for_window) + (index * GROUP + first) * ROW_BYTES;
        u64 token = q.first + index;
        load_query_item<HEADS>(p, q, {token, b.d.kv_head * GROUP + first, n, sinks, to}, i % QUERY_ITEMS);
    }
}

// The block's share of the tiles of its KV head.
SKC_DEVICE TileShare tile_share(u32 n_sinks, u32 n_window, u32 n_splits) {
    u32 sink_tiles = (n_sinks + DECODE_KEYS - 1) / DECODE_KEYS;
    u32 tiles = sink_tiles + (n_window + DECODE_KEYS - 1) / DECODE_KEYS;
    u32 share = (tiles + n_splits - 1) / n_splits;
    u32 begin = block_z() * share;
    return {sink_tiles, begin, (u32)min_u64((u64)begin + share, tiles)};
}

// The columns of the calling warp, after all of its tiles. Copies of the first STAGES - 1 of them have been started.
// `new_tokens`: new tokens, used by a step only.
template <bool STEP>
SKC_DEVICE DecodeColumns run_tiles(const SkcAttend& p, const DecodeBlock& b, const NewTokens& new_tokens) {
        const SkcLayer& l = p.layer;
    u32 tile = b.share.begin + warp();
    bool sinks = tile < b.share.sink_tiles;
    DecodeColumns c;
#pragma unroll
    for (u32 r = 0; r < 2; ++r) c.rows[r] = SoftmaxState<2 * DIM_STEPS>::empty();
    c.scorer = scorer_of(l);
    load_columns(c, b.queries + (sinks ? DECODE_COLUMNS : 0) * ROW_BYTES);
    set_key_range(c, l, b.d, sinks);
    u32 stage = 0;
    for (; tile < b.share.end; tile += WARPS) {
        copy_async_wait<STAGES - 2>(); // mutant: copies_not_waited_for
        warp_sync();
        // Into the stage that was read in the round before.
        start_tile(l, b, tile + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
        if (sinks && tile >= b.share.sink_tiles) {
            sinks = false;
            load_columns(c, b.queries);
            set_key_range(c, l, b.d, false);
        }
        KvTile kv = warp_tile(b, stage);
        u32 first = first_key(b, tile);
        if (STEP) {
            NewKeys keys = new_keys(new_tokens, range_of_tile(b, tile));
            // mutant: step_without_its_own_key
            if (keys.n != 0 && first + DECODE_KEYS > keys.stored) patch_tile(new_tokens, keys, kv, first);
        }
        add_tile(c, kv, first);
        stage = (stage + 1) % STAGES;
    }
    return c;
}

// `step` is used by a step only.
template <bool STEP>
SKC_DEVICE void decode(const SkcAttend& p, const SkcStep* step) {
    begin_kernel();
        const SkcLayer& l = p.layer;
    DecodeBlock b;
    b.queries = shared_memory();
    b.stages = shared_memory() + 2 * DECODE_COLUMNS * ROW_BYTES;
    u8* scratch = b.stages + STAGES * STAGE_BYTES;
    Queries q = STEP ? find_step(*step, (u64*)scratch) : find_queries(p, (u64*)scratch, WARPS);
    if (!q.active) return;
    u32 kv_head = block_y();
    WindowTokens tokens = {ring_of(l).n_sink + query_evicted(ring_of(l), q, q.first), q.first + q.m - 1};
    b.d = {q, kv_head, tokens.oldest};
    b.sinks = key_range(l, q.seq, kv_head, true, tokens);
    b.window = key_range(l, q.seq, kv_head, false, tokens);
    b.share = tile_share(b.sinks.n, b.window.n, p.n_splits);
    u8* new_rows = shared_memory() + DECODE_SHARED(SKC_TYPE, SKC_DIM);
    NewTokens new_tokens = {new_rows, q.first, tokens.oldest, (u32)q.m, 0, b.share};
    if (STEP) {
        // The new tokens are not in memory yet: no copy may read their slots.
        new_tokens.n_sinks = (u32)min_u64(saturating_sub(ring_of(l).n_sink, q.first), q.m);
        b.sinks.n -= new_tokens.n_sinks;
        b.window.n -= new_tokens.n - new_tokens.n_sinks; // mutant: step_reads_old_slots
    }
    // The first keys are copied while queries are loaded and rotated.
    for (u32 i = 0; i + 1 < STAGES; ++i) start_tile(l, b, b.share.begin + warp() + i * WARPS, i);
    load_queries(p, b);
    if (STEP) load_new_tokens<DECODE_THREADS>(new_tokens, *step, q, kv_head);
    block_sync(); // mutant: decode_missing_barrier
    if (STEP) {
        store_new_tokens<DECODE_THREADS>(new_tokens, l, b.window.head);
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

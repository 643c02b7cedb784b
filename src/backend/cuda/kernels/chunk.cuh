// skc_attend_chunk: many queries. A row is one query head of one token. A warp has one or two blocks of 16 rows, and
// the block's warps share tiles of keys: of one segment after the other, the sinks first. Only tiles at the edge of
// what some row sees are masked.
//
// Grid: entries, KV heads, tiles of 64 or 128 rows (loop). 128 threads. Shared: CHUNK_SHARED bytes.
#pragma once

#include "launch_config.cuh"

#if !QUANTISED(SKC_TYPE)
#include "chunk_numbers.cuh"
#else
#include "chunk_codes.cuh"
#endif

// Adds a tile to the warp's rows, which begin at `queries`; `first`: the tile's first key in its range. `masked`: not
// all of the rows see all of its keys.
template <u32 M_BLOCKS, u32 KEYS>
SKC_DEVICE void add_tile(ChunkRows<M_BLOCKS>& c, u8* queries, const KvTile& tile, u32 first, bool masked) {
    float s[2 * M_BLOCKS][KEYS / 4];
#pragma unroll
    for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
#pragma unroll
        for (u32 i = 0; i < KEYS / 4; ++i) s[r][i] = 0.0f;
    }
    add_qk<M_BLOCKS, KEYS>(s, queries, tile.k);
#pragma unroll
    for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
        AlibiBias bias = {0.0f, 0};
        if (SKC_FEATURES & 2) bias = row_mask(queries, lane() / 4 + 8 * r)->bias;
        score_row<ChunkLayout>(s[r], c.scorer, bias, first);
    }
    // A loop of its own, so that tiles that are not masked have no branches in theirs.
    if (masked) {
#pragma unroll
        for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
            mask_row<ChunkLayout>(s[r], row_mask(queries, lane() / 4 + 8 * r)->visible, first);
        }
    }
    float alpha[2 * M_BLOCKS];
    bool max_changed = false;
#pragma unroll
    for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
        float old_max = c.rows[r].stats.max;
        alpha[r] = c.rows[r].stats.add_scores(s[r], ChunkLayout::LOW, ChunkLayout::HIGH);
        max_changed |= c.rows[r].stats.max != old_max;
    }
    // Rescaling is skipped while no maximum of the warp changes: alpha is then 1, or the accumulators are still zero.
    if (warp_any(max_changed)) {
#pragma unroll
        for (u32 r = 0; r < 2 * M_BLOCKS; ++r) c.rows[r].rescale(alpha[r]);
    }
    add_pv<M_BLOCKS, KEYS>(c, s, tile.v, masked);
}

// Loads the block's queries, rotated for the keys of one segment, and their masks.
SKC_DEVICE void load_rows(const SkcAttend& p, const ChunkBlock& b, const KeySegment& s) {
    const QueryTile& tile = b.tile;
    Ring ring = ring_of(p.layer);
    // Tokens that have rows here, the first and the last of them perhaps not with all of their heads.
    u32 tokens = (tile.skip + tile.rows + GROUP - 1) / GROUP;
    for (u32 i = thread(); i < tokens * QUERY_ITEMS; i += 128) {
        u32 index = i / QUERY_ITEMS;
        u32 skip = index == 0 ? tile.skip : 0;
        u32 row = index * GROUP + skip - tile.skip;
        u32 n = GROUP - skip < tile.rows - row ? GROUP - skip : tile.rows - row;
        u64 token = tile.q.first + tile.query + index;
        // Few heads at a time: the accumulators hold most registers.
        load_query_item<CHUNK_UNROLL>(
            p, tile.q,
            {token, block_y() * GROUP + skip, n, s.offset(ring, tile.q, token), b.queries + row * ROW_BYTES},
            i % QUERY_ITEMS);
    }
    for (u32 row = thread(); row < tile.rows; row += 128) {
        u64 token = token_of(tile, row);
        VisibleRange visible = visible_range(ring, tile.q, token, s);
        u32 distance = (u32)s.distance(ring, tile.q, token);
        *row_mask(b.queries, row) = {visible, alibi_bias(p.layer, head_of(tile, row), distance)};
    }
}

// Runs over the keys of one segment with STAGES tiles of them in shared memory: one is read while the others are being
// copied.
template <u32 M_BLOCKS, u32 KEYS, u32 STAGES>
SKC_DEVICE void add_keys(ChunkRows<M_BLOCKS>& c, const SkcAttend& p, const ChunkBlock& b, const KeySegment& s) {
    constexpr u32 K_BYTES = tile_bytes<KeyForm>(KEYS);
    constexpr u32 V_BYTES = tile_bytes<ValueForm>(KEYS);
    const QueryTile& tile = b.tile;
    u64 head = (u64)tile.q.seq * p.layer.n_kv_heads + block_y();
    KeyRange keys = key_range(p.layer, head, s, b.tokens);
    if (keys.n == 0) return;
    auto stage_tile = [&](u32 stage) -> KvTile {
        u8* k = b.stages + stage * (K_BYTES + V_BYTES);
        return {k, k + K_BYTES};
    };
    auto start_tile = [&](u32 first, u32 stage) {
        if (first < keys.n) copy_tile<KEYS, 128>(p.layer, keys, first, stage_tile(stage), thread());
        copy_async_commit();
    };
    block_sync();
    for (u32 i = 0; i + 1 < STAGES; ++i) start_tile(i * KEYS, i);
    load_rows(p, b, s);
    u32 low = warp() * 16 * M_BLOCKS;
    u32 high = (u32)min_u64(low + 16 * M_BLOCKS, tile.rows);
    // What some and what all of the warp's rows see. Rows beyond the last see nothing.
    VisibleRange some = {0, 0};
    VisibleRange all = {0, 0};
    if (low < tile.rows) {
        Ring ring = ring_of(p.layer);
        VisibleRange oldest_row = visible_range(ring, tile.q, token_of(tile, low), s);
        VisibleRange newest_row = visible_range(ring, tile.q, token_of(tile, high - 1), s);
        some = {oldest_row.begin, newest_row.end};
        if (high - low == 16 * M_BLOCKS) all = {newest_row.begin, oldest_row.end};
    }
    u32 stage = 0;
    for (u32 first = 0; first < keys.n; first += KEYS) {
        copy_async_wait<STAGES - 2>();
        block_sync(); // mutant: chunk_missing_barrier
        // Into the stage that was read in the round before.
        start_tile(first + (STAGES - 1) * KEYS, (stage + STAGES - 1) % STAGES);
        if (first < some.end && first + KEYS > some.begin) {
            bool masked = first < all.begin || first + KEYS > all.end;
            add_tile<M_BLOCKS, KEYS>(c, b.queries + low * ROW_BYTES, stage_tile(stage), first, masked);
        }
        stage = (stage + 1) % STAGES;
    }
}

// Normalises the lane's rows and writes them and their lse.
template <u32 M_BLOCKS>
SKC_DEVICE void store_rows(const SkcAttend& p, const QueryTile& tile, ChunkRows<M_BLOCKS>& c) {
    const SkcLayer& l = p.layer;
#pragma unroll
    for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
        auto& state = c.rows[r];
        state.stats.sum_lanes(ChunkLayout::LOW, ChunkLayout::HIGH);
        u32 index = warp() * 16 * M_BLOCKS + lane() / 4 + 8 * r;
        if (index >= tile.rows) continue;
        u32 head = head_of(tile, index);
        state.normalise(l, head);
        u64 row = tile.q.row + query_of(tile, index);
        u8* out = row_at(p.out, row, head);
        // One branch for a row instead of one for every pair of dims.
        if (l.out_dtype == SKC_F32) {
            store_row<SKC_F32>(out, state.acc);
        } else if (l.out_dtype == SKC_F16) {
            store_row<SKC_F16>(out, state.acc);
        } else {
            store_row<SKC_BF16>(out, state.acc);
        }
        if (lane() % 4 == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, head) = state.stats.lse();
    }
}

// All rows of the entry that fall to the block.
template <u32 M_BLOCKS, u32 KEYS, u32 STAGES>
SKC_DEVICE void attend_rows(const SkcAttend& p, QueryTile& tile) {
    constexpr u32 ROWS = 64 * M_BLOCKS;
    constexpr u32 TILES = STAGES * (tile_bytes<KeyForm>(KEYS) + tile_bytes<ValueForm>(KEYS));
    static_assert(ROWS * ROW_BYTES + TILES + sizeof(QueryTile) <= CHUNK_SHARED(SKC_TYPE, SKC_DIM), "they fit");
    const SkcLayer& l = p.layer;
    u8* queries = shared_memory();
    u64 row0 = (u64)block_z() * ROWS;
    while (row0 < tile.q.m * GROUP) {
        block_sync();
        if (thread() == 0) {
            tile.query = row0 / GROUP;
            tile.skip = (u32)(row0 % GROUP);
            tile.rows = (u32)min_u64(ROWS, tile.q.m * GROUP - row0);
        }
        block_sync();
        Ring ring = ring_of(l);
        u64 oldest = ring.n_sink + query_evicted(ring, tile.q, token_of(tile, 0));
        ChunkBlock b = {tile, {oldest, token_of(tile, tile.rows - 1)}, queries, queries + ROWS * ROW_BYTES};
        ChunkRows<M_BLOCKS> c;
#pragma unroll
        for (u32 r = 0; r < 2 * M_BLOCKS; ++r) c.rows[r] = SoftmaxState<2 * DIM_BLOCKS>::empty();
        c.scorer = scorer_of(l);
        // Rows beyond the last are zeros, and their masks are empty.
        u32 vectors = ROWS * ROW_BYTES / 16;
        for (u32 i = tile.rows * ROW_BYTES / 16 + thread(); i < vectors; i += 128) ((U32x4*)queries)[i] = {0, 0, 0, 0};
#if SEGMENTED
        // The list is made anew for each segment: the loops over keys need the registers.
#pragma unroll 1
        for (u32 i = 0;; ++i) {
            u64 first = ring.n_sink + query_evicted(ring, tile.q, token_of(tile, 0));
            SegmentList list = segment_list(l, tile.q.seq, first, token_of(tile, tile.rows - 1));
            if (i >= list.count()) break;
            add_keys<M_BLOCKS, KEYS, STAGES>(c, p, b, list.segment(i));
        }
#else
#pragma unroll 1
        for (u32 i = 0; i < 2; ++i) add_keys<M_BLOCKS, KEYS, STAGES>(c, p, b, {i == 0, b.tokens.oldest});
#endif
        store_rows(p, tile, c);
        row0 = tile.query * GROUP + tile.skip + (u64)grid_z() * ROWS;
    }
}

SKC_KERNEL(128, skc_attend_chunk, SkcAttend) {
    begin_kernel();
    // Scratch lies where the queries will be.
    Queries q = find_queries(p, (u64*)shared_memory(), 4);
    if (!q.active) return;
    QueryTile& tile = *(QueryTile*)(shared_memory() + CHUNK_SHARED(SKC_TYPE, SKC_DIM) - sizeof(QueryTile));
    if (thread() == 0) tile.q = q;
    block_sync();
#if SKC_DIM <= 128
    if (q.m * GROUP > CHUNK_SMALL_ROWS && !p.small_tiles) {
        attend_rows<2, CHUNK_LARGE_KEYS, CHUNK_LARGE_STAGES>(p, tile);
        return;
    }
#endif
    attend_rows<1, CHUNK_SMALL_KEYS(SKC_DIM), CHUNK_SMALL_STAGES>(p, tile);
}

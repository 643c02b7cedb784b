// skc_attend_chunk: many queries. A row is one query head of one token. A warp has one or two blocks of 16 rows and
// shares tiles of keys with others: of one segment after the other, the sinks first. Only tiles at the edge of what
// some row sees are masked. The keys of query tiles of 64 rows may be split among blocks (chunk_split.cuh), which may
// be a cluster (chunk_cluster.cuh).
//
// Grid: entries, KV heads, tiles of 64 or 128 rows (loop) x splits. Clusters: none, or the splits of a tile. 128
// threads. Shared: CHUNK_SHARED bytes.
#pragma once

#include "launch_config.cuh"

#if !QUANTISED(SKC_TYPE)
#include "chunk_numbers.cuh"
#else
#include "chunk_codes.cuh"
#endif
#include "chunk_cluster.cuh"

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

// Runs over the block's share of the keys of one segment, with tiles of them in stages of shared memory: one is read
// while the others are being copied. `before`: tiles of the segments before it.
template <class Form>
SKC_DEVICE void add_keys(ChunkRows<Form::M_BLOCKS>& c, const SkcAttend& p, const ChunkBlock& b, const KeySegment& s,
                         u32 before) {
    constexpr u32 KEYS = Form::KEYS;
    constexpr u32 K_BYTES = tile_bytes<KeyForm>(KEYS);
    constexpr u32 V_BYTES = tile_bytes<ValueForm>(KEYS);
    constexpr u32 ROUND = Form::SLICES * KEYS;
    const QueryTile& tile = b.tile;
    u64 head = (u64)tile.q.seq * p.layer.n_kv_heads + block_y();
    KeyRange keys = key_range(p.layer, head, s, b.tokens);
    u32 begin = 0;
    if (Form::CAN_SPLIT) {
        u32 tiles = chunk_tiles(keys.n);
        begin = tile.begin > before ? (tile.begin - before) * KEYS : 0;
        keys.n = tile.end <= before ? 0 : tile.end - before < tiles ? (tile.end - before) * KEYS : keys.n;
    }
    if (begin >= keys.n) return;
    auto stage_tile = [&](u32 stage) -> KvTile {
        u8* k = b.stages + (stage * Form::SLICES + Form::slice()) * (K_BYTES + V_BYTES);
        return {k, k + K_BYTES};
    };
    auto start_tile = [&](u32 first, u32 stage) {
        if (first < keys.n) {
            u32 index = thread() % Form::SLICE_THREADS;
            copy_tile<KEYS, Form::SLICE_THREADS>(p.layer, keys, first, stage_tile(stage), index);
        }
        copy_async_commit();
    };
    block_sync();
    u32 first = begin + Form::slice() * KEYS;
    for (u32 i = 0; i + 1 < Form::STAGES; ++i) start_tile(first + i * ROUND, i);
    load_rows(p, b, s);
    u32 low = Form::first_row();
    u32 high = (u32)min_u64(low + Form::WARP_ROWS, tile.rows);
    // What some and what all of the warp's rows see. Rows beyond the last see nothing.
    VisibleRange some = {0, 0};
    VisibleRange all = {0, 0};
    if (low < tile.rows) {
        Ring ring = ring_of(p.layer);
        VisibleRange oldest_row = visible_range(ring, tile.q, token_of(tile, low), s);
        VisibleRange newest_row = visible_range(ring, tile.q, token_of(tile, high - 1), s);
        some = {oldest_row.begin, (u32)min_u64(newest_row.end, keys.n)};
        if (high - low == Form::WARP_ROWS) all = {newest_row.begin, oldest_row.end};
    }
    u32 stage = 0;
    // Slices have the same number of rounds: they meet.
    for (; first < keys.n + Form::slice() * KEYS; first += ROUND) {
        copy_async_wait<Form::STAGES - 2>();
        block_sync(); // mutant: chunk_missing_barrier
        // Into the stage that was read in the round before.
        start_tile(first + (Form::STAGES - 1) * ROUND, (stage + Form::STAGES - 1) % Form::STAGES);
        if (first < some.end && first + KEYS > some.begin) {
            bool masked = first < all.begin || first + KEYS > all.end;
            add_tile<Form::M_BLOCKS, KEYS>(c, b.queries + low * ROW_BYTES, stage_tile(stage), first, masked);
        }
        stage = (stage + 1) % Form::STAGES;
    }
}

// Normalises the lane's rows and writes them and their lse. `first`: the warp's first row.
template <u32 M_BLOCKS, u32 N>
SKC_DEVICE void store_rows(const SkcAttend& p, const QueryTile& tile, ChunkRows<N>& c, u32 first) {
    const SkcLayer& l = p.layer;
#pragma unroll
    for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
        auto& state = c.rows[r];
        state.stats.sum_lanes(ChunkLayout::LOW, ChunkLayout::HIGH);
        u32 index = first + lane() / 4 + 8 * r;
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
template <class Form>
SKC_DEVICE void attend_rows(const SkcAttend& p, QueryTile& tile) {
    constexpr u32 ROWS = Form::ROWS;
    constexpr u32 STAGE_TILES = Form::STAGES * Form::SLICES;
    constexpr u32 TILES = STAGE_TILES * (tile_bytes<KeyForm>(Form::KEYS) + tile_bytes<ValueForm>(Form::KEYS));
    static_assert(ROWS * ROW_BYTES + TILES + CHUNK_SCRATCH <= CHUNK_SHARED(SKC_TYPE, SKC_DIM), "they fit");
    static_assert(Form::SLICES == 1 || 4 * 4 * WarpPartial::FLOATS <= ROWS * ROW_BYTES + TILES, "as do slices");
    const SkcLayer& l = p.layer;
    // Blocks that share a query tile lie side by side; then each has only one.
    const bool splits = Form::CAN_SPLIT && p.n_splits > 1;
    u8* queries = shared_memory();
    u64 row0 = (u64)(splits ? block_z() / p.n_splits : block_z()) * ROWS;
    while (row0 < tile.q.m * GROUP) {
        block_sync();
        if (thread() == 0) {
            tile.query = row0 / GROUP;
            tile.skip = (u32)(row0 % GROUP);
            tile.rows = (u32)min_u64(ROWS, tile.q.m * GROUP - row0);
            tile.split = splits ? block_z() % p.n_splits : 0;
            tile.begin = 0;
            tile.end = ~0u;
        }
        block_sync();
        Ring ring = ring_of(l);
        u64 oldest = ring.n_sink + query_evicted(ring, tile.q, token_of(tile, 0));
        ChunkBlock b = {tile, {oldest, token_of(tile, tile.rows - 1)}, queries, queries + ROWS * ROW_BYTES};
        if (splits) {
            share_tiles<Form::SLICES>(p, b.tokens, tile);
            block_sync(); // mutant: chunk_share_read_too_early
        }
        ChunkRows<Form::M_BLOCKS> c;
#pragma unroll
        for (u32 r = 0; r < 2 * Form::M_BLOCKS; ++r) c.rows[r] = SoftmaxState<2 * DIM_BLOCKS>::empty();
        c.scorer = scorer_of(l);
        // Rows beyond the last are zeros, and their masks are empty.
        u32 vectors = ROWS * ROW_BYTES / 16;
        for (u32 i = tile.rows * ROW_BYTES / 16 + thread(); i < vectors; i += 128) ((U32x4*)queries)[i] = {0, 0, 0, 0};
#if SEGMENTED
        u32 before = 0;
        // The list is made anew for each segment: the loops over keys need the registers.
#pragma unroll 1
        for (u32 i = 0;; ++i) {
            u64 first = ring.n_sink + query_evicted(ring, tile.q, token_of(tile, 0));
            SegmentList list = segment_list(l, tile.q.seq, first, token_of(tile, tile.rows - 1));
            if (i >= list.count()) break;
            Segment segment = list.segment(i);
            add_keys<Form>(c, p, b, segment, before);
            if (Form::CAN_SPLIT) before += chunk_tiles((u32)segment.n);
        }
#else
#pragma unroll 1
        for (u32 i = 0; i < 2; ++i) {
            // Where fewer sinks than n_sink are held, there is no window.
            u32 before = i == 0 ? 0 : chunk_tiles((u32)ring.n_sink);
            add_keys<Form>(c, p, b, {i == 0, b.tokens.oldest}, before);
        }
#endif
        if constexpr (Form::SLICES == 2) merge_slices(c, (float*)shared_memory());
        bool complete = true;
        if constexpr (Form::CAN_SPLIT && CLUSTER_FITS && HAS_CLUSTERS) {
            // Blocks of a cluster have the same entry and query tile: all of them come here, or none.
            if (splits && cluster_size() == p.n_splits) {
                merge_cluster(p, tile, c, Form::merged_row());
                return;
            }
        }
        if constexpr (Form::CAN_SPLIT) {
            if (splits) complete = Form::merged_row() < tile.rows && merge_splits(c, p, tile.split);
        }
        if (complete) store_rows<Form::MERGED_BLOCKS>(p, tile, c, Form::merged_row());
        row0 = tile.query * GROUP + tile.skip + (u64)grid_z() * ROWS;
    }
}

SKC_KERNEL(128, skc_attend_chunk, SkcAttend) {
    begin_kernel();
    // Scratch lies where the queries will be.
    Queries q = find_queries(p, (u64*)shared_memory(), 4);
    if (!q.active) return;
    QueryTile& tile = *(QueryTile*)(shared_memory() + CHUNK_SHARED(SKC_TYPE, SKC_DIM) - CHUNK_SCRATCH);
    if (thread() == 0) tile.q = q;
    block_sync();
#if SKC_DIM <= 128
    if (q.m * GROUP > CHUNK_SMALL_ROWS && !p.small_tiles) {
        attend_rows<ChunkForm<CHUNK_LARGE_ROWS, CHUNK_LARGE_STAGES>>(p, tile);
        return;
    }
#endif
    attend_rows<ChunkForm<CHUNK_SMALL_ROWS, CHUNK_SMALL_STAGES>>(p, tile);
}

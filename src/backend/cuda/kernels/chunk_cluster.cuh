// Partial results of the blocks that share the keys of a query tile, merged in shared memory where these blocks are one
// cluster: each leaves its rows in its own shared memory and merges some of the tile's rows from that of all. Nothing
// goes through device memory, and all blocks merge at the same time. The result does not depend on when a block comes:
// splits are added up in their order.
#pragma once

#include "chunk_split.cuh"

// Clusters have 2, 4 or 8 blocks: no device with clusters has fewer.
constexpr u32 MAX_CLUSTER = 8;
// From a row of a partial result to the next. Behind its dims lie the maximum and the sum. A row's place in the banks
// differs from its neighbours' by 8 words or 24.
constexpr u32 CLUSTER_ROW_BYTES = 4 * (SKC_DIM + 8);
static_assert(CHUNK_SMALL_ROWS * CLUSTER_ROW_BYTES == 16 * CHUNK_PARTIAL(SKC_DIM), "launch_config.rs counts on it");

// Whether shared memory has room for a partial result: not with heads of 256 and short codes.
constexpr bool CLUSTER_FITS =
    CHUNK_SMALL_ROWS * CLUSTER_ROW_BYTES + CHUNK_SCRATCH <= CHUNK_SHARED(SKC_TYPE, SKC_DIM);

// Writes two rows of each lane, not yet normalised, to the block's partial result. `first`: the warp's first row.
template <u32 N>
SKC_DEVICE void store_cluster_rows(u8* partial, ChunkRows<N>& c, u32 first) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        auto& state = c.rows[r];
        state.stats.sum_lanes(ChunkLayout::LOW, ChunkLayout::HIGH);
        u8* row = partial + (first + lane() / 4 + 8 * r) * CLUSTER_ROW_BYTES;
        store_row<SKC_F32>(row, state.acc);
        if (lane() % 4 == 0) *(F32x2*)(row + 4 * SKC_DIM) = {state.stats.max, state.stats.sum};
    }
}

// Merges the block's share of the rows of all SPLITS splits, normalises them, and writes them and their lse. A row has
// ROW_THREADS threads, each of which merges every ROW_THREADS-th vector of its dims.
template <u32 SPLITS>
SKC_DEVICE void merge_cluster_rows(const SkcAttend& p, const QueryTile& tile, const u8* partial) {
    constexpr u32 ROWS = CHUNK_SMALL_ROWS / SPLITS;
    constexpr u32 ROW_THREADS = 128 / ROWS;
    u32 row = tile.split * ROWS + thread() / ROW_THREADS;
    if (row >= tile.rows) return;
    const u8* own = partial + row * CLUSTER_ROW_BYTES;
    u32 from[SPLITS];
    float stats[SPLITS][2];
#pragma unroll
    for (u32 i = 0; i < SPLITS; ++i) {
        from[i] = cluster_address(own, i); // mutant: cluster_rank_of_another_block
        load_cluster_x2(stats[i], from[i] + 4 * SKC_DIM);
    }
    ChunkStats all = ChunkStats::empty();
#pragma unroll
    for (u32 i = 0; i < SPLITS; ++i) all.merge({stats[i][0], stats[i][1]});
    float alpha[SPLITS];
#pragma unroll
    for (u32 i = 0; i < SPLITS; ++i) {
        alpha[i] = all.probability(stats[i][0]); // mutant: cluster_splits_at_one_scale
    }
    u32 head = head_of(tile, row);
    float factor = all.finish(p.layer, head);
    u64 out_row = tile.q.row + query_of(tile, row);
    u8* out = row_at(p.out, out_row, head);
#pragma unroll 1
    for (u32 i = thread() % ROW_THREADS; i < SKC_DIM / 4; i += ROW_THREADS) {
        // All loads first: their latencies overlap.
        float x[SPLITS][4];
#pragma unroll
        for (u32 s = 0; s < SPLITS; ++s) load_cluster_x4(x[s], from[s] + 16 * i);
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (u32 s = 0; s < SPLITS; ++s) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sum[j] += x[s][j] * alpha[s];
        }
        const float result[4] = {sum[0] * factor, sum[1] * factor, sum[2] * factor, sum[3] * factor};
        store_four(out, p.layer.out_dtype, 4 * i, result);
    }
    if (thread() % ROW_THREADS == 0 && p.lse.ptr) *(float*)row_at(p.lse, out_row, head) = all.lse();
}

// Merges the rows of all blocks of the cluster, of which each writes some. `first`: the warp's first row. All threads
// of the cluster must call it; shared memory has no other use any more, but for `tile`.
template <u32 N>
SKC_DEVICE void merge_cluster(const SkcAttend& p, const QueryTile& tile, ChunkRows<N>& c, u32 first) {
    u8* partial = shared_memory();
    // The stages and queries, or the partial results of slices, have been read.
    block_sync(); // mutant: cluster_rows_written_too_early
    store_cluster_rows(partial, c, first);
    cluster_sync(); // mutant: cluster_read_too_early
    if (p.n_splits == 2) {
        merge_cluster_rows<2>(p, tile, partial);
    } else if (p.n_splits == 4) {
        merge_cluster_rows<4>(p, tile, partial);
    } else {
        merge_cluster_rows<MAX_CLUSTER>(p, tile, partial);
    }
    // Lanes without a row are ahead, and a warp comes to the barrier as a whole.
    warp_sync();
    // A block's shared memory goes away with it.
    cluster_sync(); // mutant: cluster_left_too_early
}

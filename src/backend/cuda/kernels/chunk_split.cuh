// Partial results of a chunk's rows: those of two slices of a block, merged in shared memory, and those of the blocks
// that share the keys of a query tile (KV split), merged by the last warp of these rows to finish. Both are merged in
// fixed order, whichever comes last.
#pragma once

#include "chunk_rows.cuh"

// ---- The share of a block

SKC_DEVICE u32 chunk_tiles(u32 keys) { return (keys + CHUNK_KEYS(SKC_DIM) - 1) / CHUNK_KEYS(SKC_DIM); }

// Tiles of keys of all segments. The whole warp must call it.
SKC_DEVICE u32 count_chunk_tiles(const SkcLayer& l, const WindowTokens& tokens, const QueryTile& tile) {
#if SEGMENTED
    SegmentList list = segment_list(l, tile.q.seq, tokens.oldest, tokens.last);
    u32 sum = 0;
    for (u32 i = lane(); i < list.count(); i += 32) sum += chunk_tiles((u32)list.segment(i).n);
    for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    return sum;
#else
    u32 sinks = key_range(l, 0, {true, tokens.oldest}, tokens).n;
    u32 window = key_range(l, 0, {false, tokens.oldest}, tokens).n;
    return chunk_tiles(sinks) + chunk_tiles(window);
#endif
}

// Sets the block's share of the tiles: as many rounds of all slices as the other blocks have, or fewer. It follows from
// the sequence's length as it is now, and may be empty.
template <u32 SLICES>
SKC_DEVICE void share_tiles(const SkcAttend& p, const WindowTokens& tokens, QueryTile& tile) {
    if (warp() != 0) return;
    u32 rounds = (count_chunk_tiles(p.layer, tokens, tile) + SLICES - 1) / SLICES;
    u32 share = (rounds + p.n_splits - 1) / p.n_splits * SLICES;
    if (lane() != 0) return;
    tile.begin = tile.split * share;
    tile.end = tile.begin + share;
}

// ---- Partial results

// 16 rows in memory as the lanes of a warp have them: vector i of lane j lies at [i][j]. Of each lane the accumulators
// of two rows, then their maxima and sums, which are of the lane's own keys only.
struct WarpPartial {
    float* at;

    static constexpr u32 FLOATS = CHUNK_PARTIAL(SKC_DIM);
    // Of one row of a lane.
    static constexpr u32 VECTORS = 2 * DIM_BLOCKS / 4;
    SKC_DEVICE F32x4& vector(u32 i) const { return ((F32x4*)at)[32 * i + lane()]; }
    SKC_DEVICE F32x4& row(u32 r, u32 i) const { return vector(r * VECTORS + i); }
    SKC_DEVICE F32x4& stats() const { return vector(2 * VECTORS); }
};

using ChunkState = SoftmaxState<2 * DIM_BLOCKS>;
using ChunkStats = RowStats<Base2>;

// Writes two rows of each lane.
SKC_DEVICE void store_partial(const WarpPartial& to, const ChunkState& row0, const ChunkState& row1) {
#pragma unroll
    for (u32 i = 0; i < WarpPartial::VECTORS; ++i) {
        to.row(0, i) = {row0.acc[4 * i], row0.acc[4 * i + 1], row0.acc[4 * i + 2], row0.acc[4 * i + 3]};
        to.row(1, i) = {row1.acc[4 * i], row1.acc[4 * i + 1], row1.acc[4 * i + 2], row1.acc[4 * i + 3]};
    }
    to.stats() = {row0.stats.max, row0.stats.sum, row1.stats.max, row1.stats.sum};
}

// Adds the accumulators of a partial result to those of two rows, whose maxima and sums have been merged.
SKC_DEVICE void add_partial(ChunkState& row0, ChunkState& row1, const WarpPartial& from) {
    F32x4 stats = from.stats();
    float alpha0 = row0.stats.probability(stats.x);
    float alpha1 = row1.stats.probability(stats.z); // mutant: chunk_splits_at_one_scale
#pragma unroll
    for (u32 i = 0; i < WarpPartial::VECTORS; ++i) {
        F32x4 x = from.row(0, i);
        F32x4 y = from.row(1, i);
        const float a[4] = {x.x, x.y, x.z, x.w};
        const float b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            row0.acc[4 * i + j] += a[j] * alpha0;
            row1.acc[4 * i + j] += b[j] * alpha1;
        }
    }
}

// Merges maxima and sums of a partial result.
SKC_DEVICE void add_stats(ChunkState& row0, ChunkState& row1, const F32x4& stats) {
    row0.stats.merge({stats.x, stats.y});
    row1.stats.merge({stats.z, stats.w});
}

// Merges the partial results of two slices, whose warps have two blocks of 16 rows each: warps of the first slice end
// with the first block, those of the second with the second. The whole block must call it; `shared` has no other use
// any more.
SKC_DEVICE void merge_slices(ChunkRows<2>& c, float* shared) {
    bool second = warp() >= 2;
    // Registers cannot be indexed at run time.
    auto keep = [&](u32 r, u32 i) { return second ? c.rows[r + 2].acc[i] : c.rows[r].acc[i]; };
    auto give = [&](u32 r, u32 i) { return second ? c.rows[r].acc[i] : c.rows[r + 2].acc[i]; };
    WarpPartial mine = {shared + warp() * WarpPartial::FLOATS};
    WarpPartial other = {shared + (warp() ^ 2) * WarpPartial::FLOATS};
    // The stages and queries have been read.
    block_sync();
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
#pragma unroll
        for (u32 i = 0; i < WarpPartial::VECTORS; ++i) {
            mine.row(r, i) = {give(r, 4 * i), give(r, 4 * i + 1), give(r, 4 * i + 2), give(r, 4 * i + 3)};
        }
    }
    ChunkStats given0 = second ? c.rows[0].stats : c.rows[2].stats;
    ChunkStats given1 = second ? c.rows[1].stats : c.rows[3].stats;
    mine.stats() = {given0.max, given0.sum, given1.max, given1.sum};
    block_sync(); // mutant: slices_merged_too_early
    F32x4 stats = other.stats();
    const ChunkStats others[2] = {{stats.x, stats.y}, {stats.z, stats.w}};
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        ChunkStats own = second ? c.rows[r + 2].stats : c.rows[r].stats;
        c.rows[r].stats = own;
        c.rows[r].stats.merge(others[r]);
        float own_alpha = c.rows[r].stats.probability(own.max);
        float alpha = c.rows[r].stats.probability(others[r].max); // mutant: slices_at_one_scale
#pragma unroll
        for (u32 i = 0; i < WarpPartial::VECTORS; ++i) {
            F32x4 x = other.row(r, i);
            c.rows[r].acc[4 * i] = keep(r, 4 * i) * own_alpha + x.x * alpha;
            c.rows[r].acc[4 * i + 1] = keep(r, 4 * i + 1) * own_alpha + x.y * alpha;
            c.rows[r].acc[4 * i + 2] = keep(r, 4 * i + 2) * own_alpha + x.z * alpha;
            c.rows[r].acc[4 * i + 3] = keep(r, 4 * i + 3) * own_alpha + x.w * alpha;
        }
    }
}

// Writes the warp's 16 rows, the first two of `c`. Of the warps that have these rows the last to come merges all splits
// in their order. Returns whether this was it. The whole warp must call it.
template <u32 M_BLOCKS>
SKC_DEVICE bool merge_splits(ChunkRows<M_BLOCKS>& c, const SkcAttend& p, u32 split) {
    u32 n = p.n_splits;
    // The blocks that share a query tile lie side by side.
    u64 first = ((u64)block_x() * p.layer.n_kv_heads + block_y()) * grid_z() + block_z() - split;
    auto partial = [&](u32 i) -> WarpPartial {
        return {p.partials + ((first + i) * 4 + warp()) * WarpPartial::FLOATS};
    };
    store_partial(partial(split), c.rows[0], c.rows[1]);
    // The barrier orders the warp's writes before lane 0's release, and the next one lane 0's acquire before its reads.
    warp_sync();
    u32 arrived = 0;
    // mutant: chunk_arrivals_not_reset
    if (lane() == 0) arrived = atomic_inc(&p.split_arrivals[4 * first + warp()], n - 1);
    if (shuffle(arrived, 0) != n - 1) return false; // mutant: chunk_merged_before_all_arrived
    warp_sync();
    c.rows[0] = ChunkState::empty();
    c.rows[1] = ChunkState::empty();
#pragma unroll 1
    for (u32 i = 0; i < n; ++i) add_stats(c.rows[0], c.rows[1], partial(i).stats());
#pragma unroll 1
    // mutant: chunk_split_left_out
    for (u32 i = 0; i < n; ++i) add_partial(c.rows[0], c.rows[1], partial(i));
    return true;
}

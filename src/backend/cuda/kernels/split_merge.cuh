// Partial results of a decode, of the warps of a block or of the splits of a KV head: how they are merged, always in
// the same order, and how rows of the result are written.
#pragma once

#include "decode_tile.cuh"

using DecodeStats = RowStats<Base2>;

// n partial results. Each has the accumulators of eight query columns, STRIDE floats apart, and then their maxima and
// sums.
template <u32 STRIDE>
struct Partials {
    float* at;
    u32 n;

    static constexpr u32 SIZE = DECODE_COLUMNS * (STRIDE + 2);
    SKC_DEVICE float* acc(u32 partial, u32 column) const { return at + (u64)partial * SIZE + column * STRIDE; }
    SKC_DEVICE DecodeStats* stats(u32 partial, u32 column) const {
        return (DecodeStats*)(at + (u64)partial * SIZE + DECODE_COLUMNS * STRIDE) + column;
    }
    // Behind the last one.
    SKC_DEVICE float* end() const { return at + (u64)n * SIZE; }
};
// In shared memory. Four floats of padding put what the lanes of a warp write into different banks.
using WarpPartials = Partials<DIM + 4>;
// In device memory.
using SplitPartials = Partials<DIM>;
static_assert(4 * (WARPS * WarpPartials::SIZE + 2 * DECODE_COLUMNS) <= STAGES * STAGE_BYTES,
              "the warps' partial results fit where the stages were");

// Writes the partial result of the calling warp. The sums of its lanes have not been added up yet.
SKC_DEVICE void store_warp_partial(const WarpPartials& partials, const DecodeColumns& c) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        DecodeStats stats = c.rows[r].stats;
        stats.sum_lanes(DecodeLayout::LOW, DecodeLayout::HIGH);
        float* acc = partials.acc(warp(), column_of(r));
#pragma unroll
        for (u32 i = 0; i < 2 * DIM_STEPS; ++i) acc[DecodeLayout::dim(i)] = c.rows[r].acc[i];
        if (lane() < 4) *partials.stats(warp(), column_of(r)) = stats;
    }
}

// Merges maxima and sums of all columns into `merged`. A lane takes every 32nd partial result of a column. The whole
// block must call it.
template <u32 STRIDE>
SKC_DEVICE void merge_stats(const Partials<STRIDE>& partials, u32 columns, DecodeStats* merged) {
    for (u32 column = warp(); column < columns; column += WARPS) {
        DecodeStats stats = DecodeStats::empty();
        for (u32 i = lane(); i < partials.n; i += 32) stats.merge(*partials.stats(i, column));
        stats.merge_warp();
        if (lane() == 0) merged[column] = stats;
    }
    block_sync();
}

// The merged state of four dims of a column whose maxima and sums are merged already.
template <u32 STRIDE>
SKC_DEVICE SoftmaxState<4> merge_dims(const Partials<STRIDE>& partials, u32 column, u32 dim,
                                      const DecodeStats& merged) {
    SoftmaxState<4> state = SoftmaxState<4>::empty();
    state.stats = merged;
    // Other blocks' results come from device memory: unrolled, so that eight loads' latencies overlap.
#pragma unroll 8
    for (u32 i = 0; i < partials.n; ++i) {
        F32x4 x = *(const F32x4*)(partials.acc(i, column) + dim);
        state.add_partial({x.x, x.y, x.z, x.w}, partials.stats(i, column)->max);
    }
    return state;
}

// Merges the warps' partial results into that of this block's split. The whole block must call it.
SKC_DEVICE void store_split_partial(const SplitPartials& splits, const WarpPartials& warps, u32 columns,
                                    DecodeStats* merged) {
    merge_stats(warps, columns, merged);
    for (u32 i = thread(); i < columns * (DIM / 4); i += DECODE_THREADS) {
        u32 column = i / (DIM / 4);
        u32 dim = i % (DIM / 4) * 4;
        SoftmaxState<4> state = merge_dims(warps, column, dim, merged[column]);
        *(F32x4*)(splits.acc(block_z(), column) + dim) = {state.acc[0], state.acc[1], state.acc[2], state.acc[3]};
    }
    if (thread() < columns) *splits.stats(block_z(), thread()) = merged[thread()];
}

// Merges the partial results of all columns and writes rows and lse. The whole block must call it.
template <u32 STRIDE>
SKC_DEVICE void store_rows(const SkcAttend& p, const DecodeQueries& d, const Partials<STRIDE>& partials,
                           DecodeStats* merged) {
    const SkcLayer& l = p.layer;
    u32 columns = (u32)d.q.m * GROUP;
    merge_stats(partials, columns, merged);
    for (u32 i = thread(); i < columns * (DIM / 4); i += DECODE_THREADS) {
        u32 column = i / (DIM / 4);
        u32 dim = i % (DIM / 4) * 4;
        u32 head = d.kv_head * GROUP + column % GROUP;
        u64 row = d.q.row + column / GROUP;
        SoftmaxState<4> state = merge_dims(partials, column, dim, merged[column]);
        state.normalise(l, head);
        store_four(row_at(p.out, row, head), l.out_dtype, dim, state.acc);
        if (dim == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, head) = state.stats.lse();
    }
}

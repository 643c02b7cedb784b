// Partial results of few queries, of the warps of a block or of the splits of a head, and how they become rows.
#pragma once

#include "decode_tile.cuh"

// Partial results of the warps of a block, or of the splits of a head: for each the sums of eight columns, STRIDE floats
// from one to the next, then their maxima and weights.
template <u32 STRIDE>
struct Parts {
    float* at;

    static constexpr u32 SIZE = DECODE_COLUMNS * (STRIDE + 2);
    SKC_DEVICE float* sums(u32 part, u32 column) const { return at + (u64)part * SIZE + column * STRIDE; }
    SKC_DEVICE Column* column(u32 part, u32 column) const {
        return (Column*)(at + (u64)part * SIZE + DECODE_COLUMNS * STRIDE) + column;
    }
};
// In shared memory four floats more, so that what the lanes of a warp write lies in different banks.
using WarpParts = Parts<DIM + 4>;
using SplitParts = Parts<DIM>;
static_assert(4 * (WARPS * WarpParts::SIZE + 2 * DECODE_COLUMNS) <= DECODE_STAGES(SKC_DIM) * DECODE_STAGE(SKC_DIM), "parts lie where stages were");

// Maximum and weight of a column over `n` parts, in all lanes of the warp that asks: a lane to a part.
template <u32 STRIDE>
SKC_DEVICE Column merge_column(const Parts<STRIDE>& parts, u32 n, u32 column) {
    Column c = {minus_infinity(), 0.0f};
    for (u32 i = lane(); i < n; i += 32) {
        Column part = *parts.column(i, column);
        float max = max_f(c.max, part.max);
        float base = base_of(max);
        c = {max, c.sum * exp2_fast(c.max - base) + part.sum * exp2_fast(part.max - base)};
    }
    float max = c.max;
    for (u32 mask = 16; mask > 0; mask /= 2) max = max_f(max, shuffle_xor(max, mask));
    c.sum *= exp2_fast(c.max - base_of(max));
    for (u32 mask = 16; mask > 0; mask /= 2) c.sum += shuffle_xor(c.sum, mask);
    return {max, c.sum};
}

// Maxima and weights of all columns into `merged`; the whole block must call it.
template <u32 STRIDE>
SKC_DEVICE void merge_columns(const Parts<STRIDE>& parts, u32 n, u32 columns, Column* merged) {
    for (u32 column = warp(); column < columns; column += WARPS) {
        Column c = merge_column(parts, n, column);
        if (lane() == 0) merged[column] = c;
    }
    block_sync();
}

// Sums of four dims of a column over `n` parts, relative to a maximum.
template <u32 STRIDE>
SKC_DEVICE void merge_dims(const Parts<STRIDE>& parts, u32 n, u32 column, u32 dim, float max, float (&x)[4]) {
    float base = base_of(max);
    x[0] = x[1] = x[2] = x[3] = 0.0f;
    // Parts of other blocks are far away: eight loads wait together.
#pragma unroll 8
    for (u32 i = 0; i < n; ++i) {
        Four part = *(const Four*)(parts.sums(i, column) + dim);
        float keep = exp2_fast(parts.column(i, column)->max - base);
        x[0] += part.x * keep;
        x[1] += part.y * keep;
        x[2] += part.z * keep;
        x[3] += part.w * keep;
    }
}

// Merges the parts of all columns and writes rows and lse; the whole block must call it.
template <u32 STRIDE>
SKC_DEVICE void store_columns(const SkcAttend& p, const Queries& q, u32 kv_head, const Parts<STRIDE>& parts, u32 n, Column* merged) {
    const SkcLayer& l = p.layer;
    u32 columns = (u32)q.m * GROUP;
    merge_columns(parts, n, columns, merged);
    for (u32 i = thread(); i < columns * (DIM / 4); i += DECODE_THREADS) {
        u32 column = i / (DIM / 4), dim = i % (DIM / 4) * 4;
        u32 head = kv_head * GROUP + column % GROUP;
        u64 row = q.row + column / GROUP;
        Column c = merged[column];
        float x[4];
        merge_dims(parts, n, column, dim, c.max, x);
        float scale = 1.0f;
        if (l.sink_logits) {
            // A key with this score and a value of zero.
            float logit = l.sink_logits[head] * SKC_LOG2E;
            float max = max_f(c.max, logit);
            scale = exp2_fast(base_of(c.max) - max);
            c = {max, c.sum * scale + exp2_fast(logit - max)};
        }
        scale /= c.sum;
        for (u32 j = 0; j < 4; ++j) x[j] *= scale;
        store_four(row_at(p.out, row, head), l.out_dtype, dim, x);
        if (dim == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, head) = c.max * SKC_LN2 + log_f(c.sum);
    }
}

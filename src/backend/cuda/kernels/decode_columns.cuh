// The query columns of a decode: tokens times heads of a group are the (up to) eight columns of a matrix product, keys
// are its rows, so that K and V are read once for all of them.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): a lane with g = lane / 4 and
// t = lane % 4 has rows g and g + 8 of columns 2t and 2t + 1 of a product.
#pragma once

#include "launch_config.cuh"

#if !QUANTISED(SKC_TYPE)
#include "tile_numbers.cuh"
#else
#include "tile_codes.cuh"
#endif

constexpr u32 WARPS = DECODE_WARPS(SKC_DIM);
constexpr u32 DECODE_THREADS = 32 * WARPS;
constexpr u32 DIM_STEPS = DIM / 16;
constexpr u32 STAGES = DECODE_STAGES(SKC_TYPE, SKC_DIM);
constexpr u32 STAGE_BYTES = DECODE_STAGE_BYTES(SKC_TYPE, SKC_DIM);

// A row of the softmax (a query column here) is shared by the eight lanes with the same t. Of QK^T a lane has keys g
// and g + 8, of PV dims g and g + 8 of every 16.
struct DecodeLayout {
    static constexpr u32 LANES = 8;
    static constexpr u32 LOW = 4;
    static constexpr u32 HIGH = 32;
    SKC_DEVICE static u32 own() { return lane() / 4; }
    SKC_DEVICE static u32 lane_of(u32 i) { return 4 * i + lane() % 4; }
    SKC_DEVICE static u32 key(u32 slot, u32 i) { return 8 * slot + i; }
    SKC_DEVICE static u32 dim(u32 i) { return decode_dim(i); }
};

// A lane's two query columns.
struct DecodeColumns {
    SoftmaxState<2 * DIM_STEPS> rows[2];
    VisibleRange visible[2];
    VisibleRange visible_to_all;  // keys that every query sees
    AlibiBias bias[2];
    Scorer scorer;
    u32 q[DIM_STEPS][2];  // the queries as right-hand fragments

    SKC_DEVICE static DecodeColumns empty(const SkcLayer& l) {
        DecodeColumns c;
#pragma unroll
        for (u32 r = 0; r < 2; ++r) c.rows[r] = SoftmaxState<2 * DIM_STEPS>::empty();
        c.scorer = scorer_of(l);
        return c;
    }
};

// The query column of a lane's row r.
SKC_DEVICE u32 column_of(u32 r) { return 2 * (lane() % 4) + r; }

// Loads the queries' fragments: column g, dims 2t and 2t + 1, and those 8 further on.
SKC_DEVICE void load_columns(DecodeColumns& c, const u8* queries) {
    const u8* at = queries + lane() / 4 * ROW_BYTES + lane() % 4 * 4;
#pragma unroll
    for (u32 s = 0; s < DIM_STEPS; ++s) {
        c.q[s][0] = *(const u32*)(at + 32 * s);
        c.q[s][1] = *(const u32*)(at + 32 * s + 16);
    }
}

// The queries of a block and their KV head.
struct DecodeQueries {
    Queries q;
    u32 kv_head;

    // Of all sequences.
    SKC_DEVICE u64 head(const SkcLayer& l) const { return (u64)q.seq * l.n_kv_heads + kv_head; }
};

// Sets masks and biases for the keys of a segment. Columns without a query see nothing.
SKC_DEVICE void set_segment(DecodeColumns& c, const SkcLayer& l, const DecodeQueries& d, const KeySegment& s) {
    Ring ring = ring_of(l);
    const Queries& q = d.q;
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        u32 index = column_of(r) / GROUP;
        c.visible[r] = {0, 0};
        c.bias[r] = {0.0f, 0};
        if (index >= q.m) continue;
        u64 token = q.first + index;
        u32 head = d.kv_head * GROUP + column_of(r) % GROUP;
        c.visible[r] = visible_range(ring, q, token, s);
        c.bias[r] = alibi_bias(l, head, (u32)s.distance(ring, q, token));
    }
    u32 begin = visible_range(ring, q, q.first + q.m - 1, s).begin;
    u32 end = visible_range(ring, q, q.first, s).end;
    c.visible_to_all = {begin, end};
}

// product += A B for 16 rows: a lane's elements are c0[2 * i], c0[2 * i + 1] of its first column, and c1[2 * i],
// c1[2 * i + 1] of its second.
template <u32 N>
SKC_DEVICE void mma_columns(float (&c0)[N], float (&c1)[N], u32 i, const u32 (&a)[4], const u32 (&b)[2]) {
    float c[4] = {c0[2 * i], c1[2 * i], c0[2 * i + 1], c1[2 * i + 1]};
    mma(c, a, b);
    c0[2 * i] = c[0];
    c1[2 * i] = c[1];
    c0[2 * i + 1] = c[2];
    c1[2 * i + 1] = c[3];
}

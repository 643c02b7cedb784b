// Few queries against tiles of keys: the tokens and heads of a group are the eight columns of one product, keys its rows, so
// that K and V are read once for all of them. What a warp does with a tile.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4 a
// lane holds of the products rows g and g + 8 of columns 2t and 2t + 1.
#pragma once

#include "attention_tile.cuh"

constexpr u32 WARPS = DECODE_WARPS(SKC_DIM);
constexpr u32 DECODE_THREADS = 32 * WARPS;
constexpr u32 STEPS = DIM / 16;

// A column's softmax so far: the maximum in base 2, the weight of a lane's own keys.
struct alignas(8) Column {
    float max;
    float sum;
};

struct Decode {
    float acc[STEPS][4];  // dims g, g + 8 of each 16, columns 2t, 2t + 1
    Column column[2];
    Visible visible[2];
    Visible all;  // keys that every token sees
    Bias bias[2];
    Scorer scorer;
    u32 q[STEPS][2];
};

// Queries as the right-hand fragments: column g, dims 2t, 2t + 1 and 8 further on.
SKC_DEVICE void load_columns(Decode& d, const u8* queries) {
    const u8* at = queries + lane() / 4 * ROW + lane() % 4 * 4;
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) {
        d.q[s][0] = *(const u32*)(at + 32 * s);
        d.q[s][1] = *(const u32*)(at + 32 * s + 16);
    }
}

// What the lane's two columns see of a span, and how they score it.
SKC_DEVICE void aim(Decode& d, const SkcAttend& p, const Ring& ring, const Queries& q, u32 kv_head, bool sinks, u64 oldest) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        u32 c = 2 * (lane() % 4) + i;
        u32 index = c / GROUP;
        d.visible[i] = {0, 0};
        d.bias[i] = {0.0f, 0};
        if (index >= q.m) continue;
        u64 token = q.first + index;
        u64 evicted = query_evicted(ring, q, token);
        d.visible[i] = visible_of(ring, q, token, sinks, oldest);
        d.bias[i] = bias_of(p.layer, kv_head * GROUP + c % GROUP, (u32)(sinks ? token - evicted : token - oldest));
    }
    d.all = {visible_of(ring, q, q.first + q.m - 1, sinks, oldest).from, visible_of(ring, q, q.first, sinks, oldest).to};
}

// Adds a tile of 16 keys, of which the first is key `first` of its span.
SKC_DEVICE void add_tile(Decode& d, const u8* k, const u8* v, u32 first) {
    u32 g = lane() / 4;
    u32 matrix = lane() / 8, line = lane() % 8;
    float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    // Keys are rows: matrices in the order keys 0-7, 8-15 of dims 0-7, then of dims 8-15.
    const u8* k_row = k + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        u32 a[4];
        load_matrix_x4(a, k_row + 32 * step);
        mma(s, a, d.q[step]);
    }
    bool edge = first < d.all.from || first + DECODE_KEYS > d.all.to;
    float keep[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        Column& c = d.column[i];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 key = first + g + 8 * half;
            float& x = s[2 * half + i];
            x = score_of(d.scorer, d.bias[i], x, key);
            // One comparison for both bounds.
            if (edge && key - d.visible[i].from >= d.visible[i].to - d.visible[i].from) x = minus_infinity();
        }
        float highest = max_f(max_f(c.max, s[i]), s[2 + i]);
        for (u32 mask = 4; mask < 32; mask *= 2) highest = max_f(highest, shuffle_xor(highest, mask));
        float base = base_of(highest);
        keep[i] = exp2_fast(c.max - base);
        s[i] = exp2_fast(s[i] - base);
        s[2 + i] = exp2_fast(s[2 + i] - base);
        c.sum = c.sum * keep[i] + (s[i] + s[2 + i]);
        c.max = highest;
    }
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) d.acc[step][i] *= keep[i % 2];
    }
    // A key that some column must not see may hold anything, and zero times infinity is NaN.
    if (edge && tile_overflows(v, DECODE_KEYS)) {
        for (u32 key = 0; key < DECODE_KEYS; ++key) {
            u32 from = key % 8 * 4 + lane() % 4;
            float w0 = shuffle(key < 8 ? s[0] : s[2], from);
            float w1 = shuffle(key < 8 ? s[1] : s[3], from);
            const u16* row = (const u16*)(v + key * ROW) + g;
#pragma unroll
            for (u32 step = 0; step < STEPS; ++step) {
                float x0 = widen(row[16 * step]), x1 = widen(row[16 * step + 8]);
                if (w0 != 0.0f) {
                    d.acc[step][0] += w0 * x0;
                    d.acc[step][2] += w0 * x1;
                }
                if (w1 != 0.0f) {
                    d.acc[step][1] += w1 * x0;
                    d.acc[step][3] += w1 * x1;
                }
            }
        }
        return;
    }
    // Weights as the right-hand fragment: keys along k, which takes a transposition of each half.
    u32 b[2] = {transpose_matrix(pack(s[0], s[1])), transpose_matrix(pack(s[2], s[3]))};
    // Dims are rows now: values transposed on the way, matrices in the order dims 0-7, 8-15 of keys 0-7, then of keys 8-15.
    const u8* v_row = v + (line + matrix / 2 * 8) * ROW + matrix % 2 * 16; // mutant: decode_wrong_fragment
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        u32 a[4];
        load_matrix_x4_trans(a, v_row + 32 * step);
        mma(d.acc[step], a, b);
    }
}

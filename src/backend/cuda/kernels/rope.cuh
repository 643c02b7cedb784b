// RoPE: which dims form a pair, and by which angle a pair of a key or of a query is rotated. Angles are phases in units
// of 2^-64 turn, exact at every u64 position: see src/rope.rs.
#pragma once

#include "params.cuh"
#include "ptx.cuh"

struct alignas(8) SinCos {
    float cos;
    float sin;
};

// Cosine and sine of a phase in units of 2^-64 turn, correct to f32 rounding. The reduction to an eighth of a turn is
// exact in integers. What is left is within pi/4, where short polynomials suffice (errors below 3e-9 and 4e-10 before
// rounding). No f64: consumer GPUs execute it at 1/64 of f32's rate.
SKC_DEVICE SinCos sin_cos(u64 phase) {
    u64 quarter = (phase + (1ull << 61)) >> 62;
    i64 rest = (i64)(phase - (quarter << 62));
    // 2 pi / 2^64 as the sum of two floats, and the rest likewise: x + e is the angle in twice f32's precision, so that
    // the rounding of x does not reach the result.
    const float unit = 3.406121675e-19f;
    const float unit_low = -9.478396429e-27f;
    float high = (float)rest;
    float low = (float)(rest - (i64)high);
    float x = high * unit;
    float e = fma_f(high, unit, -x) + (low * unit + high * unit_low);
    float x2 = x * x;
    float s = x * x2 * (-1.66666667e-1f + x2 * (8.33333333e-3f + x2 * (-1.98412698e-4f + x2 * 2.75573192e-6f)));
    float c = x2 * (2.48015873e-5f + x2 * -2.75573192e-7f);
    c = x2 * (-0.5f + x2 * (4.16666667e-2f + x2 * (-1.38888889e-3f + c)));
    s = x + (s + e);
    c = 1.0f + (c - e * x);
    switch (quarter & 3) {
        case 0: return {c, s};
        case 1: return {-s, c};
        case 2: return {-c, -s};
        default: return {s, -c};
    }
}

struct Pair {
    float first;
    float second;
};

// A rotated pair. The fused operations are written out so that every kernel rounds alike, however its compiler
// contracts: a step in one launch stores the same bits as an append.
SKC_DEVICE Pair rotate(Pair x, SinCos angle) {
    return {fma_f(x.first, angle.cos, -(x.second * angle.sin)), fma_f(x.second, angle.cos, x.first * angle.sin)};
}

// A rotated pair as one of its two elements sees it.
SKC_DEVICE float rotate_member(float own, float other, bool second, SinCos angle) {
    return fma_f(own, angle.cos, second ? other * angle.sin : -(other * angle.sin));
}

// What RoPE does to one pair of dims of a row.
struct PairRotation {
    u32 first;      // dims of the pair
    u32 second;
    bool rotated;   // false: the pair keeps its bits
    SinCos angle;   // times mscale
};

// The dims of pair `pair` of a head. Pairs from l.rope_pairs on are never rotated: neighbours, so that head_dim / 2
// pairs are the whole row.
SKC_DEVICE PairRotation unrotated_pair(const SkcLayer& l, u32 pair) {
    if (l.rope_style == SKC_NEOX && pair < l.rope_pairs) return {pair, pair + l.rope_pairs, false, {1.0f, 0.0f}};
    return {2 * pair, 2 * pair + 1, false, {1.0f, 0.0f}};
}

// The pair that a rotated dim belongs to.
struct PairMember {
    u32 pair;
    u32 other;    // the pair's other dim
    bool second;  // the dim is the pair's second
};

SKC_DEVICE PairMember pair_member(const SkcLayer& l, u32 dim) {
    if (l.rope_style != SKC_NEOX) return {dim / 2, dim ^ 1, dim % 2 != 0};
    bool second = dim >= l.rope_pairs;
    return {second ? dim - l.rope_pairs : dim, second ? dim - l.rope_pairs : dim + l.rope_pairs, second};
}

// Whether the kernels rotate keys; where the host has applied RoPE it is done, and other modes have none.
SKC_DEVICE bool rotates_keys(const SkcLayer& l) { return l.position_mode == SKC_ROPE && l.rope_pairs > 0; }

// How pair `pair` of a row is rotated at a position (which counts modulo 2^64).
SKC_DEVICE SinCos rotation_at(const SkcLayer& l, u64 position, u32 pair) {
    SinCos angle = sin_cos(position * l.frequencies[pair]);
    return {angle.cos * l.mscale, angle.sin * l.mscale};
}

// A key is rotated once, at its stream position.
SKC_DEVICE PairRotation key_rotation(const SkcLayer& l, u64 position, u32 pair) {
    PairRotation r = unrotated_pair(l, pair);
    if (l.position_mode == SKC_ROPE && pair < l.rope_pairs) {
        r.rotated = true;
        r.angle = rotation_at(l, position, pair);
    }
    return r;
}

// A query is rotated for each segment of keys: at its stream position less the segment's offset, the tokens that were
// dropped between the two. That of the newest tokens is 0.
SKC_DEVICE PairRotation query_rotation(const SkcLayer& l, u64 position, u64 offset, u32 pair) {
    PairRotation r = unrotated_pair(l, pair);
    if (pair >= l.rope_pairs) return r;
    if (l.position_mode == SKC_ROPE) {
        r.rotated = true;
        r.angle = rotation_at(l, position - offset, pair);
    } else if (offset != 0) {
        // The host has rotated (and scaled) at the stream position: rotate back.
        r.rotated = true;
        r.angle = sin_cos((0ull - offset) * l.frequencies[pair]);
    }
    return r;
}

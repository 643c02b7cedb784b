// Sine and cosine of a phase in units of 2^-64 turn: see src/phase.rs.
#pragma once

#include "ptx.cuh"

struct Angle {
    float cos;
    float sin;
};

// Right to f32 rounding. The reduction to a quarter turn is exact in integers; what is left is within pi/4, where short
// polynomials do (errors below 3e-9 and 4e-10 before rounding). No f64: consumer GPUs have next to none.
SKC_DEVICE Angle angle_of(u64 phase) {
    u64 q = (phase + (1ull << 61)) >> 62;
    i64 rest = (i64)(phase - (q << 62));
    // 2 pi / 2^64 as the sum of two numbers, and the rest as well: x + e is the angle to twice f32's precision, which keeps
    // its rounding out of the result.
    const float unit = 3.406121675e-19f, unit_low = -9.478396429e-27f;
    float high = (float)rest, low = (float)(rest - (i64)high);
    float x = high * unit;
    float e = fma_f(high, unit, -x) + (low * unit + high * unit_low);
    float x2 = x * x;
    float s = x * x2 * (-1.66666667e-1f + x2 * (8.33333333e-3f + x2 * (-1.98412698e-4f + x2 * 2.75573192e-6f)));
    float c = x2 * (-0.5f + x2 * (4.16666667e-2f + x2 * (-1.38888889e-3f + x2 * (2.48015873e-5f + x2 * -2.75573192e-7f))));
    float sin = x + (s + e);
    c = 1.0f + (c - e * x);
    s = sin;
    switch (q & 3) {
        case 0: return {c, s};
        case 1: return {-s, c};
        case 2: return {-c, -s};
        default: return {s, -c};
    }
}

struct Turned {
    float first;
    float second;
};

// A pair turned. Written out so that every kernel rounds alike, however its compiler contracts: a step in one launch stores
// the same bits as an append.
SKC_DEVICE Turned turned(float x0, float x1, float cos, float sin) {
    return {fma_f(x0, cos, -(x1 * sin)), fma_f(x1, cos, x0 * sin)};
}

// Sine and cosine of a phase in units of 2^-64 turn: see src/phase.rs.
#pragma once

#include "arch.cuh"

struct Angle {
    float cos;
    float sin;
};

// Right to f32 rounding. The reduction to a quarter turn is exact in integers; what is left is within pi/4, where short
// polynomials do (errors below 3e-9 and 4e-10 before rounding). No f64: consumer GPUs have next to none.
SKC_DEVICE Angle angle_of(u64 phase) {
    u64 q = (phase + (1ull << 61)) >> 62;
    i64 rest = (i64)(phase - (q << 62));
    // 2 pi / 2^64. The conversion keeps 24 bits of the rest: an error of 2^-25 of an angle below pi/4.
    float x = (float)rest * 3.4061216e-19f;
    float x2 = x * x;
    float s = x + x * x2 * (-1.66666667e-1f + x2 * (8.33333333e-3f + x2 * (-1.98412698e-4f + x2 * 2.75573192e-6f)));
    float c = 1.0f + x2 * (-0.5f + x2 * (4.16666667e-2f + x2 * (-1.38888889e-3f + x2 * (2.48015873e-5f + x2 * -2.75573192e-7f))));
    switch (q & 3) {
        case 0: return {c, s};
        case 1: return {-s, c};
        case 2: return {-c, -s};
        default: return {s, -c};
    }
}

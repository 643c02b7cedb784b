// The orthonormal Hadamard matrix (Sylvester's order), which turns keys of q8 and q4 after RoPE, and their queries: a
// product of both stays what it is, and one large channel no longer decides a row's scale.
#pragma once

#include "warp_row.cuh"

// Turns a row of `dim` elements in blocks of the largest power of two that divides dim. The order of sums is that of
// the definition.
template <u32 N>
SKC_DEVICE void hadamard(WarpRow<N>& row, u32 dim) {
    u32 block = dim & (0u - dim);
#pragma unroll
    for (u32 h = 1; h < 32; h *= 2) {
        if (h >= block) break;
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            float other = shuffle_xor(row.x[j], h);
            row.x[j] = lane() & h ? other - row.x[j] : row.x[j] + other; // mutant: hadamard_without_a_sign
        }
    }
    // The partners are elements of the same lane.
#pragma unroll
    for (u32 h = 1; h < N; h *= 2) {
        if (32 * h >= block) break;
#pragma unroll
        for (u32 j = 0; j + h < N; ++j) {
            if (j & h) continue;
            float low = row.x[j];
            float high = row.x[j + h];
            row.x[j] = low + high;
            row.x[j + h] = low - high;
        }
    }
    float factor = 1.0f;
    for (; block >= 4; block /= 4) factor *= 0.5f;
    if (block == 2) factor *= 0.70710678f;
#pragma unroll
    for (u32 j = 0; j < N; ++j) row.x[j] *= factor;
}

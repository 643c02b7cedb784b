// Products of a decode's columns with a tile of f16 or bf16.
#pragma once

#include "decode_columns.cuh"

// s = QK^T. The whole warp must call it.
SKC_DEVICE void multiply_keys(float (&s)[2][2], const DecodeColumns& c, const u8* k) {
    u32 matrix = lane() / 8;
    u32 line = lane() % 8;
    // Keys are rows: ldmatrix loads, in this order, keys 0-7 and 8-15 of dims 0-7, then of dims 8-15.
    const u8* k_row = k + (line + matrix % 2 * 8) * ROW_BYTES + matrix / 2 * 16;
#pragma unroll
    for (u32 step = 0; step < DIM_STEPS; ++step) {
        u32 a[4];
        load_matrix_x4(a, k_row + 32 * step);
        mma_columns(s[0], s[1], 0, a, c.q[step]);
    }
}

// Adds PV. `masked`: not all columns see all keys. The whole warp must call it.
SKC_DEVICE void add_values(DecodeColumns& c, const float (&probs)[2][2], const u8* v, bool masked) {
    if (masked && has_non_finite(v, DECODE_KEYS)) { // mutant: decode_hidden_infinity
        add_values_one_by_one<DecodeLayout>(c.rows, probs, v);
        return;
    }
    u32 matrix = lane() / 8;
    u32 line = lane() % 8;
    // The probabilities become the right-hand fragment, with keys along k: movmatrix transposes each half of them.
    u32 b[2] = {transpose_matrix(pack(probs[0][0], probs[1][0])), transpose_matrix(pack(probs[0][1], probs[1][1]))};
    // Dims are rows now. ldmatrix transposes values as it loads, in this order, dims 0-7 and 8-15 of keys 0-7, then of
    // keys 8-15.
    const u8* v_row = v + (line + matrix / 2 * 8) * ROW_BYTES + matrix % 2 * 16; // mutant: decode_wrong_fragment
#pragma unroll
    for (u32 step = 0; step < DIM_STEPS; ++step) {
        u32 a[4];
        load_matrix_x4_trans(a, v_row + 32 * step);
        mma_columns(c.rows[0].acc, c.rows[1].acc, step, a, b);
    }
}

// Products of a decode's columns with a tile of q8 or q4.
#pragma once

#include "decode_columns.cuh"

// s = QK^T. The whole warp must call it.
SKC_DEVICE void multiply_keys(float (&s)[2][2], const DecodeColumns& c, const u8* k) {
    u32 g = lane() / 4;
    const u8* low = k + g * KeyForm::STRIDE;
    const u8* high = k + (g + 8) * KeyForm::STRIDE;
#pragma unroll
    for (u32 begin = 0; begin < DIM_STEPS; begin += K_SCALE_STEPS) {
        float sum[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
        for (u32 step = begin; step < begin + K_SCALE_STEPS && step < DIM_STEPS; ++step) {
            KeyCodes x = KeyCodes::load(low, step);
            KeyCodes y = KeyCodes::load(high, step);
            mma_columns(sum[0], sum[1], 0, {x.low, y.low, x.high, y.high}, c.q[step]);
        }
#pragma unroll
        for (u32 slot = 0; slot < 2; ++slot) {
            // mutant: key_scale_of_another_key
            float scale = scale_of<KeyForm, DECODE_KEYS>(k, DecodeLayout::key(slot, g), begin / K_SCALE_STEPS);
#pragma unroll
            for (u32 r = 0; r < 2; ++r) s[r][slot] += sum[r][slot] * scale;
        }
    }
}

// Adds PV. `masked`: not all columns see all keys. The whole warp must call it.
SKC_DEVICE void add_values(DecodeColumns& c, const float (&probs)[2][2], const u8* v, bool masked) {
    // The right-hand fragment, with keys along k: movmatrix transposes each half of it.
    u32 b[2];
#pragma unroll
    for (u32 slot = 0; slot < 2; ++slot) {
        float p[2] = {probs[0][slot], probs[1][slot]};
        if (V_IS_Q8) {
            float scale = scale_of<ValueForm, DECODE_KEYS>(v, DecodeLayout::key(slot, lane() / 4), 0);
#pragma unroll
            for (u32 r = 0; r < 2; ++r) p[r] = scaled_probability(p[r], scale, masked);
        }
        b[slot] = transpose_matrix(pack(p[0], p[1]));
    }
#pragma unroll
    for (u32 block = 0; block < VALUE_BLOCKS; ++block) {
        u32 scaled[2] = {b[0], b[1]};
        if (!V_IS_Q8) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                scaled[half] = scaled_pair<DECODE_KEYS>(b[half], v, 2 * (lane() % 4) + 8 * half, block, masked);
            }
        }
        ValueCodes x(v, block);
        // Dims are rows: of every 16, the lane has two.
#pragma unroll
        for (u32 d = 0; d < block_dims(block); d += 2) {
            const u32 a[4] = {x.pair(d, 0), x.pair(d + 1, 0), x.pair(d, 1), x.pair(d + 1, 1)};
            mma_columns(c.rows[0].acc, c.rows[1].acc, 2 * block + d / 2, a, scaled);
        }
    }
}

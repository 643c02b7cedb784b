// Products of a chunk's rows with a tile of f16 or bf16.
#pragma once

#include "chunk_rows.cuh"

// s += QK^T of the warp's rows, which begin at `queries`, and a tile of keys.
template <u32 M_BLOCKS, u32 KEYS>
SKC_DEVICE void add_qk(float (&s)[2 * M_BLOCKS][KEYS / 4], const u8* queries, const u8* k) {
    u32 matrix = lane() / 8;
    u32 line = lane() % 8;
    // ldmatrix loads, in this order, of the queries rows 0-7 and 8-15 of dims 0-7, then of dims 8-15; of the keys dims
    // 0-7 and 8-15 of keys 0-7, then of keys 8-15.
    const u8* q_row = queries + (line + matrix % 2 * 8) * ROW_BYTES + matrix / 2 * 16;
    const u8* k_row = k + (line + matrix / 2 * 8) * ROW_BYTES + matrix % 2 * 16;
#pragma unroll
    for (u32 step = 0; step < DIM / 16; ++step) {
        u32 a[M_BLOCKS][4];
#pragma unroll
        for (u32 m = 0; m < M_BLOCKS; ++m) load_matrix_x4(a[m], q_row + 16 * m * ROW_BYTES + 32 * step);
#pragma unroll
        for (u32 pair = 0; pair < KEYS / 16; ++pair) {
            u32 b[4];
            load_matrix_x4(b, k_row + 16 * pair * ROW_BYTES + 32 * step);
#pragma unroll
            for (u32 m = 0; m < M_BLOCKS; ++m) {
                mma_rows(s[2 * m], s[2 * m + 1], 2 * pair, a[m], {b[0], b[1]});
                mma_rows(s[2 * m], s[2 * m + 1], 2 * pair + 1, a[m], {b[2], b[3]});
            }
        }
    }
}

// Adds PV of the warp's rows and a tile of values. `masked`: not all of the rows see all keys.
template <u32 M_BLOCKS, u32 KEYS>
SKC_DEVICE void add_pv(ChunkRows<M_BLOCKS>& c, const float (&probs)[2 * M_BLOCKS][KEYS / 4], const u8* v, bool masked) {
    if (masked && has_non_finite(v, KEYS)) { // mutant: hidden_infinity
        add_values_one_by_one<ChunkLayout>(c.rows, probs, v);
        return;
    }
    u32 matrix = lane() / 8;
    u32 line = lane() % 8;
    // ldmatrix transposes values as it loads, in this order, keys 0-7 and 8-15 of dims 0-7, then of dims 8-15.
    const u8* v_row = v + (line + matrix % 2 * 8) * ROW_BYTES + matrix / 2 * 16;
#pragma unroll
    for (u32 step = 0; step < KEYS / 16; ++step) {
        // A product's fragments of 16 keys are a left-hand fragment as they are.
        u32 a[M_BLOCKS][4];
#pragma unroll
        for (u32 m = 0; m < M_BLOCKS; ++m) {
            const float* lo = &probs[2 * m][4 * step];
            const float* hi = &probs[2 * m + 1][4 * step];
            a[m][0] = pack(lo[0], lo[1]);
            a[m][1] = pack(hi[0], hi[1]); // mutant: chunk_wrong_fragment
            a[m][2] = pack(lo[2], lo[3]);
            a[m][3] = pack(hi[2], hi[3]);
        }
#pragma unroll
        for (u32 pair = 0; pair < DIM_BLOCKS / 2; ++pair) {
            u32 b[4];
            load_matrix_x4_trans(b, v_row + 16 * step * ROW_BYTES + 32 * pair);
#pragma unroll
            for (u32 m = 0; m < M_BLOCKS; ++m) {
                mma_rows(c.rows[2 * m].acc, c.rows[2 * m + 1].acc, 2 * pair, a[m], {b[0], b[1]});
                mma_rows(c.rows[2 * m].acc, c.rows[2 * m + 1].acc, 2 * pair + 1, a[m], {b[2], b[3]});
            }
        }
    }
}

// The lane's dims of one of its rows.
template <u32 DTYPE>
SKC_DEVICE void store_row(u8* out, const float (&acc)[2 * DIM_BLOCKS]) {
#pragma unroll
    for (u32 b = 0; b < DIM_BLOCKS; ++b) store_two(out, DTYPE, ChunkLayout::dim(2 * b), acc[2 * b], acc[2 * b + 1]);
}

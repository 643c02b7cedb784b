// Products of a chunk's rows with a tile of q8 or q4.
#pragma once

#include "chunk_rows.cuh"

// s += QK^T of the warp's rows, which begin at `queries`, and a tile of keys.
template <u32 M_BLOCKS, u32 KEYS>
SKC_DEVICE void add_qk(float (&s)[2 * M_BLOCKS][KEYS / 4], const u8* queries, const u8* k) {
    u32 matrix = lane() / 8;
    u32 line = lane() % 8;
    // ldmatrix loads, in this order, of the queries rows 0-7 and 8-15 of places 0-7, then of places 8-15.
    const u8* q_row = queries + (line + matrix % 2 * 8) * ROW_BYTES + matrix / 2 * 16;
    const u8* k_row = k + lane() / 4 * KeyForm::STRIDE;
    // So many steps at a time: the queries' fragments stay in registers for all keys.
    constexpr u32 STEPS = Q4_GROUP / 16;
#pragma unroll 1
    for (u32 begin = 0; begin < DIM / 16; begin += STEPS) {
        u32 a[STEPS][M_BLOCKS][4];
#pragma unroll
        for (u32 i = 0; i < STEPS && begin + i < DIM / 16; ++i) {
#pragma unroll
            for (u32 m = 0; m < M_BLOCKS; ++m) load_matrix_x4(a[i][m], q_row + 16 * m * ROW_BYTES + 32 * (begin + i));
        }
#pragma unroll
        for (u32 block = 0; block < KEYS / 8; ++block) {
            // Sums of q4 are scaled group by group; those of q8 at the end.
            float sum[2 * M_BLOCKS][2];
#pragma unroll
            for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
                sum[r][0] = K_IS_Q8 ? s[r][2 * block] : 0.0f;
                sum[r][1] = K_IS_Q8 ? s[r][2 * block + 1] : 0.0f;
            }
#pragma unroll
            for (u32 i = 0; i < STEPS && begin + i < DIM / 16; ++i) {
                KeyCodes x = KeyCodes::load(k_row + 8 * block * KeyForm::STRIDE, begin + i);
#pragma unroll
                for (u32 m = 0; m < M_BLOCKS; ++m) mma_rows(sum[2 * m], sum[2 * m + 1], 0, a[i][m], {x.low, x.high});
            }
#pragma unroll
            for (u32 slot = 2 * block; slot < 2 * block + 2; ++slot) {
                float scale = 1.0f;
                if (!K_IS_Q8) {
                    scale = scale_of<KeyForm, KEYS>(k, ChunkLayout::key(slot, ChunkLayout::own()), begin / STEPS);
                }
#pragma unroll
                for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
                    float x = sum[r][slot % 2];
                    s[r][slot] = K_IS_Q8 ? x : s[r][slot] + x * scale;
                }
            }
        }
    }
    if (!K_IS_Q8) return;
#pragma unroll
    for (u32 slot = 0; slot < KEYS / 4; ++slot) {
        // mutant: chunk_key_scale_of_another_key
        float scale = scale_of<KeyForm, KEYS>(k, ChunkLayout::key(slot, ChunkLayout::own()), 0);
#pragma unroll
        for (u32 r = 0; r < 2 * M_BLOCKS; ++r) s[r][slot] *= scale;
    }
}

// Adds PV of the warp's rows and a tile of values. `masked`: not all of the rows see all keys.
template <u32 M_BLOCKS, u32 KEYS>
SKC_DEVICE void add_pv(ChunkRows<M_BLOCKS>& c, const float (&probs)[2 * M_BLOCKS][KEYS / 4], const u8* v, bool masked) {
#pragma unroll
    for (u32 step = 0; step < KEYS / 16; ++step) {
        // A product's fragments of 16 keys are a left-hand fragment as they are.
        u32 a[M_BLOCKS][4];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 slot = 4 * step + 2 * half;
            float scale[2] = {1.0f, 1.0f};
#pragma unroll
            for (u32 i = 0; i < 2 && V_IS_Q8; ++i) {
                scale[i] = scale_of<ValueForm, KEYS>(v, ChunkLayout::key(slot + i, ChunkLayout::own()), 0);
            }
#pragma unroll
            for (u32 r = 0; r < 2 * M_BLOCKS; ++r) {
                a[r / 2][2 * half + r % 2] = pack(scaled_probability(probs[r][slot], scale[0], masked),
                                                  scaled_probability(probs[r][slot + 1], scale[1], masked));
            }
        }
#pragma unroll
        for (u32 block = 0; block < VALUE_BLOCKS; ++block) {
            u32 scaled[M_BLOCKS][4];
#pragma unroll
            for (u32 i = 0; i < 4 * M_BLOCKS; ++i) {
                u32 x = a[i / 4][i % 4];
                u32 key = ChunkLayout::key(4 * step + i % 4 / 2 * 2, ChunkLayout::own());
                scaled[i / 4][i % 4] = V_IS_Q8 ? x : scaled_pair<KEYS>(x, v, key, block, masked);
            }
            ValueCodes x(v + 16 * step * ValueForm::STRIDE, block);
#pragma unroll
            for (u32 d = 0; d < block_dims(block); ++d) {
                const u32 b[2] = {x.pair(d, 0), x.pair(d, 1)};
#pragma unroll
                for (u32 m = 0; m < M_BLOCKS; ++m) {
                    mma_rows(c.rows[2 * m].acc, c.rows[2 * m + 1].acc, 4 * block + d, scaled[m], b);
                }
            }
        }
    }
}

// The lane's dims of one of its rows: of a block, those of its two columns follow each other.
template <u32 DTYPE>
SKC_DEVICE void store_row(u8* out, const float (&acc)[2 * DIM_BLOCKS]) {
#pragma unroll
    for (u32 block = 0; block < VALUE_BLOCKS; ++block) {
        const float* x = &acc[8 * block];
        if (block_dims(block) == 4) {
            store_four(out, DTYPE, chunk_dim(8 * block), {x[0], x[2], x[4], x[6]});
            store_four(out, DTYPE, chunk_dim(8 * block + 1), {x[1], x[3], x[5], x[7]});
        } else {
            store_four(out, DTYPE, chunk_dim(8 * block), {x[0], x[2], x[1], x[3]});
        }
    }
}

// Rows of K or V as they are stored, in any type: addresses, and loads as f32.
#pragma once

#include "dtype.cuh"

// One row: the codes of one token and head, and their scales.
struct StoredRow {
    u8* codes;
    u16* scales;
};

// The row in slot `slot` of head `head`, counted over all sequences: sequence * n_kv_heads + KV head.
SKC_DEVICE StoredRow stored_row(const SkcStore& s, u64 head, u64 slot) {
    u8* scales = s.scales + head * s.head_scales + slot * s.row_scales;
    return {s.codes + head * s.head_codes + slot * s.row_codes, (u16*)scales};
}

SKC_DEVICE bool is_quantised(u32 type) { return type == SKC_Q8 || type == SKC_Q4; }

// Dims of q4 that share a scale; the last ones of a row may be fewer.
constexpr u32 Q4_GROUP = 32;

// Elements i .. i + 4 of a row; i is a multiple of 4. A product of a code and its scale is exact in f32.
SKC_DEVICE void load_stored_four(float (&x)[4], const StoredRow& row, u32 type, u32 i) {
    if (!is_quantised(type)) {
        load_four(x, row.codes, type, i);
        return;
    }
    u32 codes;
    float scale;
    u32 unused_bits = type == SKC_Q8 ? 24 : 28;
    if (type == SKC_Q8) {
        codes = *(const u32*)(row.codes + i);
        scale = bf16_to_f32(row.scales[0]);
    } else {
        // A byte for each code, which is its upper half.
        codes = *(const u16*)(row.codes + i / 2);
        codes = (codes & 0x0f) | (codes & 0xf0) << 4 | (codes & 0xf00) << 8 | (codes & 0xf000) << 12;
        codes <<= 4;
        scale = bf16_to_f32(row.scales[i / Q4_GROUP]);
    }
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x[j] = (float)((i32)(codes << (24 - 8 * j)) >> unused_bits) * scale;
}

// Elements of any of the three types, chosen at run time.
#pragma once

#include "ptx.cuh"
#include "params.cuh"

struct alignas(16) Four {
    float x, y, z, w;
};
struct alignas(8) Pair {
    u32 x, y;
};

SKC_DEVICE u32 element_size(u32 dtype) { return dtype == SKC_F32 ? 4 : 2; }

// Element i of an array.
SKC_DEVICE float load_element(const u8* from, u32 dtype, u32 i) {
    if (dtype == SKC_F32) return ((const float*)from)[i];
    u16 h = ((const u16*)from)[i];
    return dtype == SKC_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

// Elements i .. i + 4, i a multiple of 4, of a row that begins at a multiple of 16 bytes.
SKC_DEVICE void load_four(float (&x)[4], const u8* from, u32 dtype, u32 i) {
    if (dtype == SKC_F32) {
        Four four = *(const Four*)(from + 4 * i);
        x[0] = four.x;
        x[1] = four.y;
        x[2] = four.z;
        x[3] = four.w;
    } else {
        Pair pair = *(const Pair*)(from + 2 * i);
        const u32 words[2] = {pair.x, pair.y};
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            u16 h = (u16)(words[j / 2] >> 16 * (j % 2));
            x[j] = dtype == SKC_F16 ? f16_to_f32(h) : bf16_to_f32(h);
        }
    }
}

SKC_DEVICE void store_element(u8* to, u32 dtype, u32 i, float x) {
    if (dtype == SKC_F32) {
        ((float*)to)[i] = x;
    } else {
        ((u16*)to)[i] = dtype == SKC_F16 ? f32_to_f16(x) : f32_to_bf16(x);
    }
}

// The same element of another array, bit for bit.
SKC_DEVICE void copy_element(u8* to, const u8* from, u32 dtype, u32 i) {
    if (dtype == SKC_F32) {
        ((u32*)to)[i] = ((const u32*)from)[i];
    } else {
        ((u16*)to)[i] = ((const u16*)from)[i];
    }
}

// The two dims that pair i of a rotation turns.
SKC_DEVICE u32 pair_first(u32 style, u32 i) { return style == SKC_NEOX ? i : 2 * i; }
SKC_DEVICE u32 pair_second(u32 style, u32 half, u32 i) { return style == SKC_NEOX ? i + half : 2 * i + 1; }

// Address of the dims of one head of one row.
SKC_DEVICE u8* row_at(const SkcRows& rows, u64 row, u32 head) {
    return rows.ptr + (i64)row * rows.token + (i64)head * rows.head;
}

// Elements of any of the three types, chosen at run time, and rows of the caller's tensors.
#pragma once

#include "params.cuh"
#include "ptx.cuh"

SKC_DEVICE u32 element_size(u32 dtype) { return dtype == SKC_F32 ? 4 : 2; }

// Element i of an array.
SKC_DEVICE float load_element(const u8* from, u32 dtype, u32 i) {
    if (dtype == SKC_F32) return ((const float*)from)[i];
    u16 h = ((const u16*)from)[i];
    return dtype == SKC_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

// Elements i .. i + 4 of a row that begins at a multiple of 16 bytes; i is a multiple of 4.
SKC_DEVICE void load_four(float (&x)[4], const u8* from, u32 dtype, u32 i) {
    if (dtype == SKC_F32) {
        F32x4 four = *(const F32x4*)(from + 4 * i);
        x[0] = four.x;
        x[1] = four.y;
        x[2] = four.z;
        x[3] = four.w;
    } else {
        U32x2 pairs = *(const U32x2*)(from + 2 * i);
        const u32 words[2] = {pairs.x, pairs.y};
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

// Elements i and i + 1; i is even.
SKC_DEVICE void store_two(u8* to, u32 dtype, u32 i, float x, float y) {
    if (dtype == SKC_F32) {
        *(F32x2*)(to + 4 * i) = {x, y};
    } else {
        *(u32*)(to + 2 * i) = dtype == SKC_F16 ? pack_f16(x, y) : pack_bf16(x, y);
    }
}

// Elements i .. i + 4 of a row that begins at a multiple of 16 bytes; i is a multiple of 4.
SKC_DEVICE void store_four(u8* to, u32 dtype, u32 i, const float (&x)[4]) {
    if (dtype == SKC_F32) {
        *(F32x4*)(to + 4 * i) = {x[0], x[1], x[2], x[3]};
    } else if (dtype == SKC_F16) {
        *(U32x2*)(to + 2 * i) = {pack_f16(x[0], x[1]), pack_f16(x[2], x[3])};
    } else {
        *(U32x2*)(to + 2 * i) = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])};
    }
}

// Copies element i bit for bit.
SKC_DEVICE void copy_element(u8* to, const u8* from, u32 dtype, u32 i) {
    if (dtype == SKC_F32) {
        ((u32*)to)[i] = ((const u32*)from)[i];
    } else {
        ((u16*)to)[i] = ((const u16*)from)[i];
    }
}

// Address of one head of one row.
SKC_DEVICE u8* row_at(const SkcRows& rows, u64 row, u32 head) {
    return rows.ptr + (i64)row * rows.token_stride + (i64)head * rows.head_stride;
}

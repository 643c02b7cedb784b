// Rows of a warp as integer codes with bf16 scales: q8 and q4, to the bit of the definition (round to nearest even at
// every step).
#pragma once

#include "stored_rows.cuh"
#include "warp_row.cuh"

// Bits of the magnitude, which are in the order of magnitudes: infinities and NaN are the largest.
SKC_DEVICE u32 magnitude_bits(float x) { return float_bits(x) & 0x7fffffff; }
constexpr u32 INFINITY_BITS = 0x7f800000;

// A scale as it is stored, and the codes of the elements that it belongs to. Of elements that are not all finite the
// scale is NaN and the codes are 0: the row shows wherever it is visible.
struct Scale {
    u16 stored;
    float value;
    bool usable;  // not 0, not NaN

    // From an element of the largest magnitude, divided by the code that it shall get.
    SKC_DEVICE static Scale of(float quotient, bool finite) {
        u16 stored = f32_to_bf16(quotient);
        float value = bf16_to_f32(stored);
        finite = finite && magnitude_bits(value) < INFINITY_BITS; // mutant: infinite_row_with_a_scale
        if (!finite) stored = 0x7fc0;
        return {stored, value, finite && value != 0.0f};
    }

    SKC_DEVICE i32 code(float x, float least, float most) const {
        if (!usable) return 0;
        return (i32)min_f(max_f(round_even(x / value), least), most); // mutant: code_not_clipped
    }
};

SKC_DEVICE u32 warp_max(u32 x) {
    for (u32 mask = 16; mask > 0; mask /= 2) {
        u32 other = shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    return x;
}

// The warp's element of the largest magnitude; of several the first, so that its sign is that of the definition.
SKC_DEVICE float warp_largest(float x) {
    u64 best = (u64)magnitude_bits(x) << 32 | (31 - lane());
    for (u32 mask = 16; mask > 0; mask /= 2) {
        u64 other = shuffle_xor(best, mask);
        best = other > best ? other : best;
    }
    return shuffle(x, 31 - (u32)best); // mutant: largest_of_another_lane
}

template <u32 N>
SKC_DEVICE void store_q8(const StoredRow& to, const WarpRow<N>& row, u32 dim) {
    u32 largest = 0;
#pragma unroll
    for (u32 j = 0; j < N; ++j) {
        u32 bits = magnitude_bits(row.x[j]);
        largest = bits > largest ? bits : largest;
    }
    largest = warp_max(largest);
    Scale scale = Scale::of(bits_float(largest) / 127.0f, largest < INFINITY_BITS);
    if (lane() == 0) *(u32*)to.scales = scale.stored;
#pragma unroll
    for (u32 j = 0; j < N; ++j) {
        u32 i = WarpRow<N>::element(j);
        if (i < dim) to.codes[i] = (u8)scale.code(row.x[j], -127.0f, 127.0f);
    }
}

template <u32 N>
SKC_DEVICE void store_q4(const StoredRow& to, const WarpRow<N>& row, u32 dim) {
    static_assert(Q4_GROUP == 32, "the lanes' elements j share a scale");
#pragma unroll
    for (u32 j = 0; j < N; ++j) {
        if (32 * j >= dim) break;
        float largest = warp_largest(row.x[j]);
        // mutant: scale_without_a_sign
        Scale scale = Scale::of(largest / -8.0f, magnitude_bits(largest) < INFINITY_BITS);
        u32 code = (u32)scale.code(row.x[j], -8.0f, 7.0f) & 15;
        u32 next = shuffle_xor(code, 1);
        u32 i = WarpRow<N>::element(j);
        if (i < dim && i % 2 == 0) to.codes[i / 2] = (u8)(code | next << 4);
        // Scales are stored by two: behind an odd last one is a zero.
        if (lane() == 0) to.scales[j] = scale.stored;
        if (lane() == 0 && 32 * (j + 1) >= dim && j % 2 == 0) to.scales[j + 1] = 0;
    }
}

// Stores a row of `dim` elements as `type`, which is q8 or q4. The whole warp must call it.
template <u32 N>
SKC_DEVICE void store_quantised(const StoredRow& to, u32 type, const WarpRow<N>& row, u32 dim) {
    if (type == SKC_Q8) {
        store_q8(to, row, dim);
    } else {
        store_q4(to, row, dim);
    }
}

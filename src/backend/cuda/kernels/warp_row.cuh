// A row of numbers in the registers of a warp, for what needs the whole row: the Hadamard transform and scales.
#pragma once

#include "dtype.cuh"
#include "rope.cuh"

// A lane has the elements whose numbers are its own modulo 32. Elements beyond the row are zeros.
template <u32 N>
struct WarpRow {
    float x[N];

    // The number of the lane's element j.
    SKC_DEVICE static u32 element(u32 j) { return lane() + 32 * j; }

    // Loads `dim` elements.
    SKC_DEVICE void load(const u8* from, u32 dtype, u32 dim) {
#pragma unroll
        for (u32 j = 0; j < N; ++j) x[j] = element(j) < dim ? load_element(from, dtype, element(j)) : 0.0f;
    }

    // Loads `dim` elements and rotates them; `angle_of(pair)` is asked for pairs that are rotated.
    template <class Angles>
    SKC_DEVICE void load_rotated(const SkcLayer& l, const u8* from, u32 dim, const Angles& angle_of) {
        load(from, l.in_dtype, dim);
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            if (element(j) >= 2 * l.rope_pairs) continue;
            PairMember m = pair_member(l, element(j));
            x[j] = rotate_member(x[j], load_element(from, l.in_dtype, m.other), m.second, angle_of(m.pair));
        }
    }
};

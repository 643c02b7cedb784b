// Sums over the lanes of vectors. Only for files that are compiled for AVX-512.
#pragma once

#include <immintrin.h>

namespace inflight {
namespace {

/** sums[d] = the sum of v[d]'s lanes, for all 16 by the same tree. */
inline __attribute__((always_inline)) void add_lanes(const __m512 *v, float *sums) {
    __m512 pairs[8], fours[4], halves[2];
    for (int i = 0; i < 8; i++) {
        pairs[i] =
            _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    }
    for (int i = 0; i < 4; i++) {
        fours[i] = _mm512_add_ps(_mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0x44),
                                 _mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0xee));
    }
    for (int i = 0; i < 2; i++) {
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
    }
    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                                         _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd)));
}

}  // namespace
}  // namespace inflight

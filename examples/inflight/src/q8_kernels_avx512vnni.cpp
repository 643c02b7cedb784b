// Compiled for AVX-512 with VNNI: see float_kernels_x86.cpp for why it includes no header of the C++ library.
#include "add_lanes_avx512.hpp"
#include "product_tiles.hpp"
#include "q8_kernels.hpp"

#include <immintrin.h>
#include <stdint.h>

namespace inflight {
namespace avx512vnni {
extern const Q8Kernels kernels;
namespace {

/** Columns of a block, which has one scale; of a step of two blocks; blocks whose scales are loaded together. */
constexpr size_t BLOCK = 32, STEP = 64, GROUP = 16;
constexpr size_t MOST_DOTS = 16, ROWS_AT_A_TIME = 8;

/*
 * A packed row of x: for each step 64 integers, then 16 scales, eight for each of its two blocks; behind the steps, for
 * each block the sum of its integers times its scale. Where the last step or group is not full, zeros.
 */
constexpr size_t STEP_BYTES = STEP + 16 * sizeof(float);

size_t steps_of(size_t k) { return (k + STEP - 1) / STEP; }
size_t groups_of(size_t k) { return (k + GROUP * BLOCK - 1) / (GROUP * BLOCK); }
size_t packed_bytes(size_t k) { return steps_of(k) * STEP_BYTES + groups_of(k) * GROUP * sizeof(float); }

float scale_of(const unsigned char *block) {
    uint16_t half;
    __builtin_memcpy(&half, block, sizeof half);
    return _cvtsh_ss(half);
}

void pack(const unsigned char *q8_0, size_t k, unsigned char *packed) {
    constexpr size_t BLOCK_BYTES = 2 + BLOCK;
    __builtin_memset(packed, 0, packed_bytes(k));
    auto *sums = reinterpret_cast<float *>(packed + steps_of(k) * STEP_BYTES);
    for (size_t b = 0; b < k / BLOCK; b++) {
        const unsigned char *from = q8_0 + b * BLOCK_BYTES;
        unsigned char *step = packed + b / 2 * STEP_BYTES;
        __builtin_memcpy(step + b % 2 * BLOCK, from + 2, BLOCK);
        const float scale = scale_of(from);
        auto *scales = reinterpret_cast<float *>(step + STEP) + b % 2 * 8;
        int sum = 0;
        for (size_t i = 0; i < BLOCK; i++) {
            sum += static_cast<int8_t>(from[2 + i]);
        }
        for (size_t lane = 0; lane < 8; lane++) {
            scales[lane] = scale;
        }
        sums[b] = scale * static_cast<float>(sum);
    }
}

#define INLINE inline __attribute__((always_inline))

/** Weights as unsigned integers, which are OFFSET too large: VNNI multiplies unsigned by signed ones. */
struct Q80 {
    static constexpr size_t BLOCK_BYTES = 2 + BLOCK;
    static constexpr float OFFSET = 128;
    static INLINE __m256i load(const unsigned char *block) {
        return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(block + 2)),
                                _mm256_set1_epi8(-128));
    }
};
/** The low halves of the bytes are the first 16 columns. */
struct Q40 {
    static constexpr size_t BLOCK_BYTES = 2 + BLOCK / 2;
    static constexpr float OFFSET = 8;
    static INLINE __m256i load(const unsigned char *block) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block + 2));
        return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes), _mm256_set1_epi8(15));
    }
};

/** The scales of `n` blocks, at most GROUP, then zeros. */
template <class Type>
INLINE __m512 scales_of(const unsigned char *blocks, size_t n) {
    uint16_t halves[GROUP] = {};
    for (size_t b = 0; b < n; b++) {
        __builtin_memcpy(halves + b, blocks + b * Type::BLOCK_BYTES, sizeof halves[b]);
    }
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves)));
}

/** sums[i * N + j] = the products of row i of x and column j, still in lanes. */
template <class Type, size_t ROWS, size_t N>
INLINE void multiply_columns(const Q8Product &p, const unsigned char *x, const unsigned char *const *columns,
                             __m512 *sums) {
    const size_t blocks = p.k / BLOCK, sums_at = steps_of(p.k) * STEP_BYTES;
    const __m512i first_lanes = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 16
    for (size_t d = 0; d < ROWS * N; d++) {
        sums[d] = _mm512_setzero_ps();
    }
    for (size_t group = 0; group < blocks; group += GROUP) {
        const size_t in_group = blocks - group < GROUP ? blocks - group : GROUP;
        __m512 scales[N];
#pragma GCC unroll 16
        for (size_t j = 0; j < N; j++) {
            scales[j] = scales_of<Type>(columns[j] + group * Type::BLOCK_BYTES, in_group);
            const __m512 offsets = _mm512_mul_ps(scales[j], _mm512_set1_ps(Type::OFFSET));
#pragma GCC unroll 16
            for (size_t i = 0; i < ROWS; i++) {
                const auto *x_sums = reinterpret_cast<const float *>(x + i * p.x_stride + sums_at) + group;
                sums[i * N + j] = _mm512_fnmadd_ps(offsets, _mm512_loadu_ps(x_sums), sums[i * N + j]);
            }
        }
        for (size_t b = 0; b < in_group; b += 2) {
            const unsigned char *step = x + (group + b) / 2 * STEP_BYTES;
            const __m512i lanes = _mm512_add_epi32(first_lanes, _mm512_set1_epi32(static_cast<int>(b)));
#pragma GCC unroll 16
            for (size_t j = 0; j < N; j++) {
                const unsigned char *block = columns[j] + (group + b) * Type::BLOCK_BYTES;
                // A missing second block counts nothing: its scale is 0, and so are the integers of x.
                const unsigned char *second = b + 1 < in_group ? block + Type::BLOCK_BYTES : block;
                // The next columns.
                _mm_prefetch(reinterpret_cast<const char *>(block) + N * p.w_stride, _MM_HINT_T0);
                const __m512i weights = _mm512_inserti64x4(_mm512_castsi256_si512(Type::load(block)),
                                                           Type::load(second), 1);
                const __m512 scale = _mm512_permutexvar_ps(lanes, scales[j]);
#pragma GCC unroll 16
                for (size_t i = 0; i < ROWS; i++) {
                    const unsigned char *row = step + i * p.x_stride;
                    const __m512i products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights,
                                                                 _mm512_loadu_si512(row));
                    const __m512 both = _mm512_mul_ps(scale, _mm512_loadu_ps(row + STEP));
                    sums[i * N + j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), both, sums[i * N + j]);
                }
            }
        }
    }
}

template <class Type, size_t ROWS>
INLINE void multiply_tile(const Q8Product &p, const unsigned char *x, const unsigned char *w, size_t n, float *y) {
    // Few rows of x wait for memory, which is fastest where one row of w is read after the other.
    constexpr size_t COLUMNS = MOST_DOTS / ROWS, N = COLUMNS < ROWS ? COLUMNS : ROWS;
    const unsigned char *columns[COLUMNS];
    for (size_t j = 0; j < COLUMNS; j++) {
        // Beyond the last row of w: the last one again, whose result is not stored.
        columns[j] = w + (j < n ? j : n - 1) * p.w_stride;
    }
    __m512 sums[MOST_DOTS];
    for (size_t j = 0; j < COLUMNS; j += N) {
        __m512 some[ROWS * N];
        multiply_columns<Type, ROWS, N>(p, x, columns + j, some);
#pragma GCC unroll 16
        for (size_t d = 0; d < ROWS * N; d++) {
            sums[d / N * COLUMNS + j + d % N] = some[d];
        }
    }
    float dots[MOST_DOTS];
    add_lanes(sums, dots);
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t j = 0; j < n && j < COLUMNS; j++) {
            y[i * p.y_stride + j] = dots[i * COLUMNS + j];
        }
    }
}

template <class Type>
struct Tile {
    static constexpr size_t DOTS = MOST_DOTS, MOST_ROWS = ROWS_AT_A_TIME;
    template <size_t ROWS>
    static INLINE void multiply(const Q8Product &p, const unsigned char *x, const unsigned char *w, size_t n,
                                float *y) {
        multiply_tile<Type, ROWS>(p, x, w, n, y);
    }
};

template <class Type>
void multiply(const Q8Product &p) {
    multiply_in_tiles<Tile<Type>>(p);
}

}  // namespace

const Q8Kernels kernels = {"AVX-512 VNNI", packed_bytes, pack, multiply<Q80>, multiply<Q40>};

}  // namespace avx512vnni
}  // namespace inflight

// Compiled once for AVX2 and once for AVX-512. It includes no header of the C++ library: their inline functions,
// compiled here for AVX-512, could be the ones that the linker keeps for the whole program.
#include "float_kernels.hpp"
#include "product_tiles.hpp"
#ifdef __AVX512F__
#include "add_lanes_avx512.hpp"
#endif

#include <immintrin.h>
#include <stdint.h>

namespace inflight {
#ifdef __AVX512F__
namespace avx512 {
#else
namespace avx2 {
#endif
extern const FloatKernels kernels;
namespace {

#define INLINE inline __attribute__((always_inline))

#ifdef __AVX512F__
constexpr const char *NAME = "AVX-512";
using Vector = __m512;
/** Lanes of a vector, and dot products that are computed at a time: half of the registers hold their sums. */
constexpr size_t LANES = 16, MOST_DOTS = 16, ROWS_AT_A_TIME = 8;

INLINE Vector zero() { return _mm512_setzero_ps(); }
INLINE Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
INLINE Vector broadcast(float x) { return _mm512_set1_ps(x); }
INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
INLINE Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
INLINE Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
INLINE Vector divide(Vector a, Vector b) { return _mm512_div_ps(a, b); }
INLINE Vector minimum(Vector a, Vector b) { return _mm512_min_ps(a, b); }
INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
INLINE void store(float *p, Vector x) { _mm512_storeu_ps(p, x); }
INLINE Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/** x 2^n for whole n. */
INLINE Vector times_power_of_two(Vector x, Vector n) { return _mm512_scalef_ps(x, n); }

struct F32 {
    using Element = float;
    static INLINE Vector load(const Element *p) { return _mm512_loadu_ps(p); }
};
struct F16 {
    using Element = uint16_t;
    static INLINE Vector load(const Element *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
};
struct Bf16 {
    using Element = uint16_t;
    static INLINE Vector load(const Element *p) {
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
};
#else
constexpr const char *NAME = "AVX2";
using Vector = __m256;
constexpr size_t LANES = 8, MOST_DOTS = 8, ROWS_AT_A_TIME = 4;

INLINE Vector zero() { return _mm256_setzero_ps(); }
INLINE Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
INLINE Vector broadcast(float x) { return _mm256_set1_ps(x); }
INLINE Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
INLINE Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
INLINE Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
INLINE Vector divide(Vector a, Vector b) { return _mm256_div_ps(a, b); }
INLINE Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
INLINE void store(float *p, Vector x) { _mm256_storeu_ps(p, x); }
INLINE Vector nearest(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/** x 2^n for whole n from -126 to 127. */
INLINE Vector times_power_of_two(Vector x, Vector n) {
    const __m256i exponents = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return multiply(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponents, 23)));
}

struct F32 {
    using Element = float;
    static INLINE Vector load(const Element *p) { return _mm256_loadu_ps(p); }
};
struct F16 {
    using Element = uint16_t;
    static INLINE Vector load(const Element *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
};
struct Bf16 {
    using Element = uint16_t;
    static INLINE Vector load(const Element *p) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
};

/** sums[d] = the sum of v[d]'s lanes, for all by the same tree. */
INLINE void add_lanes(const Vector *v, float *sums) {
    Vector pairs[4], fours[2];
    for (int i = 0; i < 4; i++) {
        pairs[i] =
            _mm256_add_ps(_mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    }
    for (int i = 0; i < 2; i++) {
        fours[i] = _mm256_add_ps(_mm256_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0x44),
                                 _mm256_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0xee));
    }
    _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                                         _mm256_permute2f128_ps(fours[0], fours[1], 0x31)));
}
#endif

/** Bytes: a part of the level-1 cache, and some lines. */
constexpr size_t MOST_PREFETCHED = 8192, ROW_PREFETCH = 512;
/** Rows of w that are read at a time. */
constexpr size_t MOST_COLUMNS = 4;

/** `n` elements, below LANES, and zeros. */
template <class Type>
INLINE Vector load_some(const typename Type::Element *p, size_t n) {
    typename Type::Element padded[LANES] = {};
    for (size_t i = 0; i < n; i++) {
        padded[i] = p[i];
    }
    return Type::load(padded);
}

/** sums[i * N + j] = the products of row i of x and column j, still in lanes. */
template <class Type, size_t ROWS, size_t N>
INLINE void multiply_columns(const FloatProduct &p, const float *x, const typename Type::Element *const *columns,
                             Vector *sums) {
    // The next columns, or, where these are long, what comes next in them.
    const size_t ahead = N * p.w_stride <= MOST_PREFETCHED ? N * p.w_stride : ROW_PREFETCH;
#pragma GCC unroll 16
    for (size_t d = 0; d < ROWS * N; d++) {
        sums[d] = zero();
    }
    size_t c = 0;
    for (; c + LANES <= p.k; c += LANES) {
        Vector rows[ROWS];
#pragma GCC unroll 16
        for (size_t i = 0; i < ROWS; i++) {
            rows[i] = F32::load(x + i * p.x_stride + c);
            // Loaded once: the compiler would load it again for each column.
            __asm__("" : "+v"(rows[i]));
        }
#pragma GCC unroll 16
        for (size_t j = 0; j < N; j++) {
            const Vector column = Type::load(columns[j] + c);
            _mm_prefetch(reinterpret_cast<const char *>(columns[j] + c) + ahead, _MM_HINT_T0);
#pragma GCC unroll 16
            for (size_t i = 0; i < ROWS; i++) {
                sums[i * N + j] = multiply_add(rows[i], column, sums[i * N + j]);
            }
        }
    }
    if (c < p.k) {
#pragma GCC unroll 16
        for (size_t j = 0; j < N; j++) {
            const Vector column = load_some<Type>(columns[j] + c, p.k - c);
#pragma GCC unroll 16
            for (size_t i = 0; i < ROWS; i++) {
                const Vector row = load_some<F32>(x + i * p.x_stride + c, p.k - c);
                sums[i * N + j] = multiply_add(row, column, sums[i * N + j]);
            }
        }
    }
}

/** ROWS rows of x with `n`, at most MOST_DOTS / ROWS, rows of w. */
template <class Type, size_t ROWS>
INLINE void multiply_tile(const FloatProduct &p, const float *x, const unsigned char *w, size_t n, float *y) {
    // Few rows of x wait for memory, which is faster where few rows of w are read at a time.
    constexpr size_t COLUMNS = MOST_DOTS / ROWS, N = COLUMNS < MOST_COLUMNS ? COLUMNS : MOST_COLUMNS;
    const typename Type::Element *columns[COLUMNS];
    for (size_t j = 0; j < COLUMNS; j++) {
        // Beyond the last row of w: the last one again, whose result is not stored.
        const size_t column = j < n ? j : n - 1;
        columns[j] = reinterpret_cast<const typename Type::Element *>(w + column * p.w_stride);
    }
    Vector sums[MOST_DOTS];
    for (size_t j = 0; j < COLUMNS; j += N) {
        Vector some[ROWS * N];
        multiply_columns<Type, ROWS, N>(p, x, columns + j, some);
#pragma GCC unroll 16
        for (size_t d = 0; d < ROWS * N; d++) {
            sums[d / N * COLUMNS + j + d % N] = some[d];
        }
    }
    float dots[MOST_DOTS];
    add_lanes(sums, dots);
    for (size_t i = 0; i < ROWS; i++) {
        if (n == COLUMNS) {
            __builtin_memcpy(y + i * p.y_stride, dots + i * COLUMNS, COLUMNS * sizeof(float));
        } else {
            for (size_t j = 0; j < n && j < COLUMNS; j++) {
                y[i * p.y_stride + j] = dots[i * COLUMNS + j];
            }
        }
    }
}

template <class Type>
struct Tile {
    static constexpr size_t DOTS = MOST_DOTS, MOST_ROWS = ROWS_AT_A_TIME;
    template <size_t ROWS>
    static INLINE void multiply(const FloatProduct &p, const float *x, const unsigned char *w, size_t n, float *y) {
        multiply_tile<Type, ROWS>(p, x, w, n, y);
    }
};

template <class Type>
void multiply(const FloatProduct &p) {
    multiply_in_tiles<Tile<Type>>(p);
}

/**
 * exp(x): 2^n times a polynomial of what is left, at most ln(2) / 2 to either side. Near the ends of f32's range, which
 * SiLU does not tell apart, the result stays where it is. NaN stays NaN.
 */
INLINE Vector exponential(Vector x) {
    constexpr float MOST = 88.0f, LEAST = -87.0f, INVERSE_OF_LN2 = 1.44269504f;
    // ln(2) in two parts: the first has few bits, so that n times it is exact.
    constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    // 1 / i!, those of the highest powers first.
    constexpr float COEFFICIENTS[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    // With NaN these return their second operand.
    x = maximum(broadcast(LEAST), minimum(broadcast(MOST), x));
    const Vector n = nearest(multiply(x, broadcast(INVERSE_OF_LN2)));
    Vector rest = multiply_add(n, broadcast(-LN2_HIGH), x);
    rest = multiply_add(n, broadcast(-LN2_LOW), rest);
    Vector sum = zero();
#pragma GCC unroll 8
    for (const float c : COEFFICIENTS) {
        sum = multiply_add(sum, rest, broadcast(c));
    }
    return times_power_of_two(sum, n);
}

INLINE Vector silu_times(Vector gate, Vector up) {
    const Vector one = broadcast(1.0f);
    return multiply(divide(gate, add(one, exponential(subtract(zero(), gate)))), up);
}

void silu_times(const float *gate, const float *up, float *out, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        store(out + i, silu_times(F32::load(gate + i), F32::load(up + i)));
    }
    if (i < n) {
        float last[LANES];
        store(last, silu_times(load_some<F32>(gate + i, n - i), load_some<F32>(up + i, n - i)));
        for (size_t j = 0; i + j < n; j++) {
            out[i + j] = last[j];
        }
    }
}

}  // namespace

const FloatKernels kernels = {NAME, multiply<F32>, multiply<F16>, multiply<Bf16>, silu_times};

}  // namespace avx512 or avx2
}  // namespace inflight

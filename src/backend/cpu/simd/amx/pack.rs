//! Queries, weights, keys and values as the tiles of AMX take them: in bfloat16, or in two of them (`amx.rs`).

use std::arch::x86_64::*;

use crate::backend::cpu::kv_layout::KEY_GROUP;
use crate::backend::cpu::kv_layout::bf16_pair_index;
use crate::backend::cpu::simd::x86_64::avx512::visible;

/// Vectors of two f32 rows as pairs of bfloat16: rounded towards zero, and what that leaves, exact for an f16.
#[inline(always)]
unsafe fn split_pair(even: __m512, odd: __m512) -> (__m512i, __m512i) {
    // SAFETY: AVX-512 is there.
    unsafe {
        let mask = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
        let join = |even: __m512, odd: __m512| {
            let (even, odd) = (_mm512_castps_si512(even), _mm512_castps_si512(odd));
            _mm512_or_si512(_mm512_srli_epi32::<16>(even), _mm512_and_si512(odd, mask))
        };
        let row_max = |x: __m512| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), mask));
        (join(even, odd), join(_mm512_sub_ps(even, row_max(even)), _mm512_sub_ps(odd, row_max(odd))))
    }
}

/// Lanes that hold an infinity or a NaN.
#[inline(always)]
unsafe fn not_finite(x: __m512) -> __mmask16 {
    // SAFETY: AVX-512 is there. Class: quiet and signalling NaN, both infinities.
    unsafe { _mm512_fpclass_ps_mask::<0x99>(x) }
}

/// f16 keys of whole groups, `[dim][16]`, as split pairs `[dim / 2][16][2]`; false if a number of keys `from..to` is not finite.
///
/// # Safety
/// AMX must be available; `src` holds `n` keys, a multiple of 16, `high` and `low` have room for as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn split_keys(
    src: *const u16,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    high: *mut u16,
    low: *mut u16,
) -> bool {
    let mut non_finite = 0;
    for key in (0..n).step_by(KEY_GROUP) {
        let visible = visible((from, to), key);
        for at in (key * dim..(key + KEY_GROUP) * dim).step_by(2 * KEY_GROUP) {
            // SAFETY: the caller's contract.
            unsafe {
                let row = |i: usize| _mm512_cvtph_ps(_mm256_loadu_si256(src.add(at + i * KEY_GROUP).cast()));
                let (a, b) = (row(0), row(1));
                non_finite |= (not_finite(a) | not_finite(b)) & visible;
                let (row_max, rest) = split_pair(a, b);
                _mm512_storeu_si512(high.add(at).cast(), row_max);
                _mm512_storeu_si512(low.add(at).cast(), rest);
            }
        }
    }
    non_finite == 0
}

/// f16 values of keys `from..to`, in rows, as split tiles `[n / 32][dim / 16]`; all others of the `n` become 0. False if a number
/// is not finite.
///
/// # Safety
/// AMX must be available; `dim` and `n` are multiples of 32; `src` holds `n` rows, `high` and `low` have room for as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn split_values(
    src: *const u16,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    high: *mut u16,
    low: *mut u16,
) -> bool {
    let mut non_finite = 0;
    for key in (0..n).step_by(2) {
        for d in (0..dim).step_by(16) {
            // SAFETY: the caller's contract.
            unsafe {
                let row = |key: usize| {
                    let x = _mm512_cvtph_ps(_mm256_loadu_si256(src.add(key * dim + d).cast()));
                    let visible = if (from..to).contains(&key) { 0xFFFF } else { 0 };
                    _mm512_maskz_mov_ps(visible, x)
                };
                let (a, b) = (row(key), row(key + 1));
                non_finite |= not_finite(a) | not_finite(b);
                let (row_max, rest) = split_pair(a, b);
                let at = 2 * bf16_pair_index(dim, key, d);
                _mm512_storeu_si512(high.add(at).cast(), row_max);
                _mm512_storeu_si512(low.add(at).cast(), rest);
            }
        }
    }
    non_finite == 0
}

/// Whether `n` numbers in bfloat16 are all finite.
///
/// # Safety
/// AMX must be available; `src` holds `n` numbers, a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn all_finite(src: *const u16, n: usize) -> bool {
    // Without its sign, an infinity or a NaN is at least the infinity.
    let (sign, infinity) = (_mm512_set1_epi16(0x7FFF), _mm512_set1_epi16(0x7F80));
    let mut largest = _mm512_setzero_si512();
    for at in (0..n).step_by(32) {
        // SAFETY: the caller's contract.
        let x = unsafe { _mm512_loadu_si512(src.add(at).cast()) };
        largest = _mm512_max_epu16(largest, _mm512_and_si512(x, sign));
    }
    _mm512_cmplt_epu16_mask(largest, infinity) == u32::MAX
}

/// bf16 values of keys `from..to` as stored, tiles `[n / 32][dim / 16]`, copied; all others become 0. False if a number is not finite.
///
/// # Safety
/// As [`split_values`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn copy_values(
    src: *const u16,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    dst: *mut u16,
) -> bool {
    let mut non_finite = 0;
    for key in (0..n).step_by(2) {
        let half = |key: usize, bits: u32| if (from..to).contains(&key) { bits } else { 0 };
        let visible = half(key, 0xFFFF) | half(key + 1, 0xFFFF_0000);
        for d in (0..dim).step_by(16) {
            // SAFETY: the caller's contract.
            unsafe {
                let at = 2 * bf16_pair_index(dim, key, d);
                let visible = _mm512_set1_epi32(visible.cast_signed());
                let pairs = _mm512_and_si512(_mm512_loadu_si512(src.add(at).cast()), visible);
                non_finite |= not_finite(_mm512_castsi512_ps(pairs))
                    | not_finite(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
                _mm512_storeu_si512(dst.add(at).cast(), pairs);
            }
        }
    }
    non_finite == 0
}

/// Rows of f32 as bfloat16, rounded to nearest; with `low`, rounded towards zero and what that leaves, rounded to nearest.
///
/// # Safety
/// AMX must be available; `n` is a multiple of 32; all hold `n` elements but for `low`, which may be NULL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn narrow(src: *const f32, n: usize, high: *mut u16, low: *mut u16) {
    for at in (0..n).step_by(32) {
        // SAFETY: the caller's contract.
        unsafe {
            let low = if low.is_null() { low } else { low.add(at) };
            put(_mm512_loadu_ps(src.add(at)), _mm512_loadu_ps(src.add(at + 16)), high.add(at), low);
        }
    }
}

/// 32 numbers as bfloat16 to `high`, and what that rounds off to `low` unless it is NULL.
///
/// # Safety
/// AMX must be available; room for 32 in `high`, and in `low`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn put(a: __m512, b: __m512, high: *mut u16, low: *mut u16) {
    // SAFETY: the same 64 bytes under the name that stores take; the caller's contract.
    unsafe {
        let round = |a: __m512, b: __m512| -> __m512i { std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)) };
        if low.is_null() {
            return _mm512_storeu_si512(high.cast(), round(a, b));
        }
        let mask = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
        let row_max = |x: __m512| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), mask));
        let (ta, tb) = (row_max(a), row_max(b));
        _mm512_storeu_si512(high.cast(), round(ta, tb));
        _mm512_storeu_si512(low.cast(), round(_mm512_sub_ps(a, ta), _mm512_sub_ps(b, tb)));
    }
}

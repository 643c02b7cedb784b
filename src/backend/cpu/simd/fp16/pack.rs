//! Converts queries, keys and values to fp16, scaled so that sums of their products fit (`gemm.rs`).

use std::arch::x86_64::*;

use crate::backend::cpu::kv_layout::{KEY_GROUP, KeyRange, bf16_pair_index};
use crate::backend::cpu::simd::kv_load::{Keys, StoredBf16, Values};
use crate::backend::cpu::simd::x86_64::avx512::{Avx512, visible};

/// A block is scaled by a power of two so that its largest number lies between 2^9 and 2^10. A sum of 32 of them, times
/// at most 1, is then below the largest fp16, and numbers down to 2^-23 of the largest stay normal.
const TARGET_EXPONENT: i32 = 9; // mutant: fp16_overflow

/// The scale of a block and its inverse, given its largest magnitude as the bits of a bf16. `None` where that is 2^13
/// or more, or not finite.
fn scales(largest: u16) -> Option<(f32, f32)> {
    // 2^13: beside such a number, ordinary ones would be lost to rounding.
    const TOO_LARGE: u16 = 0x4600;
    if largest >= TOO_LARGE {
        return None;
    }
    // Both are normal numbers, whatever the exponent.
    let power = if largest == 0 { 0 } else { (TARGET_EXPONENT + 127 - i32::from(largest >> 7)).min(120) };
    let two = |power: i32| f32::from_bits(((127 + power) as u32) << 23);
    Some((two(power), two(-power)))
}

/// The larger magnitudes of 32 bf16 and of those so far, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn max_bits(x: __m512i, so_far: __m512i) -> __m512i {
    _mm512_max_epu16(so_far, _mm512_and_si512(x, _mm512_set1_epi16(0x7FFF)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn reduce_max_bits(bits: __m512i) -> u16 {
    let low = _mm512_reduce_max_epu32(_mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF)));
    low.max(_mm512_reduce_max_epu32(_mm512_srli_epi32::<16>(bits))) as u16
}

/// The larger of a maximum and a vector's magnitudes; a NaN counts as an infinity.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn max_magnitude(x: __m512, so_far: __m512) -> __m512 {
    let size = _mm512_abs_ps(x);
    let odd = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_max_ps(so_far, _mm512_mask_mov_ps(size, odd, _mm512_set1_ps(f32::INFINITY)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_fp16(x: __m512) -> __m256i {
    _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
}

/// Sixteen numbers as pairs of equal fp16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn fp16_pairs(x: __m512) -> __m512i {
    let twice_each: [u16; 32] = std::array::from_fn(|i| i as u16 / 2);
    // SAFETY: an array of that size.
    let twice_each = unsafe { _mm512_loadu_si512(twice_each.as_ptr().cast()) };
    _mm512_permutexvar_epi16(twice_each, _mm512_castsi256_si512(to_fp16(x)))
}

/// Rows of f32 as pairs of equal fp16, divided by the largest magnitude of each row, which goes to `scales`.
///
/// # Safety
/// AVX-512 must be available; `x` and `y` hold `rows` rows of `dim`, a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(crate) unsafe fn pack_rows(x: *const f32, (rows, dim): (usize, usize), scales: &mut [f32], y: *mut u32) {
    for (r, scale) in scales.iter_mut().enumerate().take(rows) {
        // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
        unsafe {
            let (x, y) = (x.add(r * dim), y.add(r * dim));
            let mut largest_bits = _mm512_setzero_ps();
            for d in (0..dim).step_by(16) {
                largest_bits = max_magnitude(_mm512_loadu_ps(x.add(d)), largest_bits);
            }
            let largest_bits = _mm512_reduce_max_ps(largest_bits);
            // Infinities and NaNs stay; a row of subnormals becomes 0.
            // mutant: fp16_small_queries_lost
            *scale = if largest_bits >= f32::MIN_POSITIVE && largest_bits.is_finite() { largest_bits } else { 1.0 };
            pairs(x, dim, scale.recip(), y);
        }
    }
}

/// Numbers times `scale` as pairs of equal fp16.
///
/// # Safety
/// As [`pack_rows`]; `n` is a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pairs(x: *const f32, n: usize, scale: f32, y: *mut u32) {
    for i in (0..n).step_by(16) {
        // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
        unsafe {
            let x = _mm512_mul_ps(_mm512_loadu_ps(x.add(i)), _mm512_set1_ps(scale));
            _mm512_storeu_si512(y.add(i).cast(), fp16_pairs(x));
        }
    }
}

/// bf16 keys of whole key groups as fp16 `[dim][step]`, times a power of two whose inverse is returned. `None` if a
/// visible number is too large or not finite. Masked keys become unspecified numbers.
///
/// # Safety
/// As [`pack_rows`]; `src` holds `keys.n` keys, a multiple of 32, `dst` has room for `dim` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn pack_keys(src: *const u8, dim: usize, keys: KeyRange, step: usize, dst: *mut u16) -> Option<f32> {
    // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
    unsafe {
        let mut largest_bits = _mm512_setzero_si512();
        for key in (0..keys.n).step_by(KEY_GROUP) {
            let visible = visible((keys.from, keys.to), key);
            let group = src.add(key * dim * StoredBf16::SIZE);
            for pair in 0..dim / 2 {
                largest_bits = max_bits(
                    _mm512_maskz_loadu_epi32(visible, group.cast::<i32>().add(pair * KEY_GROUP)),
                    largest_bits,
                );
            }
        }
        let (scale, back) = scales(reduce_max_bits(largest_bits))?;
        let scale = _mm512_set1_ps(scale);
        for key in (0..keys.n).step_by(KEY_GROUP) {
            for d in (0..dim).step_by(2) {
                let (a, b): (Avx512, Avx512) = StoredBf16::load(src.add(key * dim * StoredBf16::SIZE), 0, d);
                let to = dst.add(d * step + key);
                _mm256_storeu_si256(to.cast(), to_fp16(_mm512_mul_ps(a.0, scale)));
                _mm256_storeu_si256(to.add(step).cast(), to_fp16(_mm512_mul_ps(b.0, scale)));
            }
        }
        Some(back)
    }
}

/// Visible bf16 values as rows of fp16, times a power of two whose inverse is returned; other rows become 0. `None` if
/// a visible number is too large or not finite.
///
/// # Safety
/// As [`pack_keys`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn pack_values(src: *const u8, dim: usize, keys: KeyRange, dst: *mut u16) -> Option<f32> {
    let visible = |key: usize| if keys.contains(key) { 0xFFFF } else { 0 };
    // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
    unsafe {
        let mut largest_bits = _mm512_setzero_si512();
        for key in (0..keys.n).step_by(2) {
            let both = _mm512_set1_epi32((u32::from(visible(key)) | u32::from(visible(key + 1)) << 16).cast_signed());
            for d in (0..dim).step_by(KEY_GROUP) {
                let pairs = _mm512_loadu_si512(src.cast::<u32>().add(bf16_pair_index(dim, key, d)).cast());
                largest_bits = max_bits(_mm512_and_si512(pairs, both), largest_bits);
            }
        }
        let (scale, back) = scales(reduce_max_bits(largest_bits))?;
        let scale = _mm512_set1_ps(scale);
        for key in (0..keys.n).step_by(2) {
            for d in (0..dim).step_by(KEY_GROUP) {
                let (a, b): (Avx512, Avx512) = StoredBf16::two(src, dim, key, d);
                let to = dst.add(key * dim + d);
                _mm256_storeu_si256(to.cast(), to_fp16(_mm512_maskz_mul_ps(visible(key), a.0, scale)));
                _mm256_storeu_si256(to.add(dim).cast(), to_fp16(_mm512_maskz_mul_ps(visible(key + 1), b.0, scale)));
            }
        }
        Some(back)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::backend::cpu::simd::fp16::gemm::tests::{draws, there};

    /// Numbers end up where products look for them, whatever lies beside what is seen.
    #[test]
    fn what_is_stored_is_packed() {
        if !there() {
            return;
        }
        const DIM: usize = 64;
        const N: usize = 96;
        let mut draw = draws();
        let numbers: Vec<f32> = (0..N * DIM).map(|_| draw()).collect();
        let pack = |numbers: &[f32], (from, to): (usize, usize)| {
            let (mut k, mut v) = (vec![0_u16; N * DIM], vec![0_u16; N * DIM]);
            for (i, &x) in numbers.iter().enumerate() {
                let (key, d, bits) = (i / DIM, i % DIM, bf16::from_f32(x).to_bits());
                k[key / KEY_GROUP * KEY_GROUP * DIM + d / 2 * 2 * KEY_GROUP + key % KEY_GROUP * 2 + d % 2] = bits;
                v[2 * bf16_pair_index(DIM, key, d) + key % 2] = bits;
            }
            let (mut to_k, mut to_v) = (vec![0_u16; N * DIM], vec![0x7C00_u16; N * DIM]);
            // SAFETY: the instructions are there; arrays of these sizes.
            let fit = unsafe {
                let keys = KeyRange { from, to, n: N };
                let k = pack_keys(k.as_ptr().cast(), DIM, keys, N, to_k.as_mut_ptr());
                (k, pack_values(v.as_ptr().cast(), DIM, keys, to_v.as_mut_ptr()))
            };
            (fit, to_k, to_v)
        };
        for size in [1.0, 2_f32.powi(-100), 2_f32.powi(12)] {
            let numbers: Vec<f32> = numbers.iter().map(|x| bf16::from_f32(x * size).to_f32()).collect();
            let (fit, k, v) = pack(&numbers, (5, 90));
            let (back_k, back_v) = (fit.0.unwrap(), fit.1.unwrap());
            for (i, &x) in numbers.iter().enumerate() {
                let (key, d) = (i / DIM, i % DIM);
                let visible = (5..90).contains(&key);
                let got = f16::from_bits(k[d * N + key]).to_f32();
                assert!(
                    !visible || got.abs() <= 1024.0 && got * back_k == x,
                    "{size}, key {key}, dim {d}: {got}, not {x}"
                );
                let got = f16::from_bits(v[i]).to_f32();
                assert_eq!(got * back_v, if visible { x } else { 0.0 }, "{size}, value {key}, dim {d}");
            }
        }
        for odd in [f32::NAN, f32::NEG_INFINITY, -8192.0] {
            for (key, visible) in [(4, false), (5, true), (89, true), (90, false)] {
                let mut numbers = numbers.clone();
                numbers[key * DIM + 9] = odd;
                let fit = pack(&numbers, (5, 90)).0;
                assert_eq!((fit.0.is_none(), fit.1.is_none()), (visible, visible), "{odd} in key {key}");
            }
        }
        assert_eq!(pack(&vec![0.0; N * DIM], (0, N)).0, (Some(1.0), Some(1.0)));
    }

    #[test]
    fn rows_are_scaled_by_their_largest() {
        if !there() {
            return;
        }
        let mut rows = [[0.0_f32; 32]; 6];
        (rows[0][3], rows[0][4]) = (-3e30, 1.5e30);
        (rows[1][0], rows[1][1]) = (f32::NAN, 1.0);
        rows[2][31] = f32::INFINITY;
        rows[3][0] = 1e-40;
        (rows[5][1], rows[5][2]) = (2_f32.powi(-20), -(2_f32.powi(-30)));
        let (mut scales, mut pairs_of) = ([0.0; 6], [[0_u32; 32]; 6]);
        // SAFETY: the instructions are there; six rows of 32.
        unsafe { pack_rows(rows.as_ptr().cast(), (6, 32), &mut scales, pairs_of.as_mut_ptr().cast()) };
        assert_eq!(scales, [3e30, 1.0, 1.0, 1.0, 1.0, 2_f32.powi(-20)]);
        let number = |r: usize, i: usize| {
            let word = pairs_of[r][i];
            assert_eq!(word >> 16, word & 0xFFFF);
            f16::from_bits(word as u16).to_f32()
        };
        assert_eq!((number(0, 3), number(0, 4)), (-1.0, 0.5));
        assert_eq!((number(5, 1), number(5, 2)), (1.0, -(2_f32.powi(-10))));
        assert!(number(1, 0).is_nan() && number(2, 31) == f32::INFINITY && number(3, 0) == 0.0);
    }
}

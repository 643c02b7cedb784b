//! AVX-512 FP16: products of halves at twice the rate of f32, summed as halves over 32 products, and as f32 beyond.
//!
//! For keys and values of bfloat16: a half has three more bits, and what 32 sums round off is no more than what rounding the
//! queries to bfloat16, as AMX does, would. Everything is scaled first, so that halves neither overflow nor lose what is small.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::kernels::{Brain, Keys, Values, each, pair_at};
use super::weigh_tiles::visible;
use crate::backend::cpu::store::GROUP;

/// Products that are summed as halves, and keys or dims of a vector.
pub(crate) const DEPTH: usize = 32;
/// Blocks are multiplied with a power of two that brings their largest number to between 2^9 and 2^10: 32 of them, times at most 1,
/// are below the largest half, and what is 2^-23 of it is still no subnormal.
const TOP: i32 = 9;

/// Whether the processor has it. The rest of AVX-512 is another question.
pub(crate) fn available() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 23 & 1 == 1
}

/// `a * b + c` of 32 halves. Rust has the intrinsic since 1.94 only.
///
/// # Safety
/// [`available`], and the rung.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_add(a: __m512i, b: __m512i, mut c: __m512i) -> __m512i {
    // SAFETY: registers in, registers out; the caller's contract.
    unsafe {
        asm!("vfmadd231ph {c}, {a}, {b}", c = inout(zmm_reg) c, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

/// What numbers are multiplied with, and its inverse, where the largest of them has these bits as a bfloat16 without sign. None where
/// it is 2^13 or more, or not finite.
fn scales(largest: u16) -> Option<(f32, f32)> {
    // 2^13: beside such a number, ordinary ones would be lost.
    const TOO_LARGE: u16 = 0x4600;
    if largest >= TOO_LARGE {
        return None;
    }
    // Both are normal numbers, whatever the exponent.
    let power = if largest == 0 { 0 } else { (TOP + 127 - i32::from(largest >> 7)).min(120) };
    let two = |power: i32| f32::from_bits(((127 + power) as u32) << 23);
    Some((two(power), two(-power)))
}

/// The largest of 32 bfloat16 without their signs, and of those so far, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn top_bits(x: __m512i, so_far: __m512i) -> __m512i {
    _mm512_max_epu16(so_far, _mm512_and_si512(x, _mm512_set1_epi16(0x7FFF)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn top_of(bits: __m512i) -> u16 {
    let low = _mm512_reduce_max_epu32(_mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF)));
    low.max(_mm512_reduce_max_epu32(_mm512_srli_epi32::<16>(bits))) as u16
}

/// The larger of a maximum and the sizes of a vector's numbers; a NaN becomes an infinity.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn largest(x: __m512, so_far: __m512) -> __m512 {
    let size = _mm512_abs_ps(x);
    let odd = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_max_ps(so_far, _mm512_mask_mov_ps(size, odd, _mm512_set1_ps(f32::INFINITY)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn half(x: __m512) -> __m256i {
    _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
}

/// Rows of f32 as pairs of the same half, divided by the largest of each row, which goes to `scales`.
///
/// # Safety
/// The rung's and this one's instructions must be there; `x` and `y` hold `rows` rows of `dim`, a multiple of 16, `stride` apart.
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) unsafe fn pack_rows(
    x: *const f32,
    (rows, dim, stride): (usize, usize, usize),
    scales: &mut [f32],
    y: *mut u32,
) {
    for (r, scale) in scales.iter_mut().enumerate().take(rows) {
        // SAFETY: the caller's contract.
        unsafe {
            let (x, y) = (x.add(r * stride), y.add(r * stride));
            let mut top = _mm512_setzero_ps();
            for d in (0..dim).step_by(16) {
                top = largest(_mm512_loadu_ps(x.add(d)), top);
            }
            let top = _mm512_reduce_max_ps(top);
            // An infinity or a NaN stays what it is; next to nothing becomes nothing.
            *scale = if top >= f32::MIN_POSITIVE && top.is_finite() { top } else { 1.0 };
            pairs(x, dim, scale.recip(), y);
        }
    }
}

/// Numbers times `scale` as pairs of the same half.
///
/// # Safety
/// As [`pack_rows`]; `n` is a multiple of 16.
#[target_feature(enable = "avx512f")]
unsafe fn pairs(x: *const f32, n: usize, scale: f32, y: *mut u32) {
    for i in (0..n).step_by(16) {
        // SAFETY: the caller's contract.
        unsafe {
            let words = _mm512_cvtepu16_epi32(half(_mm512_mul_ps(_mm512_loadu_ps(x.add(i)), _mm512_set1_ps(scale))));
            _mm512_storeu_si512(y.add(i).cast(), _mm512_or_si512(words, _mm512_slli_epi32::<16>(words)));
        }
    }
}

/// bf16 keys of whole groups as columns of halves, `[dim][step]`, times a power of two whose inverse is returned; none if a number
/// of keys `from..to` is not finite. The others may become anything.
///
/// # Safety
/// As [`pack_rows`]; `src` holds `n` keys, a multiple of 32, `dst` has room for `dim` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn pack_keys(
    src: *const u8,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    step: usize,
    dst: *mut u16,
) -> Option<f32> {
    // SAFETY: the caller's contract.
    unsafe {
        let mut top = _mm512_setzero_si512();
        for key in (0..n).step_by(GROUP) {
            let seen = visible((from, to), key);
            let group = src.add(key * dim * Brain::SIZE);
            for pair in 0..dim / 2 {
                top = top_bits(_mm512_maskz_loadu_epi32(seen, group.cast::<i32>().add(pair * GROUP)), top);
            }
        }
        let (scale, back) = scales(top_of(top))?;
        let scale = _mm512_set1_ps(scale);
        for key in (0..n).step_by(GROUP) {
            for d in (0..dim).step_by(2) {
                let (a, b): (Avx512, Avx512) = Brain::load(src.add(key * dim * Brain::SIZE), 0, d);
                let to = dst.add(d * step + key);
                _mm256_storeu_si256(to.cast(), half(_mm512_mul_ps(a.0, scale)));
                _mm256_storeu_si256(to.add(step).cast(), half(_mm512_mul_ps(b.0, scale)));
            }
        }
        Some(back)
    }
}

/// bf16 values of keys `from..to` as rows of halves, times a power of two whose inverse is returned; the others of the `n` become 0. None
/// if a number is not finite.
///
/// # Safety
/// As [`pack_keys`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn pack_values(
    src: *const u8,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    dst: *mut u16,
) -> Option<f32> {
    let seen = |key: usize| if (from..to).contains(&key) { 0xFFFF } else { 0 };
    // SAFETY: the caller's contract.
    unsafe {
        let mut top = _mm512_setzero_si512();
        for key in (0..n).step_by(2) {
            let both = _mm512_set1_epi32((u32::from(seen(key)) | u32::from(seen(key + 1)) << 16).cast_signed());
            for d in (0..dim).step_by(GROUP) {
                let pairs = _mm512_loadu_si512(src.cast::<u32>().add(pair_at(dim, key, d)).cast());
                top = top_bits(_mm512_and_si512(pairs, both), top);
            }
        }
        let (scale, back) = scales(top_of(top))?;
        let scale = _mm512_set1_ps(scale);
        for key in (0..n).step_by(2) {
            for d in (0..dim).step_by(GROUP) {
                let (a, b): (Avx512, Avx512) = Brain::two(src, dim, key, d);
                let to = dst.add(key * dim + d);
                _mm256_storeu_si256(to.cast(), half(_mm512_maskz_mul_ps(seen(key), a.0, scale)));
                _mm256_storeu_si256(to.add(dim).cast(), half(_mm512_maskz_mul_ps(seen(key + 1), b.0, scale)));
            }
        }
        Some(back)
    }
}

/// What is multiplied: rows of pairs times columns of halves, with f32 results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// `[rows][row_stride]` pairs of the same half.
    pub rows_at: *const u32,
    pub row_stride: usize,
    pub rows: usize,
    /// Products to a result, a multiple of 32.
    pub depth: usize,
    /// `[depth][step]` halves, of which so many columns count, a multiple of 32.
    pub columns_at: *const u16,
    pub columns: usize,
    pub step: usize,
    /// `[rows][stride]` f32.
    pub out: *mut f32,
    pub stride: usize,
    /// Of each row: what products are multiplied with, and what was there before them. NULL: 1, or 0.
    pub scales: *const f32,
    pub keep: *const f32,
}

/// `out[r][c] = keep[r] * out[r][c] + scales[r] * sum over i of rows[r][i] * columns[i][c]`.
///
/// # Safety
/// [`available`], and the rung; pointers as described.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn multiply(a: &Product) {
    let vectors = a.columns / DEPTH;
    let mut v = 0;
    while v < vectors {
        // SAFETY: the caller's contract.
        unsafe {
            if vectors - v >= 4 {
                strip::<4>(a, v);
                v += 4;
            } else if vectors - v >= 2 {
                strip::<2>(a, v);
                v += 2;
            } else {
                strip::<1>(a, v);
                v += 1;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn strip<const NV: usize>(a: &Product, v: usize) {
    let mut r = 0;
    while r < a.rows {
        // SAFETY: the caller's contract.
        unsafe {
            match a.rows - r {
                1 => {
                    tile::<1, NV>(a, r, v);
                    r += 1;
                }
                2 | 3 => {
                    tile::<2, NV>(a, r, v);
                    r += 2;
                }
                4 | 5 => {
                    tile::<4, NV>(a, r, v);
                    r += 4;
                }
                _ => {
                    tile::<6, NV>(a, r, v);
                    r += 6;
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile<const R: usize, const NV: usize>(a: &Product, row: usize, vector: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let one = |p: *const f32, r: usize, none: f32| _mm512_set1_ps(if p.is_null() { none } else { *p.add(row + r) });
        for first in (0..a.depth).step_by(DEPTH) {
            let mut sum = [[_mm512_setzero_si512(); NV]; R];
            let mut x = [_mm512_setzero_si512(); NV];
            let rows = a.rows_at.add(row * a.row_stride + first);
            let columns = a.columns_at.add(vector * DEPTH + first * a.step);
            for i in 0..DEPTH {
                let columns = columns.add(i * a.step);
                each!(NV, v, x[v] = _mm512_loadu_si512(columns.add(v * DEPTH).cast()));
                each!(R, r, {
                    let p = _mm512_set1_epi32((*rows.add(r * a.row_stride + i)).cast_signed());
                    each!(NV, v, sum[r][v] = multiply_add(p, x[v], sum[r][v]));
                });
            }
            each!(R, r, {
                let scale = one(a.scales, r, 1.0);
                let keep = one(a.keep, r, 0.0);
                each!(NV, v, {
                    let sum = sum[r][v];
                    let low = _mm512_cvtph_ps(_mm512_castsi512_si256(sum));
                    let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sum));
                    let out = a.out.add((row + r) * a.stride + (vector + v) * DEPTH);
                    let (before, next) = if first > 0 {
                        (_mm512_loadu_ps(out), _mm512_loadu_ps(out.add(16)))
                    } else if a.keep.is_null() {
                        (_mm512_setzero_ps(), _mm512_setzero_ps())
                    } else {
                        (_mm512_mul_ps(keep, _mm512_loadu_ps(out)), _mm512_mul_ps(keep, _mm512_loadu_ps(out.add(16))))
                    };
                    _mm512_storeu_ps(out, _mm512_fmadd_ps(low, scale, before));
                    _mm512_storeu_ps(out.add(16), _mm512_fmadd_ps(high, scale, next));
                });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::backend::cpu::Rung;

    fn there() -> bool {
        Rung::Avx512.available() && available()
    }

    fn draws() -> impl FnMut() -> f32 {
        let mut state = 3_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32((state >> 33) as f32 / (1_u64 << 30) as f32 - 1.0).to_f32()
        }
    }

    /// Every number of rows and vectors, both roles: scores with scales, sums with what was there.
    #[test]
    fn products_are_those_of_the_definition() {
        if !there() {
            return;
        }
        let mut draw = draws();
        for (rows, columns, depth, keeps) in
            [(48, 256, 128, false), (1, 32, 64, false), (5, 96, 32, true), (9, 224, 160, true), (3, 64, 96, true)]
        {
            let a: Vec<f32> = (0..rows * depth).map(|_| draw()).collect();
            let b: Vec<f32> = (0..depth * columns).map(|_| draw()).collect();
            let halves: Vec<u16> = b.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
            let mut pairs_of = vec![0_u32; rows * depth];
            let (mut scales, keep) = (vec![7.0; rows + 1], vec![0.5_f32; rows]);
            let mut out = vec![3.0_f32; rows * columns];
            // SAFETY: the instructions are there; arrays of these sizes.
            unsafe {
                pack_rows(a.as_ptr(), (rows, depth, depth), &mut scales, pairs_of.as_mut_ptr());
                multiply(&Product {
                    rows_at: pairs_of.as_ptr(),
                    row_stride: depth,
                    rows,
                    depth,
                    columns_at: halves.as_ptr(),
                    columns,
                    step: columns,
                    out: out.as_mut_ptr(),
                    stride: columns,
                    scales: scales.as_ptr(),
                    keep: if keeps { keep.as_ptr() } else { std::ptr::null() },
                });
            }
            assert_eq!(scales[rows], 7.0, "rows that are not there");
            for (i, got) in out.iter().enumerate() {
                let (r, c) = (i / columns, i % columns);
                let sum: f64 = (0..depth).map(|d| f64::from(a[r * depth + d]) * f64::from(b[d * columns + c])).sum();
                let want = sum + if keeps { 1.5 } else { 0.0 };
                assert!(
                    (f64::from(*got) - want).abs() < 2e-3 * (depth as f64).sqrt(),
                    "{rows} x {columns}: {got}, not {want}"
                );
            }
        }
    }

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
                k[key / GROUP * GROUP * DIM + d / 2 * 2 * GROUP + key % GROUP * 2 + d % 2] = bits;
                v[2 * pair_at(DIM, key, d) + key % 2] = bits;
            }
            let (mut to_k, mut to_v) = (vec![0_u16; N * DIM], vec![0x7C00_u16; N * DIM]);
            // SAFETY: the instructions are there; arrays of these sizes.
            let fit = unsafe {
                let keys = (from, to, N);
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
                let seen = (5..90).contains(&key);
                let got = f16::from_bits(k[d * N + key]).to_f32();
                assert!(
                    !seen || got.abs() <= 1024.0 && got * back_k == x,
                    "{size}, key {key}, dim {d}: {got}, not {x}"
                );
                let got = f16::from_bits(v[i]).to_f32();
                assert_eq!(got * back_v, if seen { x } else { 0.0 }, "{size}, value {key}, dim {d}");
            }
        }
        for odd in [f32::NAN, f32::NEG_INFINITY, -8192.0] {
            for (key, seen) in [(4, false), (5, true), (89, true), (90, false)] {
                let mut numbers = numbers.clone();
                numbers[key * DIM + 9] = odd;
                let fit = pack(&numbers, (5, 90)).0;
                assert_eq!((fit.0.is_none(), fit.1.is_none()), (seen, seen), "{odd} in key {key}");
            }
        }
        assert_eq!(pack(&vec![0.0; N * DIM], (0, N)).0, (Some(1.0), Some(1.0)));
    }

    #[test]
    fn rows_are_scaled_by_their_largest() {
        if !there() {
            return;
        }
        let mut rows = [[0.0_f32; 32]; 5];
        (rows[0][3], rows[0][4]) = (-3e30, 1.5e30);
        (rows[1][0], rows[1][1]) = (f32::NAN, 1.0);
        rows[2][31] = f32::INFINITY;
        rows[3][0] = 1e-40;
        let (mut scales, mut pairs_of) = ([0.0; 5], [[0_u32; 32]; 5]);
        // SAFETY: the instructions are there; five rows of 32.
        unsafe { pack_rows(rows.as_ptr().cast(), (5, 32, 32), &mut scales, pairs_of.as_mut_ptr().cast()) };
        assert_eq!(scales, [3e30, 1.0, 1.0, 1.0, 1.0]);
        let number = |r: usize, i: usize| {
            let word = pairs_of[r][i];
            assert_eq!(word >> 16, word & 0xFFFF);
            f16::from_bits(word as u16).to_f32()
        };
        assert_eq!((number(0, 3), number(0, 4)), (-1.0, 0.5));
        assert!(number(1, 0).is_nan() && number(2, 31) == f32::INFINITY && number(3, 0) == 0.0);
    }
}

//! AVX-512 FP16: products of halves at twice the rate of f32, summed as halves over 32 products, and as f32 beyond.
//!
//! For keys and values of bfloat16: a half has three more bits, and what 32 sums round off is no more than what rounding the
//! queries to bfloat16, as AMX does, would. `fp16_pack.rs` scales everything first, so that halves neither overflow nor lose what is
//! small.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::backend::cpu::simd::unroll::unrolled;

/// Products that are summed as halves, and keys or dims of a vector.
pub(crate) const DEPTH: usize = 32;

/// `a * b + c` of 32 halves. Rust has the intrinsic since 1.94 only.
///
/// # Safety
/// [`available`], and the instruction set.
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

/// What is multiplied: rows of pairs times columns of halves, with f32 results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemmArgs {
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
    /// Of each row, what products are multiplied with.
    pub scales: *const f32,
    /// And what was there before them; NULL: that does not count.
    pub alpha: *const f32,
}

/// `out[r][c] = alpha[r] * out[r][c] + scales[r] * sum over i of rows[r][i] * columns[i][c]`.
///
/// # Safety
/// [`available`], and the instruction set; pointers as described.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn multiply(a: &GemmArgs) {
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
unsafe fn strip<const NV: usize>(a: &GemmArgs, v: usize) {
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
unsafe fn tile<const R: usize, const NV: usize>(a: &GemmArgs, row: usize, vector: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for first in (0..a.depth).step_by(DEPTH) {
            let mut sum = [[_mm512_setzero_si512(); NV]; R];
            let mut x = [_mm512_setzero_si512(); NV];
            let rows = a.rows_at.add(row * a.row_stride + first);
            let columns = a.columns_at.add(vector * DEPTH + first * a.step);
            for i in 0..DEPTH {
                let columns = columns.add(i * a.step);
                unrolled!(NV, v, x[v] = _mm512_loadu_si512(columns.add(v * DEPTH).cast()));
                unrolled!(R, r, {
                    let p = _mm512_set1_epi32((*rows.add(r * a.row_stride + i)).cast_signed());
                    unrolled!(NV, v, sum[r][v] = multiply_add(p, x[v], sum[r][v]));
                });
            }
            unrolled!(R, r, {
                let scale = _mm512_set1_ps(*a.scales.add(row + r));
                let alpha = _mm512_set1_ps(if a.alpha.is_null() { 0.0 } else { *a.alpha.add(row + r) });
                unrolled!(NV, v, {
                    let sum = sum[r][v];
                    let low = _mm512_cvtph_ps(_mm512_castsi512_si256(sum));
                    let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sum));
                    let out = a.out.add((row + r) * a.stride + (vector + v) * DEPTH);
                    let (before, next) = if first > 0 {
                        (_mm512_loadu_ps(out), _mm512_loadu_ps(out.add(16)))
                    } else if a.alpha.is_null() {
                        (_mm512_setzero_ps(), _mm512_setzero_ps())
                    } else {
                        (_mm512_mul_ps(alpha, _mm512_loadu_ps(out)), _mm512_mul_ps(alpha, _mm512_loadu_ps(out.add(16))))
                    };
                    _mm512_storeu_ps(out, _mm512_fmadd_ps(low, scale, before));
                    _mm512_storeu_ps(out.add(16), _mm512_fmadd_ps(high, scale, next));
                });
            });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use half::f16;

    use super::*;
    use crate::backend::cpu::simd::fp16::pack::pack_rows;
    use crate::cpu_features::{Isa, fp16_available};

    pub(in crate::backend::cpu::simd) fn there() -> bool {
        Isa::Avx512.available() && fp16_available()
    }

    pub(in crate::backend::cpu::simd) fn draws() -> impl FnMut() -> f32 {
        let mut state = 3_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            half::bf16::from_f32((state >> 33) as f32 / (1_u64 << 30) as f32 - 1.0).to_f32()
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
            let (mut scales, alpha) = (vec![7.0; rows + 1], vec![0.5_f32; rows]);
            let mut out = vec![3.0_f32; rows * columns];
            // SAFETY: the instructions are there; arrays of these sizes.
            unsafe {
                pack_rows(a.as_ptr(), (rows, depth), &mut scales, pairs_of.as_mut_ptr());
                multiply(&GemmArgs {
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
                    alpha: if keeps { alpha.as_ptr() } else { std::ptr::null() },
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
}

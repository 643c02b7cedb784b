//! GEMM with AVX-512 FP16: products and sums of 32 products in fp16, at twice the rate of f32; longer sums in f32.
//!
//! It serves stored bf16. fp16 has three more bits of precision, so that the rounding of 32 sums loses no more than
//! rounding the queries to bf16 would, as AMX does. `pack.rs` scales all operands, so that fp16 neither overflows nor
//! loses small numbers.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::backend::cpu::simd::unroll::unrolled;

/// Products that are summed in fp16, and fp16 elements of a vector.
pub(crate) const DEPTH: usize = 32;

/// `a * b + c` of 32 fp16. Rust has the intrinsic since 1.94 only.
///
/// # Safety
/// AVX-512 FP16 must be available.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_add(a: __m512i, b: __m512i, mut c: __m512i) -> __m512i {
    // SAFETY: the instruction is available, by the caller, and touches registers only.
    unsafe {
        asm!("vfmadd231ph {c}, {a}, {b}", c = inout(zmm_reg) c, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

/// `C = alpha A B + beta C` with A and B of fp16, C of f32, alpha and beta by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemmArgs {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C, a multiple of 32.
    pub n: usize,
    /// Columns of A and rows of B, a multiple of 32.
    pub k: usize,
    /// `[m][lda]`, each element a pair of equal fp16: the form that is broadcast.
    pub a: *const u32,
    pub lda: usize,
    /// `[k][ldb]` fp16.
    pub b: *const u16,
    pub ldb: usize,
    /// `[m][ldc]` f32.
    pub c: *mut f32,
    pub ldc: usize,
    /// `[m]`.
    pub alpha: *const f32,
    /// `[m]`; NULL = 0, and C is not read.
    pub beta: *const f32,
}

/// `C = alpha A B + beta C`. 32 products are summed in fp16, these sums in f32.
///
/// # Safety
/// AVX-512 and AVX-512 FP16 must be available; pointers as [`GemmArgs`] describes them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn gemm(args: &GemmArgs) {
    let vectors = args.n / DEPTH;
    let mut v = 0;
    while v < vectors {
        // SAFETY: the caller's contract; vectors `v..v + NV` are columns of B and C.
        unsafe {
            if vectors - v >= 4 {
                columns::<4>(args, v);
                v += 4;
            } else if vectors - v >= 2 {
                columns::<2>(args, v);
                v += 2;
            } else {
                columns::<1>(args, v);
                v += 1;
            }
        }
    }
}

/// All rows of `NV` vectors of columns, in register tiles of six rows and what is left.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn columns<const NV: usize>(args: &GemmArgs, v: usize) {
    let mut r = 0;
    while r < args.m {
        // SAFETY: the caller's contract; each tile has as many rows as are left.
        unsafe {
            match args.m - r {
                1 => {
                    tile::<1, NV>(args, r, v);
                    r += 1;
                }
                2 | 3 => {
                    tile::<2, NV>(args, r, v);
                    r += 2;
                }
                4 | 5 => {
                    tile::<4, NV>(args, r, v);
                    r += 4;
                }
                _ => {
                    tile::<6, NV>(args, r, v);
                    r += 6;
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile<const R: usize, const NV: usize>(args: &GemmArgs, row: usize, vector: usize) {
    // SAFETY: the caller's contract: `R` rows from `row` on, `NV` vectors of columns from `vector` on.
    unsafe {
        for first in (0..args.k).step_by(DEPTH) {
            let mut sum = [[_mm512_setzero_si512(); NV]; R];
            let mut x = [_mm512_setzero_si512(); NV];
            let a = args.a.add(row * args.lda + first);
            let b = args.b.add(vector * DEPTH + first * args.ldb);
            for i in 0..DEPTH {
                let b = b.add(i * args.ldb);
                unrolled!(NV, v, x[v] = _mm512_loadu_si512(b.add(v * DEPTH).cast()));
                unrolled!(R, r, {
                    let p = _mm512_set1_epi32((*a.add(r * args.lda + i)).cast_signed());
                    unrolled!(NV, v, sum[r][v] = multiply_add(p, x[v], sum[r][v]));
                });
            }
            unrolled!(R, r, {
                let alpha = _mm512_set1_ps(*args.alpha.add(row + r));
                let beta = _mm512_set1_ps(if args.beta.is_null() { 0.0 } else { *args.beta.add(row + r) });
                unrolled!(NV, v, {
                    let sum = sum[r][v];
                    let low = _mm512_cvtph_ps(_mm512_castsi512_si256(sum));
                    let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sum));
                    let c = args.c.add((row + r) * args.ldc + (vector + v) * DEPTH);
                    let (c0, c1) = if first > 0 {
                        (_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(16)))
                    } else if args.beta.is_null() {
                        (_mm512_setzero_ps(), _mm512_setzero_ps())
                    } else {
                        (_mm512_mul_ps(beta, _mm512_loadu_ps(c)), _mm512_mul_ps(beta, _mm512_loadu_ps(c.add(16))))
                    };
                    _mm512_storeu_ps(c, _mm512_fmadd_ps(low, alpha, c0));
                    _mm512_storeu_ps(c.add(16), _mm512_fmadd_ps(high, alpha, c1)); // mutant: fp16_queries_unscaled
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

    /// Every number of rows and vectors, with and without beta.
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
            let (mut scales, beta) = (vec![7.0; rows + 1], vec![0.5_f32; rows]);
            let mut out = vec![3.0_f32; rows * columns];
            // SAFETY: the instructions are there; arrays of these sizes.
            unsafe {
                pack_rows(a.as_ptr(), (rows, depth), &mut scales, pairs_of.as_mut_ptr());
                gemm(&GemmArgs {
                    m: rows,
                    n: columns,
                    k: depth,
                    a: pairs_of.as_ptr(),
                    lda: depth,
                    b: halves.as_ptr(),
                    ldb: columns,
                    c: out.as_mut_ptr(),
                    ldc: columns,
                    alpha: scales.as_ptr(),
                    beta: if keeps { beta.as_ptr() } else { std::ptr::null() },
                });
            }
            assert_eq!(scales[rows], 7.0, "rows of padding");
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

//! AVX512_VNNI: sums of four products of bytes in a lane.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use crate::backend::cpu::simd::integer::rounding::{BLOCK, COLUMNS, Factors, ROUND, Rounding};
use crate::backend::cpu::simd::integer::vector::SimdInt;

/// Sixteen i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(__m512i);

// The contract of the trait is the contract of each `unsafe` below.
#[expect(clippy::undocumented_unsafe_blocks, reason = "the processor has the instructions, by the trait's contract")]
impl SimdInt for Avx512Vnni {
    type F = Avx512;
    const TILE: [usize; 3] = [8, 4, 2];
    const Q8_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        Self(unsafe { _mm512_set1_epi32(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        Self(unsafe { _mm512_loadu_si512(p.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut i32) {
        unsafe { _mm512_storeu_si512(p.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(unsafe { _mm512_add_epi32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn halves(self) -> [Self; 2] {
        unsafe {
            let low = _mm512_set1_epi8(15);
            [Self(_mm512_and_si512(self.0, low)), Self(_mm512_and_si512(_mm512_srli_epi16::<4>(self.0), low))]
        }
    }

    #[inline(always)]
    unsafe fn bytes(self) -> Self {
        // The instruction takes unsigned codes.
        Self(unsafe { _mm512_xor_si512(self.0, _mm512_set1_epi8(i8::MIN)) })
    }

    #[inline(always)]
    unsafe fn dot(self, codes: Self, signed: Self) -> Self {
        Self(unsafe { _mm512_dpbusd_epi32(self.0, codes.0, signed.0) })
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> Avx512 {
        Avx512(unsafe { _mm512_cvtepi32_ps(self.0) })
    }

    #[inline(always)]
    unsafe fn multiply(a: &Factors) -> u32 {
        unsafe { multiply(a) }
    }

    #[inline(always)]
    unsafe fn round(a: &Rounding) -> [i32; 2] {
        unsafe { round(a) }
    }
}

/// Products of a block in the order of its scales' words: columns 0, 2, 4 ... 30, then 1, 3, 5 ... 31.
///
/// # Safety
/// As [`Factors`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn multiply(a: &Factors) -> u32 {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    let high_half = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let zero = _mm512_setzero_ps();
    let mut most = [_mm512_setzero_si512(); 2];
    for block in a.from..a.to {
        // SAFETY: scales, probabilities and products of the arguments.
        unsafe {
            let probs = a.probs.add(block * BLOCK);
            let second = if (block + 1) * BLOCK <= a.n { _mm512_loadu_ps(probs.add(16)) } else { zero };
            let first = _mm512_loadu_ps(probs);
            let scales = _mm512_loadu_si512(a.scales.add(block * a.block_bytes).cast());
            for (i, order, scales) in
                [(0, even, _mm512_slli_epi32::<16>(scales)), (1, odd, _mm512_and_si512(scales, high_half))]
            {
                let p = _mm512_permutex2var_ps(first, order, second);
                let seen = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(p, zero);
                let x = _mm512_maskz_mul_ps(seen, p, _mm512_castsi512_ps(scales));
                most[i] = _mm512_max_epu32(most[i], _mm512_and_si512(_mm512_castps_si512(x), magnitude));
                _mm512_storeu_ps(a.products.add(block * BLOCK + i * 16), x);
            }
        }
    }
    _mm512_reduce_max_epu32(_mm512_max_epu32(most[0], most[1]))
}

/// Rounds what [`multiply`] has left.
///
/// # Safety
/// As [`Rounding`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn round(a: &Rounding) -> [i32; 2] {
    // The low bytes of eight columns, then the high ones; then the low bytes of all, then the high ones.
    let bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    let lanes = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    let low_sign = _mm512_inserti64x4::<0>(_mm512_setzero_si512(), _mm256_set1_epi8(i8::MIN));
    let (inverse, magic) = (_mm512_set1_ps(a.inverse), _mm512_set1_ps(ROUND));
    let mut sums = _mm512_setzero_si512();
    for column in (a.from * BLOCK..a.to * BLOCK).step_by(BLOCK) {
        // SAFETY: products and weights of the arguments.
        unsafe {
            let rounded = |at: usize| {
                _mm512_castps_si512(_mm512_fmadd_ps(_mm512_loadu_ps(a.products.add(column + at)), inverse, magic))
            };
            let words = _mm512_mask_blend_epi16(0xAAAA_AAAA, rounded(0), _mm512_slli_epi32::<16>(rounded(16)));
            let weights = _mm512_permutexvar_epi64(lanes, _mm512_shuffle_epi8(words, bytes));
            let weights = _mm512_xor_si512(weights, low_sign);
            sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), weights);
            _mm256_storeu_si256(a.weights.add(column).cast(), _mm512_extracti64x4_epi64::<1>(weights));
            _mm256_storeu_si256(a.weights.add(COLUMNS + column).cast(), _mm512_castsi512_si256(weights));
        }
    }
    [_mm512_mask_reduce_add_epi32(0xFF00, sums), _mm512_mask_reduce_add_epi32(0x00FF, sums)]
}

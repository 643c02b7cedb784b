//! AVX2 with FMA and F16C, as every x86-64-v3 processor has them.

use std::arch::x86_64::*;

use crate::backend::cpu::simd::vector::SimdF32;

/// Eight f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(pub __m256);

// The contract of the trait is the contract of each `unsafe` below.
#[expect(clippy::undocumented_unsafe_blocks, reason = "the processor has the instructions, by the trait's contract")]
impl SimdF32 for Avx2 {
    const N: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) })
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (Self, Self) {
        unsafe {
            let words = _mm256_loadu_si256(p.cast());
            let low = _mm256_slli_epi32::<16>(words);
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed()));
            (Self(_mm256_castsi256_ps(low)), Self(_mm256_castsi256_ps(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn load_field(p: *const u32, flip: u32, left: u32, right: u32) -> Self {
        unsafe {
            let shift = |n: u32| _mm_cvtsi32_si128(n.cast_signed());
            let words = _mm256_xor_si256(_mm256_loadu_si256(p.cast()), _mm256_set1_epi32(flip.cast_signed()));
            let field = _mm256_sra_epi32(_mm256_sll_epi32(words, shift(left)), shift(right));
            Self(_mm256_cvtepi32_ps(field))
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(unsafe { _mm256_sub_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(unsafe { _mm256_mul_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(unsafe { _mm256_div_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn butterfly<const HALF: usize>(self) -> Self {
        unsafe {
            let x = self.0;
            let swapped = match HALF {
                1 => _mm256_permute_ps::<0b10_11_00_01>(x),
                2 => _mm256_permute_ps::<0b01_00_11_10>(x),
                _ => _mm256_permute2f128_ps::<1>(x, x),
            };
            let (sum, difference) = (_mm256_add_ps(swapped, x), _mm256_sub_ps(swapped, x));
            Self(match HALF {
                1 => _mm256_blend_ps::<0b1010_1010>(sum, difference),
                2 => _mm256_blend_ps::<0b1100_1100>(sum, difference),
                _ => _mm256_blend_ps::<0b1111_0000>(sum, difference),
            })
        }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // The instruction gives its second operand where either is NaN.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn low_bits_to_exponent(self) -> Self {
        // The ninth bit is 0 for what `exp2` hands over, and would be the sign.
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0))) })
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        Self(unsafe { _mm256_blendv_ps(other.0, self.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)) })
    }

    #[inline(always)]
    unsafe fn in_range(self, from: isize, to: isize, other: Self) -> Self {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let limit = |n: isize| _mm256_set1_epi32(n.clamp(0, 8) as i32);
            let inside =
                _mm256_andnot_si256(_mm256_cmpgt_epi32(limit(from), lane), _mm256_cmpgt_epi32(limit(to), lane));
            Self(_mm256_blendv_ps(other.0, self.0, _mm256_castsi256_ps(inside)))
        }
    }

    #[inline(always)]
    unsafe fn iota() -> Self {
        Self(unsafe { _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0) })
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        unsafe { _mm256_cvtss_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        let mut lanes = [0.0_f32; 8];
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
        }
    }
}

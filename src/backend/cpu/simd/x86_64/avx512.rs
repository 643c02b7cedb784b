//! AVX-512 F, BW, DQ and VL, as every processor with AVX-512 since 2017 has them.

use std::arch::x86_64::*;

use crate::backend::cpu::simd::vector::SimdF32;

/// Sixteen f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(pub __m512);

impl Avx512 {
    /// Lanes `from..to` as a mask.
    #[inline(always)]
    fn range(from: isize, to: isize) -> __mmask16 {
        let below = |n: isize| if n >= 16 { 0xFFFF_u32 } else { (1 << n.max(0)) - 1 };
        (below(to) & !below(from)) as __mmask16
    }
}

// The contract of the trait is the contract of each `unsafe` below.
#[expect(clippy::undocumented_unsafe_blocks, reason = "the processor has the instructions, by the trait's contract")]
impl SimdF32 for Avx512 {
    const N: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (Self, Self) {
        unsafe {
            let words = _mm512_loadu_si512(p.cast());
            let low = _mm512_slli_epi32::<16>(words);
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed()));
            (Self(_mm512_castsi512_ps(low)), Self(_mm512_castsi512_ps(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn load_field(p: *const u32, flip: u32, left: u32, right: u32) -> Self {
        unsafe {
            let shift = |n: u32| _mm_cvtsi32_si128(n.cast_signed());
            let words = _mm512_xor_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi32(flip.cast_signed()));
            let field = _mm512_sra_epi32(_mm512_sll_epi32(words, shift(left)), shift(right));
            Self(_mm512_cvtepi32_ps(field))
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn butterfly<const HALF: usize>(self) -> Self {
        unsafe {
            let x = self.0;
            let (swapped, second) = match HALF {
                1 => (_mm512_permute_ps::<0b10_11_00_01>(x), 0xAAAA),
                2 => (_mm512_permute_ps::<0b01_00_11_10>(x), 0xCCCC),
                4 => (_mm512_shuffle_f32x4::<0b10_11_00_01>(x, x), 0xF0F0),
                _ => (_mm512_shuffle_f32x4::<0b01_00_11_10>(x, x), 0xFF00),
            };
            Self(_mm512_mask_sub_ps(_mm512_add_ps(swapped, x), second, swapped, x))
        }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // The instruction gives its second operand where either is NaN.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn low_bits_to_exponent(self) -> Self {
        // The ninth bit is 0 for what `exp2` hands over, and would be the sign.
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0))) })
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0);
            Self(_mm512_mask_blend_ps(less, other.0, self.0))
        }
    }

    #[inline(always)]
    unsafe fn in_range(self, from: isize, to: isize, other: Self) -> Self {
        Self(unsafe { _mm512_mask_blend_ps(Self::range(from, to), other.0, self.0) })
    }

    #[inline(always)]
    unsafe fn iota() -> Self {
        let lanes: [f32; 16] = std::array::from_fn(|i| i as f32);
        Self(unsafe { _mm512_loadu_ps(lanes.as_ptr()) })
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        unsafe { _mm512_cvtss_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        unsafe {
            // A NaN in one lane must not hide the numbers of the others.
            let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
            _mm512_reduce_max_ps(_mm512_max_ps(self.0, lowest))
        }
    }

    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn exp2<const PRECISE: bool>(self) -> Self {
        // Polynomials on [0, 1) that are 1 in 0, fitted to the least relative error.
        const FIVE: [f32; 6] = [1.867_130_2e-3, 9.017_03e-3, 5.579_991_3e-2, 0.240_164_44, 0.693_151_3, 1.0];
        const FOUR: [f32; 5] = [1.342_668_5e-2, 5.224_247_3e-2, 0.241_280_2, 0.693_044_84, 1.0];
        Self(unsafe { if PRECISE { power(self.0, &FIVE) } else { power(self.0, &FOUR) } })
    }
}

/// Lanes of columns `at..at + 16` that are in a range.
#[inline(always)]
pub(crate) fn visible((from, to): (usize, usize), at: usize) -> __mmask16 {
    let lane = |column: usize| column as isize - at as isize;
    Avx512::range(lane(from), lane(to))
}

/// 2^x by a polynomial that is 2^f for f in [0, 1), coefficients from the highest on; for x below -126, 2^-126.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn power(x: __m512, polynomial: &[f32]) -> __m512 {
    const FRACTION: i32 = 1;
    // `max` keeps a NaN in x. Results below 2^-126 would be subnormal and a hundred times as slow.
    let x = _mm512_max_ps(_mm512_set1_ps(-126.0), x);
    let f = _mm512_reduce_ps::<FRACTION>(x);
    let mut p = _mm512_set1_ps(polynomial[0]);
    for c in &polynomial[1..] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(*c));
    }
    // Times 2^floor(x).
    _mm512_scalef_ps(p, x)
}

/// `exp2` with an error of 9e-5, and exactly 1 for 0: rounding to f16 costs 2.4e-4, to bf16 2e-3, and a row with one
/// visible key must get exactly its value.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn rough_exp2(x: __m512) -> __m512 {
    // Least relative error on [0, 1) of its degree, among those that are 1 at 0.
    const THREE: [f32; 4] = [7.706_705e-2, 0.227_645, 0.695_116_76, 1.0]; // mutant: rough_exp2_of_zero
    power(x, &THREE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_features::Isa;

    fn lanes(x: f32) -> [f32; 16] {
        let mut y = [0.0; 16];
        // SAFETY: the test runs where AVX-512 is.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), rough_exp2(_mm512_set1_ps(x))) };
        y
    }

    #[test]
    fn powers_are_as_near_as_stated() {
        if !Isa::Avx512.available() {
            return;
        }
        for step in 0..=126 * 64 {
            let x = -(step as f32) / 64.0;
            let want = f64::from(x).exp2();
            assert!(lanes(x).iter().all(|&y| ((f64::from(y) - want) / want).abs() < 9e-5), "2^{x}");
        }
        assert_eq!(lanes(0.0), [1.0; 16]);
        assert_eq!(lanes(f32::NEG_INFINITY), [f32::MIN_POSITIVE; 16]);
        assert!(lanes(f32::NAN).iter().all(|y| y.is_nan()));
    }
}

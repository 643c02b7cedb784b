//! AVX-VNNI: sums of four products of bytes in a lane of an AVX2 register.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use crate::backend::cpu::simd::integer::vector::SimdInt;

/// Eight i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni(__m256i);

// The contract of the trait is the contract of each `unsafe` below.
#[expect(clippy::undocumented_unsafe_blocks, reason = "the processor has the instructions, by the trait's contract")]
impl SimdInt for AvxVnni {
    type F = Avx2;
    const TILE: [usize; 3] = [4, 2, 1];
    const Q8_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        Self(unsafe { _mm256_set1_epi32(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        Self(unsafe { _mm256_loadu_si256(p.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut i32) {
        unsafe { _mm256_storeu_si256(p.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(unsafe { _mm256_add_epi32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn halves(self) -> [Self; 2] {
        unsafe {
            let low = _mm256_set1_epi8(15);
            [Self(_mm256_and_si256(self.0, low)), Self(_mm256_and_si256(_mm256_srli_epi16::<4>(self.0), low))]
        }
    }

    #[inline(always)]
    unsafe fn bytes(self) -> Self {
        // The instruction takes unsigned codes.
        Self(unsafe { _mm256_xor_si256(self.0, _mm256_set1_epi8(i8::MIN)) })
    }

    #[inline(always)]
    unsafe fn dot(self, codes: Self, signed: Self) -> Self {
        Self(unsafe { _mm256_dpbusd_avx_epi32(self.0, codes.0, signed.0) })
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> Avx2 {
        Avx2(unsafe { _mm256_cvtepi32_ps(self.0) })
    }
}

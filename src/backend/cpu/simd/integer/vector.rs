//! A SIMD vector of 32-bit integers: what kernels of codes need of an instruction set.

use super::rounding::{self, Factors, MOST_GROUPS, QueryRounding, Rounding, TERMS};
use crate::backend::cpu::simd::codes::Codes;
use crate::backend::cpu::simd::vector::SimdF32;

/// A vector of as many 32-bit lanes as [`SimdInt::F`] has, each also four bytes.
///
/// # Safety
/// Every function may be called only where the processor has the instruction set, and pointers must be readable or
/// writable for the lanes.
pub(crate) trait SimdInt: Copy {
    /// The f32 vector of the same instruction set.
    type F: SimdF32;
    /// Lanes.
    const N: usize = Self::F::N;
    /// Vectors whose sums of two terms fit the registers beside the operands: with one row, with two, with four.
    const TILE: [usize; 3];
    /// What [`SimdInt::bytes`] adds to a code of q8.
    const Q8_BIAS: i32;

    unsafe fn splat(x: i32) -> Self;
    unsafe fn load(p: *const i32) -> Self;
    unsafe fn store(self, p: *mut i32);
    unsafe fn add(self, b: Self) -> Self;
    /// The low and the high half of each byte.
    unsafe fn halves(self) -> [Self; 2];
    /// Signed bytes as the codes that [`SimdInt::dot`] takes.
    unsafe fn bytes(self) -> Self;
    /// `self` plus, in each lane, the sum of four products of a code and a signed byte.
    unsafe fn dot(self, codes: Self, signed: Self) -> Self;
    unsafe fn to_f32(self) -> Self::F;

    /// [`rounding::multiply`].
    #[inline(always)]
    unsafe fn multiply(a: &Factors) -> [u32; MOST_GROUPS] {
        // SAFETY: as the caller's.
        unsafe { rounding::multiply(a) }
    }

    /// [`rounding::round`].
    #[inline(always)]
    unsafe fn round(a: &Rounding) -> [[i32; 2]; MOST_GROUPS] {
        // SAFETY: as the caller's.
        unsafe { rounding::round(a) }
    }

    /// [`rounding::round_query`].
    #[inline(always)]
    unsafe fn round_query(a: &mut QueryRounding<'_>) -> [[i32; TERMS]; MOST_GROUPS] {
        rounding::round_query(a)
    }
}

/// What is added to a code before `dot`.
pub(super) const fn bias<I: SimdInt, C: Codes>() -> i32 {
    if C::PER_WORD == 4 { I::Q8_BIAS } else { 8 }
}

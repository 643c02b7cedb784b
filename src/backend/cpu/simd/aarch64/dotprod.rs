//! The dot products of AArch64 (FEAT_DotProd): sums of four products of bytes in a lane.

use std::arch::aarch64::*;
use std::arch::asm;

use super::neon::Neon;
use crate::backend::cpu::simd::integer::vector::SimdInt;

/// Four i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonDot(int32x4_t);

// The contract of the trait is the contract of each `unsafe` below.
#[expect(clippy::undocumented_unsafe_blocks, reason = "the processor has the instructions, by the trait's contract")]
impl SimdInt for NeonDot {
    type F = Neon;
    const TILE: [usize; 3] = [4, 4, 2];
    const Q8_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        Self(unsafe { vdupq_n_s32(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        Self(unsafe { vld1q_s32(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut i32) {
        unsafe { vst1q_s32(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(unsafe { vaddq_s32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn halves(self) -> [Self; 2] {
        unsafe {
            let bytes = vreinterpretq_u8_s32(self.0);
            let halves = [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)];
            halves.map(|x| Self(vreinterpretq_s32_u8(x)))
        }
    }

    #[inline(always)]
    unsafe fn bytes(self) -> Self {
        // The instruction takes signed codes.
        self
    }

    #[inline(always)]
    unsafe fn dot(self, codes: Self, signed: Self) -> Self {
        let mut sum = self.0;
        // The intrinsic is not yet stable.
        unsafe {
            asm!("sdot {sum:v}.4s, {codes:v}.16b, {signed:v}.16b", // mutant: neon_unsigned_codes
                sum = inout(vreg) sum, codes = in(vreg) codes.0, signed = in(vreg) signed.0,
                options(pure, nomem, nostack, preserves_flags));
        }
        Self(sum)
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> Neon {
        Neon(unsafe { vcvtq_f32_s32(self.0) })
    }
}

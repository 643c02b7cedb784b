//! NEON, which every AArch64 processor has.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::backend::cpu::simd::vector::SimdF32;

/// Four f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(pub float32x4_t);

// The contract of the trait is the contract of each `unsafe` below.
#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "the target has the instructions; N elements, by the trait's contract"
)]
impl SimdF32 for Neon {
    const N: usize = 4;
    // Of 32 registers, six rows by four vectors of sums leave too few for the keys of two dims: the compiler spills.
    const SIX_ROWS: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { vld1q_f32(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { vst1q_f32(p, self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        let x: float32x4_t;
        // The conversion needs no feature beyond NEON; its intrinsic is not yet stable.
        unsafe {
            let halves = vld1_u16(p);
            asm!("fcvtl {x:v}.4s, {h:v}.4h", x = lateout(vreg) x, h = in(vreg) halves, // mutant: neon_upper_halves
                options(pure, nomem, nostack, preserves_flags));
        }
        Self(x)
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (Self, Self) {
        unsafe {
            let words = vld1q_u32(p);
            let high = vandq_u32(words, vdupq_n_u32(0xFFFF_0000));
            (Self(vreinterpretq_f32_u32(vshlq_n_u32::<16>(words))), Self(vreinterpretq_f32_u32(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        Self(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) })
    }

    #[inline(always)]
    unsafe fn load_field(p: *const u32, flip: u32, left: u32, right: u32) -> Self {
        unsafe {
            let shift = |n: u32| vdupq_n_s32(n.cast_signed());
            let words = vreinterpretq_s32_u32(veorq_u32(vld1q_u32(p), vdupq_n_u32(flip)));
            // A shift by a negative number goes right.
            let field = vshlq_s32(vshlq_s32(words, shift(left)), vnegq_s32(shift(right)));
            Self(vcvtq_f32_s32(field))
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(unsafe { vaddq_f32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(unsafe { vsubq_f32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(unsafe { vmulq_f32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(unsafe { vdivq_f32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn butterfly<const HALF: usize>(self) -> Self {
        unsafe {
            let x = self.0;
            let (swapped, second): (_, [u32; 4]) = match HALF {
                1 => (vrev64q_f32(x), [0, u32::MAX, 0, u32::MAX]),
                _ => (vextq_f32::<2>(x, x), [0, 0, u32::MAX, u32::MAX]),
            };
            Self(vbslq_f32(vld1q_u32(second.as_ptr()), vsubq_f32(swapped, x), vaddq_f32(swapped, x)))
        }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(unsafe { vfmaq_f32(c.0, self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // Neither of the instruction set's maxima: one is NaN where either is, the other a number where one is.
        Self(unsafe { vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0) }) // mutant: neon_maximum_hides_nan
    }

    #[inline(always)]
    unsafe fn low_bits_to_exponent(self) -> Self {
        // The ninth bit is 0 for what `exp2` hands over, and would be the sign.
        Self(unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(self.0))) })
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        Self(unsafe { vbslq_f32(vcltq_f32(a.0, b.0), self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn in_range(self, from: isize, to: isize, other: Self) -> Self {
        unsafe {
            let lane = vld1q_s32([0, 1, 2, 3].as_ptr());
            let limit = |n: isize| vdupq_n_s32(n.clamp(0, 4) as i32);
            // mutant: neon_lane_beyond_range
            let inside = vandq_u32(vcgeq_s32(lane, limit(from)), vcltq_s32(lane, limit(to)));
            Self(vbslq_f32(inside, self.0, other.0))
        }
    }

    #[inline(always)]
    unsafe fn iota() -> Self {
        Self(unsafe { vld1q_f32([0.0, 1.0, 2.0, 3.0].as_ptr()) })
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        unsafe { vgetq_lane_f32::<0>(self.0) }
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        // Here the maximum that prefers numbers is the right one; where there is none, it is NaN.
        unsafe { vmaxnmvq_f32(self.0) }.max(f32::NEG_INFINITY)
    }

    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        unsafe { vaddvq_f32(self.0) }
    }
}

//! Portable: arrays of eight f32, which the compiler vectorises for the target.

use half::{bf16, f16};

use super::vector::SimdF32;

/// Eight f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar([f32; 8]);

impl Scalar {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

// The contract of the trait is the contract of each `unsafe` below.
#[expect(clippy::undocumented_unsafe_blocks, reason = "reads and writes of N elements, by the trait's contract")]
impl SimdF32 for Scalar {
    const N: usize = 8;
    // Where no other instruction set is available (SSE2), a vector takes two of the sixteen registers.
    const SIX_ROWS: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        let halves = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        Self(halves.map(|h| f16::from_bits(h).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (Self, Self) {
        let words = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        let half = |shift: u32| words.map(|w| bf16::from_bits((w >> shift) as u16).to_f32());
        (Self(half(0)), Self(half(16)))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        let halves = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        Self(halves.map(|h| f32::from_bits(u32::from(h) << 16)))
    }

    #[inline(always)]
    unsafe fn load_field(p: *const u32, flip: u32, left: u32, right: u32) -> Self {
        let words = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        Self(words.map(|w| (((w ^ flip) << left).cast_signed() >> right) as f32))
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn butterfly<const HALF: usize>(self) -> Self {
        Self(std::array::from_fn(|i| {
            let other = self.0[i ^ HALF];
            if i & HALF == 0 { self.0[i] + other } else { other - self.0[i] }
        }))
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // Not `mul_add`: without the instruction that is a library call.
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn low_bits_to_exponent(self) -> Self {
        Self(self.0.map(|x| f32::from_bits((x.to_bits() & 0xFF) << 23)))
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if a.0[i] < b.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn in_range(self, from: isize, to: isize, other: Self) -> Self {
        Self(std::array::from_fn(|i| if (from..to).contains(&(i as isize)) { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn iota() -> Self {
        Self(std::array::from_fn(|i| i as f32))
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        self.0[0]
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (b + f)) + ((c + g) + (d + h))
    }
}

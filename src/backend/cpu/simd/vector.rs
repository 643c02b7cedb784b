//! A SIMD vector of f32: what kernels need of an instruction set, and functions built from it.

use std::f32::consts::{LN_2, LOG2_E};

/// A vector of f32 lanes of one instruction set.
///
/// # Safety
/// Every function may be called only where the processor has the instruction set, and pointers must be readable or
/// writable for [`SimdF32::N`] elements. Nothing needs alignment beyond that of its elements.
pub(crate) trait SimdF32: Copy {
    /// Lanes.
    const N: usize;
    /// Whether accumulators of six rows fit the registers beside the operands; else register tiles have four rows.
    const SIX_ROWS: bool = true;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// N numbers of IEEE binary16.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// N pairs of bf16: the low 16 bits of each word, and the high 16 bits.
    unsafe fn load_pairs(p: *const u32) -> (Self, Self);
    /// N numbers of bf16.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// A signed field of each of N words: `(word ^ flip) << left >> right`, both shifts below 32.
    unsafe fn load_field(p: *const u32, flip: u32, left: u32, right: u32) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// Of the lanes i and i + HALF of each 2 * HALF: the sum in the first, the difference in the second. HALF is a
    /// power of two below N.
    unsafe fn butterfly<const HALF: usize>(self) -> Self;
    /// `self * b + c`.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The larger; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// 2^(e - 127), where e is the lowest eight bits of each lane; the ninth bit must be 0.
    unsafe fn low_bits_to_exponent(self) -> Self;
    /// `self` where `a < b`, else `other`.
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self;
    /// `self` in lanes `from..to`, else `other`. The range may reach beyond the vector on either side.
    unsafe fn in_range(self, from: isize, to: isize, other: Self) -> Self;
    /// Lane i holds i.
    unsafe fn iota() -> Self;
    unsafe fn first(self) -> f32;
    /// The largest lane that is a number; -inf if none is.
    unsafe fn reduce_max(self) -> f32;
    unsafe fn reduce_add(self) -> f32;

    /// 2^x for x at most a little above 0, or NaN. Below -126 it is 2^-126, which is negligible beside a probability of
    /// 1. Error: 2 units in the last place; 3e-6 relative where not `PRECISE`, far below the rounding of f16.
    #[inline(always)]
    unsafe fn exp2<const PRECISE: bool>(self) -> Self {
        // SAFETY: the instruction set is available, by the caller.
        unsafe { exp2::<Self, PRECISE>(self) }
    }
}

/// [`SimdF32::exp2`] from sums and products only. Polynomials on [-1/2, 1/2], fitted to the least relative error.
///
/// # Safety
/// As [`SimdF32`].
#[inline(always)]
unsafe fn exp2<V: SimdF32, const PRECISE: bool>(x: V) -> V {
    // 1.5 x 2^23: added to a small number, it leaves the nearest integer in the lowest bits; with the exponent's bias.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const SIX: [f32; 7] = [1.534_581_2e-4, 1.339_993_1e-3, 9.618_489e-3, 5.550_329e-2, 0.240_226_46, LN_2, 1.0];
    const FOUR: [f32; 5] = [9.570_102e-3, 5.591_786e-2, 0.240_247_45, 0.693_121_8, 0.999_999_3];
    // SAFETY: the instruction set is available, by the caller.
    unsafe {
        // `max` keeps a NaN in x.
        let x = V::splat(-126.0).max(x);
        let n = x.add(V::splat(ROUND));
        let f = x.sub(n.sub(V::splat(ROUND)));
        let mut p;
        if PRECISE {
            p = V::splat(SIX[0]);
            for c in &SIX[1..] {
                p = p.fma(f, V::splat(*c));
            }
        } else {
            p = V::splat(FOUR[0]);
            for c in &FOUR[1..] {
                p = p.fma(f, V::splat(*c));
            }
        }
        // A product, not an addition to the exponent: a NaN must stay one.
        p.mul(n.low_bits_to_exponent())
    }
}

/// tanh x, within 3 units in the last place of 1 (coefficients below 0.625: Cephes, `tanhf`).
///
/// # Safety
/// As [`SimdF32`].
#[inline(always)]
pub(crate) unsafe fn tanh<V: SimdF32>(x: V) -> V {
    // SAFETY: the instruction set is available, by the caller.
    unsafe {
        let zero = V::splat(0.0);
        let negative = zero.sub(x);
        let size = negative.where_less(x, zero, x);
        let e = size.mul(V::splat(-2.0 * LOG2_E)).exp2::<true>();
        let far = V::splat(1.0).sub(e).div(V::splat(1.0).add(e));
        let far = zero.sub(far).where_less(x, zero, far);
        let z = x.mul(x);
        let mut p = V::splat(-5.704_988_7e-3);
        for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = p.fma(z, V::splat(c));
        }
        let near = p.fma(z.mul(x), x);
        near.where_less(size, V::splat(0.625), far)
    }
}

#[cfg(test)]
#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "vectors are used where their instruction set is available, on arrays of N elements"
)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::cpu_features::Isa;

    const ODD: [f32; 8] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1.5, -2.0, f32::MIN_POSITIVE / 4.0];

    fn get<V: SimdF32>(v: V) -> Vec<f32> {
        let mut lanes = vec![7.0; V::N];
        unsafe { v.store(lanes.as_mut_ptr()) };
        lanes
    }

    fn put<V: SimdF32>(lanes: impl Fn(usize) -> f32) -> V {
        let lanes: Vec<f32> = (0..V::N).map(lanes).collect();
        unsafe { V::load(lanes.as_ptr()) }
    }

    /// The same bits, or both NaN.
    fn same<V: SimdF32>(what: &str, got: V, want: impl Fn(usize) -> f32) {
        for (i, got) in get(got).into_iter().enumerate() {
            let want = want(i);
            let equal = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(equal, "{what}, lane {i}: {got} instead of {want}");
        }
    }

    /// Every bit pattern of f16 and bf16 is converted to its number.
    fn reads_all_halves<V: SimdF32>() {
        for first in (0..=u16::MAX).step_by(V::N) {
            let bits: Vec<u16> = (0..V::N as u16).map(|i| first + i).collect();
            same("half", unsafe { V::load_f16(bits.as_ptr()) }, |i| f16::from_bits(bits[i]).to_f32());
            let pairs: Vec<u32> = bits.iter().map(|&b| u32::from(b) | u32::from(!b) << 16).collect();
            let (low, high) = unsafe { V::load_pairs(pairs.as_ptr()) };
            same("low half of a pair", low, |i| bf16::from_bits(bits[i]).to_f32());
            same("high half of a pair", high, |i| bf16::from_bits(!bits[i]).to_f32());
        }
    }

    /// Every byte and every half of a byte of a word is read as a signed integer.
    fn reads_fields<V: SimdF32>() {
        for first in (0..=u8::MAX).step_by(V::N) {
            let words: Vec<u32> =
                (0..V::N as u8).map(|i| u32::from_le_bytes([first + i, !(first + i), 7, 0x80 | i])).collect();
            for byte in 0..4 {
                let field = unsafe { V::load_field(words.as_ptr(), 0, 24 - 8 * byte, 24) };
                same("byte", field, |i| f32::from(words[i].to_le_bytes()[byte as usize].cast_signed()));
            }
            for half in 0..8 {
                let field = unsafe { V::load_field(words.as_ptr(), 0x8888_8888, 28 - 4 * half, 28) };
                same("half of a byte", field, |i| (words[i] >> (4 * half) & 0xF) as f32 - 8.0);
            }
            let halves: Vec<u16> = words.iter().map(|&w| w as u16).collect();
            same("bf16", unsafe { V::load_bf16(halves.as_ptr()) }, |i| bf16::from_bits(halves[i]).to_f32());
        }
    }

    fn selects<V: SimdF32>() {
        for (a, b) in ODD.into_iter().flat_map(|a| ODD.map(|b| (a, b))) {
            // Equal zeros and a NaN on either side: the second.
            let larger = if a > b { a } else { b };
            same("max", unsafe { V::splat(a).max(V::splat(b)) }, |_| larger);
            let (one, two) = (unsafe { V::splat(1.0) }, unsafe { V::splat(2.0) });
            let less = if a < b { 1.0 } else { 2.0 };
            same("where_less", unsafe { one.where_less(V::splat(a), V::splat(b), two) }, |_| less);
        }
        let n = V::N as isize;
        for (from, to) in (-3..n + 4).flat_map(|from| (-3..n + 4).map(move |to| (from, to))) {
            let got = unsafe { V::iota().in_range(from, to, V::splat(-1.0)) };
            same("in_range", got, |i| if (from..to).contains(&(i as isize)) { i as f32 } else { -1.0 });
        }
    }

    fn reduces<V: SimdF32>() {
        let numbers: V = put(|i| i as f32 - 2.0);
        assert_eq!(unsafe { numbers.first() }, -2.0);
        assert_eq!(unsafe { numbers.reduce_max() }, V::N as f32 - 3.0);
        assert_eq!(unsafe { numbers.reduce_add() }, (V::N * (V::N - 1) / 2) as f32 - 2.0 * V::N as f32);
        for lane in 0..V::N {
            assert_eq!(unsafe { put::<V>(|i| if i == lane { -3.0 } else { f32::NAN }).reduce_max() }, -3.0);
            assert!(unsafe { put::<V>(|i| if i == lane { f32::NAN } else { 1.0 }).reduce_add() }.is_nan());
        }
        assert_eq!(unsafe { V::splat(f32::NAN).reduce_max() }, f32::NEG_INFINITY);
    }

    fn computes<V: SimdF32>() {
        let (a, b): (V, V) = (put(|i| i as f32 + 0.5), put(|i| 3.0 - i as f32 * 0.25));
        let (x, y) = (|i: usize| i as f32 + 0.5, |i: usize| 3.0 - i as f32 * 0.25);
        unsafe {
            same("add", a.add(b), |i| x(i) + y(i));
            same("sub", a.sub(b), |i| x(i) - y(i));
            same("mul", a.mul(b), |i| x(i) * y(i));
            same("div", a.div(b), |i| x(i) / y(i));
            let pairs =
                |half: usize| move |i: usize| if i & half == 0 { x(i) + x(i + half) } else { x(i - half) - x(i) };
            same("butterfly", a.butterfly::<1>(), pairs(1));
            same("butterfly", a.butterfly::<2>(), pairs(2));
            if V::N > 4 {
                same("butterfly", a.butterfly::<4>(), pairs(4));
            }
            if V::N > 8 {
                same("butterfly", a.butterfly::<8>(), pairs(8));
            }
            // Small multiples of 1/8: no rounding, with one step or two.
            same("fma", a.fma(b, V::splat(-9.0)), |i| x(i) * y(i) - 9.0);
            for n in 0..=255_u32 {
                same("low bits", V::splat(f32::from_bits(0x4B40_0000 + n)).low_bits_to_exponent(), |_| {
                    f32::from_bits(n << 23)
                });
            }
        }
    }

    fn approximates<V: SimdF32>() {
        let relative = |got: f32, want: f64| ((f64::from(got) - want) / want).abs();
        for step in 0..4096 {
            let x = -125.0 + step as f32 * (126.0 / 4096.0);
            let (precise, rough) = unsafe { (V::splat(x).exp2::<true>(), V::splat(x).exp2::<false>()) };
            let want = f64::from(x).exp2();
            assert!(get(precise).into_iter().all(|got| relative(got, want) < 2.4e-7), "2^{x}");
            assert!(get(rough).into_iter().all(|got| relative(got, want) < 3e-6), "2^{x}, roughly");
            let x = step as f32 / 256.0 - 8.0;
            let want = f64::from(x).tanh();
            assert!(
                get(unsafe { tanh(V::splat(x)) }).into_iter().all(|got| (f64::from(got) - want).abs() < 1.8e-7),
                "tanh {x}"
            );
        }
        let lowest = get(unsafe { V::splat(f32::NEG_INFINITY).exp2::<true>() });
        assert!(lowest.into_iter().all(|x| x == f32::MIN_POSITIVE));
        assert!(get(unsafe { V::splat(f32::NAN).exp2::<true>() }).into_iter().all(f32::is_nan));
        assert!(get(unsafe { V::splat(f32::NAN).exp2::<false>() }).into_iter().all(f32::is_nan));
        assert!(get(unsafe { tanh(V::splat(f32::NAN)) }).into_iter().all(f32::is_nan));
    }

    fn keeps_the_contract<V: SimdF32>() {
        reads_all_halves::<V>();
        reads_fields::<V>();
        selects::<V>();
        reduces::<V>();
        computes::<V>();
        approximates::<V>();
    }

    #[test]
    fn every_instruction_set_keeps_the_contract() {
        for isa in Isa::all() {
            println!("{isa:?}");
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => keeps_the_contract::<crate::backend::cpu::simd::x86_64::avx2::Avx2>(),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => keeps_the_contract::<crate::backend::cpu::simd::x86_64::avx512::Avx512>(),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => keeps_the_contract::<crate::backend::cpu::simd::aarch64::neon::Neon>(),
                _ => keeps_the_contract::<crate::backend::cpu::simd::scalar::Scalar>(),
            }
        }
    }
}

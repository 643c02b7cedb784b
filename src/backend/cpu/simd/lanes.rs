//! A vector of f32 lanes: what kernels need of an instruction set, and the functions they build from it.

/// A vector of f32 lanes of one instruction set.
///
/// # Safety
/// Every function may be called only where the processor has the instruction set, and pointers must be readable or
/// writable for [`Lanes::N`] elements. Nothing needs alignment beyond that of its elements.
pub(crate) trait Lanes: Copy {
    /// Lanes.
    const N: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Halves of IEEE binary16.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Pairs of bfloat16: the low halves of N words, and the high halves.
    unsafe fn load_pairs(p: *const u32) -> (Self, Self);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The larger; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The number whose sign is positive, exponent the lowest eight bits, and mantissa 0; the ninth bit must be 0.
    unsafe fn low_bits_to_exponent(self) -> Self;
    /// `self` where `a < b`, else `other`.
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self;
    /// `self` in lanes `from..to`, else `other`. The range may reach beyond the vector on either side.
    unsafe fn in_range(self, from: isize, to: isize, other: Self) -> Self;
    /// Lane i holds i.
    unsafe fn iota() -> Self;
    /// The largest lane that is a number; -inf if none is.
    unsafe fn reduce_max(self) -> f32;
    unsafe fn reduce_add(self) -> f32;
}

/// 2^x for x at most a little above 0, or NaN; below -126 it is 2^-126, which is as good as nothing beside a weight of 1.
/// Within 2 units in the last place, or, where not `PRECISE`, within 3e-6 of the result, far below what halves round off.
/// Polynomials on [-1/2, 1/2], fitted to the least relative error.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp2<V: Lanes, const PRECISE: bool>(x: V) -> V {
    // 1.5 x 2^23: added to a small number, it leaves the nearest integer in the lowest bits; with the exponent's bias.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const SIX: [f32; 7] = [1.534_581_2e-4, 1.339_993_1e-3, 9.618_489e-3, 5.550_329e-2, 0.240_226_46, 0.693_147_2, 1.0];
    const FOUR: [f32; 5] = [9.570_102e-3, 5.591_786e-2, 0.240_247_45, 0.693_121_8, 0.999_999_26];
    // SAFETY: the caller's contract.
    unsafe {
        // A NaN in x stays.
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
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn tanh<V: Lanes>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let zero = V::splat(0.0);
        let negative = zero.sub(x);
        let size = negative.where_less(x, zero, x);
        let e = exp2::<V, true>(size.mul(V::splat(-2.0 * std::f32::consts::LOG2_E)));
        let far = V::splat(1.0).sub(e).div(V::splat(1.0).add(e));
        let far = zero.sub(far).where_less(x, zero, far);
        let z = x.mul(x);
        let mut p = V::splat(-5.704_988_7e-3);
        for c in [2.063_908_9e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328_2e-1] {
            p = p.fma(z, V::splat(c));
        }
        let near = p.fma(z.mul(x), x);
        near.where_less(size, V::splat(0.625), far)
    }
}

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
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for integers `n <= 0`; 0 where that is below the normal numbers or a little beyond.
    unsafe fn ldexp(self, n: Self) -> Self;
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

/// e^x for x <= 0 or NaN, within 2 units in the last place; 0 for -inf. Range reduction by ln 2 in two parts and a
/// polynomial of degree 6 (coefficients: Cephes, `expf`).
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp<V: Lanes>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        // Beyond this the result is 0, and -inf would make infinity minus infinity. A NaN in x stays.
        let x = V::splat(-104.0).max(x);
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(V::splat(-0.693_359_375), x);
        let r = n.fma(V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.987_569_2e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
            p = p.fma(r, V::splat(c));
        }
        let p = p.fma(r.mul(r), r).add(V::splat(1.0));
        p.ldexp(n)
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
        let e = exp(size.mul(V::splat(-2.0)));
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

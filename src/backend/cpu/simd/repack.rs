//! What is done to rows before kernels multiply them: packed into groups, rotated, narrowed.

use super::kernels::{Keys, Values};
use super::lanes::Lanes;
use crate::backend::cpu::store::GROUP;
use crate::config::RopeStyle;
use crate::phase::Frequencies;

/// Keys in rows, as f32 is stored, to groups `[dim][16]`.
///
/// # Safety
/// `src` must hold `groups` groups of 16 rows of `dim` f32, `dst` room for as many.
#[inline(always)]
pub(crate) unsafe fn group_rows(src: *const f32, dim: usize, groups: usize, dst: *mut f32) {
    for group in 0..groups {
        for d in 0..dim {
            for lane in 0..GROUP {
                // SAFETY: the caller's contract.
                unsafe {
                    let at = group * GROUP * dim;
                    dst.add(at + d * GROUP + lane).write(src.add(at + lane * dim + d).read());
                }
            }
        }
    }
}

/// Keys of whole groups as f32 groups `[dim][16]`.
///
/// # Safety
/// As [`Lanes`]; `src` must hold `groups` groups, `dst` room for as many.
#[inline(always)]
pub(crate) unsafe fn pack_keys<V: Lanes, K: Keys>(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
    for group in 0..groups {
        for d in (0..dim).step_by(2) {
            for lane in (0..GROUP).step_by(V::N) {
                // SAFETY: the caller's contract.
                unsafe {
                    let (a, b) = K::load::<V>(src.add(group * GROUP * dim * K::SIZE), lane, d);
                    let to = dst.add((group * dim + d) * GROUP + lane);
                    a.store(to);
                    b.store(to.add(GROUP));
                }
            }
        }
    }
}

/// Values of keys `from..to` as rows of f32; the rows before and up to `n` become 0. False if a number is not finite.
///
/// # Safety
/// As [`Lanes`] and [`Values`]; `dst` must have room for `n` rows.
#[inline(always)]
pub(crate) unsafe fn pack_values<V: Lanes, E: Values>(
    src: *const u8,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    dst: *mut f32,
) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        let zero = V::splat(0.0);
        // Zero times a number is nothing, unless it is infinite or none.
        let mut nothing = zero;
        for key in 0..n {
            for d in (0..dim).step_by(V::N) {
                let x = if (from..to).contains(&key) { E::one::<V>(src, dim, key, d) } else { zero };
                nothing = x.fma(zero, nothing);
                x.store(dst.add(key * dim + d));
            }
        }
        nothing.reduce_add() == 0.0
    }
}

/// Writes `x` to `y` with its first `2 * cos.len()` dims rotated by the angles whose (scaled) cosines and sines are given.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn rotate<V: Lanes>(style: RopeStyle, cos: &[f32], sin: &[f32], x: &[f32], y: &mut [f32]) {
    let half = cos.len();
    assert!(sin.len() == half && x.len() >= 2 * half && y.len() == x.len());
    match style {
        RopeStyle::Neox => {
            let mut i = 0;
            while i + V::N <= half {
                // SAFETY: within the slices by the checks; the caller's contract.
                unsafe {
                    let (c, s) = (V::load(cos.as_ptr().add(i)), V::load(sin.as_ptr().add(i)));
                    let (x0, x1) = (V::load(x.as_ptr().add(i)), V::load(x.as_ptr().add(half + i)));
                    x0.mul(c).sub(x1.mul(s)).store(y.as_mut_ptr().add(i));
                    x1.mul(c).add(x0.mul(s)).store(y.as_mut_ptr().add(half + i));
                }
                i += V::N;
            }
            while i < half {
                (y[i], y[half + i]) = (x[i] * cos[i] - x[half + i] * sin[i], x[half + i] * cos[i] + x[i] * sin[i]);
                i += 1;
            }
        }
        RopeStyle::Interleaved => {
            for i in 0..half {
                let (x0, x1) = (x[2 * i], x[2 * i + 1]);
                (y[2 * i], y[2 * i + 1]) = (x0 * cos[i] - x1 * sin[i], x1 * cos[i] + x0 * sin[i]);
            }
        }
    }
    y[2 * half..].copy_from_slice(&x[2 * half..]);
}

/// f32 as bfloat16, rounded to nearest even; a NaN stays one.
#[inline(always)]
pub(crate) fn narrow_to_bf16(src: &[f32], dst: &mut [u16]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        let bits = src.to_bits();
        // Beyond 32 bits for some NaNs only, whose sum is not used.
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        *dst = if src.is_nan() { (bits >> 16 | 0x40) as u16 } else { rounded as u16 };
    }
}

/// Cosines and sines at a stream position, times mscale.
#[inline(always)]
pub(crate) fn angles(frequencies: &Frequencies, position: u64, mscale: f32, cos: &mut [f32], sin: &mut [f32]) {
    frequencies.fill(position, mscale, cos, sin);
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_bit_pattern_is_narrowed_as_it_should() {
        let patterns = (0..=u16::MAX)
            .flat_map(|high| [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|low| u32::from(high) << 16 | low));
        for bits in patterns {
            let (x, mut y) = (f32::from_bits(bits), [0]);
            narrow_to_bf16(&[x], &mut y);
            assert_eq!(bf16::from_bits(y[0]).to_f32().is_nan(), x.is_nan(), "{bits:#x}");
            assert!(x.is_nan() || y[0] == bf16::from_f32(x).to_bits(), "{bits:#x}");
        }
    }
}

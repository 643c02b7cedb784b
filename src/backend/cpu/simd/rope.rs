//! RoPE by vectors: rotation of a row, and angles at a position.

use super::vector::SimdF32;
use crate::config::RopeStyle;
use crate::rope::Frequencies;

/// Writes `x` to `y` with its first `2 * cos.len()` dims rotated by the angles whose (scaled) cosines and sines are
/// given.
///
/// # Safety
/// As [`SimdF32`].
#[inline(always)]
pub(crate) unsafe fn rotate<V: SimdF32>(style: RopeStyle, cos: &[f32], sin: &[f32], x: &[f32], y: &mut [f32]) {
    let half = cos.len();
    assert!(sin.len() == half && x.len() >= 2 * half && y.len() == x.len());
    match style {
        RopeStyle::Neox => {
            let mut i = 0;
            while i + V::N <= half {
                // SAFETY: within the slices by the checks; the instruction set is available, by the caller.
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

/// Cosines and sines at a stream position, times mscale.
#[inline(always)]
pub(crate) fn angles(frequencies: &Frequencies, position: u64, mscale: f32, cos: &mut [f32], sin: &mut [f32]) {
    frequencies.fill(position, mscale, cos, sin);
}

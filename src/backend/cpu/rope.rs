//! Rotating the leading dims of one head.

use crate::config::RopeStyle;

/// Rotates the first `2 * cos.len()` dims of `x` by the angles whose (scaled) cosines and sines are given.
pub(super) fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let half = cos.len();
    match style {
        RopeStyle::Neox => {
            let (lo, hi) = x[..2 * half].split_at_mut(half);
            for (((a, b), &c), &s) in lo.iter_mut().zip(hi).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
        RopeStyle::Interleaved => {
            for ((pair, &c), &s) in x[..2 * half].as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                *pair = [pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s];
            }
        }
    }
}

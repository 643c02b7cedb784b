//! Rotating the leading dims of one head.

use crate::config::RopeStyle;

/// Writes `x` to `y` with its first `2 * cos.len()` dims rotated by the angles whose (scaled) cosines and sines are given.
pub(super) fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], x: &[f32], y: &mut [f32]) {
    let half = cos.len();
    let (x, rest) = x.split_at(2 * half);
    let (y, rest_out) = y.split_at_mut(2 * half);
    rest_out.copy_from_slice(rest);
    match style {
        RopeStyle::Neox => {
            let (x0, x1) = x.split_at(half);
            let (y0, y1) = y.split_at_mut(half);
            for (((((y0, y1), &x0), &x1), &c), &s) in y0.iter_mut().zip(y1).zip(x0).zip(x1).zip(cos).zip(sin) {
                *y0 = x0 * c - x1 * s;
                *y1 = x1 * c + x0 * s;
            }
        }
        RopeStyle::Interleaved => {
            let pairs = y.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0);
            for (((y, &[x0, x1]), &c), &s) in pairs.zip(cos).zip(sin) {
                *y = [x0 * c - x1 * s, x1 * c + x0 * s];
            }
        }
    }
}

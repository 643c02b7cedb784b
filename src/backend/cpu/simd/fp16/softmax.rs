//! From scores to weights as halves, each twice: as in `softmax.rs`, in one pass less over memory.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use super::pack::twice;
use crate::backend::cpu::kv_layout::KEY_GROUP;
use crate::backend::cpu::simd::softmax::{SoftmaxArgs, update_row_max};
use crate::backend::cpu::simd::unroll::{by_fours, unrolled};
use crate::backend::cpu::simd::vector::SimdF32;
use crate::backend::cpu::simd::x86_64::avx512::{Avx512, rough_exp2};

/// Scores to weights relative to the largest of each row here, as pairs of the same half, `[rows][stride]`; what that largest weight
/// is beside earlier ones goes to `worths`. What a heavy sink leaves to all others must not be lost: hence not relative to the largest
/// so far. Scores may become anything.
///
/// # Safety
/// As [`SoftmaxArgs`], with AVX-512; `pairs` holds as many rows as scores, `stride` apart, and `worths` as many numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn softmax_fp16(a: &SoftmaxArgs, pairs: *mut u32, worths: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        // Their maxima first, as in `softmax.rs`.
        for (r, row_max) in worths.iter_mut().enumerate().take(a.rows) {
            *row_max = update_row_max::<Avx512>(a, r);
        }
        for (r, worth) in worths.iter_mut().enumerate().take(a.rows) {
            *worth = row_probs(a, r, *worth, pairs.add(r * a.stride));
        }
    }
}

/// Turns a row, whose largest score is `row_max`, into weights and adds up their sum; what its largest weight is beside earlier ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn row_probs(a: &SoftmaxArgs, r: usize, row_max: f32, pairs: *mut u32) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let (row, visible) = (a.scores.add(r * a.stride), *a.visible.add(r));
        let (first, mut end) = (visible.from / KEY_GROUP, visible.to.div_ceil(KEY_GROUP));
        let (alpha, max) = (&mut *a.alpha.add(r), *a.max.add(r));
        if *alpha < 0.0 {
            *alpha = 1.0;
            end = first;
        }
        let plain = a.softcap == 0.0 && visible.slope == 0.0;
        let scale = if plain { a.scale } else { 1.0 };
        // Where nothing has a weight, nothing may be subtracted from minus infinity.
        let (row_max, scaled) = if row_max == f32::NEG_INFINITY { (max, max) } else { (row_max, row_max * scale) };
        let worth = if scaled == max { 1.0 } else { Avx512::splat((scaled - max) * LOG2_E).exp2::<true>().first() };
        // Subtracted before anything is rounded: the largest weight must be 1, however large the scores. A half ends at 2^16.
        let (factor, row_max) = (_mm512_set1_ps(scale * LOG2_E), _mm512_set1_ps(row_max));
        let mut totals = [_mm512_setzero_ps(); 4];
        by_fours!(i in first, end, v, {
            let p = rough_exp2(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row.add(i * KEY_GROUP)), row_max), factor));
            totals[v] = _mm512_add_ps(totals[v], p);
            _mm512_storeu_si512(pairs.add(i * KEY_GROUP).cast(), twice(p));
        });
        // At the edges, keys that the row does not see have scores of minus infinity by now, and 2^-126 is no half.
        for i in (0..first).chain(end..a.n / KEY_GROUP) {
            _mm512_storeu_si512(pairs.add(i * KEY_GROUP).cast(), _mm512_setzero_si512());
        }
        let total = _mm512_add_ps(_mm512_add_ps(totals[0], totals[1]), _mm512_add_ps(totals[2], totals[3]));
        let sum = a.sum.add(r);
        *sum = *sum * *alpha + worth * _mm512_reduce_add_ps(total);
        worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::softmax::ColumnRange;
    use crate::cpu_features::Isa;

    /// However large the scores, and whatever the scale makes of them: a half ends at 2^16.
    #[test]
    fn the_largest_weight_is_one() {
        if !Isa::Avx512.available() {
            return;
        }
        for (scale, size) in [(0.1, 1e8), (0.088_388_3, 3e9), (0.37, 1e10), (0.7, 1e30)] {
            let mut scores: [f32; 32] = std::array::from_fn(|i| size * (1.0 - i as f32 / 8.0));
            scores.swap(0, 21);
            let (mut max, mut sum, mut alpha, mut worths) = ([f32::NEG_INFINITY], [0.0], [0.0], [0.0]);
            let mut pairs = [u32::MAX; 32];
            let softmax = SoftmaxArgs {
                scores: scores.as_mut_ptr(),
                stride: 32,
                n: 32,
                rows: 1,
                visible: &ColumnRange { from: 0, to: 32, ..ColumnRange::default() },
                scale,
                softcap: 0.0,
                max: max.as_mut_ptr(),
                sum: sum.as_mut_ptr(),
                alpha: alpha.as_mut_ptr(),
            };
            // SAFETY: AVX-512 is there; one row of 32.
            unsafe { softmax_fp16(&softmax, pairs.as_mut_ptr(), &mut worths) };
            let one = |i: usize| if i == 21 { 0x3C00_3C00 } else { 0 };
            assert_eq!(pairs, std::array::from_fn(one), "{scale} x {size}");
            assert_eq!((max, sum, worths), ([size * scale], [1.0], [1.0]));
        }
    }
}

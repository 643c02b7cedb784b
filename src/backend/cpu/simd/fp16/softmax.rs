//! Softmax for AVX-512 FP16: from f32 scores to probabilities as pairs of equal fp16, with one pass over memory less
//! than `simd/softmax.rs`.

use std::arch::x86_64::*;

use super::pack::fp16_pairs;
use crate::backend::cpu::kv_layout::KEY_GROUP;
use crate::backend::cpu::simd::softmax::{SoftmaxArgs, update_row_max};
use crate::backend::cpu::simd::unroll::{unrolled, unrolled_by_4};
use crate::backend::cpu::simd::vector::SimdF32;
use crate::backend::cpu::simd::x86_64::avx512::{Avx512, rough_exp2};

/// Scores to probabilities as pairs of equal fp16, `[rows][stride]`. Scores are unspecified afterwards.
///
/// Probabilities are relative to the row maximum of *this block*; `block_scale[r]` receives exp(block_max -
/// running_max). Scaling by the running maximum would underflow fp16 when a sink dominates.
///
/// # Safety
/// As [`SoftmaxArgs`], with AVX-512; `pairs` has room for as many rows as scores, `stride` apart, `block_scale` one
/// number for each row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn softmax_fp16(a: &SoftmaxArgs, pairs: *mut u32, block_scale: &mut [f32]) {
    // SAFETY: AVX-512 is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        // All maxima first: rows stay independent of one another.
        for (r, block_max) in block_scale.iter_mut().enumerate().take(a.rows) {
            *block_max = update_row_max::<Avx512>(a, r);
        }
        for (r, scale) in block_scale.iter_mut().enumerate().take(a.rows) {
            *scale = row_probs(a, r, *scale, pairs.add(r * a.stride));
        }
    }
}

/// Computes the probabilities of a row whose largest score is `row_max`, adds them to its sum and returns exp(block_max
/// - running_max).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn row_probs(a: &SoftmaxArgs, r: usize, row_max: f32, pairs: *mut u32) -> f32 {
    // SAFETY: AVX-512 is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let (row, visible) = (a.scores.add(r * a.stride), *a.visible.add(r));
        let (first, mut end) = (visible.from / KEY_GROUP, visible.to.div_ceil(KEY_GROUP));
        let (alpha, max) = (&mut *a.alpha.add(r), *a.max.add(r));
        if *alpha < 0.0 {
            *alpha = 1.0;
            end = first;
        }
        let factor = a.exponent_factor(&visible);
        // A row of nothing but minus infinity: -inf - -inf would be NaN.
        // mutant: fp16_small_probabilities_lost
        let row_max = if row_max == f32::NEG_INFINITY { max } else { row_max };
        let block_scale =
            if row_max == max { 1.0 } else { Avx512::splat((row_max - max) * factor).exp2::<true>().first() };
        // The maximum is subtracted before the product is rounded: the largest probability is exactly 1, however large
        // the scores; fp16 ends at 2^16.
        let (factor, row_max) = (_mm512_set1_ps(factor), _mm512_set1_ps(row_max));
        let mut totals = [_mm512_setzero_ps(); 4];
        unrolled_by_4!(i in first, end, v, {
            // mutant: fp16_maximum_subtracted_late
            let p = rough_exp2(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row.add(i * KEY_GROUP)), row_max), factor));
            totals[v] = _mm512_add_ps(totals[v], p);
            _mm512_storeu_si512(pairs.add(i * KEY_GROUP).cast(), fp16_pairs(p));
        });
        // Masked columns of the first and last vector hold minus infinity by now; their 2^-126 is 0 in fp16.
        for i in (0..first).chain(end..a.n / KEY_GROUP) {
            _mm512_storeu_si512(pairs.add(i * KEY_GROUP).cast(), _mm512_setzero_si512());
        }
        let total = _mm512_add_ps(_mm512_add_ps(totals[0], totals[1]), _mm512_add_ps(totals[2], totals[3]));
        let sum = a.sum.add(r);
        *sum = *sum * *alpha + block_scale * _mm512_reduce_add_ps(total); // mutant: fp16_sum_without_block_scale
        block_scale
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
            assert_eq!((max, sum, worths), ([size], [1.0], [1.0]));
        }
    }
}

//! From scores to weights as halves, each twice: as in `weigh.rs`, in one pass less over memory.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use super::avx512::{Avx512, rough_exp2, visible};
use super::fp16_pack::twice;
use super::kernels::each;
use super::lanes::Lanes;
use super::weigh::{Weights, top_of_row};
use crate::backend::cpu::store::GROUP;

/// Scores to weights relative to the largest of each row here, as pairs of the same half, `[rows][stride]`; what that largest weight
/// is beside earlier ones goes to `tops`. What a heavy sink leaves to all others must not be lost: hence not relative to the largest so
/// far. Scores may become anything.
///
/// # Safety
/// As [`Weights`], with AVX-512; `pairs` holds as many rows as scores, `stride` apart, and `tops` as many numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn weigh_halves(a: &Weights, pairs: *mut u32, tops: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        for (r, top) in tops.iter_mut().enumerate().take(a.rows) {
            *top = top_of_row::<Avx512>(a, r);
        }
        for (r, top) in tops.iter_mut().enumerate().take(a.rows) {
            *top = weigh_row(a, r, *top, pairs.add(r * a.stride));
        }
    }
}

/// Turns a row, whose largest score is `top`, into weights and adds up their sum; what its largest weight is beside earlier ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn weigh_row(a: &Weights, r: usize, top: f32, pairs: *mut u32) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let (row, seen) = (a.scores.add(r * a.stride), *a.seen.add(r));
        let (first, mut end) = (seen.from / GROUP, seen.to.div_ceil(GROUP));
        let (keep, max) = (&mut *a.keep.add(r), *a.max.add(r));
        if *keep < 0.0 {
            *keep = 1.0;
            end = first;
        }
        // Where nothing has a weight, nothing may be subtracted from minus infinity.
        let top = if top == f32::NEG_INFINITY { max } else { top };
        let worth = if top == max { 1.0 } else { Avx512::splat((top - max) * LOG2_E).exp2::<true>().first() };
        let plain = a.softcap == 0.0 && seen.slope == 0.0;
        let scale = if plain { a.scale } else { 1.0 };
        let (factor, offset) = (_mm512_set1_ps(scale * LOG2_E), _mm512_set1_ps(-top * LOG2_E));
        let mut totals = [_mm512_setzero_ps(); 4];
        macro_rules! weight {
            ($i:expr, $v:expr) => {
                let at = $i * GROUP;
                let p = rough_exp2(_mm512_fmadd_ps(_mm512_loadu_ps(row.add(at)), factor, offset));
                totals[$v] = _mm512_add_ps(totals[$v], p);
                _mm512_storeu_si512(pairs.add(at).cast(), twice(p));
            };
        }
        let mut i = first;
        while i + 4 <= end {
            each!(4, v, {
                weight!(i + v, v);
            });
            i += 4;
        }
        while i < end {
            weight!(i, 0);
            i += 1;
        }
        if first < end {
            for at in [first * GROUP, (end - 1) * GROUP] {
                let seen = visible((seen.from, seen.to), at);
                _mm512_storeu_si512(pairs.add(at).cast(), _mm512_maskz_loadu_epi32(seen, pairs.add(at).cast()));
            }
        }
        for i in (0..first).chain(end..a.n / GROUP) {
            _mm512_storeu_si512(pairs.add(i * GROUP).cast(), _mm512_setzero_si512());
        }
        let total = _mm512_add_ps(_mm512_add_ps(totals[0], totals[1]), _mm512_add_ps(totals[2], totals[3]));
        let sum = a.sum.add(r);
        *sum = *sum * *keep + worth * _mm512_reduce_add_ps(total);
        worth
    }
}

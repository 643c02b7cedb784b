//! Softmax for AMX: from f32 scores to bf16 probabilities.
//!
//! As `simd/softmax.rs`, for scores without softcap and ALiBi. Probabilities are never stored as f32. Maxima, rescale
//! factors and sums of 16 rows are computed together, one row to a lane.

use std::arch::x86_64::*;

use super::gemm::{ROWS, SplitMut};
use super::pack::split_vectors;
use crate::backend::cpu::simd::softmax::{ColumnRange, SoftmaxArgs};
use crate::backend::cpu::simd::vector::SimdF32;
use crate::backend::cpu::simd::x86_64::avx512::{Avx512, rough_exp2, visible};

/// Rows whose maxima and sums are computed together, one to a lane.
const ROW_GROUP: usize = 16;
const ALL: __mmask16 = 0xFFFF;

/// Visible columns of each row.
type Ranges = [(usize, usize); ROWS];

/// Scores to probabilities in `probs`; those of masked columns are 0.
///
/// # Safety
/// AVX-512 with BF16 must be available. As [`SoftmaxArgs`], with at most 32 rows and a multiple of 32 columns, no
/// softcap and no slopes. `max`, `sum` and `alpha` hold 32 rows; each half of `probs` that is not NULL has room for the
/// rows, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn softmax_bf16(a: &SoftmaxArgs, probs: SplitMut) {
    // SAFETY: AVX-512 with BF16 is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let visible = std::slice::from_raw_parts(a.visible, a.rows);
        let mut rows = Rows { ranges: [(0, 0); ROWS], minus_max: [0.0; ROWS] };
        for (range, visible) in rows.ranges.iter_mut().zip(visible) {
            *range = (visible.from, visible.to);
        }
        let whole = rows.ranges[..a.rows].iter().all(|&range| range == (0, a.n));
        let none = if whole { row_maxima::<true>(a, &mut rows) } else { row_maxima::<false>(a, &mut rows) };
        match (whole && !none, probs.low.is_null()) {
            (true, true) => row_probs::<true, false>(a, &rows, probs),
            (false, true) => row_probs::<false, false>(a, &rows, probs),
            (true, false) => row_probs::<true, true>(a, &rows, probs),
            (false, false) => row_probs::<false, true>(a, &rows, probs),
        }
    }
}

/// Results of the first pass for the second.
struct Rows {
    ranges: Ranges,
    /// Of each row: added to its scores before they are scaled.
    minus_max: [f32; ROWS],
}

/// Updates row maxima and rescale factors. True if a row has seen nothing but scores of minus infinity so far.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn row_maxima<const WHOLE: bool>(a: &SoftmaxArgs, rows: &mut Rows) -> bool {
    // SAFETY: AVX-512 with BF16 is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut lanes = [lowest; ROWS];
        for (r, lanes) in lanes.iter_mut().enumerate().take(a.rows) {
            *lanes = row_max::<WHOLE>(a.scores.add(r * a.stride), a.n, rows.ranges[r]);
        }
        let mut any = false;
        for first in (0..a.rows).step_by(ROW_GROUP) {
            let row_maxima = across(&lanes[first..first + ROW_GROUP], |a, b| _mm512_max_ps(a, b));
            let max = _mm512_loadu_ps(a.max.add(first));
            let new = _mm512_max_ps(row_maxima, max);
            let same = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(new, max);
            let alpha =
                _mm512_mul_ps(_mm512_sub_ps(max, new), _mm512_set1_ps(a.exponent_factor(&ColumnRange::default())));
            let alpha = Avx512(alpha).exp2::<true>().0;
            _mm512_storeu_ps(a.alpha.add(first), _mm512_mask_blend_ps(same, alpha, _mm512_set1_ps(1.0)));
            _mm512_storeu_ps(a.max.add(first), new);
            let mut none = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(new, lowest);
            let minus_max = _mm512_sub_ps(_mm512_setzero_ps(), new);
            _mm512_storeu_ps(rows.minus_max.as_mut_ptr().add(first), _mm512_maskz_mov_ps(!none, minus_max));
            while none != 0 {
                let r = first + none.trailing_zeros() as usize;
                none &= none - 1;
                // All scores so far are minus infinity: there is no maximum to subtract. A NaN must propagate.
                let row = a.scores.add(r * a.stride);
                // mutant: amx_nan_row_is_masked
                if r < a.rows && (rows.ranges[r].0..rows.ranges[r].1).all(|c| *row.add(c) == f32::NEG_INFINITY) {
                    rows.ranges[r] = (0, 0);
                    any = true;
                }
            }
        }
        any
    }
}

/// Computes the probabilities of all rows and adds them to the row sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn row_probs<const WHOLE: bool, const TWO: bool>(a: &SoftmaxArgs, rows: &Rows, probs: SplitMut) {
    // SAFETY: AVX-512 with BF16 is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let zero = _mm512_setzero_ps();
        let factor = _mm512_set1_ps(a.exponent_factor(&ColumnRange::default()));
        let mut lanes = [zero; ROWS];
        for (r, lanes) in lanes.iter_mut().enumerate().take(a.rows) {
            let (row, probs) = (a.scores.add(r * a.stride), probs.offset(r * a.stride));
            let minus_max = _mm512_set1_ps(rows.minus_max[r]);
            let mut totals = [zero; 2];
            for c in (0..a.n).step_by(32) {
                // The maximum is subtracted before the product is rounded, as in `simd/softmax.rs`.
                let exponent = |at: usize| {
                    // mutant: amx_maximum_subtracted_late
                    _mm512_mul_ps(_mm512_add_ps(_mm512_loadu_ps(row.add(at)), minus_max), factor)
                };
                let mut p = Probs32::<TWO>::exp2(exponent(c), exponent(c + 16));
                // mutant: amx_masked_columns_count
                if !WHOLE {
                    p.mask(visible(rows.ranges[r], c), visible(rows.ranges[r], c + 16));
                }
                let total = &mut totals[c / 32 % 2];
                *total = p.add_to(*total);
                p.store(probs.offset(c));
            }
            *lanes = _mm512_add_ps(totals[0], totals[1]);
        }
        add_to_sums(a, sums_of_rows(&lanes));
    }
}

/// The sum of all lanes of each row's vector, a row to a lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) fn sums_of_rows(lanes: &[__m512; ROWS]) -> [__m512; ROWS / ROW_GROUP] {
    std::array::from_fn(|i| across(&lanes[i * ROW_GROUP..][..ROW_GROUP], |a, b| _mm512_add_ps(a, b)))
}

/// `sum[r] = sum[r] * alpha[r] + totals[r]`.
///
/// # Safety
/// As [`softmax_bf16`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn add_to_sums(a: &SoftmaxArgs, totals: [__m512; ROWS / ROW_GROUP]) {
    for (first, total) in (0..a.rows).step_by(ROW_GROUP).zip(totals) {
        // SAFETY: AVX-512 with BF16 is available, and all addresses are rows and columns of the arguments, by the
        // caller.
        unsafe {
            let (sum, alpha) = (_mm512_loadu_ps(a.sum.add(first)), _mm512_loadu_ps(a.alpha.add(first)));
            _mm512_storeu_ps(a.sum.add(first), _mm512_fmadd_ps(sum, alpha, total)); // mutant: amx_sums_without_rescale
        }
    }
}

/// Probabilities of 32 columns of a row.
#[derive(Clone, Copy)]
pub(crate) struct Probs32<const TWO: bool> {
    probs: [__m512; 2],
}

impl<const TWO: bool> Probs32<TWO> {
    /// 2^x, of 16 columns and of the next 16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn exp2(x: __m512, next: __m512) -> Self {
        // SAFETY: the instructions are there, by the caller's contract.
        let power = |x| unsafe { if TWO { Avx512(x).exp2::<false>().0 } else { rough_exp2(x) } };
        Self { probs: [power(x), power(next)] }
    }

    /// Zeroes masked columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn mask(&mut self, visible: __mmask16, next: __mmask16) {
        let [p, q] = self.probs;
        self.probs = [_mm512_maskz_mov_ps(visible, p), _mm512_maskz_mov_ps(next, q)];
    }

    /// Adds both vectors to `total`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn add_to(self, total: __m512) -> __m512 {
        _mm512_add_ps(total, _mm512_add_ps(self.probs[0], self.probs[1]))
    }

    /// # Safety
    /// As [`split_vectors`]; with a low half if `TWO`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn store(self, to: SplitMut) {
        let [p, q] = self.probs;
        let low = if TWO { to.low } else { std::ptr::null_mut() };
        // SAFETY: `to` has room for 32 elements.
        unsafe { split_vectors(p, q, SplitMut { high: to.high, low }) };
    }
}

/// The maximum of a row, lane by lane. NaNs are ignored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn row_max<const WHOLE: bool>(row: *const f32, n: usize, range: (usize, usize)) -> __m512 {
    // SAFETY: AVX-512 with BF16 is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut row_maxima = [lowest; 2];
        for c in (0..n).step_by(32) {
            for (i, row_max) in row_maxima.iter_mut().enumerate() {
                let visible = if WHOLE { ALL } else { visible(range, c + i * 16) };
                // Where one operand is NaN, the instruction returns its second operand.
                *row_max = _mm512_mask_max_ps(*row_max, visible, _mm512_loadu_ps(row.add(c + i * 16)), *row_max);
            }
        }
        _mm512_max_ps(row_maxima[0], row_maxima[1])
    }
}

/// Reduces each of 16 vectors by `join`; lane i of the result is that of vector i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn across(rows: &[__m512], join: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    let quarter = |i: usize| {
        let two = |i: usize| join(_mm512_unpacklo_ps(rows[i], rows[i + 1]), _mm512_unpackhi_ps(rows[i], rows[i + 1]));
        let (a, b) = (_mm512_castps_pd(two(i)), _mm512_castps_pd(two(i + 2)));
        join(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    };
    let halves = |a: __m512, b: __m512| join(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
    halves(halves(quarter(0), quarter(4)), halves(quarter(8), quarter(12)))
}

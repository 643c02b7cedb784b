//! The softmax of rows for AMX: from scores to weights in bfloat16, sixteen rows' maxima and sums at a time.
//!
//! What `softmax.rs` does, for scores that need no softcap and no bias: weights are never stored as f32, and no row has a
//! horizontal sum or a power of its own.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use super::gemm::ROWS;
use super::pack::put;
use crate::backend::cpu::simd::softmax::SoftmaxArgs;
use crate::backend::cpu::simd::vector::SimdF32;
use crate::backend::cpu::simd::x86_64::avx512::{Avx512, rough_exp2, visible};

/// Rows whose maxima and sums are found together.
const KEY_GROUP: usize = 16;
const ALL: __mmask16 = 0xFFFF;

/// Columns of each row that have a weight.
type Ranges = [(usize, usize); ROWS];

/// Scores to weights; they go to `high`, and what that rounds off to `low` unless it is NULL. Weights outside of what a row sees
/// are 0.
///
/// # Safety
/// AMX must be available. As [`SoftmaxArgs`], with at most 32 rows and a multiple of 32 columns, no softcap and no slopes; maxima,
/// sums and keeps of 32 rows in memory; `high` and `low` have room for rows `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn softmax_bf16(a: &SoftmaxArgs, high: *mut u16, low: *mut u16) {
    // SAFETY: the caller's contract.
    unsafe {
        let visible = std::slice::from_raw_parts(a.visible, a.rows);
        let mut rows = Rows { ranges: [(0, 0); ROWS], offsets: [0.0; ROWS] };
        for (range, visible) in rows.ranges.iter_mut().zip(visible) {
            *range = (visible.from, visible.to);
        }
        let whole = rows.ranges[..a.rows].iter().all(|&range| range == (0, a.n));
        let none = if whole { row_maxima::<true>(a, &mut rows) } else { row_maxima::<false>(a, &mut rows) };
        match (whole && !none, low.is_null()) {
            (true, true) => probs::<true, false>(a, &rows, high, low),
            (false, true) => probs::<false, false>(a, &rows, high, low),
            (true, false) => probs::<true, true>(a, &rows, high, low),
            (false, false) => probs::<false, true>(a, &rows, high, low),
        }
    }
}

/// What the first pass leaves for the second.
struct Rows {
    ranges: Ranges,
    /// What is added to a row's scores, times scale and log2 e.
    offsets: [f32; ROWS],
}

/// Finds the maxima, and what earlier weights are worth beside them; true if a row has no weight at all.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn row_maxima<const WHOLE: bool>(a: &SoftmaxArgs, rows: &mut Rows) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut lanes = [lowest; ROWS];
        for (r, lanes) in lanes.iter_mut().enumerate().take(a.rows) {
            *lanes = row_max::<WHOLE>(a.scores.add(r * a.stride), a.n, rows.ranges[r]);
        }
        let mut any = false;
        for first in (0..a.rows).step_by(KEY_GROUP) {
            let row_maxima = across(&lanes[first..first + KEY_GROUP], |a, b| _mm512_max_ps(a, b));
            let max = _mm512_loadu_ps(a.max.add(first));
            let new = _mm512_max_ps(_mm512_mul_ps(row_maxima, _mm512_set1_ps(a.scale)), max);
            let same = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(new, max);
            let alpha = Avx512(_mm512_mul_ps(_mm512_sub_ps(max, new), _mm512_set1_ps(LOG2_E))).exp2::<true>().0;
            _mm512_storeu_ps(a.alpha.add(first), _mm512_mask_blend_ps(same, alpha, _mm512_set1_ps(1.0)));
            _mm512_storeu_ps(a.max.add(first), new);
            let mut none = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(new, lowest);
            let offset = _mm512_mul_ps(new, _mm512_set1_ps(-LOG2_E));
            _mm512_storeu_ps(rows.offsets.as_mut_ptr().add(first), _mm512_maskz_mov_ps(!none, offset));
            while none != 0 {
                let r = first + none.trailing_zeros() as usize;
                none &= none - 1;
                // Nothing but weights of zero so far, and no maximum to subtract. A NaN among them must show.
                let row = a.scores.add(r * a.stride);
                if r < a.rows && (rows.ranges[r].0..rows.ranges[r].1).all(|c| *row.add(c) == f32::NEG_INFINITY) {
                    rows.ranges[r] = (0, 0);
                    any = true;
                }
            }
        }
        any
    }
}

/// Turns rows into weights and adds up their sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn probs<const WHOLE: bool, const TWO: bool>(a: &SoftmaxArgs, rows: &Rows, high: *mut u16, low: *mut u16) {
    // SAFETY: the caller's contract.
    unsafe {
        let zero = _mm512_setzero_ps();
        let factor = _mm512_set1_ps(a.scale * LOG2_E);
        let mut lanes = [zero; ROWS];
        for (r, lanes) in lanes.iter_mut().enumerate().take(a.rows) {
            let (row, high) = (a.scores.add(r * a.stride), high.add(r * a.stride));
            let offset = _mm512_set1_ps(rows.offsets[r]);
            let mut totals = [zero; 2];
            for c in (0..a.n).step_by(32) {
                let exponent = |at: usize| _mm512_fmadd_ps(_mm512_loadu_ps(row.add(at)), factor, offset);
                let mut pair = Pair::<TWO>::of(exponent(c), exponent(c + 16));
                if !WHOLE {
                    pair.only(visible(rows.ranges[r], c), visible(rows.ranges[r], c + 16));
                }
                let total = &mut totals[c / 32 % 2];
                *total = pair.add_to(*total);
                pair.store(high.add(c), if TWO { low.add(r * a.stride + c) } else { low });
            }
            *lanes = _mm512_add_ps(totals[0], totals[1]);
        }
        add_to_sums(a, &lanes);
    }
}

/// Adds what the lanes of each row hold to its sum of weights, after it has been cut down to what it is worth.
///
/// # Safety
/// As [`softmax_bf16`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn add_to_sums(a: &SoftmaxArgs, lanes: &[__m512; ROWS]) {
    for first in (0..a.rows).step_by(KEY_GROUP) {
        let total = across(&lanes[first..first + KEY_GROUP], |a, b| _mm512_add_ps(a, b));
        // SAFETY: the caller's contract.
        unsafe {
            let (sum, alpha) = (_mm512_loadu_ps(a.sum.add(first)), _mm512_loadu_ps(a.alpha.add(first)));
            _mm512_storeu_ps(a.sum.add(first), _mm512_fmadd_ps(sum, alpha, total));
        }
    }
}

/// The weights of 32 keys, as values are multiplied with them.
#[derive(Clone, Copy)]
pub(crate) struct Pair<const TWO: bool> {
    probs: [__m512; 2],
}

impl<const TWO: bool> Pair<TWO> {
    /// From their exponents.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn of(x: __m512, next: __m512) -> Self {
        // SAFETY: the instructions are there, by the caller's contract.
        let power = |x| unsafe { if TWO { Avx512(x).exp2::<false>().0 } else { rough_exp2(x) } };
        Self { probs: [power(x), power(next)] }
    }

    /// Leaves zero of lanes without a bit.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn only(&mut self, visible: __mmask16, next: __mmask16) {
        let [p, q] = self.probs;
        self.probs = [_mm512_maskz_mov_ps(visible, p), _mm512_maskz_mov_ps(next, q)];
    }

    /// Adds them up, lane by lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn add_to(self, total: __m512) -> __m512 {
        _mm512_add_ps(total, _mm512_add_ps(self.probs[0], self.probs[1]))
    }

    /// # Safety
    /// As [`put`], in `low` only if `TWO`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn store(self, high: *mut u16, low: *mut u16) {
        let [p, q] = self.probs;
        // SAFETY: the caller's contract.
        unsafe { put(p, q, high, if TWO { low } else { std::ptr::null_mut() }) };
    }
}

/// The largest of each lane of a row's vectors, but for NaNs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn row_max<const WHOLE: bool>(row: *const f32, n: usize, range: (usize, usize)) -> __m512 {
    // SAFETY: the caller's contract.
    unsafe {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut row_maxima = [lowest; 2];
        for c in (0..n).step_by(32) {
            for (i, row_max) in row_maxima.iter_mut().enumerate() {
                let visible = if WHOLE { ALL } else { visible(range, c + i * 16) };
                // Of a NaN and a number, the instruction gives its second operand.
                *row_max = _mm512_mask_max_ps(*row_max, visible, _mm512_loadu_ps(row.add(c + i * 16)), *row_max);
            }
        }
        _mm512_max_ps(row_maxima[0], row_maxima[1])
    }
}

/// Lane i of the result: all lanes of vector i of sixteen, joined.
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

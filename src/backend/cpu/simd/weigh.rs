//! From scores to weights: the softmax of rows against a block of keys.

use std::f32::consts::LOG2_E;

use super::kernels::each;
use super::lanes::{Lanes, tanh};

/// Rows of scores, to become weights relative to each row's largest score so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    /// `[rows][stride]` f32.
    pub scores: *mut f32,
    pub stride: usize,
    /// Columns, a multiple of 16, at most `stride`.
    pub n: usize,
    pub rows: usize,
    /// `[rows]` what each sees.
    pub seen: *const Seen,
    pub scale: f32,
    /// 0 = none.
    pub softcap: f32,
    /// `[rows]` f32: largest score so far, sum of weights so far, and, written, what earlier sums are worth now.
    pub max: *mut f32,
    pub sum: *mut f32,
    pub keep: *mut f32,
}

/// What a row sees of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Columns; all other weights become 0.
    pub from: usize,
    pub to: usize,
    /// Bias per token of distance; 0 = none.
    pub slope: f32,
    /// Distance of column `to - 1`.
    pub distance: f32,
}

/// Scores to weights. First the maxima of all rows, then the weights: no row waits for another one's sums.
///
/// # Safety
/// As [`Lanes`] and [`Weights`].
#[inline(always)]
pub(crate) unsafe fn weigh<V: Lanes, const PRECISE: bool>(a: &Weights) {
    // SAFETY: the caller's contract.
    unsafe {
        for r in 0..a.rows {
            top_of_row::<V>(a, r);
        }
        for r in 0..a.rows {
            weigh_row::<V, PRECISE>(a, r);
        }
    }
}

/// Transforms and masks a row; finds its maximum, and what earlier weights are worth beside it. A row without any weight so far
/// is marked by a `keep` of -1.
#[inline(always)]
unsafe fn top_of_row<V: Lanes>(a: &Weights, r: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let (row, seen) = (a.scores.add(r * a.stride), *a.seen.add(r));
        let (first, end) = (seen.from / V::N, seen.to.div_ceil(V::N));
        let at = |i: usize| row.add(i * V::N);
        // Without a transform the scale goes into the exponent.
        let plain = a.softcap == 0.0 && seen.slope == 0.0;
        if !plain {
            for i in first..end {
                transformed(a, &seen, i * V::N, V::load(at(i))).store(at(i));
            }
        }
        let lowest = V::splat(f32::NEG_INFINITY);
        // The vectors at the edges hold keys that the row does not see.
        if first < end {
            edge::<V>(row, &seen, first, lowest);
            edge::<V>(row, &seen, end - 1, lowest);
        }
        let mut tops = [lowest; 4];
        let mut i = first;
        while i + 4 <= end {
            each!(4, v, tops[v] = V::load(at(i + v)).max(tops[v]));
            i += 4;
        }
        while i < end {
            tops[0] = V::load(at(i)).max(tops[0]);
            i += 1;
        }
        let top = tops[0].max(tops[1]).max(tops[2].max(tops[3])).reduce_max();
        let max = &mut *a.max.add(r);
        let new = (if plain { top * a.scale } else { top }).max(*max);
        let keep = a.keep.add(r);
        if *max == new {
            *keep = 1.0;
            // Nothing but weights of zero so far, and no maximum to subtract. A NaN among them must show.
            if new == f32::NEG_INFINITY && (seen.from..seen.to).all(|c| *row.add(c) == f32::NEG_INFINITY) {
                *keep = -1.0;
            }
        } else {
            *keep = V::splat((*max - new) * LOG2_E).exp2::<true>().first();
        }
        *max = new;
    }
}

/// Turns a row into weights and adds up their sum.
#[inline(always)]
unsafe fn weigh_row<V: Lanes, const PRECISE: bool>(a: &Weights, r: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let (row, seen) = (a.scores.add(r * a.stride), *a.seen.add(r));
        let (first, mut end) = (seen.from / V::N, seen.to.div_ceil(V::N));
        let at = |i: usize| row.add(i * V::N);
        let zero = V::splat(0.0);
        let keep = &mut *a.keep.add(r);
        if *keep < 0.0 {
            *keep = 1.0;
            end = first;
        }
        let plain = a.softcap == 0.0 && seen.slope == 0.0;
        let scale = if plain { a.scale } else { 1.0 };
        let (factor, offset) = (V::splat(scale * LOG2_E), V::splat(-*a.max.add(r) * LOG2_E));
        let mut totals = [zero; 4];
        macro_rules! weight {
            ($i:expr, $v:expr) => {
                let p = V::load(at($i)).fma(factor, offset).exp2::<PRECISE>();
                p.store(at($i));
                totals[$v] = totals[$v].add(p);
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
        // What `exp2` leaves of minus infinity is not quite nothing; too little to have counted in the sum.
        if first < end && (seen.from % V::N != 0 || seen.to % V::N != 0) {
            edge::<V>(row, &seen, first, zero);
            edge::<V>(row, &seen, end - 1, zero);
        }
        for i in 0..first {
            zero.store(at(i));
        }
        for i in end..a.n / V::N {
            zero.store(at(i));
        }
        let sum = a.sum.add(r);
        *sum = *sum * *keep + totals[0].add(totals[1]).add(totals[2].add(totals[3])).reduce_add();
    }
}

/// Puts `other` where the row does not see the keys of vector `i`.
#[inline(always)]
unsafe fn edge<V: Lanes>(row: *mut f32, seen: &Seen, i: usize, other: V) {
    let lane = |key: usize| key as isize - (i * V::N) as isize;
    // SAFETY: the caller's contract.
    unsafe {
        let p = row.add(i * V::N);
        V::load(p).in_range(lane(seen.from), lane(seen.to), other).store(p);
    }
}

/// Scale, softcap and bias of the scores of the keys from `key` on.
#[inline(always)]
unsafe fn transformed<V: Lanes>(a: &Weights, seen: &Seen, key: usize, s: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let mut s = s.mul(V::splat(a.scale));
        if a.softcap > 0.0 {
            s = tanh(s.div(V::splat(a.softcap))).mul(V::splat(a.softcap));
        }
        if seen.slope != 0.0 {
            let distance = V::splat(seen.distance + (seen.to as f32 - 1.0 - key as f32)).sub(V::iota());
            s = distance.fma(V::splat(-seen.slope), s);
        }
        s
    }
}

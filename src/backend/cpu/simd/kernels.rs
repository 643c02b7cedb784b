//! The kernels, once for every instruction set: each rung compiles them for its own vectors.
//!
//! Pointers and counts come from the drivers (`decode.rs`, `chunk.rs`), which have checked them against the layout in
//! `store.rs`. Keys come in groups of 16, values in rows padded to 16 dims.

use std::f32::consts::LOG2_E;

use super::lanes::{Lanes, exp2, tanh};
use crate::backend::cpu::store::GROUP;
use crate::config::RopeStyle;
use crate::phase::Frequencies;

/// Repeats a statement for every index below a constant of at most six, written out: arrays of vectors stay in registers only
/// where every index is known.
macro_rules! each {
    ($n:expr, $i:ident, $body:expr) => {
        each!(@ $n, $i, $body, 0 1 2 3 4 5)
    };
    (@ $n:expr, $i:ident, $body:expr, $($k:literal)*) => {
        const { assert!($n <= 6) };
        $(if $k < $n {
            let $i: usize = $k;
            $body;
        })*
    };
}

/// How keys of a group lie.
pub(crate) trait Keys {
    /// Bytes of an element.
    const SIZE: usize;
    /// Whether they are read from the cache's memory, not from scratch.
    const STORED: bool;

    /// Dims `d` and `d + 1`, d even, of the keys that begin at `lane`.
    ///
    /// # Safety
    /// As [`Lanes`]; `lane + V::N` is at most 16, and `d` below the head's dims.
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V);
}

/// Asks for the line at `p`; a hint, whatever the address.
#[inline(always)]
fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of the target; a hint reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// How values lie.
pub(crate) trait Values {
    /// Dims `d..d + V::N` of one key.
    ///
    /// # Safety
    /// As [`Lanes`]; `rows` are those of a key whose slot is a multiple of 32, `dim` elements to a row.
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V;

    /// The same of an even key and of the next.
    ///
    /// # Safety
    /// As [`Values::one`].
    unsafe fn two<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V);
}

/// f32: keys `[dim][16]` (packed, not as stored), values in rows.
#[derive(Debug)]
pub(crate) struct Single;
/// f16: keys `[dim][16]`, values in rows.
#[derive(Debug)]
pub(crate) struct Half;
/// bf16: keys `[dim / 2][16][2]`, values in tiles `[key / 32][dim / 16][16][16][2]`, the last three being pairs of keys, dims,
/// and the two of a pair.
#[derive(Debug)]
pub(crate) struct Brain;

impl Keys for Single {
    const SIZE: usize = 4;
    const STORED: bool = false;

    #[inline(always)]
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe {
            let p = group.cast::<f32>().add(d * GROUP + lane);
            (V::load(p), V::load(p.add(GROUP)))
        }
    }
}

impl Keys for Half {
    const SIZE: usize = 2;
    const STORED: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe {
            let p = group.cast::<u16>().add(d * GROUP + lane);
            (V::load_f16(p), V::load_f16(p.add(GROUP)))
        }
    }
}

impl Keys for Brain {
    const SIZE: usize = 2;
    const STORED: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe { V::load_pairs(group.cast::<u32>().add(d / 2 * GROUP + lane)) }
    }
}

impl Values for Single {
    #[inline(always)]
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load(rows.cast::<f32>().add(key * dim + d)) }
    }

    #[inline(always)]
    unsafe fn two<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe { (Self::one(rows, dim, key, d), Self::one(rows, dim, key + 1, d)) }
    }
}

impl Values for Half {
    #[inline(always)]
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load_f16(rows.cast::<u16>().add(key * dim + d)) }
    }

    #[inline(always)]
    unsafe fn two<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe { (Self::one(rows, dim, key, d), Self::one(rows, dim, key + 1, d)) }
    }
}

impl Values for Brain {
    #[inline(always)]
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the caller's contract.
        let (even, odd) = unsafe { Self::two(rows, dim, key & !1, d) };
        if key.is_multiple_of(2) { even } else { odd }
    }

    #[inline(always)]
    unsafe fn two<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe { V::load_pairs(rows.cast::<u32>().add(pair_at(dim, key, d))) }
    }
}

/// Where the pair of keys that `key` belongs to has dim `d`, in pairs from the first of a tile's keys on.
#[inline(always)]
pub(crate) fn pair_at(dim: usize, key: usize, d: usize) -> usize {
    key / 32 * (16 * dim) + d / 16 * 256 + key % 32 / 2 * 16 + d % 16
}

/// Queries times keys: `scores[r][c] = q[r] . k[c]` for all keys of whole groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores {
    /// `[rows][q_stride]` f32.
    pub q: *const f32,
    pub q_stride: usize,
    pub rows: usize,
    /// The first group.
    pub k: *const u8,
    /// Dims, even.
    pub dim: usize,
    pub groups: usize,
    /// `[rows][stride]` f32.
    pub scores: *mut f32,
    pub stride: usize,
}

/// `NV` vectors of keys at once, rows in sixes and what is left.
///
/// # Safety
/// As [`Lanes`] and [`Scores`].
#[inline(always)]
pub(crate) unsafe fn scores<V: Lanes, K: Keys, const NV: usize>(a: &Scores) {
    let vectors = a.groups * GROUP / V::N;
    let mut v = 0;
    while v < vectors {
        // SAFETY: the caller's contract; vectors `v..v + NV` are among the groups.
        unsafe {
            if vectors - v >= NV {
                score_rows::<V, K, NV>(a, v * V::N);
                v += NV;
            } else {
                score_rows::<V, K, 1>(a, v * V::N);
                v += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn score_rows<V: Lanes, K: Keys, const NV: usize>(a: &Scores, at: usize) {
    let mut r = 0;
    while r < a.rows {
        // SAFETY: the caller's contract; as many rows as there are.
        r += unsafe {
            match a.rows - r {
                1 => score_tile::<V, K, 1, NV>(a, r, at),
                2 | 3 => score_tile::<V, K, 2, NV>(a, r, at),
                4 | 5 => score_tile::<V, K, 4, NV>(a, r, at),
                _ => score_tile::<V, K, 6, NV>(a, r, at),
            }
        };
    }
}

#[inline(always)]
unsafe fn score_tile<V: Lanes, K: Keys, const R: usize, const NV: usize>(a: &Scores, row: usize, at: usize) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        let group: [*const u8; NV] =
            std::array::from_fn(|v| a.k.add((at + v * V::N) / GROUP * (GROUP * a.dim * K::SIZE)));
        let lane = |v: usize| (at + v * V::N) % GROUP;
        let q = a.q.add(row * a.q_stride);
        let mut sum = [[V::splat(0.0); NV]; R];
        let mut k = [(V::splat(0.0), V::splat(0.0)); NV];
        let mut d = 0;
        while d < a.dim {
            if K::STORED && lane(0) == 0 {
                // The same place in the groups that come next: memory is slower than this loop.
                each!(
                    NV,
                    v,
                    prefetch(group[v].wrapping_add((NV * V::N).max(GROUP) * a.dim * K::SIZE + d * GROUP * K::SIZE))
                );
            }
            each!(NV, v, k[v] = K::load(group[v], lane(v), d));
            each!(R, r, {
                let (q0, q1) = (V::splat(*q.add(r * a.q_stride + d)), V::splat(*q.add(r * a.q_stride + d + 1)));
                each!(NV, v, sum[r][v] = q0.fma(k[v].0, sum[r][v]));
                each!(NV, v, sum[r][v] = q1.fma(k[v].1, sum[r][v]));
            });
            d += 2;
        }
        each!(R, r, each!(NV, v, sum[r][v].store(a.scores.add((row + r) * a.stride + at + v * V::N))));
    }
    R
}

/// Weights times values: `acc[r] = acc[r] * keep[r] + sum over keys of weights[r][key] * v[key]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// `[rows][stride]` f32.
    pub weights: *const f32,
    pub stride: usize,
    pub rows: usize,
    /// Values of key 0, whose slot is a multiple of 32.
    pub v: *const u8,
    /// Padded dims of a row of values and of `acc`.
    pub dim: usize,
    /// Keys.
    pub from: usize,
    pub to: usize,
    /// `[rows][dim]` f32.
    pub acc: *mut f32,
    /// `[rows]` f32.
    pub keep: *const f32,
}

/// `NV` vectors of dims at once, rows in sixes and what is left. Keys outside the range are not read.
///
/// # Safety
/// As [`Lanes`] and [`Sums`].
#[inline(always)]
pub(crate) unsafe fn sums<V: Lanes, E: Values, const NV: usize>(a: &Sums) {
    let mut d = 0;
    while d < a.dim {
        // SAFETY: the caller's contract.
        unsafe {
            if a.dim - d >= NV * V::N {
                sum_rows::<V, E, NV>(a, d);
                d += NV * V::N;
            } else {
                sum_rows::<V, E, 1>(a, d);
                d += V::N;
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_rows<V: Lanes, E: Values, const NV: usize>(a: &Sums, d: usize) {
    let mut r = 0;
    while r < a.rows {
        // SAFETY: the caller's contract; as many rows as there are.
        r += unsafe {
            match a.rows - r {
                1 => sum_tile::<V, E, 1, NV>(a, r, d),
                2 | 3 => sum_tile::<V, E, 2, NV>(a, r, d),
                4 | 5 => sum_tile::<V, E, 4, NV>(a, r, d),
                _ => sum_tile::<V, E, 6, NV>(a, r, d),
            }
        };
    }
}

#[inline(always)]
unsafe fn sum_tile<V: Lanes, E: Values, const R: usize, const NV: usize>(a: &Sums, row: usize, d: usize) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sum = [[V::splat(0.0); NV]; R];
        let p = a.weights.add(row * a.stride);
        let mut x = [(V::splat(0.0), V::splat(0.0)); NV];
        macro_rules! add {
            ($key:expr, $half:tt) => {
                each!(R, r, {
                    let p = V::splat(*p.add(r * a.stride + $key));
                    each!(NV, v, sum[r][v] = p.fma(x[v].$half, sum[r][v]));
                })
            };
        }
        let mut key = a.from;
        if !key.is_multiple_of(2) && key < a.to {
            each!(NV, v, x[v].0 = E::one(a.v, a.dim, key, d + v * V::N));
            add!(key, 0);
            key += 1;
        }
        while key + 1 < a.to {
            each!(NV, v, x[v] = E::two(a.v, a.dim, key, d + v * V::N));
            add!(key, 0);
            add!(key + 1, 1);
            key += 2;
        }
        if key < a.to {
            each!(NV, v, x[v].0 = E::one(a.v, a.dim, key, d + v * V::N));
            add!(key, 0);
        }
        each!(R, r, {
            let keep = V::splat(*a.keep.add(row + r));
            each!(NV, v, {
                let acc = a.acc.add((row + r) * a.dim + d + v * V::N);
                V::load(acc).fma(keep, sum[r][v]).store(acc);
            });
        });
    }
    R
}

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
            *keep = exp2::<V, true>(V::splat((*max - new) * LOG2_E)).first();
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
                let p = exp2::<V, PRECISE>(V::load(at($i)).fma(factor, offset));
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

/// Values of keys `from..to` as rows of f32; the rows before and up to `n` become 0.
///
/// # Safety
/// As [`Lanes`] and [`Values`]; `dst` must have room for `n` rows.
#[inline(always)]
pub(crate) unsafe fn pack_values<V: Lanes, E: Values>(
    src: *const u8,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    dst: *mut f32,
) {
    for key in 0..n {
        for d in (0..dim).step_by(V::N) {
            // SAFETY: the caller's contract.
            unsafe {
                let x = if (from..to).contains(&key) { E::one::<V>(src, dim, key, d) } else { V::splat(0.0) };
                x.store(dst.add(key * dim + d));
            }
        }
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
        let rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
        *dst = if src.is_nan() { (bits >> 16 | 0x40) as u16 } else { rounded as u16 };
    }
}

/// Cosines and sines at a stream position, times mscale.
#[inline(always)]
pub(crate) fn angles(frequencies: &Frequencies, position: u64, mscale: f32, cos: &mut [f32], sin: &mut [f32]) {
    frequencies.fill(position, mscale, cos, sin);
}

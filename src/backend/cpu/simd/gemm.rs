//! The kernels, once for every instruction set: each instruction set compiles them for its own vectors.
//!
//! Pointers and counts come from the drivers (`decode.rs`, `chunk.rs`), which have checked them against the layout in
//! `store.rs`. Keys come in groups of 16, values in rows padded to 16 dims.

use super::kv_load::{Keys, Values};
use super::prefetch::fetch;
use super::unroll::each;
use super::vector::Lanes;
use crate::backend::cpu::kv_layout::GROUP;

/// Bytes of a line of the caches.
const LINE: usize = 64;

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
    /// Bytes from stored keys to what is fetched while they are read; 0: nothing is.
    pub ahead: isize,
}

/// `NV` vectors of keys at once, rows in sixes and what is left.
///
/// # Safety
/// As [`Lanes`] and [`Scores`].
#[inline(always)]
pub(crate) unsafe fn scores<V: Lanes, K: Keys, const NV: usize>(a: &Scores) {
    // SAFETY: the caller's contract.
    unsafe {
        if K::STORED && a.ahead != 0 {
            all_scores::<V, K, NV, true>(a);
        } else {
            all_scores::<V, K, NV, false>(a);
        }
    }
}

#[inline(always)]
unsafe fn all_scores<V: Lanes, K: Keys, const NV: usize, const FETCH: bool>(a: &Scores) {
    let vectors = a.groups * GROUP / V::N;
    let mut v = 0;
    while v < vectors {
        // SAFETY: the caller's contract; vectors `v..v + NV` are among the groups.
        unsafe {
            if vectors - v >= NV {
                score_rows::<V, K, NV, FETCH>(a, v * V::N);
                v += NV;
            } else {
                score_rows::<V, K, 1, FETCH>(a, v * V::N);
                v += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn score_rows<V: Lanes, K: Keys, const NV: usize, const FETCH: bool>(a: &Scores, at: usize) {
    let mut r = 0;
    while r < a.rows {
        // SAFETY: the caller's contract; as many rows as there are.
        r += unsafe {
            match a.rows - r {
                1 => score_tile::<V, K, 1, NV, FETCH>(a, r, at),
                2 | 3 => score_tile::<V, K, 2, NV, FETCH>(a, r, at),
                4 | 5 => score_tile::<V, K, 4, NV, FETCH>(a, r, at),
                _ if !V::SIX_ROWS => score_tile::<V, K, 4, NV, FETCH>(a, r, at),
                _ => score_tile::<V, K, 6, NV, FETCH>(a, r, at),
            }
        };
    }
}

#[inline(always)]
unsafe fn score_tile<V: Lanes, K: Keys, const R: usize, const NV: usize, const FETCH: bool>(
    a: &Scores,
    row: usize,
    at: usize,
) -> usize {
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
            if K::STORED {
                each!(NV, v, {
                    k[v] = K::load(group[v], lane(v), d);
                    if FETCH && (V::N >= GROUP || lane(v) == 0) {
                        fetch(group[v].wrapping_add(d * GROUP * K::SIZE).wrapping_offset(a.ahead));
                    }
                });
                each!(R, r, {
                    let (q0, q1) = (V::splat(*q.add(r * a.q_stride + d)), V::splat(*q.add(r * a.q_stride + d + 1)));
                    each!(NV, v, sum[r][v] = q0.fma(k[v].0, sum[r][v]));
                    each!(NV, v, sum[r][v] = q1.fma(k[v].1, sum[r][v]));
                });
                d += 2;
            } else {
                // One dim after the other: with six rows the vectors of two do not fit the registers.
                each!(2, i, {
                    each!(NV, v, k[v].0 = V::load(group[v].cast::<f32>().add((d + i) * GROUP + lane(v))));
                    each!(R, r, {
                        let q = V::splat(*q.add(r * a.q_stride + d + i));
                        each!(NV, v, sum[r][v] = q.fma(k[v].0, sum[r][v]));
                    });
                });
                d += 2;
            }
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
    /// Bytes from stored values to what is fetched while they are read; 0: nothing is.
    pub ahead: isize,
}

/// `NV` vectors of dims at once, rows in sixes and what is left. Keys outside the range are not read.
///
/// # Safety
/// As [`Lanes`] and [`Sums`].
#[inline(always)]
pub(crate) unsafe fn sums<V: Lanes, E: Values, const NV: usize>(a: &Sums) {
    // SAFETY: the caller's contract.
    unsafe {
        if E::FETCHED && a.ahead != 0 {
            all_sums::<V, E, NV, true>(a);
        } else {
            all_sums::<V, E, NV, false>(a);
        }
    }
}

#[inline(always)]
unsafe fn all_sums<V: Lanes, E: Values, const NV: usize, const FETCH: bool>(a: &Sums) {
    let mut d = 0;
    while d < a.dim {
        // SAFETY: the caller's contract.
        unsafe {
            if a.rows == 1 && NV == 4 && a.dim - d >= 8 * V::N {
                // Whole rows of memory at once, where the sums of one row leave registers for it.
                sum_tile::<V, E, 1, 8, FETCH>(a, 0, d);
                d += 8 * V::N;
            } else if a.dim - d >= NV * V::N {
                sum_rows::<V, E, NV, FETCH>(a, d);
                d += NV * V::N;
            } else {
                sum_rows::<V, E, 1, FETCH>(a, d);
                d += V::N;
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_rows<V: Lanes, E: Values, const NV: usize, const FETCH: bool>(a: &Sums, d: usize) {
    let mut r = 0;
    while r < a.rows {
        // SAFETY: the caller's contract; as many rows as there are.
        r += unsafe {
            match a.rows - r {
                1 => sum_tile::<V, E, 1, NV, FETCH>(a, r, d),
                2 | 3 => sum_tile::<V, E, 2, NV, FETCH>(a, r, d),
                4 | 5 => sum_tile::<V, E, 4, NV, FETCH>(a, r, d),
                _ if !V::SIX_ROWS => sum_tile::<V, E, 4, NV, FETCH>(a, r, d),
                _ => sum_tile::<V, E, 6, NV, FETCH>(a, r, d),
            }
        };
    }
}

#[inline(always)]
unsafe fn sum_tile<V: Lanes, E: Values, const R: usize, const NV: usize, const FETCH: bool>(
    a: &Sums,
    row: usize,
    d: usize,
) -> usize {
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
            each!(NV, v, {
                if FETCH && (v * V::N * E::WIDTH).is_multiple_of(LINE) {
                    for i in 0..E::PLACES {
                        fetch(E::place(a.v, a.dim, key + i, d + v * V::N).wrapping_offset(a.ahead));
                    }
                }
                x[v] = E::two(a.v, a.dim, key, d + v * V::N);
            });
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

//! QK^T and PV in f32, generic over vectors and stored types; `simd/mod.rs` compiles them for each instruction set.
//!
//! `decode.rs` and `chunk/` check pointers and counts against the layout of `kv_store.rs`. Keys come in groups of 16,
//! values in rows padded to 16 dims.

use super::kv_load::{Keys, Values};
use super::prefetch::{LINE, prefetch_l2};
use super::unroll::unrolled;
use super::vector::SimdF32;
use crate::backend::cpu::kv_layout::KEY_GROUP;

/// QK^T: `scores[r][c] = q[r] . k[c]` for all keys of whole groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QkArgs {
    /// `[rows][q_stride]` f32.
    pub q: *const f32,
    pub q_stride: usize,
    pub rows: usize,
    /// Keys, from a slot that is a multiple of 32.
    pub k: *const u8,
    /// Dims, even.
    pub dim: usize,
    /// The first group that is multiplied, counted from `k`, and the number of groups.
    pub first: usize,
    pub groups: usize,
    /// `[rows][stride]` f32. Columns count from `k`.
    pub scores: *mut f32,
    pub stride: usize,
    /// Bytes from the keys that are read to those that are prefetched; 0 = no prefetch.
    pub prefetch_offset: isize,
}

/// In register tiles of `NV` vectors of keys by six rows and what is left.
///
/// # Safety
/// As [`SimdF32`] and [`QkArgs`].
#[inline(always)]
pub(crate) unsafe fn qk<V: SimdF32, K: Keys, const NV: usize>(a: &QkArgs) {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        if K::STORED && a.prefetch_offset != 0 {
            qk_all::<V, K, NV, true>(a);
        } else {
            qk_all::<V, K, NV, false>(a);
        }
    }
}

#[inline(always)]
unsafe fn qk_all<V: SimdF32, K: Keys, const NV: usize, const PREFETCH: bool>(a: &QkArgs) {
    let mut v = a.first * KEY_GROUP / V::N;
    let vectors = (a.first + a.groups) * KEY_GROUP / V::N;
    while v < vectors {
        // SAFETY: the caller's contract; vectors `v..v + NV` are among the groups.
        unsafe {
            if vectors - v >= NV {
                qk_rows::<V, K, NV, PREFETCH>(a, v * V::N);
                v += NV;
            } else {
                qk_rows::<V, K, 1, PREFETCH>(a, v * V::N);
                v += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn qk_rows<V: SimdF32, K: Keys, const NV: usize, const PREFETCH: bool>(a: &QkArgs, at: usize) {
    let mut r = 0;
    while r < a.rows {
        // SAFETY: as the caller's; each register tile has as many rows as are left.
        r += unsafe {
            match a.rows - r {
                1 => qk_tile::<V, K, 1, NV, PREFETCH>(a, r, at),
                2 | 3 => qk_tile::<V, K, 2, NV, PREFETCH>(a, r, at),
                4 | 5 => qk_tile::<V, K, 4, NV, PREFETCH>(a, r, at),
                _ if const { V::SIX_ROWS } => qk_tile::<V, K, 6, NV, PREFETCH>(a, r, at),
                _ => qk_tile::<V, K, 4, NV, PREFETCH>(a, r, at),
            }
        };
    }
}

#[inline(always)]
unsafe fn qk_tile<V: SimdF32, K: Keys, const R: usize, const NV: usize, const PREFETCH: bool>(
    a: &QkArgs,
    row: usize,
    at: usize,
) -> usize {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let group: [*const u8; NV] =
            std::array::from_fn(|v| a.k.add((at + v * V::N) / KEY_GROUP * (KEY_GROUP * a.dim * K::SIZE)));
        let lane = |v: usize| (at + v * V::N) % KEY_GROUP;
        let q = a.q.add(row * a.q_stride);
        let mut sum = [[V::splat(0.0); NV]; R];
        let mut k = [(V::splat(0.0), V::splat(0.0)); NV];
        let mut d = 0;
        while d < a.dim {
            if K::STORED {
                unrolled!(NV, v, {
                    k[v] = K::load(group[v], lane(v), d);
                    if PREFETCH && (V::N >= KEY_GROUP || lane(v) == 0) {
                        prefetch_l2(group[v].wrapping_add(d * KEY_GROUP * K::SIZE).wrapping_offset(a.prefetch_offset));
                    }
                });
                unrolled!(R, r, {
                    let (q0, q1) = (V::splat(*q.add(r * a.q_stride + d)), V::splat(*q.add(r * a.q_stride + d + 1)));
                    unrolled!(NV, v, sum[r][v] = q0.fma(k[v].0, sum[r][v]));
                    unrolled!(NV, v, sum[r][v] = q1.fma(k[v].1, sum[r][v]));
                });
                d += 2;
            } else {
                // One dim after the other: with six rows, the vectors of two dims do not fit the registers.
                unrolled!(2, i, {
                    unrolled!(NV, v, k[v].0 = V::load(group[v].cast::<f32>().add((d + i) * KEY_GROUP + lane(v))));
                    unrolled!(R, r, {
                        let q = V::splat(*q.add(r * a.q_stride + d + i));
                        unrolled!(NV, v, sum[r][v] = q.fma(k[v].0, sum[r][v]));
                    });
                });
                d += 2;
            }
        }
        unrolled!(R, r, unrolled!(NV, v, sum[r][v].store(a.scores.add((row + r) * a.stride + at + v * V::N))));
    }
    R
}

/// PV: `acc[r] = acc[r] * alpha[r] + sum over keys of probs[r][key] * v[key]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PvArgs {
    /// `[rows][stride]` f32.
    pub probs: *const f32,
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
    pub alpha: *const f32,
    /// Bytes from the values that are read to those that are prefetched; 0 = no prefetch.
    pub prefetch_offset: isize,
}

/// In register tiles of `NV` vectors of dims by six rows and what is left. Keys outside the range are not read.
///
/// # Safety
/// As [`SimdF32`] and [`PvArgs`].
#[inline(always)]
pub(crate) unsafe fn pv<V: SimdF32, E: Values, const NV: usize>(a: &PvArgs) {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        if E::PREFETCHED && a.prefetch_offset != 0 {
            pv_all::<V, E, NV, true>(a);
        } else {
            pv_all::<V, E, NV, false>(a);
        }
    }
}

#[inline(always)]
unsafe fn pv_all<V: SimdF32, E: Values, const NV: usize, const PREFETCH: bool>(a: &PvArgs) {
    let mut d = 0;
    while d < a.dim {
        // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the
        // caller.
        unsafe {
            if a.rows == 1 && NV == 4 && a.dim - d >= 8 * V::N {
                // One row leaves registers for eight vectors: whole rows of values are read in order.
                pv_tile::<V, E, 1, 8, PREFETCH>(a, 0, d);
                d += 8 * V::N;
            } else if a.dim - d >= NV * V::N {
                pv_rows::<V, E, NV, PREFETCH>(a, d);
                d += NV * V::N;
            } else {
                pv_rows::<V, E, 1, PREFETCH>(a, d);
                d += V::N;
            }
        }
    }
}

#[inline(always)]
unsafe fn pv_rows<V: SimdF32, E: Values, const NV: usize, const PREFETCH: bool>(a: &PvArgs, d: usize) {
    let mut r = 0;
    while r < a.rows {
        // SAFETY: as the caller's; each register tile has as many rows as are left.
        r += unsafe {
            match a.rows - r {
                1 => pv_tile::<V, E, 1, NV, PREFETCH>(a, r, d),
                2 | 3 => pv_tile::<V, E, 2, NV, PREFETCH>(a, r, d),
                4 | 5 => pv_tile::<V, E, 4, NV, PREFETCH>(a, r, d),
                _ if const { V::SIX_ROWS } => pv_tile::<V, E, 6, NV, PREFETCH>(a, r, d),
                _ => pv_tile::<V, E, 4, NV, PREFETCH>(a, r, d),
            }
        };
    }
}

#[inline(always)]
unsafe fn pv_tile<V: SimdF32, E: Values, const R: usize, const NV: usize, const PREFETCH: bool>(
    a: &PvArgs,
    row: usize,
    d: usize,
) -> usize {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let mut sum = [[V::splat(0.0); NV]; R];
        let p = a.probs.add(row * a.stride);
        let mut x = [(V::splat(0.0), V::splat(0.0)); NV];
        macro_rules! add {
            ($key:expr, $half:tt) => {
                unrolled!(R, r, {
                    let p = V::splat(*p.add(r * a.stride + $key));
                    unrolled!(NV, v, sum[r][v] = p.fma(x[v].$half, sum[r][v]));
                })
            };
        }
        let mut key = a.from;
        if !key.is_multiple_of(2) && key < a.to {
            unrolled!(NV, v, x[v].0 = E::one(a.v, a.dim, key, d + v * V::N));
            add!(key, 0);
            key += 1;
        }
        while key + 1 < a.to {
            unrolled!(NV, v, {
                if PREFETCH && (v * V::N * E::WIDTH).is_multiple_of(LINE) {
                    for i in 0..E::PLACES {
                        prefetch_l2(E::place(a.v, a.dim, key + i, d + v * V::N).wrapping_offset(a.prefetch_offset));
                    }
                }
                x[v] = E::two(a.v, a.dim, key, d + v * V::N);
            });
            add!(key, 0);
            add!(key + 1, 1);
            key += 2;
        }
        if key < a.to {
            unrolled!(NV, v, x[v].0 = E::one(a.v, a.dim, key, d + v * V::N));
            add!(key, 0);
        }
        unrolled!(R, r, {
            let alpha = V::splat(*a.alpha.add(row + r));
            unrolled!(NV, v, {
                let acc = a.acc.add((row + r) * a.dim + d + v * V::N);
                V::load(acc).fma(alpha, sum[r][v]).store(acc);
            });
        });
    }
    R
}

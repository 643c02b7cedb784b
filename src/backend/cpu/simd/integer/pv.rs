//! PV of integer weights and codes.

use std::ops::Range;

use super::rounding::TERMS;
use super::vector::SimdInt;
use super::weights::{row_bytes, weight};
use crate::backend::cpu::kv_layout::CODE_BLOCK;
use crate::backend::cpu::simd::codes::{Codes, layout};
use crate::backend::cpu::simd::prefetch::{LINE, prefetch};

/// Blocks of values that several rows multiply before the next dims: they stay in L1. One row reads every block once,
/// as its sums fit the registers.
const BLOCKS_AT_ONCE: usize = 4;

/// PV: adds to each row's sums the products of its weights and codes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PvArgs {
    /// `[rows][weights::row_bytes]`.
    pub weights: *const u8,
    pub rows: usize,
    /// The first block of values, and padded dims of a row.
    pub v: *const u8,
    pub dim: usize,
    /// Blocks that are multiplied.
    pub from: usize,
    pub to: usize,
    /// `[rows][2][dim]`.
    pub sums: *mut i32,
    /// Bytes from the values that are read to those that are prefetched; 0 = no prefetch.
    pub prefetch_offset: isize,
}

/// Adds the products of weights and codes of some blocks to the sums of results.
///
/// # Safety
/// As [`SimdInt`] and [`PvArgs`].
#[inline(always)]
pub(super) unsafe fn pv<I: SimdInt, C: Codes>(a: &PvArgs) {
    let step = if a.rows == 1 { a.to } else { BLOCKS_AT_ONCE };
    let mut from = a.from;
    while from < a.to {
        let blocks = from..a.to.min(from + step);
        let mut row = 0;
        while row < a.rows {
            // SAFETY: the caller's contract; each register tile has as many rows as are left.
            row += unsafe {
                match (a.rows - row, row) {
                    (1, 0) => pv_rows::<I, C, 1, true>(a, 0, &blocks),
                    (1, _) => pv_rows::<I, C, 1, false>(a, row, &blocks),
                    (2 | 3, 0) => pv_rows::<I, C, 2, true>(a, 0, &blocks),
                    (2 | 3, _) => pv_rows::<I, C, 2, false>(a, row, &blocks),
                    (_, 0) => pv_rows::<I, C, 4, true>(a, 0, &blocks),
                    _ => pv_rows::<I, C, 4, false>(a, row, &blocks),
                }
            };
        }
        from = blocks.end;
    }
}

/// All dims of `R` rows. `FIRST`: of the first rows, which prefetch.
#[inline(always)]
unsafe fn pv_rows<I: SimdInt, C: Codes, const R: usize, const FIRST: bool>(
    a: &PvArgs,
    row: usize,
    blocks: &Range<usize>,
) -> usize {
    let mut d = 0;
    while d < a.dim {
        // SAFETY: as the caller's.
        d += unsafe {
            match I::TILE[R / 2].min((a.dim - d) / I::N) {
                8.. => pv_tile::<I, C, R, 8, FIRST>(a, row, d, blocks),
                4.. => pv_tile::<I, C, R, 4, FIRST>(a, row, d, blocks),
                2.. => pv_tile::<I, C, R, 2, FIRST>(a, row, d, blocks),
                _ => pv_tile::<I, C, R, 1, FIRST>(a, row, d, blocks),
            }
        };
    }
    R
}

/// `NV` vectors of dims from `d` on, a multiple of as many.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "all arrays of a register tile are indexed alike")]
unsafe fn pv_tile<I: SimdInt, C: Codes, const R: usize, const NV: usize, const FIRST: bool>(
    a: &PvArgs,
    row: usize,
    d: usize,
    blocks: &Range<usize>,
) -> usize {
    let layout = layout::<C>(a.dim);
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let sums: [*mut i32; R] = std::array::from_fn(|r| a.sums.add((row + r) * TERMS * a.dim + d));
        let weights: [*const u8; R] = std::array::from_fn(|r| a.weights.add((row + r) * row_bytes(layout.scales)));
        // With a known count, the compiler unrolls the loop over slots and spills the weights of all of them.
        let slots = std::hint::black_box(CODE_BLOCK);
        let mut sum = [[[I::splat(0); NV]; TERMS]; R];
        for r in 0..R {
            for t in 0..TERMS {
                for v in 0..NV {
                    sum[r][t][v] = I::load(sums[r].add(t * a.dim + v * I::N));
                }
            }
        }
        for block in blocks.clone() {
            let codes = a.v.add(block * layout.block_bytes());
            if FIRST && a.prefetch_offset != 0 && d == 0 {
                prefetch::<false>(codes.wrapping_offset(a.prefetch_offset), 2 * CODE_BLOCK * layout.scales);
            }
            let codes = codes.cast::<i32>();
            let mut slot = 0;
            while slot < slots {
                let p = codes.add(layout.value_word(slot, d));
                // Weights of row `r` and term `t` of the four slots from `slot` on, for the dims of vector `v`.
                macro_rules! four {
                    ($r:expr, $t:expr, $v:expr, $slot:expr) => {{
                        let group = d / C::SCALE_DIMS + $v * I::N / C::SCALE_DIMS;
                        let p = weights[$r].add(weight(group, $t, block * CODE_BLOCK + $slot));
                        I::splat(p.cast::<i32>().read_unaligned())
                    }};
                }
                let mut x = [I::splat(0); NV];
                for v in 0..NV {
                    let p = p.add(v * I::N);
                    if FIRST && a.prefetch_offset != 0 && (v * I::N * 4).is_multiple_of(LINE) {
                        prefetch::<false>(p.cast::<u8>().wrapping_offset(a.prefetch_offset), LINE);
                    }
                    x[v] = I::load(p);
                }
                if C::PER_WORD == 4 {
                    let mut w = [[I::splat(0); TERMS]; R];
                    for r in 0..R {
                        for t in 0..TERMS {
                            w[r][t] = four!(r, t, 0, slot);
                        }
                    }
                    for v in 0..NV {
                        let x = x[v].bytes();
                        for r in 0..R {
                            for t in 0..TERMS {
                                sum[r][t][v] = sum[r][t][v].dot(x, w[r][t]);
                            }
                        }
                    }
                } else {
                    let mut halves = [x; 2];
                    for v in 0..NV {
                        [halves[0][v], halves[1][v]] = x[v].halves();
                    }
                    for half in 0..2 {
                        for r in 0..R {
                            for t in 0..TERMS {
                                // Vectors of the same group of dims share a weight.
                                for v in 0..NV {
                                    let w = four!(r, t, v, slot + 4 * half);
                                    sum[r][t][v] = sum[r][t][v].dot(halves[half][v], w);
                                }
                            }
                        }
                    }
                }
                slot += C::PER_WORD;
            }
        }
        for r in 0..R {
            for t in 0..TERMS {
                for v in 0..NV {
                    sum[r][t][v].store(sums[r].add(t * a.dim + v * I::N));
                }
            }
        }
    }
    NV * I::N
}

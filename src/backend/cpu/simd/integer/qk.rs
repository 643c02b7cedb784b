//! QK^T of integer queries and codes.

use super::query::RoundedQueries;
use super::rounding::TERMS;
use super::vector::SimdInt;
use crate::backend::cpu::kv_layout::{CODE_BLOCK, KEY_GROUP};
use crate::backend::cpu::simd::codes::{Codes, layout};
use crate::backend::cpu::simd::prefetch::{LINE, prefetch};
use crate::backend::cpu::simd::vector::SimdF32;

/// QK^T: `scores[r][c] = q[r] . k[c]` for all keys of whole groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QkArgs {
    /// [`RoundedQueries`] of so many rows.
    pub queries: *const u8,
    pub rows: usize,
    /// The first block of keys.
    pub k: *const u8,
    pub dim: usize,
    /// The first group that is multiplied, counted from `k`, and the number of groups.
    pub first: usize,
    pub groups: usize,
    /// `[rows][stride]` f32. Columns count from `k`.
    pub scores: *mut f32,
    pub stride: usize,
    /// Bytes from the keys that are read to those that are prefetched; 0 = no prefetch.
    pub prefetch_offset: isize,
    pub value_scales: ValueScales,
}

/// Scales of values, which weights need as soon as scores are there: prefetched with the keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueScales {
    /// The first block, and their number; 0 = no prefetch.
    pub v: *const u8,
    pub blocks: usize,
    pub block_bytes: usize,
    /// Bytes of scales at the beginning of a block.
    pub bytes: usize,
}

/// [`QkArgs`], one block after the other. A processor's prefetchers follow one stream best, so one row multiplies one
/// group at a time; with more rows, computation is the limit, and two groups share the loads of queries.
///
/// # Safety
/// As [`SimdInt`] and [`QkArgs`].
#[inline(always)]
pub(super) unsafe fn qk<I: SimdInt, C: Codes>(a: &QkArgs) {
    let (mut at, end) = (a.first * KEY_GROUP, (a.first + a.groups) * KEY_GROUP);
    while at < end {
        let block_end = end.min(at / CODE_BLOCK * CODE_BLOCK + CODE_BLOCK);
        // SAFETY: the caller's contract; rows and columns are among the arguments'.
        unsafe {
            prefetch_scales::<C>(a, at);
            let mut row = 0;
            while row < a.rows {
                row += match (a.rows - row, row) {
                    (1, 0) => qk_rows::<I, C, 1, true>(a, 0, at, block_end),
                    (1, _) => qk_rows::<I, C, 1, false>(a, row, at, block_end),
                    (2 | 3, 0) => qk_rows::<I, C, 2, true>(a, 0, at, block_end),
                    (2 | 3, _) => qk_rows::<I, C, 2, false>(a, row, at, block_end),
                    (_, 0) => qk_rows::<I, C, 4, true>(a, 0, at, block_end),
                    _ => qk_rows::<I, C, 4, false>(a, row, at, block_end),
                };
            }
        }
        at = block_end;
    }
}

/// Prefetches the scales of the keys that are prefetched with a block's codes, and those of values: two blocks of them
/// for each block of keys, so that they are there when the scores are.
#[inline(always)]
fn prefetch_scales<C: Codes>(a: &QkArgs, at: usize) {
    if a.prefetch_offset == 0 {
        return;
    }
    let (layout, block, values) = (layout::<C>(a.dim), at / CODE_BLOCK, &a.value_scales);
    let scales = a.k.wrapping_add(block * layout.block_bytes()).wrapping_offset(a.prefetch_offset);
    prefetch::<false>(scales, layout.scales * 2 * CODE_BLOCK);
    for value_block in 2 * block..(2 * block + 2).min(values.blocks) {
        prefetch::<false>(values.v.wrapping_add(value_block * values.block_bytes), values.bytes);
    }
}

/// Scores of `R` rows and of the keys `at..end` of a block.
#[inline(always)]
unsafe fn qk_rows<I: SimdInt, C: Codes, const R: usize, const FIRST: bool>(
    a: &QkArgs,
    row: usize,
    mut at: usize,
    end: usize,
) -> usize {
    let wide = I::TILE[R / 2].min(if R == 1 { KEY_GROUP / I::N } else { CODE_BLOCK / I::N });
    while at < end {
        // SAFETY: as the caller's.
        unsafe {
            at += match wide.min((end - at) / I::N) {
                4.. => qk_tile::<I, C, R, 4, FIRST>(a, row, at),
                2.. => qk_tile::<I, C, R, 2, FIRST>(a, row, at),
                _ => qk_tile::<I, C, R, 1, FIRST>(a, row, at),
            };
        }
    }
    R
}

/// Scores of `R` rows and of `NV` vectors of keys from `at` on. `FIRST`: of the first rows, which prefetch.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "all arrays of a register tile are indexed alike")]
unsafe fn qk_tile<I: SimdInt, C: Codes, const R: usize, const NV: usize, const FIRST: bool>(
    a: &QkArgs,
    row: usize,
    at: usize,
) -> usize {
    let (layout, dim) = (layout::<C>(a.dim), a.dim);
    let words = dim / C::PER_WORD;
    let per_scale = words.min(C::SCALE_DIMS / C::PER_WORD);
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let block = a.k.add(at / CODE_BLOCK * layout.block_bytes());
        let column = |v: usize| at % CODE_BLOCK + v * I::N;
        let codes: [*const i32; NV] = std::array::from_fn(|v| block.cast::<i32>().add(layout.key_word(column(v), 0)));
        let parts = RoundedQueries { rows: a.rows, dim };
        let mut total = [[I::F::splat(0.0); NV]; R];
        for (scale, from) in (0..words).step_by(per_scale).enumerate() {
            // Two sums of one term, of even and odd words or low and high halves: products wait for one another less.
            let mut sum = [[[[I::splat(0); NV]; 2]; TERMS]; R];
            for r in 0..R {
                for term in 0..TERMS {
                    let correction = a.queries.add(parts.correction(scale, row + r, term)).cast::<i32>();
                    sum[r][term][0] = [I::splat(correction.read()); NV];
                }
            }
            // Products of the codes of four dims from `d` on.
            macro_rules! dot {
                ($codes:expr, $d:expr, $parity:expr) => {
                    let q = a.queries.add(parts.word($d, row, 0)).cast::<i32>();
                    for r in 0..R {
                        for term in 0..TERMS {
                            let q = I::splat(q.add(r * TERMS + term).read());
                            // With more rows there are sums enough.
                            let parity = if R == 1 { $parity } else { 0 };
                            for v in 0..NV {
                                sum[r][term][parity][v] = sum[r][term][parity][v].dot($codes[v], q);
                            }
                        }
                    }
                };
            }
            let mut word = from;
            while word < words.min(from + per_scale) {
                // q8 has an even number of words, which go two by two.
                let step = if C::PER_WORD == 4 { 2 } else { 1 };
                for i in 0..step {
                    let mut x = [I::splat(0); NV];
                    for v in 0..NV {
                        let p = codes[v].add((word + i) * KEY_GROUP);
                        if FIRST && a.prefetch_offset != 0 && column(v).is_multiple_of(KEY_GROUP) {
                            prefetch::<false>(p.cast::<u8>().wrapping_offset(a.prefetch_offset), LINE);
                        }
                        x[v] = I::load(p);
                    }
                    if C::PER_WORD == 4 {
                        for v in 0..NV {
                            x[v] = x[v].bytes();
                        }
                        dot!(x, (word + i) * 4, i);
                    } else {
                        let mut halves = [x; 2];
                        for v in 0..NV {
                            [halves[0][v], halves[1][v]] = x[v].halves();
                        }
                        dot!(halves[0], word * 8, 0);
                        dot!(halves[1], word * 8 + 4, 1);
                    }
                }
                word += step;
            }
            for v in 0..NV {
                let scale = I::F::load_bf16(block.cast::<u16>().add(layout.scale(column(v), scale)));
                for r in 0..R {
                    let [high, low] = [0, 1].map(|term| sum[r][term][0][v].add(sum[r][term][1][v]).to_f32());
                    let x = high.fma(I::F::splat(256.0), low);
                    // The unit first: products overflow where those of f32 queries do.
                    let unit = I::F::splat(a.queries.add(parts.unit(row + r)).cast::<f32>().read());
                    total[r][v] = x.mul(unit).fma(scale, total[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..NV {
                total[r][v].store(a.scores.add((row + r) * a.stride + at + v * I::N));
            }
        }
    }
    NV * I::N
}

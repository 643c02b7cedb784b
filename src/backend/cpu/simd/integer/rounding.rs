//! Rounding to 16 bits, of queries and of probabilities times scales: what an instruction set may have its own way for.

use std::ops::Range;

use crate::backend::cpu::kv_layout::CODE_BLOCK;
use crate::config::{MAX_HEAD_DIM, Q4_GROUP};

/// Bytes of a query's dim or of a weight: the high and the low term of 16 bits.
pub(crate) const TERMS: usize = 2;
/// The largest integer of two terms. The high one is rounded, so that the low one is signed too.
pub(crate) const LIMIT: f32 = 32_639.0;
/// Magnitudes outside these bounds are left to f32: a unit or its inverse might not be a normal number.
pub(crate) const MAGNITUDES: Range<f32> = 1e-30..1e30;
/// The most columns of a row: sums of their products are exact in f32.
pub(crate) const COLUMNS: usize = 512;
/// 1.5 x 2^23: added to a small number, it leaves the nearest integer in the lowest bits. With half of the low byte's
/// range, the second byte is the high term, and the first is the low one but for its highest bit.
pub(crate) const ROUND: f32 = 12_582_912.0 + 128.0;

/// The most groups of dims that have scales of their own.
pub(crate) const MOST_GROUPS: usize = MAX_HEAD_DIM as usize / Q4_GROUP;
/// Bytes of the weights of one group of dims.
pub(crate) const GROUP_BYTES: usize = 2 * COLUMNS;

/// One row of probabilities, to be multiplied by the scales of each group of dims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// Probabilities of the row; 0 for columns that it does not see.
    pub probs: *const f32,
    /// Columns that have a probability, a multiple of 16.
    pub n: usize,
    /// Blocks that are multiplied.
    pub from: usize,
    pub to: usize,
    /// Block 0, which begins with `[group][CODE_BLOCK]` scales, and bytes from block to block.
    pub scales: *const u8,
    pub block_bytes: usize,
    pub groups: usize,
    /// `[group][COLUMNS]` products, those of a block in the order that the instruction set likes.
    pub products: *mut f32,
}

/// The products of some blocks, to be rounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    pub products: *const f32,
    pub from: usize,
    pub to: usize,
    pub groups: usize,
    /// Integers per unit, for each group.
    pub inverse: [f32; MOST_GROUPS],
    /// `[group][COLUMNS / 4][term][4]` bytes, the high term first.
    pub weights: *mut u8,
}

/// Products of probabilities and scales; 0 where the probability is 0, whatever the scale. Returns the largest
/// magnitude of each group as bits: as integers, NaN is above infinity, which is above every number.
///
/// # Safety
/// As [`Factors`].
#[inline(always)]
pub(crate) unsafe fn multiply(a: &Factors) -> [u32; MOST_GROUPS] {
    let mut most = [0; MOST_GROUPS];
    for block in a.from..a.to {
        let n = a.n.saturating_sub(block * CODE_BLOCK).min(CODE_BLOCK);
        // SAFETY: the first `n` columns of the block have a probability.
        let probs = unsafe { std::slice::from_raw_parts(a.probs.add(block * CODE_BLOCK), n) };
        for (group, most) in most.iter_mut().enumerate().take(a.groups) {
            // SAFETY: scales and products of the arguments.
            let (scales, products) = unsafe {
                (
                    &*a.scales.add(block * a.block_bytes).cast::<[u16; CODE_BLOCK]>().add(group),
                    &mut *a.products.add(group * COLUMNS + block * CODE_BLOCK).cast::<[f32; CODE_BLOCK]>(),
                )
            };
            for ((x, &p), &scale) in products.iter_mut().zip(probs).zip(scales) {
                let product = p * f32::from_bits(u32::from(scale) << 16);
                *x = if p == 0.0 { 0.0 } else { product };
                *most = (*most).max(x.to_bits() & !(1 << 31));
            }
            products[n..].fill(0.0);
        }
    }
    most
}

/// Rounds products to weights. Returns the sums of the terms of each group.
///
/// # Safety
/// As [`Rounding`].
#[inline(always)]
pub(crate) unsafe fn round(a: &Rounding) -> [[i32; 2]; MOST_GROUPS] {
    let mut sums = [[0; 2]; MOST_GROUPS];
    for (group, sums) in sums.iter_mut().enumerate().take(a.groups) {
        let columns = a.from * CODE_BLOCK..a.to * CODE_BLOCK;
        // SAFETY: products and weights of the arguments.
        let (products, weights) = unsafe {
            let products = a.products.add(group * COLUMNS + columns.start);
            let weights = a.weights.add(group * GROUP_BYTES + 2 * columns.start);
            (
                std::slice::from_raw_parts(products, columns.len()),
                std::slice::from_raw_parts_mut(weights, 2 * columns.len()),
            )
        };
        for (x, weights) in products.as_chunks::<4>().0.iter().zip(weights.as_chunks_mut::<8>().0) {
            let rounded = x.map(|x| (x * a.inverse[group] + ROUND).to_bits());
            let (high, low) = (rounded.map(|x| (x >> 8) as u8), rounded.map(|x| x as u8 ^ 0x80));
            let sum = |x: [u8; 4]| x.into_iter().map(|x| i32::from(x.cast_signed())).sum::<i32>();
            *sums = [sums[0] + sum(high), sums[1] + sum(low)];
            *weights = [high[0], high[1], high[2], high[3], low[0], low[1], low[2], low[3]];
        }
    }
    sums
}

/// One row of a query, to be rounded.
#[derive(Debug)]
pub(crate) struct QueryRounding<'a> {
    pub q: &'a [f32],
    /// Integers per unit.
    pub inverse: f32,
    /// Dims that are multiplied by one scale.
    pub group: usize,
    /// The row's words: bytes of four dims, those of the high term first.
    pub words: &'a mut [[u8; 8]; MAX_HEAD_DIM as usize / 4],
}

/// Rounds a query. Returns the sums of the terms of each group of dims.
#[inline(always)]
pub(crate) fn round_query(a: &mut QueryRounding<'_>) -> [[i32; TERMS]; MOST_GROUPS] {
    let mut sums = [[0; TERMS]; MOST_GROUPS];
    let parts = a.q.chunks(a.group).zip(a.words.chunks_mut(a.group / 4)).zip(&mut sums);
    for ((q, words), sums) in parts {
        for (x, word) in q.as_chunks::<4>().0.iter().zip(words) {
            let rounded = x.map(|x| (x * a.inverse + ROUND).to_bits());
            let (high, low) = (rounded.map(|x| (x >> 8) as u8), rounded.map(|x| x as u8 ^ 0x80));
            let sum = |x: [u8; 4]| x.into_iter().map(|x| i32::from(x.cast_signed())).sum::<i32>();
            *sums = [sums[0] + sum(high), sums[1] + sum(low)];
            *word = [high[0], high[1], high[2], high[3], low[0], low[1], low[2], low[3]];
        }
    }
    sums
}

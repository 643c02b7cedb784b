//! Attention of few rows: all of them at once over spans of keys as they are stored, each read once.

use std::ops::Range;

use super::scratch::{BLOCK, SPAN, Scratch};
use super::simd::kernels::{Row, Scores, Sums};
use super::simd::Kernels;
use super::store::{GROUP, Slots, padded_dim};
use super::tile::{Block, Sight, Tile};

/// The softmax of one span.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// `[rows]`.
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[rows][head_dim_v]`, padded.
    pub acc: &'a mut [f32],
}

/// Computes the softmax of one span for the loaded rows of a tile, into scratch's `part` fields.
pub(super) fn span(tile: &Tile<'_>, slots: &Slots<'_>, block: &Block, kernels: &Kernels, scratch: &mut Scratch<'_>) {
    let (shape, layer, rows) = (tile.job.shape, tile.job.layer, tile.rows);
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let n = block.hi.next_multiple_of(GROUP);
    let (k, v) = slots.read(tile.head, block.slot, n as u64);
    let q = if block.sinks { scratch.q_sink.as_ptr() } else { scratch.q.as_ptr() };
    let mut scores =
        Scores { q, q_stride: dim, rows, k, dim, groups: n / GROUP, scores: scratch.scores.as_mut_ptr(), stride: SPAN };
    debug_assert!(scratch.scores.len() >= rows * SPAN && scratch.q.len() >= rows * dim && n <= SPAN);
    // SAFETY: the rung is available; whole groups of this head, whose append is over; rows and columns that scratch has.
    unsafe {
        match kernels.scores {
            Some(f) => f(&scores),
            None => {
                for at in (0..n).step_by(BLOCK) {
                    scores.groups = (n - at).min(BLOCK) / GROUP;
                    let bytes = at * dim * shape.kv_dtype.size();
                    (kernels.pack_keys)(k.add(bytes), dim, scores.groups, scratch.k.as_mut_ptr());
                    scores.k = scratch.k.as_ptr().cast();
                    scores.scores = scratch.scores.as_mut_ptr().add(at);
                    (kernels.scores_packed)(&scores);
                }
            }
        }
    }
    let (mut from, mut to) = (usize::MAX, 0);
    for r in 0..rows {
        let sight = scratch.sights[r];
        let seen = block.columns(&layer.ring, sight);
        if !seen.is_empty() {
            (from, to) = (from.min(seen.start), to.max(seen.end));
        }
        scratch.part_max[r] = f32::NEG_INFINITY;
        scratch.part_sum[r] = 0.0;
        let state = (&mut scratch.part_max[r], &mut scratch.part_sum[r]);
        let scores = scratch.scores[r * SPAN..].as_mut_ptr();
        weigh(tile, block, (r, sight), seen, scores, n, kernels, state);
    }
    scratch.part[..rows * dim_v].fill(0.0);
    if from >= to {
        return;
    }
    scratch.keep[..rows].fill(0.0);
    let all = Sums {
        weights: scratch.scores.as_ptr(),
        stride: SPAN,
        rows,
        v,
        dim: dim_v,
        from,
        to,
        acc: scratch.part.as_mut_ptr(),
        keep: scratch.keep.as_ptr(),
    };
    // SAFETY: as above.
    unsafe {
        let seen = |r: usize| block.columns(&layer.ring, scratch.sights[r]);
        if (0..rows).all(|r| seen(r) == (from..to)) {
            return (kernels.sums)(&all);
        }
        // Rows see different keys: a weight of zero would let an infinity in.
        (0..rows).for_each(|r| sum_row(r, seen(r), &all, kernels));
    }
}

/// Turns row `r` of scores, `n` wide, of which it sees the columns `seen`, into weights; returns what earlier sums are worth
/// now.
#[expect(clippy::too_many_arguments, reason = "which scores, and with what")]
pub(super) fn weigh(
    tile: &Tile<'_>,
    block: &Block,
    (r, sight): (usize, Sight),
    seen: Range<usize>,
    scores: *mut f32,
    n: usize,
    kernels: &Kernels,
    (max, sum): (&mut f32, &mut f32),
) -> f32 {
    let layer = tile.job.layer;
    let (mut slope, mut distance) = (0.0, 0);
    if !layer.alibi_slopes.is_empty() && !seen.is_empty() {
        slope = layer.alibi_slopes[tile.q_head(r)];
        distance = sight.distance(block.sinks, block.token(seen.end - 1));
    }
    let row = Row {
        scores,
        n,
        from: seen.start,
        to: seen.end,
        scale: layer.scale,
        softcap: layer.softcap,
        slope,
        distance: distance as f32,
    };
    // SAFETY: the rung is available; the caller's scores.
    unsafe { (kernels.weigh)(&row, max, sum) }
}

/// Adds what row `r` alone sees.
///
/// # Safety
/// `all` must hold for all rows.
pub(super) unsafe fn sum_row(r: usize, seen: Range<usize>, all: &Sums, kernels: &Kernels) {
    // SAFETY: the caller's contract; the rung is available.
    unsafe {
        (kernels.sums)(&Sums {
            weights: all.weights.add(r * all.stride),
            rows: 1,
            from: seen.start,
            to: seen.end,
            acc: all.acc.add(r * all.dim),
            keep: all.keep.add(r),
            ..*all
        });
    }
}

/// Adds the softmax of a span to that of the spans before it.
pub(super) fn merge(rows: usize, dim: usize, state: &mut Part<'_>, part: &Part<'_>) {
    for r in 0..rows {
        let (max, part_max) = (state.max[r], part.max[r]);
        let new = max.max(part_max);
        // Nothing with a weight, and no maximum to subtract. A NaN must show.
        if part_max == f32::NEG_INFINITY && part.sum[r] == 0.0 {
            continue;
        }
        let (keep, take) = ((max - new).exp(), (part_max - new).exp());
        state.max[r] = new;
        state.sum[r] = state.sum[r] * keep + part.sum[r] * take;
        let acc = &mut state.acc[r * dim..(r + 1) * dim];
        acc.iter_mut().zip(&part.acc[r * dim..]).for_each(|(a, p)| *a = *a * keep + p * take);
    }
}

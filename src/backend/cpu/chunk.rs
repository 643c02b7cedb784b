//! Attention of many rows: tiles of them over blocks of keys that are packed once per tile, FlashAttention-style.

use super::decode::{sum_row, weigh};
use super::scratch::{BLOCK, Scratch};
use super::simd::Kernels;
use super::simd::kernels::{Scores, Sums};
use super::store::{GROUP, Slots, padded_dim};
use super::tile::{Block, Tile};

/// Rows of a tile: keys and values are packed once for them.
pub(super) const ROWS: usize = 96;
/// Rows that are scored together, a multiple of the six that kernels take at once.
pub(super) const SUB: usize = 48;

/// Computes the loaded rows of a tile.
pub(super) fn tile(tile: &Tile<'_>, slots: &Slots<'_>, kernels: &Kernels, scratch: &mut Scratch<'_>) {
    for block in tile.blocks(BLOCK as u64) {
        add_block(tile, slots, &block, kernels, scratch);
    }
}

/// Adds one block to the softmax of every row that sees some of it.
pub(super) fn add_block(
    tile: &Tile<'_>,
    slots: &Slots<'_>,
    block: &Block,
    kernels: &Kernels,
    scratch: &mut Scratch<'_>,
) {
    let shape = tile.job.shape;
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let n = block.hi.next_multiple_of(GROUP);
    let (k, v) = slots.read(tile.head, block.slot, n as u64);
    // SAFETY: the rung is available; whole groups of this head, whose append is over; a block that scratch has room for.
    unsafe {
        (kernels.pack_keys)(k, dim, n / GROUP, scratch.k.as_mut_ptr());
        (kernels.pack_values)(v, dim_v, (block.lo, block.hi, n), scratch.v.as_mut_ptr());
    }
    // Where some rows see a key and others do not, a weight of zero would let an infinity in.
    let all_seen = tile.sees_all(block);
    let apart = !all_seen && !scratch.v[..n * dim_v].iter().all(|x| x.is_finite());
    for first in (0..tile.rows).step_by(SUB) {
        let rows = tile.part(first, SUB);
        if !all_seen && !rows.sees_any(block) {
            continue;
        }
        let q = if block.sinks { &scratch.q_sink } else { &scratch.q };
        let scores = Scores {
            q: q[first * dim..].as_ptr(),
            q_stride: dim,
            rows: rows.rows,
            k: scratch.k.as_ptr().cast(),
            dim,
            groups: n / GROUP,
            scores: scratch.scores.as_mut_ptr(),
            stride: BLOCK,
        };
        // SAFETY: as above.
        unsafe { (kernels.scores_packed)(&scores) };
        for r in 0..rows.rows {
            let state = (&mut scratch.max[first + r], &mut scratch.sum[first + r]);
            let sight = scratch.sights[first + r];
            let seen = if all_seen { block.lo..block.hi } else { block.columns(&tile.job.layer.ring, sight) };
            let scores = scratch.scores[r * BLOCK..].as_mut_ptr();
            scratch.keep[r] = weigh(&rows, block, (r, sight), seen, scores, n, kernels, state);
        }
        let all = Sums {
            weights: scratch.scores.as_ptr(),
            stride: BLOCK,
            rows: rows.rows,
            v: scratch.v.as_ptr().cast(),
            dim: dim_v,
            from: block.lo,
            to: block.hi,
            acc: scratch.acc[first * dim_v..].as_mut_ptr(),
            keep: scratch.keep.as_ptr(),
        };
        // SAFETY: as above.
        unsafe {
            if apart {
                let seen = |r: usize| block.columns(&tile.job.layer.ring, scratch.sights[first + r]);
                (0..rows.rows).for_each(|r| sum_row(r, seen(r), &Sums { v, ..all }, kernels));
            } else {
                (kernels.sums_packed)(&all);
            }
        }
    }
}

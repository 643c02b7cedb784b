//! Attention of few rows: all of them at once over spans of keys as they are stored, each read once.

use super::kv_layout::{GROUP, PAD, padded_dim};
use super::kv_store::Slots;
use super::query_tile::Tile;
use super::scratch::{BLOCK, SPAN, Scratch};
use super::simd::Kernels;
use super::simd::gemm::{Scores, Sums};
use super::simd::softmax::Weights;
use super::simd::sum_rows;
use super::visibility::Block;
use crate::config::DType;

/// Keys that are fetched before they are read, a multiple of the four groups that kernels take at once. Processors fetch by
/// themselves, but no further than the page they are in: two pages ahead, which these are with 64 dims, memory is
/// read up to twice as fast.
const AHEAD: usize = 64;
/// Most rows that this is done for. More have so much to do for each key that memory is not what they wait for.
const FETCHING: usize = 6;

/// Computes the softmax of one span for the loaded rows of a tile, into scratch's `part` fields. Keys are fetched ahead, and at their end
/// values, and at the end of these the keys of the block that comes `next`.
pub(super) fn span(
    tile: &Tile<'_>,
    slots: &Slots<'_>,
    (block, next): (&Block, Option<&Block>),
    kernels: &Kernels,
    scratch: &mut Scratch<'_>,
) {
    let (shape, layer, rows) = (tile.job.shape, tile.job.layer, tile.rows);
    let size = shape.kv_dtype.size();
    let fetches = cfg!(target_arch = "x86_64") && rows <= FETCHING && shape.kv_dtype != DType::F32;
    let ahead = if fetches { AHEAD } else { 0 };
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let n = block.hi.next_multiple_of(GROUP);
    let (k, v) = slots.read(tile.head, block.slot, n as u64);
    let q = if block.sinks { scratch.q_sink.as_ptr() } else { scratch.q.as_ptr() };
    let scores = |k: *const u8, from: usize, to: usize, out: *mut f32, ahead: isize| Scores {
        q,
        q_stride: dim,
        rows,
        k,
        dim,
        groups: (to - from) / GROUP,
        scores: out.wrapping_add(from),
        stride: SPAN,
        ahead,
    };
    debug_assert!(scratch.scores.len() >= rows * SPAN && scratch.q.len() >= rows * dim && n <= SPAN);
    // SAFETY: the instruction set is available; whole groups of this head, whose append is over; rows and columns that scratch has.
    unsafe {
        match kernels.scores {
            Some(f) => {
                let last = n.saturating_sub(ahead);
                let tail = k.add(last * dim * size);
                f(&scores(k, 0, last, scratch.scores.as_mut_ptr(), (ahead * dim * size) as isize));
                f(&scores(tail, last, n, scratch.scores.as_mut_ptr(), distance(tail, v)));
            }
            None => {
                for at in (0..n).step_by(BLOCK) {
                    let end = n.min(at + BLOCK);
                    (kernels.pack_keys)(k.add(at * dim * size), dim, (end - at) / GROUP, scratch.k.as_mut_ptr());
                    let packed = scratch.k.as_ptr().cast();
                    (kernels.scores_packed)(&scores(packed, at, end, scratch.scores.as_mut_ptr(), 0));
                }
            }
        }
    }
    tile.look(block, &scratch.sights[..rows], &mut scratch.seen);
    scratch.part_max[..rows].fill(f32::NEG_INFINITY);
    scratch.part_sum[..rows].fill(0.0);
    // SAFETY: as above.
    unsafe {
        (kernels.weigh)(&Weights {
            scores: scratch.scores.as_mut_ptr(),
            stride: SPAN,
            n,
            rows,
            seen: scratch.seen.as_ptr(),
            scale: layer.scale,
            softcap: layer.softcap,
            max: scratch.part_max.as_mut_ptr(),
            sum: scratch.part_sum.as_mut_ptr(),
            keep: scratch.keep.as_mut_ptr(),
        });
    }
    let seen = scratch.seen[..rows].iter().filter(|s| s.from < s.to);
    let (from, to) = seen.fold((usize::MAX, 0), |(from, to), s| (from.min(s.from), to.max(s.to)));
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
        ahead: 0,
    };
    // SAFETY: as above.
    unsafe {
        let seen = &scratch.seen[..rows];
        if seen.iter().all(|s| (s.from, s.to) == (from, to)) {
            if ahead == 0 {
                return (kernels.sums)(&all);
            }
            // A whole tile of bf16 begins there, as does what its address is computed by.
            let last = (to.saturating_sub(ahead) / PAD as usize * PAD as usize).max(from);
            (kernels.sums)(&Sums { to: last, ahead: (ahead * dim_v * size) as isize, ..all });
            scratch.keep[..rows].fill(1.0);
            let next = next.map(|next| slots.read(tile.head, next.slot, GROUP as u64).0);
            let tail = v.add(last * dim_v * size);
            return (kernels.sums)(&Sums {
                from: last,
                keep: scratch.keep.as_ptr(),
                ahead: next.map_or(0, |next| distance(tail, next)),
                ..all
            });
        }
        // Rows see different keys: a weight of zero would let an infinity in.
        sum_rows(&all, seen, kernels);
    }
}

/// Bytes between two allocations, for hints alone.
fn distance(from: *const u8, to: *const u8) -> isize {
    (to.addr() as isize).wrapping_sub(from.addr() as isize)
}

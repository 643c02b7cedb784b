//! Attention of few rows: all of them at once over spans of keys as they are stored, each read once.

use super::kv_layout::{KEY_GROUP, SLOT_ALIGN, padded_dim};
use super::kv_store::Slots;
use super::query_tile::QueryTile;
use super::scratch::{KEY_BLOCK, SPLIT_KEYS, Scratch};
use super::simd::Kernels;
use super::simd::gemm::{PvArgs, QkArgs};
use super::simd::pv_rows;
use super::simd::softmax::SoftmaxArgs;
use super::visibility::Block;
use crate::config::DType;

/// Keys that are fetched before they are read, a multiple of the four groups that kernels take at once. Processors fetch by
/// themselves, but no further than the page they are in: two pages ahead, which these are with 64 dims, memory is
/// read up to twice as fast.
const PREFETCH_KEYS: usize = 64;
/// Most rows that this is done for. More have so much to do for each key that memory is not what they wait for.
const PREFETCH_MAX_ROWS: usize = 6;

/// Computes the softmax of one span for the loaded rows of a tile, into scratch's `part` fields. Keys are fetched ahead, and at their end
/// values, and at the end of these the keys of the block that comes `next`.
pub(super) fn split(
    tile: &QueryTile<'_>,
    slots: &Slots<'_>,
    (block, next): (&Block, Option<&Block>),
    kernels: &Kernels,
    scratch: &mut Scratch<'_>,
) {
    let (shape, layer, rows) = (tile.job.shape, tile.job.layer, tile.rows);
    let size = shape.kv_dtype.size();
    let prefetches = cfg!(target_arch = "x86_64") && rows <= PREFETCH_MAX_ROWS && shape.kv_dtype != DType::F32;
    let prefetch_offset = if prefetches { PREFETCH_KEYS } else { 0 };
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let n = block.hi.next_multiple_of(KEY_GROUP);
    let (k, v) = slots.read(tile.head, block.slot, n as u64);
    let q = if block.sinks { scratch.q_sink.as_ptr() } else { scratch.q.as_ptr() };
    let scores = |k: *const u8, from: usize, to: usize, out: *mut f32, prefetch_offset: isize| QkArgs {
        q,
        q_stride: dim,
        rows,
        k,
        dim,
        groups: (to - from) / KEY_GROUP,
        scores: out.wrapping_add(from),
        stride: SPLIT_KEYS,
        prefetch_offset,
    };
    debug_assert!(scratch.scores.len() >= rows * SPLIT_KEYS && scratch.q.len() >= rows * dim && n <= SPLIT_KEYS);
    // SAFETY: the instruction set is available; whole groups of this head, whose append is over; rows and columns that scratch has.
    unsafe {
        match kernels.qk {
            Some(f) => {
                let last = n.saturating_sub(prefetch_offset);
                let tail = k.add(last * dim * size);
                f(&scores(k, 0, last, scratch.scores.as_mut_ptr(), (prefetch_offset * dim * size) as isize));
                f(&scores(tail, last, n, scratch.scores.as_mut_ptr(), distance(tail, v)));
            }
            None => {
                for at in (0..n).step_by(KEY_BLOCK) {
                    let end = n.min(at + KEY_BLOCK);
                    (kernels.pack_keys)(k.add(at * dim * size), dim, (end - at) / KEY_GROUP, scratch.k.as_mut_ptr());
                    let packed = scratch.k.as_ptr().cast();
                    (kernels.qk_packed)(&scores(packed, at, end, scratch.scores.as_mut_ptr(), 0));
                }
            }
        }
    }
    tile.visible_columns(block, &scratch.ranges[..rows], &mut scratch.visible);
    scratch.partial_max[..rows].fill(f32::NEG_INFINITY);
    scratch.partial_sum[..rows].fill(0.0);
    // SAFETY: as above.
    unsafe {
        (kernels.softmax)(&SoftmaxArgs {
            scores: scratch.scores.as_mut_ptr(),
            stride: SPLIT_KEYS,
            n,
            rows,
            visible: scratch.visible.as_ptr(),
            scale: layer.scale,
            softcap: layer.softcap,
            max: scratch.partial_max.as_mut_ptr(),
            sum: scratch.partial_sum.as_mut_ptr(),
            alpha: scratch.alpha.as_mut_ptr(),
        });
    }
    let visible = scratch.visible[..rows].iter().filter(|s| s.from < s.to);
    let (from, to) = visible.fold((usize::MAX, 0), |(from, to), s| (from.min(s.from), to.max(s.to)));
    scratch.part[..rows * dim_v].fill(0.0);
    if from >= to {
        return;
    }
    scratch.alpha[..rows].fill(0.0);
    let all = PvArgs {
        probs: scratch.scores.as_ptr(),
        stride: SPLIT_KEYS,
        rows,
        v,
        dim: dim_v,
        from,
        to,
        acc: scratch.part.as_mut_ptr(),
        alpha: scratch.alpha.as_ptr(),
        prefetch_offset: 0,
    };
    // SAFETY: as above.
    unsafe {
        let visible = &scratch.visible[..rows];
        if visible.iter().all(|s| (s.from, s.to) == (from, to)) {
            if prefetch_offset == 0 {
                return (kernels.pv)(&all);
            }
            // A whole tile of bf16 begins there, as does what its address is computed by.
            let last = (to.saturating_sub(prefetch_offset) / SLOT_ALIGN as usize * SLOT_ALIGN as usize).max(from);
            (kernels.pv)(&PvArgs { to: last, prefetch_offset: (prefetch_offset * dim_v * size) as isize, ..all });
            scratch.alpha[..rows].fill(1.0);
            let next = next.map(|next| slots.read(tile.head, next.slot, KEY_GROUP as u64).0);
            let tail = v.add(last * dim_v * size);
            return (kernels.pv)(&PvArgs {
                from: last,
                alpha: scratch.alpha.as_ptr(),
                prefetch_offset: next.map_or(0, |next| distance(tail, next)),
                ..all
            });
        }
        // Rows see different keys: a weight of zero would let an infinity in.
        pv_rows(&all, visible, kernels);
    }
}

/// Bytes between two allocations, for hints alone.
fn distance(from: *const u8, to: *const u8) -> isize {
    (to.addr() as isize).wrapping_sub(from.addr() as isize)
}

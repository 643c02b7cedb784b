//! Attention of many rows: tiles of them over blocks of keys that are packed once per tile, FlashAttention-style.

use crate::backend::cpu::kv_layout::{KEY_GROUP, SLOT_ALIGN, padded_dim};
use crate::backend::cpu::kv_store::Slots;
use crate::backend::cpu::query_tile::QueryTile;
use crate::backend::cpu::scratch::{KEY_BLOCK, SCORE_STRIDE, SUBTILE_ROWS, Scratch};
use crate::backend::cpu::simd::Kernels;
use crate::backend::cpu::simd::gemm::{PvArgs, QkArgs};
use crate::backend::cpu::simd::pv_rows;
use crate::backend::cpu::simd::softmax::{ColumnRange, SoftmaxArgs};
use crate::backend::cpu::visibility::Block;

/// Computes the loaded rows of a tile: a block is added by `other`, or in f32 where that says false and has done nothing.
pub(crate) fn tile<'s>(
    tile: &QueryTile<'_>,
    slots: &Slots<'_>,
    kernels: &Kernels,
    scratch: &mut Scratch<'s>,
    other: impl Fn(&Block, &mut Scratch<'s>) -> bool,
) {
    for block in tile.blocks(KEY_BLOCK as u64) {
        if !other(&block, scratch) {
            add_block(tile, slots, &block, kernels, scratch);
        }
    }
}

/// Adds one block to the softmax of every row that sees some of it.
fn add_block(tile: &QueryTile<'_>, slots: &Slots<'_>, block: &Block, kernels: &Kernels, scratch: &mut Scratch<'_>) {
    let shape = tile.job.shape;
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let n = block.hi.next_multiple_of(KEY_GROUP);
    let (k, v) = slots.read(tile.head, block.slot, n as u64);
    // SAFETY: the instruction set is available; whole groups of this head, whose append is over; a block that scratch has room for.
    let finite = unsafe {
        (kernels.pack_keys)(k, dim, n / KEY_GROUP, scratch.k.as_mut_ptr());
        (kernels.pack_values)(v, dim_v, (block.lo, block.hi, n), scratch.v.as_mut_ptr())
    };
    // Where some rows see a key and others do not, a weight of zero would let an infinity in.
    let all_visible = tile.all_visible(block);
    let separate = !all_visible && !finite;
    for first in (0..tile.rows).step_by(SUBTILE_ROWS) {
        let rows = tile.part(first, SUBTILE_ROWS);
        rows.visible_columns(block, &scratch.ranges[first..first + rows.rows], &mut scratch.visible);
        let Some((from, to)) = narrow(&mut scratch.visible[..rows.rows], KEY_GROUP) else { continue };
        let n = to - from;
        let q = if block.sinks { &scratch.q_sink } else { &scratch.q };
        let scores = QkArgs {
            q: q[first * dim..].as_ptr(),
            q_stride: dim,
            rows: rows.rows,
            k: scratch.k[from * dim..].as_ptr().cast(),
            dim,
            groups: n / KEY_GROUP,
            scores: scratch.scores.as_mut_ptr(),
            stride: SCORE_STRIDE,
            prefetch_offset: 0,
        };
        // SAFETY: as above.
        unsafe { (kernels.qk_packed)(&scores) };
        // SAFETY: as above.
        unsafe { (kernels.softmax)(&probs(&rows, first, n, scratch)) };
        let all = PvArgs {
            probs: scratch.scores.as_ptr(),
            stride: SCORE_STRIDE,
            rows: rows.rows,
            v: scratch.v[from * dim_v..].as_ptr().cast(),
            dim: dim_v,
            from: 0,
            to: n,
            acc: scratch.acc[first * dim_v..].as_mut_ptr(),
            alpha: scratch.alpha.as_ptr(),
            prefetch_offset: 0,
        };
        // SAFETY: as above.
        unsafe {
            if separate {
                pv_rows(
                    &PvArgs { v: v.add(from * dim_v * shape.kv_dtype.size()), ..all },
                    &scratch.visible[..rows.rows],
                    kernels,
                );
            } else {
                (kernels.pv_packed)(&all);
            }
        }
    }
}

/// The columns that any of some rows sees, from a multiple of [`SLOT_ALIGN`] to one of `end`; what each sees is from then on counted from
/// the first of them.
pub(crate) fn narrow(visible: &mut [ColumnRange], end: usize) -> Option<(usize, usize)> {
    let some = visible.iter().filter(|s| s.from < s.to);
    let (from, to) = some.fold((usize::MAX, 0), |(from, to), s| (from.min(s.from), to.max(s.to)));
    if from >= to {
        return None;
    }
    let (from, to) = (from - from % SLOT_ALIGN as usize, to.next_multiple_of(end));
    for s in visible.iter_mut() {
        (s.from, s.to) = if s.from < s.to { (s.from - from, s.to - from) } else { (0, 0) };
    }
    Some((from, to))
}

/// The scores of some rows of a tile, from `first` on, `n` columns of them.
pub(crate) fn probs(rows: &QueryTile<'_>, first: usize, n: usize, scratch: &mut Scratch<'_>) -> SoftmaxArgs {
    SoftmaxArgs {
        scores: scratch.scores.as_mut_ptr(),
        stride: SCORE_STRIDE,
        n,
        rows: rows.rows,
        visible: scratch.visible.as_ptr(),
        scale: rows.job.layer.scale,
        softcap: rows.job.layer.softcap,
        max: scratch.max[first..].as_mut_ptr(),
        sum: scratch.sum[first..].as_mut_ptr(),
        alpha: scratch.alpha.as_mut_ptr(),
    }
}

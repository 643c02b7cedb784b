//! Chunks with products in f32, for every instruction set: K and V are converted once per block.

use super::tile_loop::{ChunkKernel, ChunkTile, KeyBlock, Subtile};
use crate::backend::cpu::kv_layout::{KEY_GROUP, padded_dim};
use crate::backend::cpu::scratch::{SCORE_STRIDE, SUBTILE_ROWS, Scratch};
use crate::backend::cpu::segments::SegmentQuery;
use crate::backend::cpu::simd::gemm::QkArgs;

/// The chunk kernel in f32.
#[derive(Debug)]
pub(super) struct F32;

/// K and V of a block lie in scratch, as f32.
#[derive(Debug)]
pub(super) struct Packed {
    /// Values as they are stored.
    stored_v: *const u8,
    /// Whether each row must read only what it sees: a value is not finite, and 0 times infinity is NaN.
    separate: bool,
}

impl ChunkKernel for F32 {
    const ROWS: usize = SUBTILE_ROWS;
    const COLUMN_ALIGN: usize = KEY_GROUP;
    type Packed = Packed;
    type Softmax = ();

    fn pack(&self, chunk: &ChunkTile<'_>, block: &KeyBlock, scratch: &mut Scratch<'_>) -> Option<Packed> {
        let shape = chunk.tile.call.shape;
        let dim_v = padded_dim(shape.head_dim_v);
        // SAFETY: the kernels' instruction set is available; `Slots::read` has checked the slots, which nobody writes
        // while queries run; scratch has room for a block.
        let finite = unsafe {
            (chunk.kernels.pack_keys)(block.k, shape.head_dim, block.keys.n / KEY_GROUP, scratch.k.as_mut_ptr());
            (chunk.kernels.pack_values)(block.v, dim_v, block.keys, scratch.v.as_mut_ptr())
        };
        // mutant: infinity_reaches_masked_rows
        Some(Packed { stored_v: block.v, separate: !block.all_visible && !finite })
    }

    fn pack_turned(&self, _: &ChunkTile<'_>, _: usize, _: &mut Scratch<'_>) {}

    fn qk(&self, chunk: &ChunkTile<'_>, _: &Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        let dim = chunk.tile.call.shape.head_dim;
        let q = match sub.query {
            SegmentQuery::Window => &scratch.q[sub.first * dim..],
            SegmentQuery::Sinks => &scratch.q_sink[sub.first * dim..],
            SegmentQuery::Turned(_) => &*scratch.q_turned,
        };
        // SAFETY: the kernels' instruction set is available; the subtile's rows and columns lie in scratch.
        unsafe {
            (chunk.kernels.qk_packed)(&QkArgs {
                q: q.as_ptr(),
                q_stride: dim,
                rows: sub.rows.rows,
                k: scratch.k[sub.from * dim..].as_ptr().cast(),
                dim,
                first: 0,
                groups: sub.n / KEY_GROUP,
                scores: scratch.scores[sub.scores_at..].as_mut_ptr(),
                stride: SCORE_STRIDE,
                prefetch_offset: 0,
            });
        }
    }

    fn softmax(&self, chunk: &ChunkTile<'_>, _: &Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        // SAFETY: the kernels' instruction set is available; scores of the subtile lie in scratch.
        unsafe { (chunk.kernels.softmax)(&sub.softmax_args(scratch)) };
    }

    fn pv(&self, chunk: &ChunkTile<'_>, packed: &Packed, (): (), sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        let dim_v = padded_dim(chunk.tile.call.shape.head_dim_v);
        // SAFETY: the kernels' instruction set is available; the subtile's rows and columns lie in scratch and in the
        // block.
        unsafe {
            if packed.separate {
                sub.pv_separate(chunk, packed.stored_v, scratch);
            } else {
                let v = scratch.v[sub.from * dim_v..].as_ptr().cast();
                (chunk.kernels.pv_packed)(&sub.pv_args(v, scratch));
            }
        }
    }
}

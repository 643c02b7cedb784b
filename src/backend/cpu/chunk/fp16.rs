//! Chunks of stored bf16 with products in fp16, by AVX-512 FP16.
//!
//! Every operand is scaled first, so that fp16 neither overflows nor loses small numbers: a row of queries by its
//! largest number, a block of keys and one of values by a power of two. Products are scaled back as they become f32.

use super::tile_loop::{ChunkKernel, ChunkTile, KeyBlock, Subtile};
use crate::backend::cpu::kv_layout::{SLOT_ALIGN, padded_dim};
use crate::backend::cpu::query_tile::QueryTile;
use crate::backend::cpu::scratch::{KEY_BLOCK, SCORE_STRIDE, SUBTILE_ROWS, Scratch};
use crate::backend::cpu::segments::SegmentQuery;
use crate::backend::cpu::simd::fp16::gemm::{DEPTH, GemmArgs, gemm};
use crate::backend::cpu::simd::fp16::pack::{pack_keys, pack_rows, pack_values};
use crate::backend::cpu::simd::fp16::softmax::softmax_fp16;
use crate::config::{Shape, StorageType};

// Keys are packed in rows of `SCORE_STRIDE` fp16, where f32 has `KEY_BLOCK`.
const _: () = assert!(SLOT_ALIGN as usize == DEPTH && SCORE_STRIDE <= 2 * KEY_BLOCK);

/// Whether a cache's shape fits.
pub(super) fn fits(shape: &Shape) -> bool {
    [shape.k_type, shape.v_type] == [StorageType::Bf16; 2]
        && shape.head_dim.is_multiple_of(DEPTH)
        && shape.head_dim_v.is_multiple_of(DEPTH)
}

/// The chunk kernel by AVX-512 FP16.
#[derive(Debug)]
pub(super) struct Fp16;

/// A block of keys and values lies in scratch, scaled.
#[derive(Debug)]
pub(super) struct Packed {
    k: *const u16,
    v: *const u16,
    /// Inverses of the scales.
    k_unscale: f32,
    v_unscale: f32,
}

impl Fp16 {
    /// Packs the tile's queries. The scales of their rows go to scratch's `partial_max` and `partial_sum`, which only
    /// decodes use.
    ///
    /// # Safety
    /// AVX-512 and AVX-512 FP16 must be available: the methods rely on them.
    pub unsafe fn new(tile: &QueryTile<'_>, scratch: &mut Scratch<'_>) -> Self {
        let (rows, dim) = (tile.rows, tile.call.shape.head_dim);
        assert!(scratch.q_packed.len() >= rows * dim && scratch.q.len() >= rows * dim);
        // SAFETY: the instruction set is available, by the caller; the assertion has checked scratch.
        unsafe {
            let packed = scratch.q_packed.as_mut_ptr().cast();
            pack_rows(scratch.q.as_ptr(), (rows, dim), scratch.partial_max, packed);
            let packed = scratch.q_sink_packed.as_mut_ptr().cast();
            pack_rows(scratch.q_sink.as_ptr(), (rows, dim), scratch.partial_sum, packed);
        }
        Self
    }
}

impl ChunkKernel for Fp16 {
    const ROWS: usize = SUBTILE_ROWS;
    const COLUMN_ALIGN: usize = DEPTH;
    type Packed = Packed;
    /// `exp(block maximum - running maximum)` of each row: probabilities are relative to the block's maximum.
    type Softmax = [f32; SUBTILE_ROWS];

    /// `None` where a visible number is 2^13 or more, or not finite.
    fn pack(&self, chunk: &ChunkTile<'_>, block: &KeyBlock, scratch: &mut Scratch<'_>) -> Option<Packed> {
        let shape = chunk.tile.call.shape;
        let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
        let (k, v) = (scratch.k.as_mut_ptr().cast::<u16>(), scratch.v.as_mut_ptr().cast::<u16>());
        // SAFETY: the instruction set is available; `Slots::read` has checked the slots, which nobody writes while
        // queries run; scratch has room for a block.
        let (k_unscale, v_unscale) = unsafe {
            let keys = pack_keys(block.k, dim, block.keys, SCORE_STRIDE, k);
            (keys?, pack_values(block.v, dim_v, block.keys, v)?)
        };
        Some(Packed { k, v, k_unscale, v_unscale })
    }

    fn pack_turned(&self, chunk: &ChunkTile<'_>, rows: usize, scratch: &mut Scratch<'_>) {
        let dim = chunk.tile.call.shape.head_dim;
        assert!(scratch.q_turned_packed.len() >= rows * dim && scratch.q_turned.len() >= rows * dim);
        let packed = scratch.q_turned_packed.as_mut_ptr().cast();
        // SAFETY: the instruction set is available; the assertion has checked scratch.
        unsafe { pack_rows(scratch.q_turned.as_ptr(), (rows, dim), scratch.turned_scale, packed) };
    }

    fn qk(&self, _: &ChunkTile<'_>, packed: &Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        let dim = sub.rows.call.shape.head_dim;
        let (q, scales) = match sub.query {
            SegmentQuery::Window => (&scratch.q_packed[sub.first * dim..], &scratch.partial_max[sub.first..]),
            SegmentQuery::Sinks => (&scratch.q_sink_packed[sub.first * dim..], &scratch.partial_sum[sub.first..]),
            SegmentQuery::Turned(_) => (&*scratch.q_turned_packed, &*scratch.turned_scale),
        };
        let mut alpha = [0.0; SUBTILE_ROWS];
        alpha.iter_mut().zip(scales).for_each(|(alpha, scale)| *alpha = scale * packed.k_unscale);
        // SAFETY: the instruction set is available; the subtile's rows and columns lie in scratch.
        unsafe {
            gemm(&GemmArgs {
                m: sub.rows.rows,
                n: sub.n,
                k: dim,
                a: q.as_ptr().cast(),
                lda: dim,
                b: packed.k.wrapping_add(sub.from),
                ldb: SCORE_STRIDE,
                c: scratch.scores[sub.scores_at..].as_mut_ptr(),
                ldc: SCORE_STRIDE,
                alpha: alpha.as_ptr(),
                beta: std::ptr::null(),
            });
        }
    }

    fn softmax(
        &self,
        _: &ChunkTile<'_>,
        _: &Packed,
        sub: &Subtile<'_>,
        scratch: &mut Scratch<'_>,
    ) -> [f32; SUBTILE_ROWS] {
        let mut block_scale = [0.0; SUBTILE_ROWS];
        let args = sub.softmax_args(scratch);
        // SAFETY: the instruction set is available; scratch holds the subtile's scores and probabilities.
        unsafe { softmax_fp16(&args, scratch.probs.as_mut_ptr().cast(), &mut block_scale) };
        block_scale
    }

    fn pv(
        &self,
        _: &ChunkTile<'_>,
        packed: &Packed,
        block_scale: [f32; SUBTILE_ROWS],
        sub: &Subtile<'_>,
        scratch: &mut Scratch<'_>,
    ) {
        let dim_v = padded_dim(sub.rows.call.shape.head_dim_v);
        let alpha = block_scale.map(|scale| scale * packed.v_unscale);
        // SAFETY: the instruction set is available; the subtile's rows and columns lie in scratch.
        unsafe {
            gemm(&GemmArgs {
                m: sub.rows.rows,
                n: dim_v,
                k: sub.n,
                a: scratch.probs.as_ptr().cast(),
                lda: SCORE_STRIDE,
                b: packed.v.wrapping_add(sub.from * dim_v),
                ldb: dim_v,
                c: scratch.acc[sub.first * dim_v..].as_mut_ptr(),
                ldc: dim_v,
                alpha: alpha.as_ptr(),
                beta: scratch.alpha.as_ptr(),
            });
        }
    }
}

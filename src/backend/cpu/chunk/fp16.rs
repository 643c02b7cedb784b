//! Attention of many rows in bf16 by AVX-512 FP16: as in `chunk.rs`, with products of halves.

use super::f32;
use crate::backend::cpu::kv_layout::{SLOT_ALIGN, padded_dim};
use crate::backend::cpu::kv_store::Slots;
use crate::backend::cpu::query_tile::QueryTile;
use crate::backend::cpu::scratch::{KEY_BLOCK, SCORE_STRIDE, SUBTILE_ROWS, Scratch};
use crate::backend::cpu::simd::Kernels;
use crate::backend::cpu::simd::fp16::gemm::{DEPTH, GemmArgs, multiply};
use crate::backend::cpu::simd::fp16::pack::{pack_keys, pack_rows, pack_values};
use crate::backend::cpu::simd::fp16::softmax::softmax_fp16;
use crate::backend::cpu::visibility::Block;
use crate::config::{DType, Shape};

// Keys are packed in rows of `SCORE_STRIDE` halves, where f32 has `KEY_BLOCK`.
const _: () = assert!(SLOT_ALIGN as usize == DEPTH && SCORE_STRIDE <= 2 * KEY_BLOCK);

/// Whether a cache's shape fits.
pub(crate) fn fits(shape: &Shape) -> bool {
    shape.kv_dtype == DType::Bf16 && shape.head_dim.is_multiple_of(DEPTH) && shape.head_dim_v.is_multiple_of(DEPTH)
}

/// Computes the loaded rows of a tile.
pub(crate) fn tile(tile: &QueryTile<'_>, slots: &Slots<'_>, kernels: &Kernels, scratch: &mut Scratch<'_>) {
    let dim = tile.job.shape.head_dim;
    assert!(scratch.q_packed.len() >= tile.rows * dim && scratch.q.len() >= tile.rows * dim);
    // SAFETY: the instructions are there; rows of scratch. The fields of a decode's span hold the scales.
    unsafe {
        let q_packed = scratch.q_packed.as_mut_ptr().cast();
        pack_rows(scratch.q.as_ptr(), (tile.rows, dim), scratch.partial_max, q_packed);
        let q_sink_packed = scratch.q_sink_packed.as_mut_ptr().cast();
        pack_rows(scratch.q_sink.as_ptr(), (tile.rows, dim), scratch.partial_sum, q_sink_packed);
    }
    f32::tile(tile, slots, kernels, scratch, |block, scratch| add_block(tile, slots, block, scratch));
}

/// Adds one block to the softmax of every row that sees some of it; false, and nothing done, if a number is too large or not finite.
fn add_block(tile: &QueryTile<'_>, slots: &Slots<'_>, block: &Block, scratch: &mut Scratch<'_>) -> bool {
    let shape = tile.job.shape;
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let n = block.hi.next_multiple_of(DEPTH);
    let (stored_k, stored_v) = slots.read(tile.head, block.slot, n as u64);
    let (k, v) = (scratch.k.as_mut_ptr().cast::<u16>(), scratch.v.as_mut_ptr().cast::<u16>());
    let keys = (block.lo, block.hi, n);
    // SAFETY: the instructions are there; whole groups of this head, whose append is over; a block that scratch has room for.
    let packed = unsafe { (pack_keys(stored_k, dim, keys, SCORE_STRIDE, k), pack_values(stored_v, dim_v, keys, v)) };
    let (Some(back_k), Some(back_v)) = packed else { return false };
    for first in (0..tile.rows).step_by(SUBTILE_ROWS) {
        let rows = tile.part(first, SUBTILE_ROWS);
        rows.visible_columns(block, &scratch.ranges[first..first + rows.rows], &mut scratch.visible);
        let Some((from, to)) = f32::narrow(&mut scratch.visible[..rows.rows], DEPTH) else { continue };
        let n = to - from;
        let softmax = f32::probs(&rows, first, n, scratch);
        let (q, row_maxima) = if block.sinks {
            (&*scratch.q_sink_packed, &*scratch.partial_sum)
        } else {
            (&*scratch.q_packed, &*scratch.partial_max)
        };
        let mut scales = [0.0; SUBTILE_ROWS];
        scales.iter_mut().zip(&row_maxima[first..]).for_each(|(scale, row_max)| *scale = row_max * back_k);
        let scores = GemmArgs {
            rows_at: q[first * dim..].as_ptr().cast(),
            row_stride: dim,
            rows: rows.rows,
            depth: dim,
            columns_at: k.wrapping_add(from),
            columns: n,
            step: SCORE_STRIDE,
            out: softmax.scores,
            stride: SCORE_STRIDE,
            scales: scales.as_ptr(),
            alpha: std::ptr::null(),
        };
        let probs = scratch.probs.as_mut_ptr().cast::<u32>();
        // SAFETY: as above; rows and columns that scratch has.
        unsafe {
            multiply(&scores);
            softmax_fp16(&softmax, probs, &mut scales);
            scales.iter_mut().for_each(|scale| *scale *= back_v);
            multiply(&GemmArgs {
                rows_at: probs,
                row_stride: SCORE_STRIDE,
                rows: rows.rows,
                depth: n,
                columns_at: v.wrapping_add(from * dim_v),
                columns: dim_v,
                step: dim_v,
                out: scratch.acc[first * dim_v..].as_mut_ptr(),
                stride: dim_v,
                scales: scales.as_ptr(),
                alpha: scratch.alpha.as_ptr(),
            });
        }
    }
    true
}

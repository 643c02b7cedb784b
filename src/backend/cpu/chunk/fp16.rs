//! Attention of many rows in bf16 by AVX-512 FP16: as in `chunk.rs`, with products of halves.

use super::f32;
use crate::backend::cpu::kv_layout::{PAD, padded_dim};
use crate::backend::cpu::kv_store::Slots;
use crate::backend::cpu::query_tile::Tile;
use crate::backend::cpu::scratch::{BLOCK, STRIDE, SUB, Scratch};
use crate::backend::cpu::simd::Kernels;
use crate::backend::cpu::simd::fp16::gemm::{DEPTH, Product, multiply};
use crate::backend::cpu::simd::fp16::pack::{pack_keys, pack_rows, pack_values};
use crate::backend::cpu::simd::fp16::softmax::weigh_halves;
use crate::backend::cpu::visibility::Block;
use crate::config::{DType, Shape};

// Keys are packed in rows of `STRIDE` halves, where f32 has `BLOCK`.
const _: () = assert!(PAD as usize == DEPTH && STRIDE <= 2 * BLOCK);

/// Whether a cache's shape fits.
pub(crate) fn fits(shape: &Shape) -> bool {
    shape.kv_dtype == DType::Bf16 && shape.head_dim.is_multiple_of(DEPTH) && shape.head_dim_v.is_multiple_of(DEPTH)
}

/// Computes the loaded rows of a tile.
pub(crate) fn tile(tile: &Tile<'_>, slots: &Slots<'_>, kernels: &Kernels, scratch: &mut Scratch<'_>) {
    let dim = tile.job.shape.head_dim;
    assert!(scratch.q_tiles.len() >= tile.rows * dim && scratch.q.len() >= tile.rows * dim);
    // SAFETY: the instructions are there; rows of scratch. The fields of a decode's span hold the scales.
    unsafe {
        let q_tiles = scratch.q_tiles.as_mut_ptr().cast();
        pack_rows(scratch.q.as_ptr(), (tile.rows, dim), scratch.part_max, q_tiles);
        let q_sink_tiles = scratch.q_sink_tiles.as_mut_ptr().cast();
        pack_rows(scratch.q_sink.as_ptr(), (tile.rows, dim), scratch.part_sum, q_sink_tiles);
    }
    f32::tile(tile, slots, kernels, scratch, |block, scratch| add_block(tile, slots, block, scratch));
}

/// Adds one block to the softmax of every row that sees some of it; false, and nothing done, if a number is too large or not finite.
fn add_block(tile: &Tile<'_>, slots: &Slots<'_>, block: &Block, scratch: &mut Scratch<'_>) -> bool {
    let shape = tile.job.shape;
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let n = block.hi.next_multiple_of(DEPTH);
    let (stored_k, stored_v) = slots.read(tile.head, block.slot, n as u64);
    let (k, v) = (scratch.k.as_mut_ptr().cast::<u16>(), scratch.v.as_mut_ptr().cast::<u16>());
    let keys = (block.lo, block.hi, n);
    // SAFETY: the instructions are there; whole groups of this head, whose append is over; a block that scratch has room for.
    let packed = unsafe { (pack_keys(stored_k, dim, keys, STRIDE, k), pack_values(stored_v, dim_v, keys, v)) };
    let (Some(back_k), Some(back_v)) = packed else { return false };
    for first in (0..tile.rows).step_by(SUB) {
        let rows = tile.part(first, SUB);
        rows.look(block, &scratch.sights[first..first + rows.rows], &mut scratch.seen);
        let Some((from, to)) = f32::narrow(&mut scratch.seen[..rows.rows], DEPTH) else { continue };
        let n = to - from;
        let softmax = f32::weights(&rows, first, n, scratch);
        let (q, tops) = if block.sinks {
            (&*scratch.q_sink_tiles, &*scratch.part_sum)
        } else {
            (&*scratch.q_tiles, &*scratch.part_max)
        };
        let mut scales = [0.0; SUB];
        scales.iter_mut().zip(&tops[first..]).for_each(|(scale, top)| *scale = top * back_k);
        let scores = Product {
            rows_at: q[first * dim..].as_ptr().cast(),
            row_stride: dim,
            rows: rows.rows,
            depth: dim,
            columns_at: k.wrapping_add(from),
            columns: n,
            step: STRIDE,
            out: softmax.scores,
            stride: STRIDE,
            scales: scales.as_ptr(),
            keep: std::ptr::null(),
        };
        let weights = scratch.weights.as_mut_ptr().cast::<u32>();
        // SAFETY: as above; rows and columns that scratch has.
        unsafe {
            multiply(&scores);
            weigh_halves(&softmax, weights, &mut scales);
            scales.iter_mut().for_each(|scale| *scale *= back_v);
            multiply(&Product {
                rows_at: weights,
                row_stride: STRIDE,
                rows: rows.rows,
                depth: n,
                columns_at: v.wrapping_add(from * dim_v),
                columns: dim_v,
                step: dim_v,
                out: scratch.acc[first * dim_v..].as_mut_ptr(),
                stride: dim_v,
                scales: scales.as_ptr(),
                keep: scratch.keep.as_ptr(),
            });
        }
    }
    true
}

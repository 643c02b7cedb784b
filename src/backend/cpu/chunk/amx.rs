//! Attention of many rows by AMX: as in `chunk.rs`, with matrix products of bfloat16.
//!
//! Where bf16 is stored, queries and weights are rounded to it, as plain attention in that type does. An f16 does not fit a
//! bfloat16 but two of them, exactly: its products are then three.

use super::f32;
use crate::backend::cpu::kv_layout::{SLOT_ALIGN, padded_dim};
use crate::backend::cpu::kv_store::Slots;
use crate::backend::cpu::query_tile::QueryTile;
use crate::backend::cpu::scratch::{KEY_BLOCK, SCORE_STRIDE, SUBTILE_ROWS, Scratch, TILE_ROWS};
use crate::backend::cpu::simd::Kernels;
use crate::backend::cpu::simd::amx::fused_softmax::qk_softmax;
use crate::backend::cpu::simd::amx::gemm;
use crate::backend::cpu::simd::amx::gemm::{DEPTH, ROWS, SplitMatrix, TileConfig};
use crate::backend::cpu::simd::amx::pack;
use crate::backend::cpu::simd::amx::softmax::softmax_bf16;
use crate::backend::cpu::simd::gemm::PvArgs;
use crate::backend::cpu::simd::pv_rows;
use crate::backend::cpu::visibility::Block;
use crate::config::{DType, Shape};

const _: () = assert!(SLOT_ALIGN as usize == DEPTH && KEY_BLOCK.is_multiple_of(DEPTH));
// Maxima, sums and products are read and written for whole tiles of rows, whatever is left of them.
const _: () = assert!(TILE_ROWS.is_multiple_of(ROWS) && SUBTILE_ROWS >= ROWS);

/// Whether a cache's shape fits the tiles.
pub(crate) fn fits(shape: &Shape) -> bool {
    shape.kv_dtype != DType::F32 && shape.head_dim.is_multiple_of(DEPTH) && shape.head_dim_v.is_multiple_of(DEPTH)
}

/// Two matrices of `n` bfloat16 behind one another in a field of scratch.
fn split(field: &mut [f32], n: usize, two: bool) -> (*mut u16, *mut u16) {
    assert!(field.len() * 2 >= n * (1 + usize::from(two)), "{} elements for {n}", field.len());
    let high = field.as_mut_ptr().cast::<u16>();
    (high, if two { high.wrapping_add(n) } else { std::ptr::null_mut() })
}

/// Computes the loaded rows of a tile.
pub(crate) fn tile(tile: &QueryTile<'_>, slots: &Slots<'_>, kernels: &Kernels, scratch: &mut Scratch<'_>) {
    let shape = tile.job.shape;
    let two = shape.kv_dtype == DType::F16;
    let n = tile.rows * shape.head_dim;
    let rows = tile.rows.next_multiple_of(ROWS) * shape.head_dim;
    for (q, tiles) in [(&scratch.q, &mut scratch.q_packed), (&scratch.q_sink, &mut scratch.q_sink_packed)] {
        let (high, low) = split(tiles, rows, two);
        assert!(q.len() >= n);
        // SAFETY: this instruction set is available; dims are a multiple of 32. Rows beyond the last keep what they hold: nobody reads
        // what comes of them.
        unsafe { pack::narrow(q.as_ptr(), n, high, low) };
    }
    // SAFETY: this instruction set is available.
    let _tiles = unsafe { TileConfig::new() };
    // An infinity does not split. Rare: plain products.
    f32::tile(tile, slots, kernels, scratch, |block, scratch| add_block(tile, slots, block, kernels, scratch));
}

/// Adds one block to the softmax of every row that sees some of it; false, and nothing done, if it cannot.
fn add_block(
    tile: &QueryTile<'_>,
    slots: &Slots<'_>,
    block: &Block,
    kernels: &Kernels,
    scratch: &mut Scratch<'_>,
) -> bool {
    let shape = tile.job.shape;
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let two = shape.kv_dtype == DType::F16;
    let n = block.hi.next_multiple_of(DEPTH);
    let (stored_k, stored_v) = slots.read(tile.head, block.slot, n as u64);
    let (mut k, mut v) = (stored_k.cast::<u16>(), stored_v.cast::<u16>());
    let (mut k_low, mut v_low) = (std::ptr::null(), std::ptr::null());
    let keys = (block.lo, block.hi, n);
    let all_visible = tile.all_visible(block);
    // SAFETY: this instruction set is available; whole groups of this head, whose append is over; a block that scratch has room for.
    let finite = unsafe {
        if two {
            let ((high, low), (high_v, low_v)) = (split(scratch.k, n * dim, true), split(scratch.v, n * dim_v, true));
            let finite = pack::split_keys(k, dim, keys, high, low) & pack::split_values(v, dim_v, keys, high_v, low_v);
            (k, k_low, v, v_low) = (high, low.cast_const(), high_v, low_v.cast_const());
            finite
        } else if all_visible && (block.lo, block.hi) == (0, n) || pack::all_finite(v, n * dim_v) {
            // Every key of whole tiles is visible to every row, or weights of zero keep the others out: they can be read
            // where they lie.
            true
        } else {
            let (copy, _) = split(scratch.v, n * dim_v, false);
            let finite = pack::copy_values(v, dim_v, keys, copy);
            v = copy;
            finite
        }
    };
    if two && !finite {
        return false;
    }
    let separate = !all_visible && !finite;
    let plain = tile.job.layer.softcap == 0.0 && tile.job.layer.alibi_slopes.is_empty();
    for first in (0..tile.rows).step_by(ROWS) {
        let rows = tile.part(first, ROWS);
        rows.visible_columns(block, &scratch.ranges[first..first + rows.rows], &mut scratch.visible);
        let Some((from, to)) = f32::narrow(&mut scratch.visible[..rows.rows], DEPTH) else { continue };
        let n = to - from;
        let padded = tile.rows.next_multiple_of(ROWS) * dim;
        let q = if block.sinks { &mut *scratch.q_sink_packed } else { &mut *scratch.q_packed };
        let (q, q_low) = split(q, padded, two);
        let q_low = if two { q_low.wrapping_add(first * dim) } else { q_low };
        let (probs, probs_low) = split(scratch.probs, ROWS * SCORE_STRIDE, two);
        // SAFETY: as above; tiles are configured; 32 rows of queries, scores, weights and sums in scratch.
        unsafe {
            let q = SplitMatrix { high: q.add(first * dim), low: q_low };
            let low = |p: *const u16, at: usize| if two { p.add(at) } else { p };
            let k = SplitMatrix { high: k.add(from * dim), low: low(k_low, from * dim) };
            let v = SplitMatrix { high: v.add(from * dim_v), low: low(v_low, from * dim_v) };
            let fused = plain && !separate;
            let softmax = f32::probs(&rows, first, n, scratch);
            let fused = fused && qk_softmax(q, k, dim, &softmax, probs, probs_low);
            if !fused {
                gemm::qk(q, k, dim, n, softmax.scores, SCORE_STRIDE);
                if fused {
                    softmax_bf16(&softmax, probs, probs_low);
                } else {
                    (kernels.softmax)(&softmax);
                }
            }
            let acc = scratch.acc[first * dim_v..].as_mut_ptr();
            if separate {
                let stored = PvArgs {
                    probs: scratch.scores.as_ptr(),
                    stride: SCORE_STRIDE,
                    rows: rows.rows,
                    v: stored_v.add(from * dim_v * shape.kv_dtype.size()),
                    dim: dim_v,
                    from: 0,
                    to: n,
                    acc,
                    alpha: scratch.alpha.as_ptr(),
                    prefetch_offset: 0,
                };
                pv_rows(&stored, &scratch.visible[..rows.rows], kernels);
                continue;
            }
            // At once, maxima stay and so does what they were taken for.
            let after = if fused { 0 } else { rows.rows };
            for r in 0..after {
                if !fused {
                    let low = if two { probs_low.add(r * SCORE_STRIDE) } else { probs_low };
                    pack::narrow(scratch.scores[r * SCORE_STRIDE..].as_ptr(), n, probs.add(r * SCORE_STRIDE), low);
                }
                if scratch.alpha[r] != 1.0 {
                    gemm::rescale(acc.add(r * dim_v), dim_v, scratch.alpha[r]);
                }
            }
            gemm::pv(SplitMatrix { high: probs, low: probs_low }, SCORE_STRIDE, v, dim_v, n, acc);
        }
    }
    true
}

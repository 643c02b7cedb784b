//! Append: rotate keys once, at their stream positions, and store K and V in their slots.

use std::ops::Range;

use super::element::{Stored, view};
use super::scratch::Scratch;
use super::simd::Kernels;
use super::store::{Slots, physical};
use super::tile::Angles;
use crate::backend::{AppendRows, Job};
use crate::batch::Entry;
use crate::config::{DType, PositionMode};

/// Stores tokens `tokens` of an entry for one KV head.
#[expect(clippy::too_many_arguments, reason = "what, where, and with what")]
pub(super) fn append<T: Stored>(
    job: &Job<'_>,
    io: &AppendRows,
    slots: &Slots<'_>,
    entry: &Entry,
    tokens: &Range<u64>,
    head: usize,
    kernels: &Kernels,
    angles: &mut Angles,
    scratch: &mut Scratch<'_>,
) {
    let (layer, shape) = (job.layer, job.shape);
    let rotates = layer.position_mode == PositionMode::Rope;
    let half = layer.frequencies.len();
    for t in tokens.clone() {
        let (slot, _) = physical(&layer.ring, layer.ring.slot(entry.first + t));
        let (src_k, src_v) = (io.k.at(entry.row + t, head), io.v.at(entry.row + t, head));
        let row = if rotates { angles.of_key(job, entry, (tokens, t), kernels, scratch) * half } else { 0 };
        // SAFETY: the caller's rows, resolved for this batch and these dims; this part alone has this head, and the token
        // is new, so no query of it is running; the kernels' rung is available.
        unsafe {
            let k = if rotates {
                let x = view(shape.in_dtype, src_k, shape.head_dim, scratch.row);
                let (cos, sin) = (&scratch.cos[row..row + half], &scratch.sin[row..row + half]);
                (kernels.rotate)(layer.rope_style, cos, sin, x, &mut scratch.rotated[..shape.head_dim]);
                T::narrowed(&scratch.rotated[..shape.head_dim], scratch.row)
            } else {
                stored(shape.in_dtype, src_k, shape.head_dim, scratch.row, scratch.rotated)
            };
            let v = stored(shape.in_dtype, src_v, shape.head_dim_v, scratch.row_v, &mut scratch.acc[..shape.head_dim_v]);
            slots.write::<T>(head, slot, k, v);
        }
    }
}

/// A head as it came, in the storage type: itself, or converted by way of f32.
///
/// # Safety
/// `src` must be readable for `n` elements of `dtype` while the result lives, and aligned to them.
unsafe fn stored<'a, T: Stored>(
    dtype: DType,
    src: *const u8,
    n: usize,
    wide: &'a mut [f32],
    narrow: &'a mut [f32],
) -> &'a [T] {
    // SAFETY: the caller's contract.
    unsafe {
        if T::DTYPE == dtype { std::slice::from_raw_parts(src.cast(), n) } else { T::narrowed(view(dtype, src, n, wide), narrow) }
    }
}

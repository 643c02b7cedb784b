//! Append: rotate keys once, at their stream positions, and store K and V in their slots.

use std::ops::Range;

use super::element::{Stored, view};
use super::scratch::Scratch;
use super::simd::{Kernels, prefetch};
use super::store::{Slots, physical};
use super::tile::Angles;
use crate::backend::{AppendRows, Job};
use crate::batch::Entry;
use crate::config::{DType, PositionMode};

/// Tokens of a head that are stored together: a group's worth.
const TOGETHER: usize = 16;

/// Tokens from one that is stored to the one whose rows are fetched.
const AHEAD: u64 = 4;

/// Asks for the rows of a token.
fn expect(at: &Place<'_>, t: u64, head: usize) {
    let (shape, size) = (at.job.shape, at.job.shape.in_dtype.size());
    prefetch(at.io.k.at(at.entry.row + t, head), shape.head_dim * size);
    prefetch(at.io.v.at(at.entry.row + t, head), shape.head_dim_v * size);
}

/// Stores tokens `tokens` of an entry for some KV heads.
pub(super) fn append<T: Stored>(
    at: &Place<'_>,
    tokens: &Range<u64>,
    heads: &Range<usize>,
    kernels: &Kernels,
    angles: &mut Angles,
    scratch: &mut Scratch<'_>,
) {
    // A few tokens of one head, then of the next: rows are read where the last ones were, and groups are filled while they
    // are in the cache.
    for begin in tokens.clone().step_by(TOGETHER) {
        let end = tokens.end.min(begin + TOGETHER as u64);
        for head in heads.clone() {
            for t in begin..end {
                // Rows of one head lie far apart: nothing but a hint brings them in time.
                let (next, ahead) =
                    if t + AHEAD < end { (head, t + AHEAD) } else { (head + 1, t + AHEAD - (end - begin)) };
                if next < heads.end && (begin..end).contains(&ahead) {
                    expect(at, ahead, next);
                }
                append_row::<T>(at, tokens, t, head, kernels, angles, scratch);
            }
        }
    }
}

/// What is appended, and where to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub job: &'a Job<'a>,
    pub io: &'a AppendRows,
    pub slots: Slots<'a>,
    pub entry: &'a Entry,
}

/// Stores one of the tokens for one KV head.
fn append_row<T: Stored>(
    at: &Place<'_>,
    tokens: &Range<u64>,
    t: u64,
    head: usize,
    kernels: &Kernels,
    angles: &mut Angles,
    scratch: &mut Scratch<'_>,
) {
    let (job, io, entry) = (at.job, at.io, at.entry);
    let (layer, shape) = (job.layer, job.shape);
    let rotates = layer.position_mode == PositionMode::Rope;
    let half = layer.frequencies.len();
    let (slot, _) = physical(&layer.ring, layer.ring.slot(entry.first + t));
    let (src_k, src_v) = (io.k.at(entry.row + t, head), io.v.at(entry.row + t, head));
    let row = if rotates { angles.of_key(job, entry, (tokens, t), kernels, scratch) * half } else { 0 };
    // SAFETY: the caller's rows, resolved for this batch and these dims; this worker alone has this head, and the token is
    // new, so no query of it is running; the kernels' rung is available.
    unsafe {
        let k = if rotates {
            let x = view(shape.in_dtype, src_k, shape.head_dim, scratch.row);
            let (cos, sin) = (&scratch.cos[row..row + half], &scratch.sin[row..row + half]);
            (kernels.rotate)(layer.rope_style, cos, sin, x, &mut scratch.rotated[..shape.head_dim]);
            T::narrowed(&scratch.rotated[..shape.head_dim], scratch.row, kernels)
        } else {
            stored(shape.in_dtype, src_k, shape.head_dim, scratch.row, scratch.rotated, kernels)
        };
        let narrow = &mut scratch.acc[..shape.head_dim_v];
        let v = stored(shape.in_dtype, src_v, shape.head_dim_v, scratch.row_v, narrow, kernels);
        at.slots.write::<T>(head, slot, k, v);
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
    kernels: &Kernels,
) -> &'a [T] {
    // SAFETY: the caller's contract.
    unsafe {
        if T::DTYPE == dtype {
            std::slice::from_raw_parts(src.cast(), n)
        } else {
            T::narrowed(view(dtype, src, n, wide), narrow, kernels)
        }
    }
}

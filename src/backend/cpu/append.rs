//! Append: rotate keys once, at their stream positions, and store K and V in their slots.

use std::ops::Range;

use super::element::{Stored, view};
use super::rope::rotate;
use super::scratch::Scratch;
use super::store::Rows;
use crate::backend::{AppendRows, Job};
use crate::batch::Entry;
use crate::config::{DType, PositionMode};

/// Stores tokens `tokens` of an entry for KV heads `heads`.
pub(super) fn append<T: Stored>(
    job: &Job<'_>,
    io: &AppendRows,
    rows: &Rows<'_, T>,
    entry: &Entry,
    tokens: Range<u64>,
    heads: Range<usize>,
    scratch: &mut Scratch<'_>,
) {
    let (layer, shape) = (job.layer, job.shape);
    let rotates = layer.position_mode == PositionMode::Rope;
    let half = layer.frequencies.len();
    let (cos, sin) = (&mut scratch.cos[..half], &mut scratch.sin[..half]);
    for t in tokens {
        let index = entry.first + t;
        let slot = layer.ring.slot(index);
        if rotates {
            // The angles are the token's, not the head's.
            layer.frequencies.fill(entry.start.wrapping_add(index), layer.mscale, cos, sin);
        }
        for head in heads.clone() {
            let (src_k, src_v) = (io.k.at(entry.row + t, head), io.v.at(entry.row + t, head));
            // SAFETY: this part alone has this head; the token is new, so no query of it is running.
            let (dst_k, dst_v) = unsafe { rows.write(head, slot) };
            // SAFETY: the caller's rows, resolved for this batch and these dims.
            unsafe {
                if rotates {
                    let x = view(shape.in_dtype, src_k, shape.head_dim, scratch.q);
                    T::fill(dst_k, scratch.q_sink, |y| rotate(layer.rope_style, cos, sin, x, y));
                } else {
                    store(shape.in_dtype, src_k, dst_k, scratch.q);
                }
                store(shape.in_dtype, src_v, dst_v, scratch.v);
            }
        }
    }
}

/// Stores a head as it came, rounded where the types differ.
///
/// # Safety
/// `src` must be readable for `dst.len()` elements of `dtype` and aligned to them.
unsafe fn store<T: Stored>(dtype: DType, src: *const u8, dst: &mut [T], buf: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        if T::DTYPE == dtype {
            std::ptr::copy_nonoverlapping(src.cast(), dst.as_mut_ptr(), dst.len());
        } else {
            T::narrow(view(dtype, src, dst.len(), buf), dst);
        }
    }
}

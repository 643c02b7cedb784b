//! Append: rotate keys once, at their stream positions, and store K and V in their slots.

use std::ops::Range;

use super::element::{Stored, load};
use super::rope::rotate;
use super::scratch::Scratch;
use super::store::Rows;
use crate::backend::{AppendRows, Job};
use crate::batch::Entry;
use crate::config::PositionMode;

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
                if rotates || T::DTYPE != shape.in_dtype {
                    let x = &mut scratch.q[..shape.head_dim];
                    load(shape.in_dtype, src_k, x);
                    if rotates {
                        rotate(layer.rope_style, cos, sin, x);
                    }
                    T::narrow(x, dst_k);
                } else {
                    std::ptr::copy_nonoverlapping(src_k.cast(), dst_k.as_mut_ptr(), shape.head_dim);
                }
                if T::DTYPE == shape.in_dtype {
                    std::ptr::copy_nonoverlapping(src_v.cast(), dst_v.as_mut_ptr(), shape.head_dim_v);
                } else {
                    let x = &mut scratch.v[..shape.head_dim_v];
                    load(shape.in_dtype, src_v, x);
                    T::narrow(x, dst_v);
                }
            }
        }
    }
}

//! Append, attend, step.

use super::args::{batch_args, read_batch, read_lse, read_step, skc_append_kv_args, skc_attend_args, skc_step_args};
use super::boundary::boundary;
use super::c_struct::read_struct;
use super::constants::skc_status;
use super::registry::{on_stream, skc_cache};
use crate::tensor::{AttendTensors, RowsIn, RowsOut};

/// Rotates and stores the next tokens of each sequence of a ragged batch in one layer, and drops what leaves the window.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_append_kv(cache: *mut skc_cache, args: *const skc_append_kv_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        // SAFETY: the caller's contract.
        let (batch, k, v) = unsafe {
            (
                read_batch(&batch_args!(a))?,
                RowsIn::from_raw(a.k.cast(), a.k_token_stride, a.k_head_stride),
                RowsIn::from_raw(a.v.cast(), a.v_token_stride, a.v_head_stride),
            )
        };
        on_stream(cache, a.stream, |cache| cache.append(a.layer, batch, k, v))
    })
}

/// Attention of the queries of the last tokens appended to each sequence of a ragged batch, in one layer.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_attend(cache: *mut skc_cache, args: *const skc_attend_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        // SAFETY: the caller's contract.
        let (batch, tensors) = unsafe {
            let q = RowsIn::from_raw(a.q.cast(), a.q_token_stride, a.q_head_stride);
            let out = RowsOut::from_raw(a.out.cast(), a.out_token_stride, a.out_head_stride);
            let lse = read_lse(a.lse, a.lse_token_stride, a.lse_head_stride);
            (read_batch(&batch_args!(a))?, AttendTensors { q, out, lse })
        };
        on_stream(cache, a.stream, |cache| cache.attend(a.layer, batch, tensors))
    })
}

/// skc_append_kv and skc_attend in one call, for any number of tokens: more than max_chunk are split.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_step(cache: *mut skc_cache, args: *const skc_step_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        // SAFETY: the caller's contract.
        let (batch, tensors) = unsafe { read_step(&a) }?;
        on_stream(cache, a.stream, |cache| cache.step(a.layer, batch, tensors))
    })
}

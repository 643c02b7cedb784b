//! Argument structs of append, attend and step, and their conversion.

use std::ffi::c_void;

use super::c_struct::{c_struct, read_entries};
use super::constants::{SKC_IN_STEP, SKC_ON_DEVICE};
use crate::batch::{Batch, DeviceBatch};
use crate::error::{Result, bail};
use crate::tensor::{AttendTensors, RowsIn, RowsOut, StepTensors};

/// Arguments of skc_append_kv. A batch is packed: the rows of entry 0 come first, then those of entry 1, and so on.
/// Strides count elements.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_append_kv_args {
    /// Set to sizeof(skc_append_kv_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, SKC_ON_DEVICE or SKC_IN_STEP.
    pub flags: u32,
    /// Index of the layer, from 0.
    pub layer: u32,
    /// Number of entries of the batch: elements of seq_ids and of n_tokens.
    pub n_entries: u32,
    /// Sequence of each entry; SKC_PADDING skips the entry's rows. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens of each entry, at most max_chunk; 0 = padding.
    pub n_tokens: *const i32,
    /// Keys, in_dtype [rows, n_kv_heads, head_dim].
    pub k: *const c_void,
    /// Values, in_dtype [rows, n_kv_heads, head_dim_v].
    pub v: *const c_void,
    /// Elements between rows of k; 0 = packed, n_kv_heads x head_dim.
    pub k_token_stride: i64,
    /// Elements between heads of k; 0 = packed, head_dim.
    pub k_head_stride: i64,
    /// Elements between rows of v; 0 = packed, n_kv_heads x head_dim_v.
    pub v_token_stride: i64,
    /// Elements between heads of v; 0 = packed, head_dim_v.
    pub v_head_stride: i64,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
    /// With SKC_ON_DEVICE: number of rows of the tensors; the device skips an entry that reaches beyond. Otherwise 0.
    pub n_rows: u64,
    /// With SKC_ON_DEVICE: the most tokens that an entry may have, at most max_chunk; the device skips an entry with
    /// more. Otherwise 0.
    pub max_tokens: u32,
    /// Unused: set to 0.
    pub reserved: u32,
}
c_struct!(skc_append_kv_args, SKC_ON_DEVICE | SKC_IN_STEP, 80);

/// Arguments of skc_attend. A batch is packed: the rows of entry 0 come first, then those of entry 1, and so on.
/// Strides count elements.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_attend_args {
    /// Set to sizeof(skc_attend_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_ON_DEVICE.
    pub flags: u32,
    /// Index of the layer, from 0.
    pub layer: u32,
    /// Number of entries of the batch: elements of seq_ids and of n_tokens.
    pub n_entries: u32,
    /// Sequence of each entry; SKC_PADDING leaves the entry's output rows untouched. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Queries of each entry: those of the sequence's last tokens, at most as many as its latest append had. 0 =
    /// padding.
    pub n_tokens: *const i32,
    /// Queries, in_dtype [rows, n_q_heads, head_dim].
    pub q: *const c_void,
    /// Output, out_dtype [rows, n_q_heads, head_dim_v]. Its rows and heads must not overlap.
    pub out: *mut c_void,
    /// Output: natural log of the softmax denominator, learned sink logit included, f32 [rows, n_q_heads]. NULL = not
    /// wanted.
    pub lse: *mut f32,
    /// Elements between rows of q; 0 = packed, n_q_heads x head_dim.
    pub q_token_stride: i64,
    /// Elements between heads of q; 0 = packed, head_dim.
    pub q_head_stride: i64,
    /// Elements between rows of out; 0 = packed, n_q_heads x head_dim_v.
    pub out_token_stride: i64,
    /// Elements between heads of out; 0 = packed, head_dim_v.
    pub out_head_stride: i64,
    /// Elements between rows of lse; 0 = packed, n_q_heads.
    pub lse_token_stride: i64,
    /// Elements between heads of lse; 0 = packed, 1.
    pub lse_head_stride: i64,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
    /// With SKC_ON_DEVICE: number of rows of the tensors; the device skips an entry that reaches beyond. Otherwise 0.
    pub n_rows: u64,
    /// With SKC_ON_DEVICE: the most tokens that an entry may have, at most max_chunk; the device skips an entry with
    /// more. Otherwise 0.
    pub max_tokens: u32,
    /// Unused: set to 0.
    pub reserved: u32,
}
c_struct!(skc_attend_args, SKC_ON_DEVICE, 104);

/// Arguments of skc_step and skc_step_part. A batch is packed: the rows of entry 0 come first, then those of entry 1,
/// and so on. Strides count elements.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct skc_step_args {
    /// Set to sizeof(skc_step_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, SKC_ON_DEVICE or SKC_IN_STEP.
    pub flags: u32,
    /// Index of the layer, from 0.
    pub layer: u32,
    /// Number of entries of the batch: elements of seq_ids and of n_tokens.
    pub n_entries: u32,
    /// Sequence of each entry; SKC_PADDING leaves the entry's output rows untouched. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens of each entry, any number; 0 = padding.
    pub n_tokens: *const i32,
    /// Keys, in_dtype [rows, n_kv_heads, head_dim].
    pub k: *const c_void,
    /// Values, in_dtype [rows, n_kv_heads, head_dim_v].
    pub v: *const c_void,
    /// Queries, in_dtype [rows, n_q_heads, head_dim].
    pub q: *const c_void,
    /// Output, out_dtype [rows, n_q_heads, head_dim_v]. Its rows and heads must not overlap each other, nor k or v.
    pub out: *mut c_void,
    /// Output: natural log of the softmax denominator, learned sink logit included, f32 [rows, n_q_heads]. NULL = not
    /// wanted.
    pub lse: *mut f32,
    /// Elements between rows of k; 0 = packed, n_kv_heads x head_dim.
    pub k_token_stride: i64,
    /// Elements between heads of k; 0 = packed, head_dim.
    pub k_head_stride: i64,
    /// Elements between rows of v; 0 = packed, n_kv_heads x head_dim_v.
    pub v_token_stride: i64,
    /// Elements between heads of v; 0 = packed, head_dim_v.
    pub v_head_stride: i64,
    /// Elements between rows of q; 0 = packed, n_q_heads x head_dim.
    pub q_token_stride: i64,
    /// Elements between heads of q; 0 = packed, head_dim.
    pub q_head_stride: i64,
    /// Elements between rows of out; 0 = packed, n_q_heads x head_dim_v.
    pub out_token_stride: i64,
    /// Elements between heads of out; 0 = packed, head_dim_v.
    pub out_head_stride: i64,
    /// Elements between rows of lse; 0 = packed, n_q_heads.
    pub lse_token_stride: i64,
    /// Elements between heads of lse; 0 = packed, 1.
    pub lse_head_stride: i64,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
    /// With SKC_ON_DEVICE: number of rows of the tensors; the device skips an entry that reaches beyond. Otherwise 0.
    pub n_rows: u64,
    /// With SKC_ON_DEVICE: the most tokens that an entry may have; the device skips an entry with more. Otherwise 0.
    pub max_tokens: u32,
    /// Unused: set to 0.
    pub reserved: u32,
}
c_struct!(skc_step_args, SKC_ON_DEVICE | SKC_IN_STEP, 152);

/// The batch of an argument struct, as one struct for all of them.
macro_rules! batch_args {
    ($a:expr) => {
        $crate::ffi::args::BatchArgs {
            flags: $a.flags,
            n: $a.n_entries,
            seq_ids: $a.seq_ids,
            n_tokens: $a.n_tokens,
            n_rows: $a.n_rows,
            max_tokens: $a.max_tokens,
            reserved: $a.reserved,
        }
    };
}
pub(super) use batch_args;

/// The batch of an argument struct, in host or device memory.
pub struct BatchArgs {
    pub flags: u32,
    pub n: u32,
    pub seq_ids: *const i32,
    pub n_tokens: *const i32,
    pub n_rows: u64,
    pub max_tokens: u32,
    pub reserved: u32,
}

/// Checks and converts a batch.
///
/// # Safety
/// `seq_ids` and `n_tokens` must be NULL or have `n` elements: in host memory during `'a`, or with `SKC_ON_DEVICE` in
/// device memory whenever the work runs.
pub unsafe fn read_batch<'a>(a: &BatchArgs) -> Result<Batch<'a>> {
    if a.reserved != 0 {
        bail!(VersionMismatch, "reserved is {}: it must be 0", a.reserved);
    }
    if a.flags & (SKC_ON_DEVICE | SKC_IN_STEP) == SKC_ON_DEVICE | SKC_IN_STEP {
        bail!(InvalidArgument, "flags are SKC_ON_DEVICE and SKC_IN_STEP: the host does not see the device's counts");
    }
    if a.flags & SKC_ON_DEVICE != 0 {
        let batch = DeviceBatch {
            seq_ids: a.seq_ids.expose_provenance() as u64,
            n_tokens: a.n_tokens.expose_provenance() as u64,
            n_entries: a.n,
            max_tokens: a.max_tokens,
            n_rows: a.n_rows,
        };
        // SAFETY: both arrays are readable on the device whenever the work runs, as this function demands.
        return Ok(unsafe { Batch::on_device(batch) });
    }
    if a.n_rows != 0 || a.max_tokens != 0 {
        bail!(
            InvalidArgument,
            "n_rows is {} and max_tokens {}: without SKC_ON_DEVICE both must be 0",
            a.n_rows,
            a.max_tokens
        );
    }
    // SAFETY: both arrays are NULL or have n elements during 'a, as this function demands.
    let (seq_ids, n_tokens) =
        unsafe { (read_entries("seq_ids", a.seq_ids, a.n)?, read_entries("n_tokens", a.n_tokens, a.n)?) };
    let batch = Batch::new(seq_ids, n_tokens);
    Ok(if a.flags & SKC_IN_STEP != 0 { batch.in_step() } else { batch })
}

/// The batch and the tensors of an attend.
///
/// # Safety
/// The arrays must be as [`read_batch`] demands. Every element of the tensors that the batch addresses must be valid
/// (`out` and `lse`: writable and not accessed otherwise) during `'a`, or for a CUDA cache on the device whenever the
/// work runs.
pub unsafe fn read_attend<'a>(a: &skc_attend_args) -> Result<(Batch<'a>, AttendTensors<'a>)> {
    // SAFETY: the arrays are as `read_batch` demands.
    let batch = unsafe { read_batch(&batch_args!(a)) }?;
    // SAFETY: the tensors hold every element that the batch addresses, as this function demands.
    let tensors = unsafe {
        AttendTensors {
            q: RowsIn::from_raw(a.q.cast(), a.q_token_stride, a.q_head_stride),
            out: RowsOut::from_raw(a.out.cast(), a.out_token_stride, a.out_head_stride),
            lse: read_lse(a.lse, a.lse_token_stride, a.lse_head_stride),
        }
    };
    Ok((batch, tensors))
}

/// The batch and the tensors of a step.
///
/// # Safety
/// As for [`read_attend`].
pub unsafe fn read_step<'a>(a: &skc_step_args) -> Result<(Batch<'a>, StepTensors<'a>)> {
    // SAFETY: the arrays are as `read_batch` demands.
    let batch = unsafe { read_batch(&batch_args!(a)) }?;
    // SAFETY: the tensors hold every element that the batch addresses, as this function demands.
    let tensors = unsafe {
        StepTensors {
            k: RowsIn::from_raw(a.k.cast(), a.k_token_stride, a.k_head_stride),
            v: RowsIn::from_raw(a.v.cast(), a.v_token_stride, a.v_head_stride),
            q: RowsIn::from_raw(a.q.cast(), a.q_token_stride, a.q_head_stride),
            out: RowsOut::from_raw(a.out.cast(), a.out_token_stride, a.out_head_stride),
            lse: read_lse(a.lse, a.lse_token_stride, a.lse_head_stride),
        }
    };
    Ok((batch, tensors))
}

/// # Safety
/// `lse` must be NULL or as [`RowsOut::from_raw`] demands.
unsafe fn read_lse<'a>(lse: *mut f32, token_stride: i64, head_stride: i64) -> Option<RowsOut<'a>> {
    // SAFETY: not NULL, so the tensor is as `from_raw` demands.
    (!lse.is_null()).then(|| unsafe { RowsOut::from_raw(lse.cast(), token_stride, head_stride) })
}

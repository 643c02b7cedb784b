//! Argument structs of append, attend and step, and reading them.

use std::ffi::c_void;

use super::c_struct::{c_struct, read_array};
use super::constants::SKC_ON_DEVICE;
use crate::batch::{Batch, DeviceBatch};
use crate::error::{Result, bail};
use crate::tensor::{RowsIn, RowsOut, StepTensors};

/// Arguments of skc_append_kv. Rows are packed in the order of the entries, as many for each as it has tokens. Strides
/// count elements; 0 means packed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_append_kv_args {
    /// sizeof(skc_append_kv_args).
    pub struct_size: u32,
    /// 0 or SKC_ON_DEVICE.
    pub flags: u32,
    /// Layer.
    pub layer: u32,
    /// Entries of seq_ids and n_tokens.
    pub n_entries: u32,
    /// Sequences; SKC_PADDING skips an entry's rows. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens of each entry, at most max_chunk; 0 is padding.
    pub n_tokens: *const i32,
    /// Keys [rows, n_kv_heads, head_dim] of in_dtype.
    pub k: *const c_void,
    /// Values [rows, n_kv_heads, head_dim_v] of in_dtype.
    pub v: *const c_void,
    /// Elements between rows of k; 0 = n_kv_heads x head_dim.
    pub k_token_stride: i64,
    /// Elements between heads of k; 0 = head_dim.
    pub k_head_stride: i64,
    /// Elements between rows of v; 0 = n_kv_heads x head_dim_v.
    pub v_token_stride: i64,
    /// Elements between heads of v; 0 = head_dim_v.
    pub v_head_stride: i64,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
    /// With SKC_ON_DEVICE the rows the tensors have; else 0.
    pub n_rows: u64,
    /// With SKC_ON_DEVICE the most tokens an entry may have, at most max_chunk; else 0.
    pub max_tokens: u32,
    /// 0.
    pub reserved: u32,
}
c_struct!(skc_append_kv_args, SKC_ON_DEVICE, 80);

/// Arguments of skc_attend. Rows are packed in the order of the entries, as many for each as it has tokens. Strides
/// count elements; 0 means packed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_attend_args {
    /// sizeof(skc_attend_args).
    pub struct_size: u32,
    /// 0 or SKC_ON_DEVICE.
    pub flags: u32,
    /// Layer.
    pub layer: u32,
    /// Entries of seq_ids and n_tokens.
    pub n_entries: u32,
    /// Sequences; SKC_PADDING leaves an entry's output rows untouched. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Queries of each entry, those of the last tokens; at most the latest append's tokens; 0 is padding.
    pub n_tokens: *const i32,
    /// Queries [rows, n_q_heads, head_dim] of in_dtype.
    pub q: *const c_void,
    /// Results [rows, n_q_heads, head_dim_v] of out_dtype. Rows and heads must not overlap.
    pub out: *mut c_void,
    /// Natural log of the softmax denominators [rows, n_q_heads], learned sink logit included; NULL = not wanted.
    pub lse: *mut f32,
    /// Elements between rows of q; 0 = n_q_heads x head_dim.
    pub q_token_stride: i64,
    /// Elements between heads of q; 0 = head_dim.
    pub q_head_stride: i64,
    /// Elements between rows of out; 0 = n_q_heads x head_dim_v.
    pub out_token_stride: i64,
    /// Elements between heads of out; 0 = head_dim_v.
    pub out_head_stride: i64,
    /// Elements between rows of lse; 0 = n_q_heads.
    pub lse_token_stride: i64,
    /// Elements between heads of lse; 0 = 1.
    pub lse_head_stride: i64,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
    /// With SKC_ON_DEVICE the rows the tensors have; else 0.
    pub n_rows: u64,
    /// With SKC_ON_DEVICE the most tokens an entry may have, at most max_chunk; else 0.
    pub max_tokens: u32,
    /// 0.
    pub reserved: u32,
}
c_struct!(skc_attend_args, SKC_ON_DEVICE, 104);

/// Arguments of skc_step and skc_step_part: those of skc_append_kv and skc_attend, for any number of tokens.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct skc_step_args {
    /// sizeof(skc_step_args).
    pub struct_size: u32,
    /// 0 or SKC_ON_DEVICE.
    pub flags: u32,
    /// Layer.
    pub layer: u32,
    /// Entries of seq_ids and n_tokens.
    pub n_entries: u32,
    /// Sequences; SKC_PADDING leaves an entry's output rows untouched. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens of each entry, any number; 0 is padding.
    pub n_tokens: *const i32,
    /// Keys [rows, n_kv_heads, head_dim] of in_dtype.
    pub k: *const c_void,
    /// Values [rows, n_kv_heads, head_dim_v] of in_dtype.
    pub v: *const c_void,
    /// Queries [rows, n_q_heads, head_dim] of in_dtype.
    pub q: *const c_void,
    /// Results [rows, n_q_heads, head_dim_v] of out_dtype. Rows and heads must not overlap, nor k
    /// or v.
    pub out: *mut c_void,
    /// Natural log of the softmax denominators [rows, n_q_heads], learned sink logit included; NULL = not wanted.
    pub lse: *mut f32,
    /// Elements between rows of k; 0 = n_kv_heads x head_dim.
    pub k_token_stride: i64,
    /// Elements between heads of k; 0 = head_dim.
    pub k_head_stride: i64,
    /// Elements between rows of v; 0 = n_kv_heads x head_dim_v.
    pub v_token_stride: i64,
    /// Elements between heads of v; 0 = head_dim_v.
    pub v_head_stride: i64,
    /// Elements between rows of q; 0 = n_q_heads x head_dim.
    pub q_token_stride: i64,
    /// Elements between heads of q; 0 = head_dim.
    pub q_head_stride: i64,
    /// Elements between rows of out; 0 = n_q_heads x head_dim_v.
    pub out_token_stride: i64,
    /// Elements between heads of out; 0 = head_dim_v.
    pub out_head_stride: i64,
    /// Elements between rows of lse; 0 = n_q_heads.
    pub lse_token_stride: i64,
    /// Elements between heads of lse; 0 = 1.
    pub lse_head_stride: i64,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
    /// With SKC_ON_DEVICE the rows the tensors have; else 0.
    pub n_rows: u64,
    /// With SKC_ON_DEVICE the most tokens an entry may have; else 0.
    pub max_tokens: u32,
    /// 0.
    pub reserved: u32,
}
c_struct!(skc_step_args, SKC_ON_DEVICE, 152);

/// What the argument structs say of their batch, as one struct.
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

/// The batch and the tensors of a step.
///
/// # Safety
/// All pointers must be NULL or as the header says, during `'a`.
pub unsafe fn read_step<'a>(a: &skc_step_args) -> Result<(Batch<'a>, StepTensors<'a>)> {
    // SAFETY: the caller's contract.
    unsafe {
        let tensors = StepTensors {
            k: RowsIn::from_raw(a.k.cast(), a.k_token_stride, a.k_head_stride),
            v: RowsIn::from_raw(a.v.cast(), a.v_token_stride, a.v_head_stride),
            q: RowsIn::from_raw(a.q.cast(), a.q_token_stride, a.q_head_stride),
            out: RowsOut::from_raw(a.out.cast(), a.out_token_stride, a.out_head_stride),
            lse: read_lse(a.lse, a.lse_token_stride, a.lse_head_stride),
        };
        Ok((read_batch(&batch_args!(a))?, tensors))
    }
}

/// The arrays of a batch, wherever they are.
pub struct BatchArgs {
    pub flags: u32,
    pub n: u32,
    pub seq_ids: *const i32,
    pub n_tokens: *const i32,
    pub n_rows: u64,
    pub max_tokens: u32,
    pub reserved: u32,
}

pub unsafe fn read_batch<'a>(a: &BatchArgs) -> Result<Batch<'a>> {
    if a.reserved != 0 {
        bail!(VersionMismatch, "reserved is {}: it must be 0", a.reserved);
    }
    if a.flags & SKC_ON_DEVICE != 0 {
        let batch = DeviceBatch {
            seq_ids: a.seq_ids.expose_provenance() as u64,
            n_tokens: a.n_tokens.expose_provenance() as u64,
            n_entries: a.n,
            max_tokens: a.max_tokens,
            n_rows: a.n_rows,
        };
        // SAFETY: the caller's contract.
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
    let n = a.n as usize;
    // SAFETY: the caller's contract.
    unsafe { Ok(Batch::new(read_array("seq_ids", a.seq_ids, n)?, read_array("n_tokens", a.n_tokens, n)?)) }
}

pub unsafe fn read_lse<'a>(lse: *mut f32, token_stride: i64, head_stride: i64) -> Option<RowsOut<'a>> {
    // SAFETY: the caller's contract.
    (!lse.is_null()).then(|| unsafe { RowsOut::from_raw(lse.cast(), token_stride, head_stride) })
}

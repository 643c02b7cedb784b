//! Append, attend, step.

use std::ffi::c_void;

use super::boundary::boundary;
use super::constants::skc_status;
use super::handle::{skc_cache, with_cache};
use super::read::{c_struct, read_array, read_struct};
use crate::batch::Batch;
use crate::status::Result;
use crate::tensor::{RowsIn, RowsOut};

/// Arguments of skc_append_kv. Rows are packed in the order of the entries, as many for each as it has tokens. Strides
/// count elements; 0 means packed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_append_kv_args {
    /// sizeof(skc_append_kv_args).
    pub struct_size: u32,
    /// 0.
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
}
c_struct!(skc_append_kv_args);

/// Arguments of skc_attend. Rows are packed in the order of the entries, as many for each as it has tokens. Strides
/// count elements; 0 means packed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_attend_args {
    /// sizeof(skc_attend_args).
    pub struct_size: u32,
    /// 0.
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
}
c_struct!(skc_attend_args);

/// Arguments of skc_step and skc_step_part: those of skc_append_kv and skc_attend, for any number of tokens.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct skc_step_args {
    /// sizeof(skc_step_args).
    pub struct_size: u32,
    /// 0.
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
    /// Results [rows, n_q_heads, head_dim_v] of out_dtype. Rows and heads must not overlap.
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
}
c_struct!(skc_step_args);

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
                read_batch(a.n_entries, a.seq_ids, a.n_tokens)?,
                RowsIn::from_raw(a.k.cast(), a.k_token_stride, a.k_head_stride),
                RowsIn::from_raw(a.v.cast(), a.v_token_stride, a.v_head_stride),
            )
        };
        with_cache(cache, |cache| cache.append(a.layer, batch, k, v))
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
        let (batch, q, out, lse) = unsafe {
            (
                read_batch(a.n_entries, a.seq_ids, a.n_tokens)?,
                RowsIn::from_raw(a.q.cast(), a.q_token_stride, a.q_head_stride),
                RowsOut::from_raw(a.out.cast(), a.out_token_stride, a.out_head_stride),
                read_lse(a.lse, a.lse_token_stride, a.lse_head_stride),
            )
        };
        with_cache(cache, |cache| cache.attend(a.layer, batch, q, out, lse))
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
        let s = unsafe { read_step(&a) }?;
        with_cache(cache, |cache| cache.step(a.layer, s.batch, s.k, s.v, s.q, s.out, s.lse))
    })
}

/// The tensors of a step.
pub struct StepRows<'a> {
    pub batch: Batch<'a>,
    pub k: RowsIn<'a>,
    pub v: RowsIn<'a>,
    pub q: RowsIn<'a>,
    pub out: RowsOut<'a>,
    pub lse: Option<RowsOut<'a>>,
}

/// # Safety
/// All pointers must be NULL or as the header says, during `'a`.
pub unsafe fn read_step<'a>(a: &skc_step_args) -> Result<StepRows<'a>> {
    // SAFETY: the caller's contract.
    unsafe {
        Ok(StepRows {
            batch: read_batch(a.n_entries, a.seq_ids, a.n_tokens)?,
            k: RowsIn::from_raw(a.k.cast(), a.k_token_stride, a.k_head_stride),
            v: RowsIn::from_raw(a.v.cast(), a.v_token_stride, a.v_head_stride),
            q: RowsIn::from_raw(a.q.cast(), a.q_token_stride, a.q_head_stride),
            out: RowsOut::from_raw(a.out.cast(), a.out_token_stride, a.out_head_stride),
            lse: read_lse(a.lse, a.lse_token_stride, a.lse_head_stride),
        })
    }
}

unsafe fn read_batch<'a>(n: u32, seq_ids: *const i32, n_tokens: *const i32) -> Result<Batch<'a>> {
    // SAFETY: the caller's contract.
    unsafe {
        Ok(Batch::new(read_array("seq_ids", seq_ids, n as usize)?, read_array("n_tokens", n_tokens, n as usize)?))
    }
}

unsafe fn read_lse<'a>(lse: *mut f32, token_stride: i64, head_stride: i64) -> Option<RowsOut<'a>> {
    // SAFETY: the caller's contract.
    (!lse.is_null()).then(|| unsafe { RowsOut::from_raw(lse.cast(), token_stride, head_stride) })
}

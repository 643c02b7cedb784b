//! Append, attend, step.

use super::args::{batch_args, read_attend, read_batch, read_step, skc_append_kv_args, skc_attend_args, skc_step_args};
use super::boundary::boundary;
use super::c_struct::read_struct;
use super::constants::skc_status;
use super::registry::{on_stream, skc_cache};
use crate::tensor::RowsIn;

/// Appends tokens: rotates (RoPE) and stores the keys and values of the next tokens of each sequence of a batch, in one
/// layer. Tokens that leave the window are dropped.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_CHUNK_TOO_LONG: more than max_chunk tokens of one sequence.
/// - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; more entries than the cache accepts; positions
///   beyond 2^64 - 1.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: with SKC_IN_STEP alone.
/// - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
///
/// Lifetime: args, its arrays and its tensors until the call returns. For a CUDA cache the tensors, and with
/// SKC_ON_DEVICE the arrays, until the work has finished, and at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_append_kv(cache: *mut skc_cache, args: *const skc_append_kv_args) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        // SAFETY: the arrays have n_entries elements, in the memory that the flags say.
        let batch = unsafe { read_batch(&batch_args!(a)) }?;
        // SAFETY: the tensors hold every element that the batch addresses, for as long as the header demands.
        let (k, v) = unsafe {
            (
                RowsIn::from_raw(a.k.cast(), a.k_token_stride, a.k_head_stride),
                RowsIn::from_raw(a.v.cast(), a.v_token_stride, a.v_head_stride),
            )
        };
        // SAFETY: the header demands a live stream of the cache's context.
        unsafe { on_stream(cache, a.stream, |cache| cache.append(a.layer, batch, k, v)) }
    })
}

/// Computes attention for the queries of the last tokens appended to each sequence of a batch, in one layer.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; more entries than the cache accepts; more
///   queries than the sequence's latest append had tokens (after an edit: any query).
/// - SKC_STATUS_TOKENS_GONE: tokens that a query attends to have been overwritten.
///
/// Lifetime: args, its arrays and its tensors until the call returns. For a CUDA cache the tensors, and with
/// SKC_ON_DEVICE the arrays, until the work has finished, and at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_attend(cache: *mut skc_cache, args: *const skc_attend_args) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        // SAFETY: arrays and tensors are as the header demands.
        let (batch, tensors) = unsafe { read_attend(&a) }?;
        // SAFETY: the header demands a live stream of the cache's context.
        unsafe { on_stream(cache, a.stream, |cache| cache.attend(a.layer, batch, tensors)) }
    })
}

/// skc_append_kv and skc_attend in one call, for any number of tokens: more than max_chunk are split into chunks.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; more entries than the cache accepts; positions
///   beyond 2^64 - 1.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: with SKC_IN_STEP alone.
/// - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
///
/// Lifetime: args, its arrays and its tensors until the call returns. For a CUDA cache the tensors, and with
/// SKC_ON_DEVICE the arrays, until the work has finished, and at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_step(cache: *mut skc_cache, args: *const skc_step_args) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        // SAFETY: arrays and tensors are as the header demands.
        let (batch, tensors) = unsafe { read_step(&a) }?;
        // SAFETY: the header demands a live stream of the cache's context.
        unsafe { on_stream(cache, a.stream, |cache| cache.step(a.layer, batch, tensors)) }
    })
}

//! Discovery: what a sequence holds, what this build can do, versions, names.

use std::ffi::c_char;

use super::boundary::{boundary, check_pointer};
use super::c_struct::{CStruct, c_struct, read_struct};
use super::constants::{
    SKC_ABI_VERSION, SKC_BACKEND_CPU, SKC_BACKEND_CUDA, SKC_DTYPE_BF16, SKC_DTYPE_F16, SKC_DTYPE_F32,
    SKC_POSITION_ALIBI, SKC_POSITION_NONE, SKC_POSITION_ROPE, SKC_POSITION_ROPE_APPLIED, SKC_READ_BACK,
    SKC_ROPE_INTERLEAVED, SKC_ROPE_NEOX, skc_status,
};
use super::registry::{skc_cache, with_cache};
use crate::backend::cuda::available;
use crate::config::{HEAD_DIM_MULTIPLE, MAX_CHUNK, MAX_HEAD_DIM, MAX_LAYERS, MAX_SEQS, MAX_THREADS};
use crate::error::Result;

/// State of a sequence, filled by skc_seq_info. Set struct_size and zero the rest before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_sequence_info {
    /// sizeof(skc_sequence_info).
    pub struct_size: u32,
    /// 0 or SKC_READ_BACK.
    pub flags: u32,
    /// Tokens in the shortest layer.
    pub length_min: u64,
    /// Tokens in the longest layer; above length_min only in the middle of a step.
    pub length_max: u64,
    /// Stream position of the first token.
    pub start_position: u64,
    /// Tokens the layer holds: sinks and window.
    pub cached_tokens: u64,
    /// Tokens the layer has dropped between sinks and window.
    pub evicted_tokens: u64,
    /// Tokens that may come before the layer drops one.
    pub room: u64,
    /// The most tokens skc_rewind would cut in the layer.
    pub rewindable: u64,
}
c_struct!(skc_sequence_info, SKC_READ_BACK, size_of::<skc_sequence_info>());

/// What this build can do, filled by skc_capabilities. Set struct_size and zero the rest before the call. Bit n of a
/// mask stands for the constant of value n.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_capability_info {
    /// sizeof(skc_capability_info).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// SKC_ABI_VERSION of the library.
    pub abi_version: u32,
    /// SKC_BACKEND_ that skc_create_cache can make now.
    pub backends: u32,
    /// SKC_DTYPE_ of in_dtype and out_dtype.
    pub io_dtypes: u32,
    /// SKC_DTYPE_ of kv_dtype.
    pub kv_dtypes: u32,
    /// SKC_POSITION_ modes.
    pub position_modes: u32,
    /// SKC_ROPE_ styles.
    pub rope_styles: u32,
    /// Largest head_dim and head_dim_v.
    pub max_head_dim: u32,
    /// head_dim and head_dim_v are multiples of this.
    pub head_dim_multiple: u32,
    /// Largest n_layers.
    pub max_layers: u32,
    /// Largest n_seqs.
    pub max_seqs: u32,
    /// Largest n_threads.
    pub max_threads: u32,
    /// Largest max_chunk and max_rewind.
    pub max_chunk: u32,
}
c_struct!(skc_capability_info);

/// State of one sequence: lengths over all layers, the rest as layer `layer` sees it. SKC_STATUS_LENGTH_UNKNOWN where the
/// device alone knows and SKC_READ_BACK is not set.
///
/// # Safety
/// `info` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_seq_info(
    cache: *mut skc_cache,
    layer: u32,
    seq_id: i32,
    info: *mut skc_sequence_info,
) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let flags = unsafe { read_struct(info) }?.flags;
        let state = with_cache(cache, |cache| {
            if flags & SKC_READ_BACK != 0 {
                cache.read_back(seq_id)?;
            }
            cache.seq_info(layer, seq_id)
        })?;
        let value = |old: skc_sequence_info| skc_sequence_info {
            length_min: state.len_min,
            length_max: state.len_max,
            start_position: state.start_position,
            cached_tokens: state.cached,
            evicted_tokens: state.evicted,
            room: state.room,
            rewindable: state.rewindable,
            ..old
        };
        // SAFETY: the caller's contract.
        unsafe { fill(info, value) }
    })
}

/// What this build can do.
///
/// # Safety
/// `info` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_capabilities(info: *mut skc_capability_info) -> skc_status {
    let mask = |values: &[u32]| values.iter().fold(0, |mask, v| mask | 1 << v);
    let dtypes = mask(&[SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16]);
    let value = |old: skc_capability_info| skc_capability_info {
        abi_version: SKC_ABI_VERSION,
        backends: mask(&[SKC_BACKEND_CPU]) | if available() { mask(&[SKC_BACKEND_CUDA]) } else { 0 },
        io_dtypes: dtypes,
        kv_dtypes: dtypes,
        position_modes: mask(&[SKC_POSITION_ROPE, SKC_POSITION_ROPE_APPLIED, SKC_POSITION_ALIBI, SKC_POSITION_NONE]),
        rope_styles: mask(&[SKC_ROPE_NEOX, SKC_ROPE_INTERLEAVED]),
        max_head_dim: MAX_HEAD_DIM,
        head_dim_multiple: HEAD_DIM_MULTIPLE,
        max_layers: MAX_LAYERS,
        max_seqs: MAX_SEQS,
        max_threads: MAX_THREADS,
        max_chunk: MAX_CHUNK,
        ..old
    };
    // SAFETY: the caller's contract.
    boundary(|| unsafe { fill(info, value) })
}

/// Fills a caller's output struct, no further than it reaches.
///
/// # Safety
/// `out` must be NULL or as the header describes it.
pub unsafe fn fill<T: CStruct>(out: *mut T, value: impl FnOnce(T) -> T) -> Result<()> {
    check_pointer(T::NAME, out)?;
    // SAFETY: the caller's contract; every struct starts with its size.
    let (old, size) = unsafe { (read_struct(out)?, out.cast::<u32>().read() as usize) };
    let new = value(old);
    // SAFETY: the caller's contract.
    unsafe { std::ptr::copy_nonoverlapping((&raw const new).cast::<u8>(), out.cast(), size.min(size_of::<T>())) };
    Ok(())
}

/// Version of the library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn skc_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// SKC_ABI_VERSION of the library. Check it against the header's after loading.
#[unsafe(no_mangle)]
pub extern "C" fn skc_abi_version() -> u32 {
    SKC_ABI_VERSION
}

/// Name of a status, such as "SKC_STATUS_BUSY"; "unknown status" for other numbers. Never NULL, valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn skc_status_name(status: skc_status) -> *const c_char {
    let name = match status {
        0 => c"SKC_STATUS_OK",
        -1 => c"SKC_STATUS_INVALID_HANDLE",
        -2 => c"SKC_STATUS_NULL_POINTER",
        -3 => c"SKC_STATUS_INVALID_ARGUMENT",
        -4 => c"SKC_STATUS_INVALID_CONFIG",
        -5 => c"SKC_STATUS_OUT_OF_RANGE",
        -6 => c"SKC_STATUS_VERSION_MISMATCH",
        -7 => c"SKC_STATUS_BACKEND_UNAVAILABLE",
        -8 => c"SKC_STATUS_OUT_OF_MEMORY",
        -9 => c"SKC_STATUS_BUSY",
        -10 => c"SKC_STATUS_LAYERS_OUT_OF_STEP",
        -11 => c"SKC_STATUS_CHUNK_TOO_LONG",
        -12 => c"SKC_STATUS_TOKENS_GONE",
        -13 => c"SKC_STATUS_DEVICE_LOST",
        -14 => c"SKC_STATUS_INTERNAL",
        -15 => c"SKC_STATUS_LENGTH_UNKNOWN",
        _ => c"unknown status",
    };
    name.as_ptr()
}

//! Queries: the state of a sequence, which kernel a call runs, what this build can do, versions and names.

use std::ffi::{CStr, c_char};

use super::boundary::{boundary, write_output};
use super::c_struct::{c_struct, fill, read_struct};
use super::constants::{
    SKC_ABI_VERSION, SKC_BACKEND_CPU, SKC_BACKEND_CUDA, SKC_CALL_APPEND, SKC_CALL_ATTEND, SKC_CALL_STEP,
    SKC_DTYPE_BF16, SKC_DTYPE_F16, SKC_DTYPE_F32, SKC_POSITION_ALIBI, SKC_POSITION_NONE, SKC_POSITION_ROPE,
    SKC_POSITION_ROPE_APPLIED, SKC_READ_BACK, SKC_ROPE_INTERLEAVED, SKC_ROPE_NEOX, SKC_SNAPSHOT_VERSION, constant,
    skc_status, status_name,
};
use super::registry::{skc_cache, with_cache};
use crate::backend::TokenCall;
use crate::backend::cuda::available;
use crate::config::{
    HEAD_DIM_MULTIPLE, MAX_CHUNK, MAX_HEAD_DIM, MAX_LAYERS, MAX_SEGMENTS, MAX_SEQS, MAX_THREADS, StorageType,
};
use crate::error::{Result, bail};

/// State of a sequence, filled by skc_seq_info. Set struct_size, and flags if wanted, and zero the rest before the
/// call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_sequence_info {
    /// Set to sizeof(skc_sequence_info): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_READ_BACK.
    pub flags: u32,
    /// Length of the sequence in the layer where it is shortest.
    pub length_min: u64,
    /// Length in the layer where it is longest; above length_min only between the calls of a step.
    pub length_max: u64,
    /// Stream position of the sequence's first token.
    pub start_position: u64,
    /// Tokens that the layer holds: sinks, pinned tokens and window tokens.
    pub cached_tokens: u64,
    /// Tokens of the sequence that the layer has dropped.
    pub evicted_tokens: u64,
    /// Tokens that can be appended before the layer drops one.
    pub room: u64,
    /// The largest count that skc_rewind accepts in this layer.
    pub rewindable: u64,
    /// Tokens that skc_pin holds in this layer; sinks are not counted.
    pub pinned_tokens: u64,
    /// Runs of consecutive tokens that the layer holds.
    pub segments: u64,
    /// What max_segments counts: runs of pinned tokens, and ranges dropped by skc_evict_range that the window has not
    /// moved past.
    pub counted_segments: u64,
}
c_struct!(skc_sequence_info, SKC_READ_BACK, 64);

/// What this build can do, filled by skc_capabilities. Set struct_size and zero the rest before the call. In a mask,
/// bit n stands for the constant of value n.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_capability_info {
    /// Set to sizeof(skc_capability_info): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: none is defined, set to 0.
    pub flags: u32,
    /// SKC_ABI_VERSION of the library.
    pub abi_version: u32,
    /// Mask of SKC_BACKEND_ that can be used on this machine now.
    pub backends: u32,
    /// Mask of SKC_DTYPE_ for in_dtype and out_dtype.
    pub io_dtypes: u32,
    /// Mask of SKC_DTYPE_ for kv_dtype, k_dtype and v_dtype.
    pub kv_dtypes: u32,
    /// Mask of SKC_POSITION_ modes.
    pub position_modes: u32,
    /// Mask of SKC_ROPE_ styles.
    pub rope_styles: u32,
    /// Largest head_dim and head_dim_v.
    pub max_head_dim: u32,
    /// head_dim and head_dim_v must be multiples of this number.
    pub head_dim_multiple: u32,
    /// Largest n_layers of a cache.
    pub max_layers: u32,
    /// Largest n_seqs of a cache.
    pub max_seqs: u32,
    /// Largest n_threads of a cache.
    pub max_threads: u32,
    /// Largest max_chunk and max_rewind of a cache.
    pub max_chunk: u32,
    /// SKC_SNAPSHOT_VERSION of the library.
    pub snapshot_version: u32,
    /// Largest max_segments of a layer.
    pub max_segments: u32,
}
c_struct!(skc_capability_info, 0, 56);

/// A kernel and its launch, filled by skc_kernel_choice. Set struct_size and zero the rest before the call. For a CPU
/// cache only the name is set. For a step longer than max_chunk all fields but n_launches describe its first chunk.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_kernel_info {
    /// Set to sizeof(skc_kernel_info): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: none is defined, set to 0.
    pub flags: u32,
    /// Name of the kernel, NUL-terminated; if a call runs several, that of its attention. "skc_step_decode" is append
    /// and attention fused into one launch.
    pub kernel: [c_char; 40],
    /// Kernel launches of the whole call, except those that copy a batch of more than 64 entries from host to device
    /// memory.
    pub n_launches: u64,
    /// Thread blocks in x: one per entry.
    pub grid_x: u32,
    /// Thread blocks in y.
    pub grid_y: u32,
    /// Thread blocks in z.
    pub grid_z: u32,
    /// Threads per block.
    pub block_threads: u32,
    /// Bytes of shared memory per block.
    pub shared_bytes: u32,
    /// KV splits: thread blocks that divide the keys of a KV head (in a chunk: of a query tile) of a sequence.
    pub n_splits: u32,
}
c_struct!(skc_kernel_info);

/// Queries the state of one sequence: its lengths over all layers, and all other values as they are in layer `layer`.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: the layer or the sequence does not exist.
/// - SKC_STATUS_LENGTH_UNKNOWN: the host's counters of the sequence are stale, and SKC_READ_BACK is not set.
/// - SKC_STATUS_INVALID_ARGUMENT: also with SKC_READ_BACK while the stream is being captured.
/// - SKC_STATUS_OUT_OF_MEMORY: with SKC_READ_BACK, if the host has no memory for the counters.
///
/// Lifetime: info until the call returns. With SKC_READ_BACK the stream of the latest call must still be valid.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. With SKC_READ_BACK it waits for the
/// stream.
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
        // SAFETY: NULL or a struct of struct_size bytes.
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
            pinned_tokens: state.pinned,
            segments: state.segments,
            counted_segments: state.counted,
            ..old
        };
        // SAFETY: NULL or a writable struct of struct_size bytes.
        unsafe { fill(info, value) }
    })
}

/// Queries what this build can do on this machine. For CUDA it looks for a driver, a device, and a compiler or built-in
/// kernels.
///
/// Returns: SKC_STATUS_OK, or one of the common statuses of a function without a cache.
///
/// Lifetime: info until the call returns.
///
/// Threads: any thread, also several at a time.
///
/// # Safety
/// `info` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_capabilities(info: *mut skc_capability_info) -> skc_status {
    let mask = |values: &[u32]| values.iter().fold(0, |mask, v| mask | 1 << v);
    let value = |old: skc_capability_info| skc_capability_info {
        abi_version: SKC_ABI_VERSION,
        backends: mask(&[SKC_BACKEND_CPU]) | if available() { mask(&[SKC_BACKEND_CUDA]) } else { 0 },
        io_dtypes: mask(&[SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16]),
        kv_dtypes: mask(&StorageType::ALL.map(|t| t as u32)),
        position_modes: mask(&[SKC_POSITION_ROPE, SKC_POSITION_ROPE_APPLIED, SKC_POSITION_ALIBI, SKC_POSITION_NONE]),
        rope_styles: mask(&[SKC_ROPE_NEOX, SKC_ROPE_INTERLEAVED]),
        max_head_dim: MAX_HEAD_DIM,
        head_dim_multiple: HEAD_DIM_MULTIPLE,
        max_layers: MAX_LAYERS,
        max_seqs: MAX_SEQS,
        max_threads: MAX_THREADS,
        max_chunk: MAX_CHUNK,
        snapshot_version: SKC_SNAPSHOT_VERSION,
        max_segments: MAX_SEGMENTS,
        ..old
    };
    // SAFETY: NULL or a writable struct of struct_size bytes.
    boundary(|| unsafe { fill(info, value) })
}

/// Version of the library, such as "0.1.0".
///
/// Returns: a C string, never NULL.
///
/// Lifetime: the string is valid as long as the library is loaded.
///
/// Threads: any thread, also several at a time.
#[unsafe(no_mangle)]
pub extern "C" fn skc_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// ABI version of the library. After loading, compare it with the header's SKC_ABI_VERSION.
///
/// Returns: the number.
///
/// Lifetime: takes and returns no pointer.
///
/// Threads: any thread, also several at a time.
#[unsafe(no_mangle)]
pub extern "C" fn skc_abi_version() -> u32 {
    SKC_ABI_VERSION
}

/// Name of a status, such as "SKC_STATUS_BUSY".
///
/// Returns: a C string, never NULL; "unknown status" for a number that is not a status of this library.
///
/// Lifetime: the string is valid as long as the library is loaded.
///
/// Threads: any thread, also several at a time.
#[unsafe(no_mangle)]
pub extern "C" fn skc_status_name(status: skc_status) -> *const c_char {
    status_name(status).unwrap_or(c"unknown status").as_ptr()
}

/// Value of a constant of this header by its name, for languages that cannot read C: "SKC_DTYPE_F16" gives 2.
///
/// Returns: SKC_STATUS_OK, or
/// - SKC_STATUS_NULL_POINTER: name or value is NULL.
/// - SKC_STATUS_INVALID_ARGUMENT: there is no constant of that name, or value is misaligned.
/// - SKC_STATUS_INTERNAL: a bug in this library.
///
/// Lifetime: name and value until the call returns.
///
/// Threads: any thread, also several at a time.
///
/// # Safety
/// `name` must be NULL or a C string, `value` NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_constant(name: *const c_char, value: *mut i64) -> skc_status {
    boundary(|| {
        if name.is_null() {
            bail!(NullPointer, "name is NULL");
        }
        // SAFETY: not NULL, so a C string.
        let name = unsafe { CStr::from_ptr(name) };
        let Some(found) = constant(name) else {
            // As much of it as an error's text has room for.
            let name = name.to_bytes().utf8_chunks().next().map_or("", |chunk| chunk.valid());
            bail!(InvalidArgument, "name is \"{name:.100}\": not a constant of sinkcache.h");
        };
        // SAFETY: NULL or writable.
        unsafe { write_output("value", value, found) }
    })
}

/// Queries which kernel a call runs in a layer, if the rows of its tensors begin at multiples of 16 bytes: `call` is
/// SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP, on up to `n_tokens` tokens of each of `n_entries` sequences. The
/// choice depends only on these numbers, the cache's settings and the device, never on what sequences hold.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_INVALID_ARGUMENT: also for `call` that is none of the three.
/// - SKC_STATUS_OUT_OF_RANGE: the layer does not exist; `n_entries` or `n_tokens` is 0 or more than a call may have.
///
/// Lifetime: info until the call returns.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `info` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_kernel_choice(
    cache: *mut skc_cache,
    layer: u32,
    call: u32,
    n_entries: u32,
    n_tokens: u32,
    info: *mut skc_kernel_info,
) -> skc_status {
    boundary(|| {
        let call = call_of(call)?;
        let choice = with_cache(cache, |cache| cache.kernel_choice(layer, call, n_entries, n_tokens))?;
        let mut kernel = [0; 40];
        // The last byte stays 0: the name is NUL-terminated.
        for (to, from) in kernel.iter_mut().take(39).zip(choice.kernel.bytes()) {
            *to = from as c_char;
        }
        let [grid_x, grid_y, grid_z] = choice.grid;
        let value = |old: skc_kernel_info| skc_kernel_info {
            kernel,
            n_launches: choice.launches,
            grid_x,
            grid_y,
            grid_z,
            block_threads: choice.threads,
            shared_bytes: choice.shared_bytes,
            n_splits: choice.n_splits,
            ..old
        };
        // SAFETY: NULL or a writable struct of struct_size bytes.
        unsafe { fill(info, value) }
    })
}

fn call_of(call: u32) -> Result<TokenCall> {
    Ok(match call {
        SKC_CALL_APPEND => TokenCall::Append,
        SKC_CALL_ATTEND => TokenCall::Attend,
        SKC_CALL_STEP => TokenCall::Step,
        _ => bail!(InvalidArgument, "call is {call}: SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP is needed"),
    })
}

//! Discovery: what a sequence holds, what this build can do, versions, names.

use std::ffi::{CStr, c_char};

use super::boundary::{boundary, write_output};
use super::c_struct::{c_struct, fill, read_struct};
use super::constants::{
    SKC_ABI_VERSION, SKC_BACKEND_CPU, SKC_BACKEND_CUDA, SKC_CALL_APPEND, SKC_CALL_ATTEND, SKC_CALL_STEP,
    SKC_DTYPE_BF16, SKC_DTYPE_F16, SKC_DTYPE_F32, SKC_POSITION_ALIBI, SKC_POSITION_NONE, SKC_POSITION_ROPE,
    SKC_POSITION_ROPE_APPLIED, SKC_READ_BACK, SKC_ROPE_INTERLEAVED, SKC_ROPE_NEOX, TABLE, skc_status,
};
use super::registry::{skc_cache, with_cache};
use crate::backend::TokenCall;
use crate::backend::cuda::available;
use crate::config::{HEAD_DIM_MULTIPLE, MAX_CHUNK, MAX_HEAD_DIM, MAX_LAYERS, MAX_SEQS, MAX_THREADS};
use crate::error::{Result, bail};

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

/// A kernel and how it is launched, filled by skc_kernel_choice. Set struct_size and zero the rest before the call. On the
/// CPU there is a name only. Of a step longer than max_chunk all but n_launches is of its first chunk.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_kernel_info {
    /// sizeof(skc_kernel_info).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// Name of the kernel; of a call that takes several, that of its attention. "skc_step_decode" is append and attention
    /// in one launch. Ends with 0.
    pub kernel: [c_char; 40],
    /// Launches that the call takes. Those that write a batch of more than 64 entries in host memory to the device are not
    /// counted.
    pub n_launches: u64,
    /// Blocks in x: one for each entry.
    pub grid_x: u32,
    /// Blocks in y.
    pub grid_y: u32,
    /// Blocks in z.
    pub grid_z: u32,
    /// Threads of a block.
    pub block_threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks that share the keys of one KV head of one sequence.
    pub n_splits: u32,
}
c_struct!(skc_kernel_info);

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

/// Value of a constant of the header by its name, for callers that cannot read C: name "SKC_DTYPE_F16" gives 2.
///
/// # Safety
/// `name` must be NULL or a C string, `value` NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_constant(name: *const c_char, value: *mut i64) -> skc_status {
    boundary(|| {
        let found = lookup(name)?;
        // SAFETY: the caller's contract.
        unsafe { write_output("value", value, found) }
    })
}

fn lookup(name: *const c_char) -> Result<i64> {
    if name.is_null() {
        bail!(NullPointer, "name is NULL");
    }
    // SAFETY: the caller's contract.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    match TABLE.iter().find(|(n, _)| *n == name) {
        Some(&(_, value)) => Ok(value),
        None => bail!(InvalidArgument, "name is \"{name}\": not a constant of sinkcache.h"),
    }
}

/// Which kernel a call runs in a layer, if the rows of its tensors begin at multiples of 16 bytes: `call` is
/// SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP, on up to `n_tokens` tokens of each of `n_entries` sequences. The
/// choice follows from these numbers, the cache's settings and the device alone, never from what sequences hold.
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
        // The last byte stays 0.
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
        // SAFETY: the caller's contract.
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

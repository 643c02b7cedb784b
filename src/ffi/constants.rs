//! Every constant of the header.

/// Status of a call: 0, or one of the negative SKC_STATUS_ numbers, which are never reused.
pub type skc_status = i32;

/// Version of this contract: raised when something a caller relies on changes. Additions do not raise it.
pub const SKC_ABI_VERSION: u32 = 0;

/// Success.
pub const SKC_STATUS_OK: skc_status = 0;
/// The handle is NULL, destroyed, or was never a cache.
pub const SKC_STATUS_INVALID_HANDLE: skc_status = -1;
/// A required pointer is NULL.
pub const SKC_STATUS_NULL_POINTER: skc_status = -2;
/// A value of a call is not allowed.
pub const SKC_STATUS_INVALID_ARGUMENT: skc_status = -3;
/// A value of a configuration is not allowed.
pub const SKC_STATUS_INVALID_CONFIG: skc_status = -4;
/// A layer, sequence, token count or position is outside what there is.
pub const SKC_STATUS_OUT_OF_RANGE: skc_status = -5;
/// struct_size or flags is not one this library understands.
pub const SKC_STATUS_VERSION_MISMATCH: skc_status = -6;
/// The backend asked for is not in this build or has no device.
pub const SKC_STATUS_BACKEND_UNAVAILABLE: skc_status = -7;
/// Memory could not be had.
pub const SKC_STATUS_OUT_OF_MEMORY: skc_status = -8;
/// Another call is using the cache.
pub const SKC_STATUS_BUSY: skc_status = -9;
/// An edit needs all layers of a sequence at one length.
pub const SKC_STATUS_LAYERS_OUT_OF_STEP: skc_status = -10;
/// More tokens of one sequence than max_chunk.
pub const SKC_STATUS_CHUNK_TOO_LONG: skc_status = -11;
/// The tokens needed have been overwritten or evicted for good.
pub const SKC_STATUS_TOKENS_GONE: skc_status = -12;
/// The device failed; only skc_destroy_cache works now.
pub const SKC_STATUS_DEVICE_LOST: skc_status = -13;
/// A defect of this library; only skc_destroy_cache works now.
pub const SKC_STATUS_INTERNAL: skc_status = -14;
/// Graphs or counts in device memory have changed a sequence: the device alone knows its length. skc_note_replay,
/// skc_reset and skc_seq_info with SKC_READ_BACK end that.
pub const SKC_STATUS_LENGTH_UNKNOWN: skc_status = -15;

/// Host memory and host threads.
pub const SKC_BACKEND_CPU: u32 = 1;
/// An NVIDIA GPU.
pub const SKC_BACKEND_CUDA: u32 = 2;

/// IEEE binary32.
pub const SKC_DTYPE_F32: u32 = 1;
/// IEEE binary16.
pub const SKC_DTYPE_F16: u32 = 2;
/// bfloat16.
pub const SKC_DTYPE_BF16: u32 = 3;

/// The cache rotates k and q.
pub const SKC_POSITION_ROPE: u32 = 1;
/// The host has rotated k and q at their stream positions, which advance by exactly one per token.
pub const SKC_POSITION_ROPE_APPLIED: u32 = 2;
/// Nobody rotates; a bias of -slope x distance in cache positions is added.
pub const SKC_POSITION_ALIBI: u32 = 3;
/// No positions.
pub const SKC_POSITION_NONE: u32 = 4;

/// Dim i is rotated with dim i + rope_dim / 2.
pub const SKC_ROPE_NEOX: u32 = 1;
/// Dim 2i is rotated with dim 2i + 1.
pub const SKC_ROPE_INTERLEAVED: u32 = 2;

/// A cache was made or destroyed.
pub const SKC_LOG_INFO: u32 = 1;
/// A call was refused.
pub const SKC_LOG_WARN: u32 = 2;
/// A call failed inside.
pub const SKC_LOG_ERROR: u32 = 3;

/// A sequence id that marks an entry as padding.
pub const SKC_PADDING: i32 = -1;
/// Every layer, where a layer is asked for; the layer of an edit in skc_device_error.
pub const SKC_ALL_LAYERS: u32 = 4_294_967_295;

/// Flag of a call: its arrays (seq_ids, n_tokens, start_positions) lie in device memory. CUDA only. Nothing in them is
/// known to the host: entries that cannot be done are skipped on the device, see skc_poll_error.
pub const SKC_ON_DEVICE: u32 = 1;
/// Flag of skc_cache_config: compiled kernels are not kept on disk. See also SINKCACHE_CUDA_CACHE_DIR.
pub const SKC_NO_DISK_CACHE: u32 = 1;
/// Flag of skc_cache_config: CUDA's programmatic dependent launches, from compute capability 9.0 on. Blocks of a kernel of
/// this cache take their places while the kernel before it in the stream still runs, if that one lets dependents in
/// (griddepcontrol.launch_dependents), and wait for its end. With this flag or without, they let a kernel after them in that
/// is launched that way: it must wait likewise. Captures need a driver of CUDA 12.3 or later.
pub const SKC_PROGRAMMATIC_LAUNCH: u32 = 2;
/// Flag of skc_sequence_info: wait for the stream of the latest call and read the sequence's state from the device.
pub const SKC_READ_BACK: u32 = 1;

/// skc_append_kv, and the first half of skc_step.
pub const SKC_CALL_APPEND: u32 = 1;
/// skc_attend, and the second half of skc_step.
pub const SKC_CALL_ATTEND: u32 = 2;
/// skc_evict.
pub const SKC_CALL_EVICT: u32 = 3;
/// skc_rewind.
pub const SKC_CALL_REWIND: u32 = 4;
/// skc_reset.
pub const SKC_CALL_RESET: u32 = 5;
/// skc_fork.
pub const SKC_CALL_FORK: u32 = 6;
/// skc_abort_step.
pub const SKC_CALL_ABORT: u32 = 7;
/// skc_step, where a kernel is asked for: see skc_kernel_choice.
pub const SKC_CALL_STEP: u32 = 8;

macro_rules! table {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), $name as i64)),*]
    };
}

pub(super) const TABLE: &[(&str, i64)] = table![
    SKC_ABI_VERSION,
    SKC_STATUS_OK,
    SKC_STATUS_INVALID_HANDLE,
    SKC_STATUS_NULL_POINTER,
    SKC_STATUS_INVALID_ARGUMENT,
    SKC_STATUS_INVALID_CONFIG,
    SKC_STATUS_OUT_OF_RANGE,
    SKC_STATUS_VERSION_MISMATCH,
    SKC_STATUS_BACKEND_UNAVAILABLE,
    SKC_STATUS_OUT_OF_MEMORY,
    SKC_STATUS_BUSY,
    SKC_STATUS_LAYERS_OUT_OF_STEP,
    SKC_STATUS_CHUNK_TOO_LONG,
    SKC_STATUS_TOKENS_GONE,
    SKC_STATUS_DEVICE_LOST,
    SKC_STATUS_INTERNAL,
    SKC_STATUS_LENGTH_UNKNOWN,
    SKC_BACKEND_CPU,
    SKC_BACKEND_CUDA,
    SKC_DTYPE_F32,
    SKC_DTYPE_F16,
    SKC_DTYPE_BF16,
    SKC_POSITION_ROPE,
    SKC_POSITION_ROPE_APPLIED,
    SKC_POSITION_ALIBI,
    SKC_POSITION_NONE,
    SKC_ROPE_NEOX,
    SKC_ROPE_INTERLEAVED,
    SKC_LOG_INFO,
    SKC_LOG_WARN,
    SKC_LOG_ERROR,
    SKC_PADDING,
    SKC_ALL_LAYERS,
    SKC_ON_DEVICE,
    SKC_NO_DISK_CACHE,
    SKC_PROGRAMMATIC_LAUNCH,
    SKC_READ_BACK,
    SKC_CALL_APPEND,
    SKC_CALL_ATTEND,
    SKC_CALL_EVICT,
    SKC_CALL_REWIND,
    SKC_CALL_RESET,
    SKC_CALL_FORK,
    SKC_CALL_ABORT,
    SKC_CALL_STEP,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn every_status_has_its_constant() {
        let constants: Vec<_> = TABLE.iter().filter(|(n, _)| n.starts_with("SKC_STATUS_")).map(|&(_, v)| v).collect();
        let statuses: Vec<_> = std::iter::once(0).chain(Status::ALL.iter().map(|&s| s as i64)).collect();
        assert_eq!(constants, statuses);
    }
}

//! Every constant of the header, in groups. The header's text, [`skc_constant`](super::skc_constant) and
//! [`skc_status_name`](super::skc_status_name) are made from the tables here.

use std::ffi::CStr;

use crate::backend::EditCall;
use crate::cache::SNAPSHOT_VERSION;
use crate::config::{BackendKind, DType, PositionMode, RopeStyle, StorageType};
use crate::error::for_each_status;

/// What a call returns: SKC_STATUS_OK (0), or one of the negative SKC_STATUS_ numbers. Numbers are never reused, and
/// later versions may add some.
pub type skc_status = i32;

/// A constant of the header.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// Its name.
    pub name: &'static CStr,
    /// Its value.
    pub value: i64,
    /// Its description; lines end with a newline.
    pub text: &'static str,
}

/// Constants that belong together.
#[derive(Clone, Copy, Debug)]
pub struct ConstantGroup {
    /// What they are for.
    pub heading: &'static str,
    /// In the order of the header.
    pub constants: &'static [Constant],
}

/// Makes a Rust constant of each entry, and of each group a table.
macro_rules! constants {
    ($($group:ident, $heading:literal {
        $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $value:expr;)+
    })+) => {
        $($(
            $(#[doc = $doc])+
            pub const $name: $type = $value;
        )+)+
        $(const $group: ConstantGroup = ConstantGroup {
            heading: $heading,
            constants: &[$(Constant {
                name: c_name(concat!(stringify!($name), "\0")),
                value: $name as i64,
                text: concat!($($doc, "\n"),+),
            }),+],
        };)+
    };
}

const fn c_name(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

macro_rules! status_constants {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $c_name:ident;)+) => {
        constants! {
            STATUSES, "Statuses" {
                /// Success.
                SKC_STATUS_OK: skc_status = 0;
                $($(#[doc = $doc])+ $c_name: skc_status = $number;)+
            }
        }
    };
}
for_each_status!(status_constants);

constants! {
    VERSION, "Version" {
        /// Version of this contract. It is raised when something that a caller relies on changes; additions do not
        /// raise it.
        SKC_ABI_VERSION: u32 = 0;
    }
    BACKENDS, "Backends: skc_cache_config.backend" {
        /// K and V in host memory, kernels on CPU threads.
        SKC_BACKEND_CPU: u32 = BackendKind::Cpu as u32;
        /// K and V in the memory of an NVIDIA GPU, kernels in the host's CUDA stream.
        SKC_BACKEND_CUDA: u32 = BackendKind::Cuda as u32;
    }
    DTYPES, "Element types: skc_cache_config.in_dtype and out_dtype; storage types: kv_dtype, k_dtype and v_dtype" {
        /// IEEE binary32.
        SKC_DTYPE_F32: u32 = DType::F32 as u32;
        /// IEEE binary16.
        SKC_DTYPE_F16: u32 = DType::F16 as u32;
        /// bfloat16.
        SKC_DTYPE_BF16: u32 = DType::Bf16 as u32;
        /// A storage type: 8-bit integers, with one bf16 scale for each row (a token and head of K or V).
        SKC_DTYPE_Q8: u32 = StorageType::Q8 as u32;
        /// A storage type: 4-bit integers, with one bf16 scale for each 32 dims of a row.
        SKC_DTYPE_Q4: u32 = StorageType::Q4 as u32;
    }
    POSITION_MODES, "Position modes: skc_layer_config.position_mode" {
        /// The cache applies RoPE to k and q.
        SKC_POSITION_ROPE: u32 = PositionMode::Rope as u32;
        /// The host has applied RoPE to k and q at their stream positions, which advance by exactly one per token.
        SKC_POSITION_ROPE_APPLIED: u32 = PositionMode::RopeApplied as u32;
        /// No RoPE. Scores get a bias of -slope x distance, in cache positions.
        SKC_POSITION_ALIBI: u32 = PositionMode::Alibi as u32;
        /// No RoPE and no bias.
        SKC_POSITION_NONE: u32 = PositionMode::None as u32;
    }
    ROPE_STYLES, "RoPE styles: skc_layer_config.rope_style" {
        /// Dim i is rotated with dim i + rope_dim / 2.
        SKC_ROPE_NEOX: u32 = RopeStyle::Neox as u32;
        /// Dim 2i is rotated with dim 2i + 1.
        SKC_ROPE_INTERLEAVED: u32 = RopeStyle::Interleaved as u32;
    }
    LOG_LEVELS, "Log levels: the argument of skc_log_fn" {
        /// A cache was created or destroyed.
        SKC_LOG_INFO: u32 = 1;
        /// A call was rejected, or a cache was created with a warning.
        SKC_LOG_WARN: u32 = 2;
        /// A call returned SKC_STATUS_INTERNAL.
        SKC_LOG_ERROR: u32 = 3;
    }
    IDS, "Special sequence ids and layers" {
        /// As a sequence id: the entry is padding and is skipped.
        SKC_PADDING: i32 = -1;
        /// As a layer: all layers. In skc_device_error: an edit, which concerns all layers.
        SKC_ALL_LAYERS: u32 = u32::MAX;
    }
    SNAPSHOTS, "Snapshots: skc_save_sequence and skc_load_sequence" {
        /// Bytes of host_tag.
        SKC_HOST_TAG_BYTES: u32 = 32;
        /// Version of the snapshots that this library writes. It reads this version and all earlier ones.
        SKC_SNAPSHOT_VERSION: u32 = SNAPSHOT_VERSION;
    }
    FLAGS, "Flags, each of the struct that its text names" {
        /// Flag of the argument structs of calls and edits, for CUDA caches: seq_ids, n_tokens, first and
        /// start_positions are in device memory. The host does not read them; the device checks them when the work
        /// runs, skips invalid entries and records them for skc_poll_error.
        SKC_ON_DEVICE: u32 = 1;
        /// Flag of the arguments of an append and of a step: refused with SKC_STATUS_LAYERS_OUT_OF_STEP where a
        /// sequence's layers are not as a forward pass in order leaves them. The layers before this one must have the
        /// entry's tokens already, this one and those after it must be of equal length. So a pass that was interrupted
        /// between layers is noticed when the next one begins, and not taken for a part of it. Not checked where the
        /// host does not know the lengths: after graph replays and while a stream is captured. Not to be combined with
        /// SKC_ON_DEVICE.
        SKC_IN_STEP: u32 = 2;
        /// Flag of skc_cache_config: do not keep compiled kernels on disk. The environment variable
        /// SINKCACHE_CUDA_CACHE_DIR names the folder, and disables the disk cache if it is empty.
        SKC_NO_DISK_CACHE: u32 = 1;
        /// Flag of skc_cache_config: programmatic dependent launch, from compute capability 9.0 on. Thread blocks of
        /// this cache's kernels are scheduled while the preceding kernel of the stream drains (if it calls
        /// griddepcontrol.launch_dependents), and execute griddepcontrol.wait before their first access to memory.
        ///
        /// With or without this flag, kernels of this cache trigger launch_dependents: a programmatic launch that
        /// follows one must itself execute griddepcontrol.wait before it reads the results. Capturing such launches
        /// into a graph needs a driver of CUDA 12.3 or later.
        SKC_PROGRAMMATIC_LAUNCH: u32 = 2;
        /// Flag of skc_sequence_info: wait for the stream of the latest call, and read the sequence's state from the
        /// device. Flag of the arguments of a save or a copy: the same with their stream, and the state of the source.
        SKC_READ_BACK: u32 = 1;
    }
    CALLS, "Calls: skc_device_error.call and the argument of skc_kernel_choice" {
        /// skc_append_kv, or the append of skc_step.
        SKC_CALL_APPEND: u32 = 1;
        /// skc_attend, or the attention of skc_step.
        SKC_CALL_ATTEND: u32 = 2;
        /// skc_evict.
        SKC_CALL_EVICT: u32 = EditCall::Evict as u32;
        /// skc_rewind.
        SKC_CALL_REWIND: u32 = EditCall::Rewind as u32;
        /// skc_reset.
        SKC_CALL_RESET: u32 = EditCall::Reset as u32;
        /// skc_fork.
        SKC_CALL_FORK: u32 = EditCall::Fork as u32;
        /// skc_abort_step.
        SKC_CALL_ABORT: u32 = EditCall::Abort as u32;
        /// skc_step, as an argument of skc_kernel_choice only.
        SKC_CALL_STEP: u32 = 8;
        /// skc_pin.
        SKC_CALL_PIN: u32 = EditCall::Pin as u32;
        /// skc_evict_range.
        SKC_CALL_EVICT_RANGE: u32 = EditCall::EvictRange as u32;
    }
}

/// All constants, in the order of the header.
pub const CONSTANT_GROUPS: [ConstantGroup; 11] =
    [VERSION, STATUSES, BACKENDS, DTYPES, POSITION_MODES, ROPE_STYLES, LOG_LEVELS, IDS, SNAPSHOTS, FLAGS, CALLS];

/// The value of the constant of that name.
pub(super) fn constant(name: &CStr) -> Option<i64> {
    CONSTANT_GROUPS.iter().flat_map(|group| group.constants).find(|c| c.name == name).map(|c| c.value)
}

/// The name of a status.
pub(super) fn status_name(status: skc_status) -> Option<&'static CStr> {
    STATUSES.constants.iter().find(|c| c.value == i64::from(status)).map(|c| c.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn every_status_has_its_constant() {
        let constants: Vec<_> = STATUSES.constants.iter().map(|c| c.value).collect();
        let statuses: Vec<_> = std::iter::once(0).chain(Status::ALL.iter().map(|&s| s as i64)).collect();
        assert_eq!(constants, statuses);
        assert_eq!(constants, (0..constants.len() as i64).map(|n| -n).collect::<Vec<_>>());
        assert_eq!(status_name(Status::Busy as i32), Some(c"SKC_STATUS_BUSY"));
    }

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = CONSTANT_GROUPS.iter().flat_map(|group| group.constants).map(|c| c.name).collect();
        assert!(names.iter().all(|name| name.to_bytes().starts_with(b"SKC_")));
        assert_eq!(names.len(), names.iter().collect::<std::collections::HashSet<_>>().len());
    }

    #[test]
    fn calls_have_numbers_of_their_own() {
        let numbers: Vec<_> = CALLS.constants.iter().map(|c| c.value).collect();
        assert_eq!(numbers, (1..=numbers.len() as i64).collect::<Vec<_>>());
    }
}

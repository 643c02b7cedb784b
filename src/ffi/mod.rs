//! The C ABI: conversion of pointers and structs, handles, statuses, the panic boundary. Nothing is computed here.
//!
//! Every function, type and constant is declared in `include/sinkcache.h`, which `tests/header.rs` generates from these
//! files with cbindgen.

#![allow(non_camel_case_types, reason = "the names are C's")]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod args;
mod boundary;
mod c_struct;
mod compute;
mod config;
mod constants;
mod device;
mod edit;
mod gate;
mod info;
mod lifecycle;
mod log;
#[cfg(all(test, sinkcache_loom))]
mod models;
mod registry;
mod slots;
mod snapshot;
mod step_part;
mod team;

pub use args::{skc_append_kv_args, skc_attend_args, skc_step_args};
pub use boundary::skc_last_error;
pub use compute::{skc_append_kv, skc_attend, skc_step};
pub use config::{
    skc_alloc_fn, skc_cache_config, skc_cache_config_init, skc_free_fn, skc_layer_config, skc_layer_config_init,
    skc_log_fn, skc_parallel_for_fn, skc_task_fn,
};
pub use constants::*;
pub use device::{skc_device_error, skc_note_replay, skc_note_replay_args, skc_poll_error};
pub use edit::{
    skc_abort_step, skc_abort_step_args, skc_evict, skc_evict_args, skc_evict_range, skc_evict_range_args, skc_fork,
    skc_fork_args, skc_pin, skc_pin_args, skc_reset, skc_reset_args, skc_rewind, skc_rewind_args,
};
pub use info::{
    skc_abi_version, skc_capabilities, skc_capability_info, skc_constant, skc_kernel_choice, skc_kernel_info,
    skc_seq_info, skc_sequence_info, skc_status_name, skc_version,
};
pub use lifecycle::{skc_cache_bytes, skc_create_cache, skc_destroy_cache};
pub use registry::skc_cache;
pub use snapshot::{
    skc_copy_sequence, skc_copy_sequence_args, skc_load_sequence, skc_load_sequence_args, skc_save_sequence,
    skc_save_sequence_args, skc_snapshot_bytes,
};
pub use step_part::skc_step_part;

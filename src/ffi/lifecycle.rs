//! Creating and destroying caches, and the memory they take.

use super::boundary::{boundary, check_pointer, write_output};
use super::config::{read_config, skc_cache_config};
use super::constants::skc_status;
use super::log::Log;
use super::registry::{destroy, register, skc_cache};
use crate::cache::Cache;

/// Creates a cache, and allocates all memory that it will ever use. For CUDA it also compiles or loads kernels, and
/// waits for the device. On success `*cache` is the new handle; on failure `*cache` is unchanged.
///
/// Returns: SKC_STATUS_OK, the common statuses of a function without a cache, and
/// - SKC_STATUS_INVALID_CONFIG: a setting is not allowed, or the environment variable SINKCACHE_CPU names an
///   instruction set that is not available.
/// - SKC_STATUS_INVALID_ARGUMENT: also for cuda_context that is not a live context, and for an allocation callback that
///   returned misaligned memory.
/// - SKC_STATUS_OUT_OF_MEMORY: an allocation failed, or threads could not be started.
/// - SKC_STATUS_BACKEND_UNAVAILABLE: CUDA with no driver, no device, or neither NVRTC nor built-in kernels.
/// - SKC_STATUS_DEVICE_LOST: the CUDA device failed.
///
/// Lifetime: config and all arrays it points to until the call returns. Callbacks, their user pointers and cuda_context
/// until skc_destroy_cache has returned. The handle is valid until then.
///
/// Threads: any thread, also several at a time.
///
/// # Safety
/// `config` must be NULL or as the header describes it, `cache` NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_create_cache(config: *const skc_cache_config, cache: *mut *mut skc_cache) -> skc_status {
    boundary(|| {
        check_pointer("cache", cache)?;
        // SAFETY: `config` is NULL or as the header describes it.
        let (config, raw) = unsafe { read_config(config) }?;
        let handle = register(Cache::new(&config)?, Log { call: raw.log, user: raw.log_user })?;
        // SAFETY: `cache` is NULL or writable.
        unsafe { write_output("cache", cache, handle) }
    })
}

/// Destroys a cache and frees its memory. For CUDA it waits for all work of the cache's context first. An
/// unfinished step of skc_step_part is abandoned, unless the call returns an error.
///
/// Returns: SKC_STATUS_OK, or
/// - SKC_STATUS_INVALID_HANDLE: the cache is NULL, was destroyed, or was never created.
/// - SKC_STATUS_BUSY: a call on the cache is under way in another thread, or this is a callback of one; a stream of the
///   CUDA context is being captured; in a child of fork(2), another thread was using the cache at the fork. The cache
///   lives on.
/// - SKC_STATUS_INTERNAL: a bug in this library.
///
/// Lifetime: after SKC_STATUS_OK no callback of the cache is called any more. Destroy all caches before the library is
/// unloaded.
///
/// Threads: any thread.
#[unsafe(no_mangle)]
pub extern "C" fn skc_destroy_cache(cache: *mut skc_cache) -> skc_status {
    boundary(|| destroy(cache))
}

/// Computes the bytes that skc_create_cache would allocate for a configuration, in host and in device memory. Allocates
/// none of them.
///
/// Returns: SKC_STATUS_OK, the common statuses of a function without a cache, and
/// - SKC_STATUS_INVALID_CONFIG: a setting is not allowed.
/// - SKC_STATUS_INVALID_ARGUMENT: also for cuda_context that is not a live context.
/// - SKC_STATUS_OUT_OF_MEMORY: the result exceeds 2^64 bytes or the address space, or memory for the check is lacking.
/// - SKC_STATUS_BACKEND_UNAVAILABLE: CUDA without a driver or a device.
/// - SKC_STATUS_DEVICE_LOST: the CUDA device failed.
///
/// Lifetime: config and all arrays it points to until the call returns.
///
/// Threads: any thread, also several at a time.
///
/// # Safety
/// `config` must be NULL or as the header describes it, the outputs NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_cache_bytes(
    config: *const skc_cache_config,
    host_bytes: *mut u64,
    device_bytes: *mut u64,
) -> skc_status {
    boundary(|| {
        check_pointer("host_bytes", host_bytes)?;
        check_pointer("device_bytes", device_bytes)?;
        // SAFETY: `config` is NULL or as the header describes it.
        let (config, _) = unsafe { read_config(config) }?;
        let footprint = Cache::footprint(&config)?;
        // SAFETY: the outputs are writable.
        unsafe {
            write_output("host_bytes", host_bytes, footprint.host)?;
            write_output("device_bytes", device_bytes, footprint.device)
        }
    })
}

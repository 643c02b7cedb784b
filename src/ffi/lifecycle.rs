//! Create, destroy, and what a cache will cost.

use super::boundary::{boundary, check_pointer, write_output};
use super::config::{read_config, skc_cache_config};
use super::constants::skc_status;
use super::log::Log;
use super::registry::{destroy, register, skc_cache};
use crate::cache::Cache;

/// Makes a cache. All memory it will ever need is allocated here. On success `*cache` is its handle; on failure `*cache`
/// is untouched.
///
/// # Safety
/// `config` must be NULL or as the header describes it, `cache` NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_create_cache(config: *const skc_cache_config, cache: *mut *mut skc_cache) -> skc_status {
    boundary(|| {
        check_pointer("cache", cache)?;
        // SAFETY: the caller's contract.
        let (config, raw) = unsafe { read_config(config) }?;
        let handle = register(Cache::new(&config)?, Log { call: raw.log, user: raw.log_user })?;
        // SAFETY: the caller's contract.
        unsafe { write_output("cache", cache, handle) }
    })
}

/// Ends a cache and gives its memory back. SKC_STATUS_BUSY while a call on it is under way in another thread, and from a
/// callback. After success no callback of the cache is called any more. Unloading the library while caches live is not supported.
#[unsafe(no_mangle)]
pub extern "C" fn skc_destroy_cache(cache: *mut skc_cache) -> skc_status {
    boundary(|| destroy(cache))
}

/// Bytes that skc_create_cache would take for this configuration: on the host, and on the device. None of
/// it is taken.
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
        // SAFETY: the caller's contract.
        let (config, _) = unsafe { read_config(config) }?;
        let footprint = Cache::footprint(&config)?;
        // SAFETY: the caller's contract.
        unsafe {
            write_output("host_bytes", host_bytes, footprint.host)?;
            write_output("device_bytes", device_bytes, footprint.device)
        }
    })
}

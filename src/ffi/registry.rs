//! Handles. A handle is an index and a generation in a registry, never an address, so that a destroyed, foreign or
//! garbage handle is detected without being dereferenced.

use std::ffi::c_void;

use super::boundary::catch_panic;
use super::constants::{SKC_LOG_ERROR, SKC_LOG_INFO, SKC_LOG_WARN};
use super::gate::{Exclusive, Handle};
use super::log::Log;
use super::slots::{InUse, MAX_SLOTS, Unusable, insert};
use crate::cache::Cache;
use crate::error::{Error, Result, Status, bail};
use crate::memory::{boxed, with_room};
use crate::text::Text;

/// A cache. The pointer is a number, not an address: it must not be dereferenced or computed with.
#[expect(missing_debug_implementations, reason = "opaque")]
pub struct skc_cache {
    _opaque: [u8; 0],
}

/// Low bits of every handle: an odd number, so that no aligned address looks like a handle.
const TAG: usize = 0xC5;
const TAG_BITS: u32 = 8;
const INDEX_BITS: u32 = MAX_SLOTS.ilog2() + 1;
const GENERATION_SHIFT: u32 = TAG_BITS + INDEX_BITS;

fn encode(index: u32, generation: u32) -> *mut skc_cache {
    std::ptr::without_provenance_mut((generation as usize) << GENERATION_SHIFT | (index as usize) << TAG_BITS | TAG)
}

/// Index and generation of a handle.
fn decode(handle: *const skc_cache) -> Option<(u32, u32)> {
    let bits = handle.addr();
    let index = (bits >> TAG_BITS) & ((1 << INDEX_BITS) - 1);
    (bits & ((1 << TAG_BITS) - 1) == TAG).then_some((index as u32, (bits >> GENERATION_SHIFT) as u32))
}

/// Puts a cache into the registry and returns its handle.
pub fn register(cache: Cache, log: Log) -> Result<*mut skc_cache> {
    let text = Text::new(format_args!("cache created: {} layers, {} sequences", cache.n_layers(), cache.n_seqs()));
    let mut warnings = with_room(cache.warnings().len(), "warnings")?;
    warnings.extend(cache.warnings().iter().map(|warning| Text::new(format_args!("{warning}"))));
    let (index, generation) = insert(boxed(Handle::new(cache, log), "a handle")?)?;
    log.line(SKC_LOG_INFO, text.as_c_str());
    warnings.iter().for_each(|warning| log.line(SKC_LOG_WARN, warning.as_c_str()));
    Ok(encode(index, generation))
}

fn lookup(handle: *const skc_cache) -> Result<InUse> {
    let found = decode(handle).ok_or(Unusable::Gone).and_then(|(index, generation)| InUse::enter(index, generation));
    match found {
        Ok(found) => Ok(found),
        Err(_) if handle.is_null() => bail!(InvalidHandle, "cache is NULL"),
        Err(Unusable::Gone) => {
            bail!(InvalidHandle, "cache {handle:p} is not a live cache: it was destroyed, or never created")
        }
        Err(Unusable::Closing) => bail!(Busy, "cache {handle:p} is being destroyed"),
        Err(Unusable::Lost) => bail!(
            Busy,
            "cache {handle:p} was used by another thread when this process was forked: only the parent can use it"
        ),
    }
}

/// Runs a call that needs exclusive use of the cache.
pub fn with_cache<T>(handle: *const skc_cache, body: impl FnOnce(&mut Cache) -> Result<T>) -> Result<T> {
    with_handle(handle, |handle| body(Exclusive::enter(handle)?.cache()))
}

/// Runs a call that needs exclusive use of two caches. A failure is logged by the first.
pub fn with_two_caches<T>(
    first: *const skc_cache,
    second: *const skc_cache,
    body: impl FnOnce(&mut Cache, &mut Cache) -> Result<T>,
) -> Result<T> {
    with_handle(first, |first| {
        let second = lookup(second).map_err(|e| Error::new(e.status(), format_args!("src_cache: {}", e.message())))?;
        let Some(second) = second.handle() else {
            bail!(Internal, "a cache has a handle without a cache");
        };
        body(Exclusive::enter(first)?.cache(), Exclusive::enter(second)?.cache())
    })
}

/// Runs a call that needs exclusive use of the cache and puts its work into `stream`.
///
/// # Safety
/// As for [`Cache::set_stream`].
pub unsafe fn on_stream<T>(
    handle: *const skc_cache,
    stream: *mut c_void,
    body: impl FnOnce(&mut Cache) -> Result<T>,
) -> Result<T> {
    with_cache(handle, |cache| {
        // SAFETY: the stream is as `set_stream` demands.
        unsafe { cache.set_stream(stream) }?;
        body(cache)
    })
}

/// Runs a call of a member of a thread team. The members synchronise by the lock of [`Handle::team`].
pub fn with_handle<T>(handle: *const skc_cache, body: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
    let found = lookup(handle)?;
    let Some(handle) = found.handle() else {
        bail!(Internal, "cache {handle:p} has a handle without a cache");
    };
    log_failure(handle, || body(handle))
}

/// Logs a failure, after `body` has released the cache: the host's log callback may call it.
fn log_failure<T>(handle: &Handle, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let outcome = catch_panic(body);
    if let Err(error) = &outcome {
        let level = if error.status() == Status::Internal { SKC_LOG_ERROR } else { SKC_LOG_WARN };
        handle.log.line(level, error.text().as_c_str());
    }
    outcome
}

/// Destroys a cache, also one whose team has not finished its step.
pub fn destroy(handle: *const skc_cache) -> Result<()> {
    // Nothing changes before all checks have passed: a refused call leaves a team's step as it is.
    let Some(mut closed) = lookup(handle)?.close() else {
        bail!(Busy, "another call, or a callback of one, is using this cache");
    };
    if let Some(handle) = closed.handle() {
        handle.cache_mut().finish()?;
    }
    let Some(handle) = closed.remove() else {
        bail!(Internal, "cache {handle:p} has a handle without a cache");
    };
    let log = handle.log;
    // Frees memory by the host's callbacks, which may call the library.
    drop(handle);
    log.line(SKC_LOG_INFO, c"cache destroyed");
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]
mod tests {
    use super::super::slots::MAX_GENERATION;
    use super::*;
    use crate::config::CacheConfig;

    #[test]
    fn handles_round_trip_and_addresses_are_none() {
        for (index, generation) in [(0, 1), (7, MAX_GENERATION), (MAX_SLOTS - 1, 3)] {
            assert_eq!(decode(encode(index, generation)), Some((index, generation)));
        }
        let local = 0_u64;
        assert_eq!(decode(std::ptr::from_ref(&local).cast()), None);
        assert_eq!(decode(std::ptr::null()), None);
    }

    /// The call ends with the panic's text, and the cache can only be destroyed.
    #[test]
    fn a_panic_makes_the_cache_unusable() {
        let config = CacheConfig { n_q_heads: 1, n_kv_heads: 1, head_dim: 8, ..CacheConfig::default() };
        let handle = register(Cache::new(&config).unwrap(), Log { call: None, user: std::ptr::null_mut() }).unwrap();
        let error = with_cache(handle, |_| -> Result<()> { panic!("seven") }).unwrap_err();
        assert_eq!(error.status(), Status::Internal);
        assert!(error.message().contains("seven"), "{error}");
        for _ in 0..2 {
            let error = with_cache(handle, |cache| cache.reset(&[0], None)).unwrap_err();
            assert_eq!(error.status(), Status::Internal);
            assert!(error.message().contains("can only be destroyed"), "{error}");
        }
        destroy(handle).unwrap();
        assert_eq!(destroy(handle).unwrap_err().status(), Status::InvalidHandle);
    }
}

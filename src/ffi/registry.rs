//! Handles. A handle is an index and a generation in a registry, never an address, so that a destroyed, foreign or
//! garbage handle is detected without being dereferenced.

use std::ffi::c_void;
use std::sync::Arc;

use parking_lot::RwLock;

use super::boundary::catch_panic;
use super::constants::{SKC_LOG_ERROR, SKC_LOG_INFO, SKC_LOG_WARN};
use super::gate::{Exclusive, Handle, abort_team_step};
use super::log::Log;
use crate::cache::Cache;
use crate::error::{Error, Result, Status, bail};

/// A cache. The pointer is a number, not an address: it must not be dereferenced or computed with.
#[expect(missing_debug_implementations, reason = "opaque")]
pub struct skc_cache {
    _opaque: [u8; 0],
}

/// A place for a cache. It is reused with the next generation after the cache is destroyed.
#[derive(Default)]
struct Slot {
    generation: u32,
    handle: Option<Arc<Handle>>,
}

struct Registry {
    slots: Vec<Slot>,
    /// Indices of slots without a cache.
    free: Vec<u32>,
}

static REGISTRY: RwLock<Registry> = RwLock::new(Registry { slots: Vec::new(), free: Vec::new() });

/// Low bits of every handle: an odd number, so that no aligned address looks like a handle.
const TAG: usize = 0xC5;
const TAG_BITS: u32 = 8;
const INDEX_BITS: u32 = if usize::BITS == 64 { 24 } else { 12 };
const GENERATION_SHIFT: u32 = TAG_BITS + INDEX_BITS;
const MAX_GENERATION: u32 = (usize::MAX >> GENERATION_SHIFT) as u32;

fn encode(index: u32, generation: u32) -> *mut skc_cache {
    std::ptr::without_provenance_mut((generation as usize) << GENERATION_SHIFT | (index as usize) << TAG_BITS | TAG)
}

fn decode(handle: *const skc_cache) -> Option<(usize, u32)> {
    let bits = handle.addr();
    let index = (bits >> TAG_BITS) & ((1 << INDEX_BITS) - 1);
    (bits & ((1 << TAG_BITS) - 1) == TAG).then_some((index, (bits >> GENERATION_SHIFT) as u32))
}

/// Puts a cache into the registry and returns its handle.
pub fn register(cache: Cache, log: Log) -> Result<*mut skc_cache> {
    let text = format!("cache created: {} layers, {} sequences", cache.n_layers(), cache.n_seqs());
    let warnings = cache.warnings().to_vec();
    let handle = Arc::new(Handle::new(cache, log));
    let encoded = insert(Arc::clone(&handle))?;
    handle.log.line(SKC_LOG_INFO, &text);
    warnings.iter().for_each(|warning| handle.log.line(SKC_LOG_WARN, warning));
    Ok(encoded)
}

fn insert(handle: Arc<Handle>) -> Result<*mut skc_cache> {
    let mut registry = REGISTRY.write();
    let index = match registry.free.pop() {
        Some(index) => index,
        None => {
            let index = registry.slots.len() as u32;
            if index >> INDEX_BITS != 0 {
                bail!(OutOfMemory, "there are {index} caches: no more handles are possible");
            }
            // Reserve in both vectors, so that freeing the slot never allocates.
            if registry.slots.try_reserve(1).is_err() || registry.free.try_reserve(index as usize + 1).is_err() {
                bail!(OutOfMemory, "a handle could not be allocated");
            }
            registry.slots.push(Slot::default());
            index
        }
    };
    let Some(slot) = registry.slots.get_mut(index as usize) else {
        bail!(Internal, "handle slot {index} is missing");
    };
    slot.generation += 1;
    slot.handle = Some(handle);
    Ok(encode(index, slot.generation))
}

fn lookup(handle: *const skc_cache) -> Result<Arc<Handle>> {
    let found = decode(handle).and_then(|(index, generation)| {
        let registry = REGISTRY.read();
        registry.slots.get(index).filter(|slot| slot.generation == generation).and_then(|slot| slot.handle.clone())
    });
    match found {
        Some(found) => Ok(found),
        None if handle.is_null() => bail!(InvalidHandle, "cache is NULL"),
        None => bail!(InvalidHandle, "cache {handle:p} is not a live cache: it was destroyed, or never created"),
    }
}

fn destroyed(handle: *const skc_cache) -> Error {
    Error::new(Status::InvalidHandle, format!("cache {handle:p} was destroyed"))
}

/// Runs a call that needs exclusive use of the cache.
pub fn with_cache<T>(handle: *const skc_cache, body: impl FnOnce(&mut Cache) -> Result<T>) -> Result<T> {
    let found = lookup(handle)?;
    log_failure(&found, || {
        let mut exclusive = Exclusive::enter(&found)?;
        exclusive.cache().as_mut().map_or_else(|| Err(destroyed(handle)), body)
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
    log_failure(&found, || body(&found))
}

/// Logs a failure, after `body` has released the cache: the host's log callback may call it.
fn log_failure<T>(handle: &Handle, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let outcome = catch_panic(body);
    if let Err(error) = &outcome {
        let level = if error.status() == Status::Internal { SKC_LOG_ERROR } else { SKC_LOG_WARN };
        handle.log.line(level, error.message());
    }
    outcome
}

/// Destroys a cache. It is dropped outside all locks, because freeing its memory may call the host.
pub fn destroy(handle: *const skc_cache) -> Result<()> {
    let found = lookup(handle)?;
    // A team's unfinished step does not keep the cache busy.
    abort_team_step(&found)?;
    // Outside the registry's lock: waiting for the device may take long.
    Exclusive::enter(&found)?.cache().as_ref().map_or(Ok(()), Cache::finish)?;
    let cache = {
        let mut registry = REGISTRY.write();
        // Every call in progress holds a reference, which it took under the read lock and keeps until its failure is
        // logged. Two references are the registry's and this function's.
        if Arc::strong_count(&found) > 2 {
            bail!(Busy, "another call, or a callback of one, is using this cache");
        }
        let mut exclusive = Exclusive::enter(&found)?;
        let cache = exclusive.cache().take().ok_or_else(|| destroyed(handle))?;
        if let Some((index, _)) = decode(handle)
            && let Some(slot) = registry.slots.get_mut(index)
        {
            slot.handle = None;
            // A slot whose generations are used up is never reused: an old handle must not become valid again.
            if slot.generation < MAX_GENERATION {
                registry.free.push(index as u32);
            }
        }
        cache
    };
    drop(cache);
    found.log.line(SKC_LOG_INFO, "cache destroyed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_round_trip_and_addresses_are_none() {
        for (index, generation) in [(0, 1), (7, MAX_GENERATION), ((1 << INDEX_BITS) - 1, 3)] {
            assert_eq!(decode(encode(index, generation)), Some((index as usize, generation)));
        }
        let local = 0_u64;
        assert_eq!(decode(std::ptr::from_ref(&local).cast()), None);
        assert_eq!(decode(std::ptr::null()), None);
    }
}

//! Handles: an index and a generation in a registry, never an address. A destroyed, garbage or foreign handle is found
//! out without being dereferenced.

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

#[derive(Default)]
struct Slot {
    generation: u32,
    handle: Option<Arc<Handle>>,
}

struct Registry {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

static REGISTRY: RwLock<Registry> = RwLock::new(Registry { slots: Vec::new(), free: Vec::new() });

/// Low bits of every handle: odd, so that no aligned address looks like one.
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

/// Gives a cache a handle.
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
                bail!(OutOfMemory, "{index} caches are alive: no more are possible");
            }
            // Room in both, so that freeing the slot can never fail.
            if registry.slots.try_reserve(1).is_err() || registry.free.try_reserve(index as usize + 1).is_err() {
                bail!(OutOfMemory, "no memory for a handle");
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

/// Runs a call that puts its work into a stream.
pub fn on_stream<T>(
    cache: *const skc_cache,
    stream: *mut c_void,
    body: impl FnOnce(&mut Cache) -> Result<T>,
) -> Result<T> {
    with_cache(cache, |cache| {
        // SAFETY: the header's contract: a live stream of the cache's context.
        unsafe { cache.set_stream(stream) }?;
        body(cache)
    })
}

/// Runs a call that needs the cache to itself.
pub fn with_cache<T>(handle: *const skc_cache, body: impl FnOnce(&mut Cache) -> Result<T>) -> Result<T> {
    let found = lookup(handle)?;
    log_failure(&found, || {
        let mut exclusive = Exclusive::enter(&found)?;
        exclusive.cache().as_mut().map_or_else(|| Err(destroyed(handle)), body)
    })
}

/// Runs a call of a thread team's member; `body` orders the members by the lock in [`Handle::parts`].
pub fn with_handle<T>(handle: *const skc_cache, body: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
    let found = lookup(handle)?;
    log_failure(&found, || body(&found))
}

/// Logs what went wrong, after the cache has been given back.
fn log_failure<T>(handle: &Handle, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let outcome = catch_panic(body);
    if let Err(error) = &outcome {
        let level = if error.status() == Status::Internal { SKC_LOG_ERROR } else { SKC_LOG_WARN };
        handle.log.line(level, error.message());
    }
    outcome
}

/// Ends a cache. Its memory is given back outside of all locks, since that may call the host.
pub fn destroy(handle: *const skc_cache) -> Result<()> {
    let found = lookup(handle)?;
    // A team whose members never came is no call.
    abort_team_step(&found)?;
    // Outside the registry's lock: a device may take its time.
    Exclusive::enter(&found)?.cache().as_ref().map_or(Ok(()), Cache::finish)?;
    let cache = {
        let mut registry = REGISTRY.write();
        // Every call in flight, up to its last line of log, holds a reference that it got under the read lock. Two are the
        // registry's and ours.
        if Arc::strong_count(&found) > 2 {
            bail!(Busy, "another call, or a callback of one, is using this cache");
        }
        let mut exclusive = Exclusive::enter(&found)?;
        let cache = exclusive.cache().take().ok_or_else(|| destroyed(handle))?;
        if let Some((index, _)) = decode(handle)
            && let Some(slot) = registry.slots.get_mut(index)
        {
            slot.handle = None;
            // A slot whose generations are used up is left alone for ever: an old handle must not come back to life.
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

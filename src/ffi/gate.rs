//! What lets one call, or one thread team, at a time into a cache.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::log::Log;
use super::team::Team;
use crate::cache::Cache;
use crate::error::{Error, Result, Status, bail};

/// Nobody uses the cache.
const IDLE: u32 = 0;
/// One call uses it.
const EXCLUSIVE: u32 = 1;
/// A thread team does a step.
const TEAM: u32 = 2;

/// A cache behind a handle.
pub struct Handle {
    gate: AtomicU32,
    /// `None` once destroyed. Mutable access only through the gate.
    cache: UnsafeCell<Option<Cache>>,
    /// The step a thread team is doing.
    pub team: Mutex<Team>,
    pub log: Log,
}

// SAFETY: the gate lets one exclusive user in, or a team whose members share the cache read-only.
unsafe impl Sync for Handle {}

/// Sole use of a cache, given back on drop. A panic meanwhile poisons the cache.
pub struct Exclusive<'a> {
    handle: &'a Handle,
    /// A Rust host may call while its own panic unwinds.
    was_panicking: bool,
}

impl<'a> Exclusive<'a> {
    pub fn enter(handle: &'a Handle) -> Result<Self> {
        match handle.gate.compare_exchange(IDLE, EXCLUSIVE, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Self { handle, was_panicking: std::thread::panicking() }),
            Err(TEAM) => bail!(Busy, "a thread team is inside skc_step_part on this cache"),
            Err(_) => bail!(Busy, "another call is using this cache"),
        }
    }

    pub fn cache(&mut self) -> &mut Option<Cache> {
        // SAFETY: the gate is ours.
        unsafe { &mut *self.handle.cache.get() }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && !self.was_panicking
            && let Some(cache) = self.cache()
        {
            cache.poison();
        }
        self.handle.gate.store(IDLE, Ordering::Release);
    }
}

impl Handle {
    /// A cache that nobody uses yet.
    pub fn new(cache: Cache, log: Log) -> Self {
        Self { gate: AtomicU32::new(IDLE), cache: UnsafeCell::new(Some(cache)), team: Mutex::default(), log }
    }

    /// Lets a thread team in; the lock of `parts` must be held.
    pub fn begin_team(&self) -> Result<()> {
        match self.gate.compare_exchange(IDLE, TEAM, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => bail!(Busy, "another call is using this cache"),
        }
    }

    /// Ends a team's step; the lock of `parts` must be held, and no member be inside.
    pub fn end_team(&self) {
        self.gate.store(IDLE, Ordering::Release);
    }

    /// The cache, to read while a team is inside.
    ///
    /// # Safety
    /// The gate must be open for a team, the caller one of its members.
    pub unsafe fn cache_shared(&self) -> Result<&Cache> {
        // SAFETY: the caller's contract: nobody has it mutably.
        unsafe { &*self.cache.get() }.as_ref().ok_or_else(destroyed)
    }

    /// The cache, to change when a team's step begins or ends.
    ///
    /// # Safety
    /// The gate must be open for a team, the lock of `parts` held, and no member be computing.
    #[expect(clippy::mut_from_ref, reason = "the gate and the lock are the exclusion")]
    pub unsafe fn cache_exclusive(&self) -> Result<&mut Cache> {
        // SAFETY: the caller's contract.
        unsafe { &mut *self.cache.get() }.as_mut().ok_or_else(destroyed)
    }
}

fn destroyed() -> Error {
    Error::new(Status::InvalidHandle, "the cache was destroyed")
}

/// Ends a step some of whose members never came, unless one is inside.
pub fn abort_team_step(handle: &Handle) -> Result<()> {
    let mut team = handle.team.lock();
    let Some(step) = &team.step else {
        return Ok(());
    };
    if step.n_finished < step.n_arrived {
        bail!(Busy, "{} members are inside skc_step_part", step.n_arrived - step.n_finished);
    }
    if step.failure.is_some() {
        // SAFETY: no member is inside, the lock is held, and the gate is still the team's.
        unsafe { handle.cache_exclusive() }?.poison();
    }
    team.step = None;
    handle.end_team();
    Ok(())
}

//! The gate of a cache: it lets one call, or one thread team, use the cache at a time. Others get `Busy`.

use std::sync::PoisonError;

use super::log::Log;
use super::team::Team;
use crate::cache::Cache;
use crate::error::{Result, bail};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard, Shared};

/// No call uses the cache.
const IDLE: u32 = 0;
/// One call uses the cache.
const EXCLUSIVE: u32 = 1;
/// A thread team uses the cache.
const TEAM: u32 = 2;

/// What a handle refers to: a cache and its gate.
pub struct Handle {
    gate: AtomicU32,
    /// Accessed only by those whom the gate has let in.
    cache: Shared<Cache>,
    /// The step of a thread team. Its lock is std's, which allocates nothing when members wait for it.
    team: Mutex<Team>,
    pub log: Log,
}

// SAFETY: the gate gives `cache` either to one call, or to a team, whose members share it and change it only under the
// lock of `team` while no other member computes.
unsafe impl Sync for Handle {}

/// Exclusive use of a cache, until dropped. A panic meanwhile makes the cache unusable.
pub struct Exclusive<'a> {
    handle: &'a Handle,
    /// Whether a panic of the (Rust) host was already unwinding when the call began.
    was_panicking: bool,
}

impl<'a> Exclusive<'a> {
    pub fn enter(handle: &'a Handle) -> Result<Self> {
        match handle.gate.compare_exchange(IDLE, EXCLUSIVE, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Self { handle, was_panicking: std::thread::panicking() }),
            Err(TEAM) => {
                bail!(
                    Busy,
                    "a step of skc_step_part is unfinished on this cache: its other members, or skc_abort_step, end it"
                )
            }
            Err(_) => bail!(Busy, "another call is using this cache"),
        }
    }

    /// As [`Self::enter`], and abandons a team's unfinished step. `Busy` while a member is inside. If `check` does not
    /// allow what the caller is going to do, the step goes on.
    pub fn enter_and_end_step(handle: &'a Handle, check: impl FnOnce(&mut Cache) -> Result<()>) -> Result<Self> {
        let mut team = handle.team();
        let Some(step) = &team.step else {
            return Self::enter(handle);
        };
        if step.n_finished < step.n_arrived {
            bail!(Busy, "{} members are inside skc_step_part", step.n_arrived - step.n_finished);
        }
        // SAFETY: a step is open, so the gate is the team's; the lock is held, and all members that came have finished.
        let cache = unsafe { handle.cache_exclusive() };
        check(cache)?;
        if step.failure.is_some() {
            cache.poison();
        }
        team.step = None;
        handle.gate.store(EXCLUSIVE, Ordering::Relaxed);
        Ok(Self { handle, was_panicking: std::thread::panicking() })
    }

    pub fn cache(&mut self) -> &mut Cache {
        // SAFETY: the gate is in state EXCLUSIVE, entered by `self`: no other reference exists.
        unsafe { &mut *self.handle.cache.write() }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            self.cache().poison();
        }
        self.handle.gate.store(IDLE, Ordering::Release);
    }
}

impl Handle {
    /// A cache that no call uses.
    pub fn new(cache: Cache, log: Log) -> Self {
        Self { gate: AtomicU32::new(IDLE), cache: Shared::new(cache), team: Mutex::default(), log }
    }

    /// The cache, for one who has the handle alone.
    pub fn cache_mut(&mut self) -> &mut Cache {
        self.cache.get_mut()
    }

    /// Locks the team's step. A poisoned lock means nothing: panics of members are caught, and fail the step.
    pub fn team(&self) -> MutexGuard<'_, Team> {
        self.team.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the gate for a thread team; the caller holds the lock of `team`.
    pub fn begin_team(&self) -> Result<()> {
        match self.gate.compare_exchange(IDLE, TEAM, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => bail!(Busy, "another call is using this cache"),
        }
    }

    /// Ends a team's step; the caller holds the lock of `team`, and no member is inside.
    pub fn end_team(&self) {
        self.gate.store(IDLE, Ordering::Release);
    }

    /// The cache, for a member of the team to compute with.
    ///
    /// # Safety
    /// The gate must be open for a team, and the caller one of its members that has joined and not left.
    pub unsafe fn cache_shared(&self) -> &Cache {
        // SAFETY: the gate is open for the team, and `cache_exclusive` is not called while a member computes.
        unsafe { &*self.cache.read() }
    }

    /// The cache, to change it when a team's step begins or ends.
    ///
    /// # Safety
    /// The gate must be open for a team, the caller must hold the lock of `team`, and no member may be computing.
    #[expect(clippy::mut_from_ref, reason = "the gate and the lock make it exclusive")]
    pub unsafe fn cache_exclusive(&self) -> &mut Cache {
        // SAFETY: no member computes, so none has a reference; the lock keeps others from joining.
        unsafe { &mut *self.cache.write() }
    }
}

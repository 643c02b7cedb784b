//! Threads of our own that sleep until there is work, work with the caller, and end with their cache.
//!
//! Written here since no pool on crates.io does all of this: the caller works too and waits for nobody who has not begun,
//! nothing is allocated per job, threads sleep when no job comes within [`LINGER`], and a child of fork(2), which has inherited
//! none of the threads, gets new ones.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Result, bail};
use crate::memory::with_room;

/// How long a thread looks for the next job, and the caller for the last helper's end, before it sleeps. Waking one takes tens of microseconds, on a virtual machine more
/// than a hundred, which is a good part of a decode; layers that follow each other closely are spared that.
const LINGER: Duration = Duration::from_micros(50);

/// A caught panic.
pub type Panic = Box<dyn Any + Send>;

/// Threads beside the caller's.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// The process that has the threads.
    process: u32,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// `State::epoch`, to be seen without the lock.
    epoch: AtomicU64,
    /// Helpers at work on the job; changed under the lock.
    active: AtomicU32,
    wake: Condvar,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The job at hand; helpers may join as long as it is here.
    job: Option<JobRef>,
    /// Counts jobs, so that a helper joins each once.
    epoch: u64,
    quit: bool,
}

/// A job on the stack of [`Pool::run`].
#[derive(Clone, Copy, Debug)]
struct JobRef(*const Job<'static>);

// SAFETY: a `Job` may be shared, and `Pool::run` keeps it alive until no helper has it.
unsafe impl Send for JobRef {}

struct Job<'a> {
    part: &'a (dyn Fn(u32) + Sync),
    n: u32,
    next: AtomicU32,
    panic: Mutex<Option<Panic>>,
}

impl Job<'_> {
    /// Runs parts until none is left.
    fn work(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.n {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.part)(i))) {
                locked(&self.panic).get_or_insert(panic);
            }
        }
    }
}

/// Nothing below panics while it holds a lock.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits without sleeping while `pending`, for [`LINGER`] at most.
fn linger(pending: impl Fn() -> bool) {
    let begin = Instant::now();
    while pending() && begin.elapsed() < LINGER {
        std::hint::spin_loop();
    }
}

impl Shared {
    fn help(&self) {
        let mut seen = 0;
        loop {
            if let Some(job) = self.join(&mut seen) {
                // SAFETY: `Pool::run` does not return while a helper is counted in `active`, which only sinks under the lock.
                unsafe { &*job.0 }.work();
                let state = locked(&self.state);
                // Release: the caller that sees 0 sees what was done.
                if self.active.fetch_sub(1, Ordering::Release) == 1 {
                    self.done.notify_one();
                }
                drop(state);
                linger(|| self.epoch.load(Ordering::Relaxed) == seen);
            } else {
                return;
            }
        }
    }

    /// Sleeps until there is a job that this helper has not seen; `None` when it is time to end.
    fn join(&self, seen: &mut u64) -> Option<JobRef> {
        let mut state = locked(&self.state);
        while !state.quit {
            if let Some(job) = state.job.filter(|_| state.epoch != *seen) {
                *seen = state.epoch;
                self.active.fetch_add(1, Ordering::Relaxed);
                return Some(job);
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

impl Pool {
    /// `n` threads, the caller's among them.
    ///
    /// # Errors
    /// `OutOfMemory` when they cannot be started.
    pub fn new(n: u32) -> Result<Self> {
        let mut pool =
            Self { shared: Arc::default(), helpers: with_room(n as usize, "threads")?, process: std::process::id() };
        for i in 1..n {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("sinkcache-{i}"));
            match thread.spawn(move || shared.help()) {
                Ok(helper) => pool.helpers.push(helper),
                // Those that did start end with the pool.
                Err(e) => bail!(OutOfMemory, "{n} threads could not be started: {e}"),
            }
        }
        Ok(pool)
    }

    /// Whether its threads are of another process, of which this one is a child.
    pub fn is_foreign(&self) -> bool {
        self.process != std::process::id()
    }

    /// Calls `part(i)` once for every i below `n`, on any of the threads.
    pub fn run(&self, n: u32, part: &(dyn Fn(u32) + Sync)) -> std::result::Result<(), Panic> {
        let job = Job { part, n, next: AtomicU32::new(0), panic: Mutex::new(None) };
        {
            let mut state = locked(&self.shared.state);
            state.job = Some(JobRef(std::ptr::from_ref(&job).cast()));
            state.epoch += 1;
            self.shared.epoch.store(state.epoch, Ordering::Relaxed);
        }
        for _ in 1..n.min(self.helpers.len() as u32 + 1) {
            self.shared.wake.notify_one();
        }
        job.work();
        // Whoever has not joined by now finds nothing to do.
        locked(&self.shared.state).job = None;
        linger(|| self.shared.active.load(Ordering::Acquire) > 0);
        let mut state = locked(&self.shared.state);
        while self.shared.active.load(Ordering::Acquire) > 0 {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        job.panic.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let helpers = std::mem::take(&mut self.helpers);
        if self.is_foreign() {
            // The threads stayed with the parent, and one of them may have held the lock: touch neither.
            std::mem::forget((helpers, Arc::clone(&self.shared)));
            return;
        }
        locked(&self.shared.state).quit = true;
        self.shared.wake.notify_all();
        for helper in helpers {
            // A helper catches what its parts do.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts run at the same time: each waits until all have begun.
    #[test]
    fn parts_run_side_by_side() {
        let pool = Pool::new(4).unwrap();
        for _ in 0..50 {
            let barrier = std::sync::Barrier::new(4);
            pool.run(4, &|_| {
                barrier.wait();
            })
            .unwrap();
        }
    }

    /// The caller does all of it when nobody else comes in time, and nobody is left behind.
    #[test]
    fn many_short_jobs() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicU32::new(0);
        for _ in 0..20_000 {
            pool.run(3, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(count.into_inner(), 60_000);
    }
}

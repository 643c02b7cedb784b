//! On which threads a call runs: the calling thread, the cache's thread pool, or the host's parallel loop.

#[cfg(all(test, sinkcache_loom))]
mod models;
mod thread;
mod thread_pool;

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::Mutex;

use self::thread_pool::Pool;
use crate::error::{Error, Result, Status};
use crate::memory::with_room;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::thread::yield_now;

/// One iteration of a parallel loop. The loop passes `data` and the iteration's `index` on.
pub type TaskFn = unsafe extern "C" fn(data: *mut c_void, index: u32);
/// A host's parallel loop: calls `task(data, i)` for every i below `n`, on any threads, and returns when all have
/// returned.
pub type ParallelForFn = unsafe extern "C" fn(user: *mut c_void, n: u32, task: Option<TaskFn>, data: *mut c_void);

/// A host's parallel loop and its first argument.
#[derive(Clone, Copy, Debug)]
pub struct ParallelFor {
    call: ParallelForFn,
    user: *mut c_void,
}

// SAFETY: `ParallelFor::new` demands that the loop may be called from any thread.
unsafe impl Send for ParallelFor {}
// SAFETY: as for Send.
unsafe impl Sync for ParallelFor {}

impl ParallelFor {
    /// A host's loop.
    ///
    /// # Safety
    /// As long as a cache uses it, `call` may be called from any thread. It must not return before all tasks
    /// that it started have returned, must not start one later, and must not unwind. It may leave tasks out or run one
    /// twice: the cache runs each exactly once.
    #[must_use]
    pub unsafe fn new(call: ParallelForFn, user: *mut c_void) -> Self {
        Self { call, user }
    }
}

/// Runs the parts of a call on several threads.
#[derive(Debug)]
pub struct Executor {
    threads: Threads,
    n: u32,
}

#[derive(Debug)]
enum Threads {
    Caller,
    Pool(Mutex<Pool>),
    Host { host: ParallelFor, claimed: Vec<AtomicBool> },
}

impl Executor {
    /// For up to `n >= 1` parts at a time; with `host` on the host's threads.
    pub fn new(n: u32, host: Option<ParallelFor>) -> Result<Self> {
        let threads = match host {
            Some(host) => {
                let mut claimed = with_room(n as usize, "tasks")?;
                claimed.resize_with(n as usize, || AtomicBool::new(false));
                Threads::Host { host, claimed }
            }
            None if n == 1 => Threads::Caller,
            None => Threads::Pool(Mutex::new(Pool::new(n)?)),
        };
        Ok(Self { threads, n })
    }

    /// The most parts that [`Self::run`] may be called with.
    pub fn width(&self) -> u32 {
        self.n
    }

    /// Calls `part(i)` once for every i below `n`, which is at most [`Self::width`].
    ///
    /// # Errors
    /// `Internal` when a part panicked; all others have run.
    pub fn run(&self, n: u32, part: &(dyn Fn(u32) + Sync)) -> Result<()> {
        let outcome = match &self.threads {
            Threads::Pool(pool) if n > 1 => run_on_pool(&mut pool.lock(), self.n, n, part),
            Threads::Host { host, claimed } if n > 1 => run_on_host(*host, &claimed[..n as usize], part),
            _ => catch_unwind(AssertUnwindSafe(|| (0..n).for_each(part))),
        };
        outcome.map_err(|panic| panic_error(panic.as_ref()))
    }
}

/// Runs the parts on the pool. A child of fork(2) inherits no threads: its first call creates a new pool.
fn run_on_pool(pool: &mut Pool, width: u32, n: u32, part: &(dyn Fn(u32) + Sync)) -> std::thread::Result<()> {
    if pool.is_inherited() {
        match Pool::new(width) {
            // Dropping the inherited pool touches neither the parent's threads nor its lock.
            Ok(new) => *pool = new,
            // Without threads the calling thread runs all parts.
            Err(_) => return catch_unwind(AssertUnwindSafe(|| (0..n).for_each(part))),
        }
    }
    pool.run(n, part)
}

/// The `data` of a host's parallel loop.
struct HostTask<'a> {
    part: &'a (dyn Fn(u32) + Sync),
    /// Per part: whether a thread has started it.
    claimed: &'a [AtomicBool],
    /// Parts that have returned.
    done: AtomicU32,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl HostTask<'_> {
    /// Runs part `index`, unless it is out of range or has been started already.
    fn run(&self, index: u32) {
        let Some(claim) = self.claimed.get(index as usize) else { return };
        if claim.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.part)(index))) {
            *self.panic.lock() = Some(panic);
        }
        self.done.fetch_add(1, Ordering::Release);
    }
}

unsafe extern "C" fn host_task(data: *mut c_void, index: u32) {
    if !data.is_null() {
        // SAFETY: `data` is what `run_on_host` passed to the loop. `ParallelFor::new` demands that the loop starts no
        // task after it has returned, and `run_on_host` keeps the `HostTask` alive until then.
        unsafe { &*data.cast::<HostTask<'_>>() }.run(index);
    }
}

fn run_on_host(host: ParallelFor, claimed: &[AtomicBool], part: &(dyn Fn(u32) + Sync)) -> std::thread::Result<()> {
    claimed.iter().for_each(|c| c.store(false, Ordering::Relaxed));
    let n = claimed.len() as u32;
    let task = HostTask { part, claimed, done: AtomicU32::new(0), panic: Mutex::new(None) };
    // SAFETY: `ParallelFor::new` demands that it may be called from any thread; `task` lives until all parts have
    // returned.
    unsafe { (host.call)(host.user, n, Some(host_task), std::ptr::from_ref(&task).cast_mut().cast()) };
    // Run parts that the host left out, and wait for parts that still run.
    (0..n).for_each(|i| task.run(i));
    while task.done.load(Ordering::Acquire) < n {
        yield_now();
    }
    task.panic.into_inner().map_or(Ok(()), Err)
}

/// A caught panic as an error: it is a bug of this library.
pub fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::new(Status::Internal, format_args!("a bug in sinkcache, please report it: {text}"))
}

#[cfg(all(test, not(sinkcache_loom)))]
mod tests {
    use super::*;

    unsafe extern "C" fn repeats_and_omits(_: *mut c_void, n: u32, task: Option<TaskFn>, data: *mut c_void) {
        for i in (0..n / 2).chain(0..1).chain([n, u32::MAX]) {
            // SAFETY: `task` and `data` are those of the executor, which is still waiting.
            unsafe { task.unwrap()(data, i) };
        }
    }

    fn executors() -> Vec<Executor> {
        // SAFETY: the loop above starts tasks only while it runs, and does not unwind.
        let host = unsafe { ParallelFor::new(repeats_and_omits, std::ptr::null_mut()) };
        vec![Executor::new(1, None).unwrap(), Executor::new(3, None).unwrap(), Executor::new(8, Some(host)).unwrap()]
    }

    #[test]
    fn every_part_runs_once() {
        for e in executors() {
            for _ in 0..20 {
                let runs: Vec<_> = (0..e.width()).map(|_| AtomicU32::new(0)).collect();
                e.run(e.width(), &|i| {
                    runs[i as usize].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(runs.iter().all(|r| r.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_is_an_error() {
        for e in executors() {
            let error = e.run(e.width(), &|_| panic!("seven")).unwrap_err();
            assert_eq!(error.status(), Status::Internal);
            assert!(error.message().contains("seven"));
        }
    }
}

//! On which threads work runs: the caller's own, a pool of ours, or the host's parallel-for.

mod thread_pool;

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

use self::thread_pool::Pool;
use crate::error::{Error, Result, Status};
use crate::memory::with_room;

/// One task of a parallel loop; `data` and `index` are passed through.
pub type TaskFn = unsafe extern "C" fn(data: *mut c_void, index: u32);
/// A host's parallel loop: calls `task(data, i)` for every i below `n`, on any threads, and returns when all have returned.
pub type ParallelForFn = unsafe extern "C" fn(user: *mut c_void, n: u32, task: Option<TaskFn>, data: *mut c_void);

/// A host's parallel loop with its own argument.
#[derive(Clone, Copy, Debug)]
pub struct ParallelFor {
    call: ParallelForFn,
    user: *mut c_void,
}

// SAFETY: `ParallelFor::new` demands that it may be called from any thread.
unsafe impl Send for ParallelFor {}
// SAFETY: as above.
unsafe impl Sync for ParallelFor {}

impl ParallelFor {
    /// A host's loop.
    ///
    /// # Safety
    /// `call` may be called from any thread while a cache uses it. It must not return before the tasks it started have,
    /// nor start one later, nor unwind. Tasks it leaves out or runs twice are put right.
    #[must_use]
    pub unsafe fn new(call: ParallelForFn, user: *mut c_void) -> Self {
        Self { call, user }
    }
}

/// Runs the parts of one job.
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
    /// `n >= 1` parts at a time.
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

    /// The most parts [`Self::run`] is asked for.
    pub fn width(&self) -> u32 {
        self.n
    }

    /// Calls `part(i)` once for every i below `n`, `n` at most [`Self::width`].
    ///
    /// # Errors
    /// `Internal` when a part panicked; the others have run.
    pub fn run(&self, n: u32, part: &(dyn Fn(u32) + Sync)) -> Result<()> {
        let outcome = match &self.threads {
            Threads::Pool(pool) if n > 1 => run_on_pool(&mut pool.lock(), self.n, n, part),
            Threads::Host { host, claimed } if n > 1 => run_on_host(*host, &claimed[..n as usize], part),
            _ => catch_unwind(AssertUnwindSafe(|| (0..n).for_each(part))),
        };
        outcome.map_err(|panic| defect(panic.as_ref()))
    }
}

/// Runs the parts on our threads. After fork(2) the child has none: it gets its own.
fn run_on_pool(pool: &mut Pool, width: u32, n: u32, part: &(dyn Fn(u32) + Sync)) -> std::thread::Result<()> {
    if pool.is_foreign() {
        match Pool::new(width) {
            // Dropped, the old one leaves alone what is not this process's.
            Ok(new) => *pool = new,
            // Slower, but right.
            Err(_) => return catch_unwind(AssertUnwindSafe(|| (0..n).for_each(part))),
        }
    }
    pool.run(n, part)
}

struct HostJob<'a> {
    part: &'a (dyn Fn(u32) + Sync),
    claimed: &'a [AtomicBool],
    done: AtomicU32,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl HostJob<'_> {
    /// Runs part `index` unless it is out of range or somebody has taken it.
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
        // SAFETY: `data` is the job of a loop that has not returned (contract of `ParallelFor::new`).
        unsafe { &*data.cast::<HostJob<'_>>() }.run(index);
    }
}

fn run_on_host(host: ParallelFor, claimed: &[AtomicBool], part: &(dyn Fn(u32) + Sync)) -> std::thread::Result<()> {
    claimed.iter().for_each(|c| c.store(false, Ordering::Relaxed));
    let n = claimed.len() as u32;
    let job = HostJob { part, claimed, done: AtomicU32::new(0), panic: Mutex::new(None) };
    // SAFETY: the contract of `ParallelFor::new`; the job outlives the call.
    unsafe { (host.call)(host.user, n, Some(host_task), std::ptr::from_ref(&job).cast_mut().cast()) };
    // A host that left tasks out still gets a right result, and one that returned early is waited for.
    (0..n).for_each(|i| job.run(i));
    while job.done.load(Ordering::Acquire) < n {
        std::thread::yield_now();
    }
    job.panic.into_inner().map_or(Ok(()), Err)
}

/// A caught panic as an error.
pub fn defect(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    Error::new(Status::Internal, format!("a defect of sinkcache, please report it: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn twice_and_partial(_: *mut c_void, n: u32, task: Option<TaskFn>, data: *mut c_void) {
        for i in (0..n / 2).chain(0..1).chain([n, u32::MAX]) {
            // SAFETY: passed through.
            unsafe { task.unwrap()(data, i) };
        }
    }

    fn executors() -> Vec<Executor> {
        // SAFETY: the loop above honours the contract.
        let host = unsafe { ParallelFor::new(twice_and_partial, std::ptr::null_mut()) };
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

//! A pool of threads that sleep until there is work. They end with their cache.
//!
//! No pool on crates.io has all of these properties: the caller participates and waits only for workers that have
//! started a part; nothing is allocated per task; idle threads spin for [`SPIN_TIME`] and then sleep; a child of
//! fork(2), which inherits none of the threads, can tell and create new ones.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::PoisonError;
#[cfg(not(sinkcache_loom))]
use std::time::{Duration, Instant};

use super::thread::Thread;
use crate::error::Result;
use crate::memory::{boxed, with_room};
use crate::process::{generation, watch_forks};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How long a worker spins for the next task, and the caller for the last worker's end, before it sleeps. Waking a
/// thread takes tens of microseconds, on a virtual machine more than a hundred: a good part of a decode. Layers that
/// follow each other closely do not pay it.
#[cfg(not(sinkcache_loom))]
const SPIN_TIME: Duration = Duration::from_micros(50);

/// A caught panic.
pub type Panic = Box<dyn Any + Send>;

/// Worker threads; the caller of [`Pool::run`] is one thread more.
#[derive(Debug)]
pub struct Pool {
    /// Made from a box, and freed after the workers have ended: they have the same pointer.
    shared: NonNull<Shared>,
    workers: Vec<Thread>,
    /// The process that created the workers, see [`generation`].
    process: u32,
}

// SAFETY: the pointer is to a `Shared`, which is Sync.
unsafe impl Send for Pool {}
// SAFETY: as for Send.
unsafe impl Sync for Pool {}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Copy of `State::epoch` that is read without the lock.
    epoch: AtomicU64,
    /// Workers that run the current task; changed under the lock.
    active: AtomicU32,
    wake: Condvar,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The current task; workers may join while it is set.
    task: Option<TaskRef>,
    /// Number of tasks so far, so that a worker joins each only once.
    epoch: u64,
    quit: bool,
}

/// A task on the stack of [`Pool::run`].
#[derive(Clone, Copy, Debug)]
struct TaskRef(*const Task<'static>);

// SAFETY: `Task` is Sync, and `Pool::run` keeps it alive until no worker uses it.
unsafe impl Send for TaskRef {}

/// One parallel loop: `part(0)` to `part(n - 1)`. Threads take the next index as they become free.
struct Task<'a> {
    part: &'a (dyn Fn(u32) + Sync),
    n: u32,
    next: AtomicU32,
    panic: Mutex<Option<Panic>>,
}

impl Task<'_> {
    /// Runs parts until none is left.
    fn run_parts(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.n {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.part)(i))) {
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }
}

/// Locks a mutex. Nothing here panics while it holds one, so poisoning means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spins while `pending`, for [`SPIN_TIME`] at most.
#[cfg(not(sinkcache_loom))]
fn spin_while(pending: impl Fn() -> bool) {
    let begin = Instant::now();
    while pending() && begin.elapsed() < SPIN_TIME {
        std::hint::spin_loop();
    }
}

/// Of a spin's two ends, both are looked at.
#[cfg(sinkcache_loom)]
fn spin_while(pending: impl Fn() -> bool) {
    let _ = pending();
}

impl Shared {
    /// The loop of a worker thread.
    fn run_worker(&self) {
        let mut epoch = 0;
        while let Some(task) = self.join(&mut epoch) {
            // SAFETY: `join` has counted this worker in `active`, and `Pool::run` does not return, so keeps the task
            // alive, before `active` is 0.
            unsafe { &*task.0 }.run_parts();
            let state = lock(&self.state);
            // Release: the caller, which reads 0 with Acquire, sees the results.
            if self.active.fetch_sub(1, Ordering::Release) == 1 {
                self.done.notify_one();
            }
            drop(state);
            spin_while(|| self.epoch.load(Ordering::Relaxed) == epoch);
        }
    }

    /// Sleeps until there is a task newer than `epoch`, and joins it; `None` when the pool ends.
    fn join(&self, epoch: &mut u64) -> Option<TaskRef> {
        let mut state = lock(&self.state);
        while !state.quit {
            if let Some(task) = state.task.filter(|_| state.epoch != *epoch) {
                *epoch = state.epoch;
                self.active.fetch_add(1, Ordering::Relaxed);
                return Some(task);
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

/// What a worker thread runs; `shared` is a [`Shared`].
extern "C" fn work(shared: *mut c_void) -> *mut c_void {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: names the calling thread; the name is a C string.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"sinkcache".as_ptr());
    }
    // SAFETY: the pool keeps it until this thread has been joined.
    unsafe { &*shared.cast::<Shared>() }.run_worker();
    std::ptr::null_mut()
}

impl Pool {
    /// A pool of `n` threads, the caller included.
    ///
    /// # Errors
    /// `OutOfMemory` when they cannot be started.
    pub fn new(n: u32) -> Result<Self> {
        watch_forks()?;
        let workers = with_room(n as usize, "threads")?;
        let shared = NonNull::from(Box::leak(boxed(Shared::default(), "a thread pool")?));
        let mut pool = Self { shared, workers, process: generation() };
        for _ in 1..n {
            // After an error, dropping the pool ends the workers that were started.
            // SAFETY: `work` takes a `Shared`, which lives until drop has joined the workers.
            pool.workers.push(unsafe { Thread::start(work, shared.as_ptr().cast()) }?);
        }
        Ok(pool)
    }

    fn shared(&self) -> &Shared {
        // SAFETY: freed by drop alone, and only shared until then.
        unsafe { self.shared.as_ref() }
    }

    /// Whether the workers belong to another process, of which this one is a fork: then it has none.
    pub fn is_inherited(&self) -> bool {
        self.process != generation()
    }

    /// Calls `part(i)` once for every i below `n`, on any of the threads.
    pub fn run(&self, n: u32, part: &(dyn Fn(u32) + Sync)) -> std::result::Result<(), Panic> {
        let shared = self.shared();
        let task = Task { part, n, next: AtomicU32::new(0), panic: Mutex::new(None) };
        {
            let mut state = lock(&shared.state);
            state.task = Some(TaskRef(std::ptr::from_ref(&task).cast()));
            state.epoch += 1;
            shared.epoch.store(state.epoch, Ordering::Relaxed);
        }
        for _ in 1..n.min(self.workers.len() as u32 + 1) {
            shared.wake.notify_one();
        }
        task.run_parts();
        // All parts have been started: a worker that has not joined yet is not needed.
        lock(&shared.state).task = None;
        spin_while(|| shared.active.load(Ordering::Acquire) > 0);
        let mut state = lock(&shared.state);
        while shared.active.load(Ordering::Acquire) > 0 {
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        task.panic.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        if self.is_inherited() {
            // The threads exist in the parent only, and one of them may have held the lock at the fork: touch neither.
            std::mem::forget(workers);
            return;
        }
        lock(&self.shared().state).quit = true;
        self.shared().wake.notify_all();
        for worker in workers {
            // A worker never panics: `run_parts` catches panics of its parts.
            worker.join();
        }
        // SAFETY: it was a box; the workers, which had the same pointer, have ended, and it is not used again.
        drop(unsafe { Box::from_raw(self.shared.as_ptr()) });
    }
}

#[cfg(all(test, not(sinkcache_loom)))]
mod tests {
    use super::*;

    /// Each part waits until all have started.
    #[test]
    fn parts_run_concurrently() {
        let pool = Pool::new(4).unwrap();
        for _ in 0..if cfg!(miri) { 5 } else { 50 } {
            let barrier = std::sync::Barrier::new(4);
            pool.run(4, &|_| {
                barrier.wait();
            })
            .unwrap();
        }
    }

    /// Tasks shorter than a worker's wake-up: the caller often runs all parts, and no worker joins a finished task.
    #[test]
    fn many_short_tasks() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicU32::new(0);
        let tasks = if cfg!(miri) { 40 } else { 20_000 };
        for _ in 0..tasks {
            pool.run(3, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(count.into_inner(), 3 * tasks);
    }
}

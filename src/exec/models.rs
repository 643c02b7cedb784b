//! Models of the pool and of the host's loop: loom runs them in every order of threads.

use loom::cell::UnsafeCell;

use super::thread_pool::Pool;
use super::*;
use crate::sync::{explore, spawn};

/// A number that loom lets nobody access while another thread changes it, or before it can know the change.
struct Number(UnsafeCell<u32>);
// SAFETY: loom fails where two threads access it at the same time.
unsafe impl Sync for Number {}

impl Number {
    fn numbers<const N: usize>() -> [Self; N] {
        std::array::from_fn(|_| Self(UnsafeCell::new(0)))
    }

    fn increment(&self) {
        // SAFETY: loom fails where another thread accesses it.
        self.0.with_mut(|number| unsafe { *number += 1 });
    }

    fn get(&self) -> u32 {
        // SAFETY: loom fails where another thread changes it.
        self.0.with(|number| unsafe { *number })
    }
}

/// Each part runs once, and what it wrote is there when `run` returns. Workers end with the pool.
fn tasks_on_a_pool<const PARTS: usize>(threads: u32, tasks: u32) {
    explore(move || {
        let pool = Pool::new(threads).unwrap();
        for _ in 0..tasks {
            let numbers = Number::numbers::<PARTS>();
            pool.run(PARTS as u32, &|i| numbers[i as usize].increment()).unwrap();
            assert!(numbers.iter().all(|number| number.get() == 1));
        }
    });
}

#[test]
fn a_pool_of_two_threads_runs_two_tasks() {
    tasks_on_a_pool::<2>(2, 2);
}

#[test]
fn a_pool_of_three_threads_runs_a_task() {
    tasks_on_a_pool::<3>(3, 1);
}

/// Two threads start the parts, one of them twice; the library's thread starts what they leave out.
unsafe extern "C" fn two_threads(_: *mut c_void, n: u32, task: Option<TaskFn>, data: *mut c_void) {
    let start = move |data: usize, parts: [u32; 2]| {
        let data = std::ptr::with_exposed_provenance_mut(data);
        // SAFETY: the executor waits for this loop, which waits for its threads.
        parts.into_iter().for_each(|i| unsafe { task.unwrap()(data, i) });
    };
    let data = data.expose_provenance();
    let other = spawn(move || start(data, [0, 1]));
    start(data, [1, n]);
    other.join().unwrap();
}

#[test]
fn a_loop_of_the_hosts_runs_each_part_once() {
    explore(|| {
        // SAFETY: the loop above starts tasks only while it runs, and does not unwind.
        let host = unsafe { ParallelFor::new(two_threads, std::ptr::null_mut()) };
        let executor = Executor::new(3, Some(host)).unwrap();
        let numbers = Number::numbers::<3>();
        executor.run(3, &|i| numbers[i as usize].increment()).unwrap();
        assert!(numbers.iter().all(|number| number.get() == 1));
    });
}

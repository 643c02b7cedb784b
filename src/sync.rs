//! Atomics, locks and cells of what threads share: the pool, the host's loop, handle slots, gates.
//!
//! They are those of std. With `--cfg sinkcache_loom` they are loom's, which runs a test under every order of threads
//! and with every value that a weakly ordered processor may read: `make all-loom`.

use std::cell::UnsafeCell;

#[cfg(not(sinkcache_loom))]
pub use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

#[cfg(sinkcache_loom)]
pub use loom::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// What other threads may access too: who may is for the users to say. Loom fails where one access does not happen
/// before the next.
pub struct Shared<T> {
    value: UnsafeCell<T>,
    #[cfg(sinkcache_loom)]
    accesses: loom::cell::UnsafeCell<()>,
}

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Self {
            value: UnsafeCell::new(value),
            #[cfg(sinkcache_loom)]
            accesses: loom::cell::UnsafeCell::new(()),
        }
    }

    /// To read. It may be dereferenced while nobody writes.
    pub fn read(&self) -> *const T {
        #[cfg(sinkcache_loom)]
        self.accesses.with(|_| ());
        self.value.get()
    }

    /// To write. It may be dereferenced while nobody else reads or writes.
    pub fn write(&self) -> *mut T {
        #[cfg(sinkcache_loom)]
        self.accesses.with_mut(|_| ());
        self.value.get()
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// A static. Loom's begins anew in each run of a model.
macro_rules! shared_static {
    ($(#[$doc:meta])* static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(not(sinkcache_loom))]
        $(#[$doc])*
        static $name: $type = $value;
        #[cfg(sinkcache_loom)]
        loom::lazy_static! {
            static ref $name: $type = $value;
        }
    };
}
pub(crate) use shared_static;

/// An array of NULL pointers, for a [`shared_static`]: loom's atomics are no constants.
macro_rules! null_pointers {
    ($n:expr) => {{
        #[cfg(not(sinkcache_loom))]
        let pointers = [const { $crate::sync::atomic::AtomicPtr::new(std::ptr::null_mut()) }; $n];
        #[cfg(sinkcache_loom)]
        let pointers = std::array::from_fn(|_| $crate::sync::atomic::AtomicPtr::new(std::ptr::null_mut()));
        pointers
    }};
}
pub(crate) use null_pointers;

#[cfg(all(test, sinkcache_loom))]
pub use models::{explore, spawn};

#[cfg(all(test, sinkcache_loom))]
mod models {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use loom::thread::{Builder, JoinHandle};

    /// A thread with more stack than loom's have: a build that is not optimised needs it.
    pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        Builder::new().stack_size(1 << 16).spawn(body).unwrap()
    }

    /// Runs a model in every order of its threads, with at most `LOOM_MAX_PREEMPTIONS` preemptions, and prints how many
    /// orders there are.
    pub fn explore(body: impl Fn() + Send + Sync + 'static) {
        let (body, runs) = (Arc::new(body), Arc::new(AtomicU64::new(0)));
        let counted = runs.clone();
        loom::model(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let body = body.clone();
            spawn(move || body()).join().unwrap();
        });
        println!("{} orders of threads", runs.load(Ordering::Relaxed));
    }
}

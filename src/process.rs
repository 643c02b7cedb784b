//! Children of fork(2). A child has its parent's memory, and only the thread that forked.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::error::Result;
#[cfg(all(unix, not(miri)))]
use crate::error::bail;

/// What children of fork(2) call before the fork returns there, once it is registered.
#[derive(Debug)]
pub struct ForkHandler {
    call: extern "C" fn(),
    registered: AtomicBool,
}

impl ForkHandler {
    /// `call` may be registered, and then called, several times.
    pub const fn new(call: extern "C" fn()) -> Self {
        Self { call, registered: AtomicBool::new(false) }
    }

    /// Registers it, if it is not yet.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn register(&self) -> Result<()> {
        // Several threads may get here before one of them has finished. None waits for another: a child of a fork at
        // this moment would not have it.
        if !self.registered.load(Ordering::Acquire) {
            at_fork_in_child(self.call)?;
            self.registered.store(true, Ordering::Release);
        }
        Ok(())
    }
}

#[cfg(all(unix, not(miri)))]
fn at_fork_in_child(call: extern "C" fn()) -> Result<()> {
    type Handler = Option<extern "C" fn()>;
    unsafe extern "C" {
        // The crate libc declares it for few systems; POSIX has it.
        fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> libc::c_int;
    }
    // SAFETY: the handler is a function of this library. The C library forgets it when the library is unloaded.
    match unsafe { pthread_atfork(None, None, Some(call)) } {
        0 => Ok(()),
        code => bail!(OutOfMemory, "pthread_atfork failed with error {code}"),
    }
}

/// There is no fork.
#[cfg(not(all(unix, not(miri))))]
fn at_fork_in_child(_: extern "C" fn()) -> Result<()> {
    Ok(())
}

/// Changes with every fork. A process id would not do: in a pid namespace of its own a child may have its parent's.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// A number that differs between a process and the children that it forks after [`watch_forks`].
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// From here on, forks change [`generation`].
///
/// # Errors
/// `OutOfMemory`.
pub fn watch_forks() -> Result<()> {
    static COUNT: ForkHandler = ForkHandler::new(count_fork);
    COUNT.register()
}

extern "C" fn count_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

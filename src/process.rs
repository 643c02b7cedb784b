//! Children of fork(2). A child has its parent's memory, and only the thread that forked.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::error::Result;
#[cfg(unix)]
use crate::error::bail;

/// How many forks lie between the process that loaded the library and this one, once [`watch_forks`] was called. A
/// process id would not do: in a pid namespace of its own a child may have its parent's.
static GENERATION: AtomicU32 = AtomicU32::new(0);
static WATCHING: AtomicBool = AtomicBool::new(false);

/// A number that differs between a process and the children that it forked after [`watch_forks`].
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// From here on, forks change [`generation`].
///
/// # Errors
/// `OutOfMemory`.
pub fn watch_forks() -> Result<()> {
    // Several threads may get here before one of them has finished. None waits for another, which a child would not
    // have: each registers the handler, and a child then counts several times.
    if !WATCHING.load(Ordering::Acquire) {
        at_fork_in_child(count_fork)?;
        WATCHING.store(true, Ordering::Release);
    }
    Ok(())
}

extern "C" fn count_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Arranges that children of fork(2) call `handler` before the fork returns there.
///
/// # Errors
/// `OutOfMemory`.
#[cfg(unix)]
pub fn at_fork_in_child(handler: extern "C" fn()) -> Result<()> {
    type Handler = Option<extern "C" fn()>;
    unsafe extern "C" {
        // The crate libc declares it for few systems; POSIX has it.
        fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> libc::c_int;
    }
    // SAFETY: the handler is a function of this library. The C library forgets it when the library is unloaded.
    match unsafe { pthread_atfork(None, None, Some(handler)) } {
        0 => Ok(()),
        code => bail!(OutOfMemory, "pthread_atfork failed with error {code}"),
    }
}

/// Arranges nothing: there is no fork.
#[cfg(not(unix))]
pub fn at_fork_in_child(_: extern "C" fn()) -> Result<()> {
    Ok(())
}

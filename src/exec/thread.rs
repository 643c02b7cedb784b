//! Starting threads without an allocation that could abort the process: `std::thread` has no way to report one.

use std::ffi::c_void;

use crate::error::{Result, bail};

/// What a thread runs, with the pointer that it was started with. Its result is not used.
pub type Entry = extern "C" fn(*mut c_void) -> *mut c_void;

/// A running thread, to be joined.
#[derive(Debug)]
pub struct Thread(imp::Id);

impl Thread {
    /// Starts a thread that calls `entry(data)`, which must not unwind.
    ///
    /// # Errors
    /// `OutOfMemory` when the system has no room for it.
    ///
    /// # Safety
    /// `entry` must be sound to call with `data` on another thread, until that is joined.
    pub unsafe fn start(entry: Entry, data: *mut c_void) -> Result<Self> {
        // SAFETY: as this function demands.
        match unsafe { imp::start(entry, data) } {
            Ok(id) => Ok(Self(id)),
            // The text of an `io::Error` would be allocated.
            Err(e) => bail!(OutOfMemory, "a thread could not be started: error {}", e.raw_os_error().unwrap_or(0)),
        }
    }

    /// Waits for its end.
    pub fn join(self) {
        imp::join(self.0);
    }
}

#[cfg(unix)]
mod imp {
    use std::ffi::c_void;
    use std::io;
    use std::mem::MaybeUninit;

    use super::Entry;

    pub type Id = libc::pthread_t;

    /// The default of Rust's threads. Only pages that are used take memory.
    const STACK_BYTES: usize = 2 << 20;

    pub unsafe fn start(entry: Entry, data: *mut c_void) -> io::Result<Id> {
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        let mut id = MaybeUninit::<Id>::uninit();
        // SAFETY: attributes are initialised before they are used, and destroyed afterwards; the outputs are writable.
        unsafe {
            check(libc::pthread_attr_init(attributes.as_mut_ptr()))?;
            // A failure leaves the system's default.
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK_BYTES);
            let code = libc::pthread_create(id.as_mut_ptr(), attributes.as_ptr(), entry, data);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            check(code)?;
            Ok(id.assume_init())
        }
    }

    fn check(code: libc::c_int) -> io::Result<()> {
        if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
    }

    pub fn join(id: Id) {
        // SAFETY: a thread that was started and not joined yet.
        unsafe { libc::pthread_join(id, std::ptr::null_mut()) };
    }
}

#[cfg(not(unix))]
mod imp {
    use std::ffi::c_void;
    use std::io;

    use super::Entry;

    pub type Id = std::thread::JoinHandle<()>;

    pub unsafe fn start(entry: Entry, data: *mut c_void) -> io::Result<Id> {
        let data = data.expose_provenance();
        std::thread::Builder::new().spawn(move || {
            entry(std::ptr::with_exposed_provenance_mut(data));
        })
    }

    pub fn join(id: Id) {
        let _ = id.join();
    }
}

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

#[cfg(all(unix, not(miri), not(sinkcache_loom)))]
mod imp {
    use std::ffi::c_void;
    use std::io;
    use std::mem::MaybeUninit;

    use super::Entry;

    pub type Id = libc::pthread_t;

    /// The default of Rust's threads. Only pages that are used take memory.
    const STACK_BYTES: usize = 2 << 20;
    /// Some systems want whole pages.
    const STACK_UNIT: usize = 64 << 10;

    /// What the C library takes out of a thread's stack for itself: with glibc also the thread-local variables of the
    /// program and its libraries, which may be megabytes.
    fn least_stack(attributes: *const libc::pthread_attr_t) -> usize {
        type MinStack = unsafe extern "C" fn(*const libc::pthread_attr_t) -> libc::size_t;
        // SAFETY: the name is a C string. NULL becomes None; the symbol of this name is a function of this type.
        let get = unsafe {
            std::mem::transmute::<*mut c_void, Option<MinStack>>(libc::dlsym(
                libc::RTLD_DEFAULT,
                c"__pthread_get_minstack".as_ptr(),
            ))
        };
        // SAFETY: the attributes are initialised, as the callers demand.
        get.map_or(0, |get| unsafe { get(attributes) })
    }

    pub unsafe fn start(entry: Entry, data: *mut c_void) -> io::Result<Id> {
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        let mut id = MaybeUninit::<Id>::uninit();
        // SAFETY: attributes are initialised before they are used, and destroyed afterwards; the outputs are writable.
        unsafe {
            check(libc::pthread_attr_init(attributes.as_mut_ptr()))?;
            // A failure leaves the system's default.
            let bytes = STACK_BYTES.saturating_add(least_stack(attributes.as_ptr()));
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), bytes.next_multiple_of(STACK_UNIT));
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

// Miri and loom have threads of std alone.
#[cfg(any(not(unix), miri, sinkcache_loom))]
mod imp {
    use std::ffi::c_void;
    use std::io;

    use super::Entry;
    use crate::sync::thread::{Builder, JoinHandle};

    pub type Id = JoinHandle<()>;

    struct Data(*mut c_void);
    // SAFETY: whoever starts a thread demands that `entry` may have it there.
    unsafe impl Send for Data {}

    pub unsafe fn start(entry: Entry, data: *mut c_void) -> io::Result<Id> {
        let data = Data(data);
        Builder::new().spawn(move || {
            entry({ data }.0);
        })
    }

    pub fn join(id: Id) {
        let _ = id.join();
    }
}

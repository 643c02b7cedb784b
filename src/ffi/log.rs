//! The host's log callback.

use std::cell::Cell;
use std::ffi::{CStr, c_void};

use super::config::skc_log_fn;

/// A log callback and its first argument.
#[derive(Clone, Copy)]
pub struct Log {
    pub call: skc_log_fn,
    pub user: *mut c_void,
}

// SAFETY: the header demands that the callback may be called, with `user`, from any thread.
unsafe impl Send for Log {}
// SAFETY: as for Send.
unsafe impl Sync for Log {}

thread_local! {
    /// Whether this thread is inside a log callback.
    static LOGGING: Cell<bool> = const { Cell::new(false) };
}

impl Log {
    /// Calls the callback with a line of text. Does nothing inside a log callback: failures of calls that the callback
    /// itself makes are not logged, since that might recurse without end.
    pub fn line(&self, level: u32, text: &CStr) {
        if let Some(call) = self.call
            && !LOGGING.try_with(|l| l.replace(true)).unwrap_or(true)
        {
            // SAFETY: the header demands that the callback may be called from any thread until the cache is destroyed;
            // the text is a C string that lives during the call.
            unsafe { call(self.user, level, text.as_ptr()) };
            let _ = LOGGING.try_with(|l| l.set(false));
        }
    }
}

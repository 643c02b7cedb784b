//! The host's log callback.

use std::cell::Cell;
use std::ffi::{CString, c_void};

use super::config::skc_log_fn;

/// A log callback with its argument.
pub struct Log {
    pub call: skc_log_fn,
    pub user: *mut c_void,
}

// SAFETY: the header says that it may be called from any thread.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

thread_local! {
    /// Whether this thread is inside a log callback.
    static LOGGING: Cell<bool> = const { Cell::new(false) };
}

impl Log {
    /// Calls the host, but not for what goes wrong in a callback's own calls: that might never end.
    pub fn line(&self, level: u32, text: &str) {
        if let Some(call) = self.call
            && let Ok(text) = CString::new(text)
            && !LOGGING.try_with(|l| l.replace(true)).unwrap_or(true)
        {
            // SAFETY: the header's contract of the callback.
            unsafe { call(self.user, level, text.as_ptr()) };
            let _ = LOGGING.try_with(|l| l.set(false));
        }
    }
}

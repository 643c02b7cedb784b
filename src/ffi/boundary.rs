//! The boundary to C: panics become errors, errors become statuses and the text of the last error.

use std::any::Any;
use std::cell::Cell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::constants::{SKC_STATUS_OK, skc_status};
use crate::error::{Error, Result, bail};
use crate::exec::panic_error;

/// Bytes kept of an error's text, with its NUL. Only texts that quote a path or a compiler may be longer.
const LAST_ERROR_BYTES: usize = 2048;

thread_local! {
    /// A C string. Nothing is allocated for it, and nothing dropped when the thread ends.
    static LAST_ERROR: Cell<[u8; LAST_ERROR_BYTES]> = const { Cell::new([0; LAST_ERROR_BYTES]) };
}

/// Text of the latest error of a call on this thread, in English: names the rejected value and what is allowed.
/// Successful calls do not change it.
///
/// Returns: a C string, never NULL; empty before the first error.
///
/// Lifetime: the string is valid until the next call that fails on this thread, or until the thread ends.
///
/// Threads: any thread; each has a text of its own.
#[unsafe(no_mangle)]
pub extern "C" fn skc_last_error() -> *const c_char {
    LAST_ERROR.try_with(|text| text.as_ptr().cast_const().cast()).unwrap_or(c"".as_ptr())
}

/// Runs the body of a call. An error becomes its status and the text of the last error, a panic becomes `INTERNAL`.
pub fn boundary(body: impl FnOnce() -> Result<()>) -> skc_status {
    match catch_panic(body) {
        Ok(()) => SKC_STATUS_OK,
        Err(error) => report(&error),
    }
}

/// Drops the payload of a panic. A panic of that drop must not unwind into C; its payload is dropped in turn.
fn discard(mut payload: Box<dyn Any + Send>) {
    for _ in 0..8 {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(next) => payload = next,
        }
    }
    std::mem::forget(payload);
}

/// Runs `body`; a panic becomes an error.
pub fn catch_panic<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let error = panic_error(panic.as_ref());
            discard(panic);
            Err(error)
        }
    }
}

fn report(error: &Error) -> skc_status {
    let text = error.text().as_c_str().to_bytes();
    // Cut between characters: a byte of the form 10xxxxxx continues one.
    let mut end = text.len().min(LAST_ERROR_BYTES - 1);
    while text.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
        end -= 1;
    }
    let bytes = text.get(..end).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|last| {
        // SAFETY: the text of this thread, which nobody else accesses during this call; `bytes` and a NUL fit, as they
        // are at most LAST_ERROR_BYTES - 1 bytes.
        unsafe {
            let to = last.as_ptr().cast::<u8>();
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            to.add(bytes.len()).write(0);
        }
    });
    error.status() as skc_status
}

/// Writes an output value.
///
/// # Safety
/// `out` must be NULL or writable.
pub unsafe fn write_output<T>(name: &str, out: *mut T, value: T) -> Result<()> {
    check_pointer(name, out)?;
    // SAFETY: not NULL and aligned, by the check; writable, as this function demands.
    unsafe { out.write(value) };
    Ok(())
}

/// Rejects NULL and misaligned pointers.
pub fn check_pointer<T>(name: &str, ptr: *const T) -> Result<()> {
    if ptr.is_null() {
        bail!(NullPointer, "{name} is NULL");
    }
    if !ptr.is_aligned() {
        bail!(InvalidArgument, "{name} {ptr:p} is not aligned to {}", align_of::<T>());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]
mod tests {
    use std::ffi::CStr;

    use super::*;
    use crate::error::Status;

    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("in a drop");
        }
    }

    #[test]
    fn a_panic_in_the_drop_of_a_panic_does_not_escape() {
        let error = catch_panic::<()>(|| std::panic::panic_any(PanicsWhenDropped)).unwrap_err();
        assert_eq!(error.status(), Status::Internal);
    }

    /// At every place where a character of two or three bytes may be cut.
    #[test]
    fn a_long_text_ends_with_a_whole_character() {
        for begin in 0..3 {
            for letter in ["a", "é", "€"] {
                let text = "a".repeat(begin) + &letter.repeat(LAST_ERROR_BYTES);
                let status = boundary(|| Err(Error::new(Status::OutOfRange, &text)));
                assert_eq!(status, Status::OutOfRange as skc_status);
                // SAFETY: a C string, until the next call that fails on this thread.
                let kept = unsafe { CStr::from_ptr(skc_last_error()) }.to_str().unwrap();
                assert!(text.starts_with(kept), "{begin}, {letter}");
                assert!((LAST_ERROR_BYTES - 3..LAST_ERROR_BYTES).contains(&kept.len()), "{}", kept.len());
            }
        }
    }
}

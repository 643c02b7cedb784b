//! What the fuzz targets share: numbers from the fuzzer's bytes, and checked calls of the C ABI.

use std::ffi::CStr;

pub use libfuzzer_sys::arbitrary::Unstructured;
use sinkcache::Status;
use sinkcache::ffi::{skc_last_error, skc_status_name};

/// A reader of the fuzzer's bytes. Where they end, zeros follow.
#[derive(Debug)]
pub struct Bytes<'a>(pub Unstructured<'a>);

impl<'a> Bytes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// One of some values.
    pub fn choose<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// Mostly one of the usual numbers, else one at the edges of a type or any other.
    pub fn number(&mut self, usual: &[i64]) -> i64 {
        const EDGES: [i64; 14] = [
            -1,
            0,
            1,
            i32::MAX as i64,
            i32::MIN as i64,
            u32::MAX as i64,
            i32::MAX as i64 + 1,
            i64::MAX,
            i64::MIN,
            1 << 24,
            1 << 30,
            1 << 40,
            u16::MAX as i64,
            -2,
        ];
        match self.byte() {
            // Usual numbers are the more likely, so that calls reach further than their first check.
            at @ 0..=223 => usual[usize::from(at) % usual.len()],
            at @ 224..=247 => EDGES[usize::from(at) % EDGES.len()],
            _ => self.0.arbitrary().unwrap_or(0),
        }
    }

    pub fn u32(&mut self, usual: &[i64]) -> u32 {
        self.number(usual) as u32
    }

    pub fn i32(&mut self, usual: &[i64]) -> i32 {
        self.number(usual) as i32
    }

    /// A real number: usual, special or any.
    pub fn real(&mut self, usual: &[f64]) -> f64 {
        const SPECIAL: [f64; 9] =
            [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, f64::MAX, 1e-320];
        match self.byte() {
            at @ 0..=199 => usual[usize::from(at) % usual.len()],
            at @ 200..=239 => SPECIAL[usize::from(at) % SPECIAL.len()],
            _ => f64::from_bits(self.0.arbitrary().unwrap_or(0)),
        }
    }
}

/// Whether a call succeeded. One that failed has a status that callers know, and a text.
#[track_caller]
pub fn succeeded(status: i32) -> bool {
    if status == 0 {
        return true;
    }
    // SAFETY: both are strings that live until the next call.
    let (name, text) = unsafe { (CStr::from_ptr(skc_status_name(status)), CStr::from_ptr(skc_last_error())) };
    let (name, text) = (name.to_str().unwrap(), text.to_str().unwrap());
    assert!(status != Status::Internal as i32, "{text}");
    assert!(name.starts_with("SKC_STATUS_"), "status {status}: {text}");
    assert!(text.len() > 10, "{name} with the text {text:?}");
    false
}

/// A zeroed struct of arguments.
///
/// # Safety
/// Zeros are valid values of the struct.
pub unsafe fn zeroed<T>() -> T {
    // SAFETY: the caller's contract.
    unsafe { std::mem::zeroed() }
}

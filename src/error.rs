//! Errors: a status with a stable number, and a text.

use std::fmt;

/// Status of a call. The numbers are the C ABI's: negative, explicit, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Status {
    /// The handle is NULL, destroyed, or was never one of ours.
    InvalidHandle = -1,
    /// A required pointer is NULL.
    NullPointer = -2,
    /// A value of a call is not allowed.
    InvalidArgument = -3,
    /// A value of a configuration is not allowed.
    InvalidConfig = -4,
    /// A layer, sequence or token count is outside what the cache holds.
    OutOfRange = -5,
    /// `struct_size` or `flags` is not one this library understands.
    VersionMismatch = -6,
    /// The backend asked for is not compiled in or has no device.
    BackendUnavailable = -7,
    /// Memory could not be had.
    OutOfMemory = -8,
    /// Another call is using the cache.
    Busy = -9,
    /// An edit needs all layers of a sequence at one length.
    LayersOutOfStep = -10,
    /// More tokens for a sequence than `max_chunk`.
    ChunkTooLong = -11,
    /// The tokens needed have been overwritten or evicted for good.
    TokensGone = -12,
    /// The device failed; only destroy works now.
    DeviceLost = -13,
    /// A defect of this library; only destroy works now.
    Internal = -14,
    /// The device alone knows the length of a sequence.
    LengthUnknown = -15,
}

impl Status {
    /// Every status, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::InvalidHandle,
        Self::NullPointer,
        Self::InvalidArgument,
        Self::InvalidConfig,
        Self::OutOfRange,
        Self::VersionMismatch,
        Self::BackendUnavailable,
        Self::OutOfMemory,
        Self::Busy,
        Self::LayersOutOfStep,
        Self::ChunkTooLong,
        Self::TokensGone,
        Self::DeviceLost,
        Self::Internal,
        Self::LengthUnknown,
    ];
}

/// An error: its status, and a text that names the rejected value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

/// Result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the given status.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The status number.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `return Err(Error::new(Status::$status, format!(...)))`.
macro_rules! bail {
    ($status:ident, $($text:tt)*) => {
        return Err($crate::error::Error::new($crate::error::Status::$status, format!($($text)*)))
    };
}
pub(crate) use bail;

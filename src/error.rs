//! Errors: a status with a stable number, and a text.

use std::fmt;

use crate::text::Text;

/// The table of statuses: text, variant of [`Status`], number, name in the C ABI. The enum, the constants of the C ABI,
/// the header and the lookups by name and number are made from it. Numbers are negative and never reused.
macro_rules! for_each_status {
    ($make:ident) => {
        $make! {
            /// The handle is NULL, was destroyed, or was never returned by skc_create_cache.
            InvalidHandle = -1, SKC_STATUS_INVALID_HANDLE;
            /// A required pointer is NULL.
            NullPointer = -2, SKC_STATUS_NULL_POINTER;
            /// An argument of a call is not allowed, by itself or for this cache.
            InvalidArgument = -3, SKC_STATUS_INVALID_ARGUMENT;
            /// A value of a configuration is not allowed.
            InvalidConfig = -4, SKC_STATUS_INVALID_CONFIG;
            /// A layer, sequence, token count or position does not exist or exceeds what the cache holds.
            OutOfRange = -5, SKC_STATUS_OUT_OF_RANGE;
            /// This library does not know the struct_size, a flag, or a nonzero byte at the end of a struct: the
            /// program was built against a newer header, or did not initialise the struct.
            VersionMismatch = -6, SKC_STATUS_VERSION_MISMATCH;
            /// The backend cannot be used: no driver, no device, or neither a compiler nor built-in kernels for it.
            BackendUnavailable = -7, SKC_STATUS_BACKEND_UNAVAILABLE;
            /// An allocation failed, or would exceed the address space.
            OutOfMemory = -8, SKC_STATUS_OUT_OF_MEMORY;
            /// Another call is using the cache.
            Busy = -9, SKC_STATUS_BUSY;
            /// An edit needs a sequence to have the same length in all layers: finish or abort the step first.
            LayersOutOfStep = -10, SKC_STATUS_LAYERS_OUT_OF_STEP;
            /// More tokens of one sequence in one append than max_chunk.
            ChunkTooLong = -11, SKC_STATUS_CHUNK_TOO_LONG;
            /// Tokens that would become visible have been overwritten or evicted.
            TokensGone = -12, SKC_STATUS_TOKENS_GONE;
            /// The CUDA device failed. Every further call on the cache fails, except skc_destroy_cache.
            DeviceLost = -13, SKC_STATUS_DEVICE_LOST;
            /// A bug in this library. If a call on a cache returns it, every further call on the cache fails, except
            /// skc_destroy_cache.
            Internal = -14, SKC_STATUS_INTERNAL;
            /// The host does not know the sequence's length, because graph replays or counts in device memory have
            /// changed it. skc_note_replay, skc_reset, or skc_seq_info with SKC_READ_BACK make it known again; after
            /// skc_pin and skc_evict_range only the last two.
            LengthUnknown = -15, SKC_STATUS_LENGTH_UNKNOWN;
            /// The bytes are not a snapshot that this cache can load: damaged, cut off, of a later version, or of a
            /// cache whose settings or host tag differ. The text of the error names what differs.
            InvalidSnapshot = -16, SKC_STATUS_INVALID_SNAPSHOT;
            /// A sequence would have more pinned tokens than max_pinned, or more segments than max_segments.
            NoRoom = -17, SKC_STATUS_NO_ROOM;
        }
    };
}
#[allow(unused_imports, reason = "the build script includes this file and has no use for it")]
pub(crate) use for_each_status;

macro_rules! define_status {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $c_name:ident;)+) => {
        /// Why a call failed. The numbers are those of the C ABI.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[non_exhaustive]
        pub enum Status {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Status {
            /// Every status, in the order of its number.
            pub const ALL: [Self; [$($number),+].len()] = [$(Self::$name),+];
        }
    };
}
for_each_status!(define_status);

/// An error: its status, and a text that names the rejected value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    text: Text,
}

/// Result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the given status.
    pub fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, text: Text::new(format_args!("{message}")) }
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The text.
    #[must_use]
    pub fn message(&self) -> &str {
        self.text.as_str()
    }

    /// The text with a NUL behind it.
    #[allow(dead_code, reason = "the build script includes this file and has no use for it")]
    pub(crate) fn text(&self) -> &Text {
        &self.text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Error {}

/// `return Err(Error::new(Status::$status, format_args!(...)))`.
macro_rules! bail {
    ($status:ident, $($text:tt)*) => {
        return Err($crate::error::Error::new($crate::error::Status::$status, format_args!($($text)*)))
    };
}
pub(crate) use bail;

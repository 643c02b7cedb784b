//! Enumerated settings. Their numbers are those of the C ABI.

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DType {
    /// IEEE binary32.
    F32 = 1,
    /// IEEE binary16.
    F16 = 2,
    /// bfloat16.
    Bf16 = 3,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Where K and V are stored and kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BackendKind {
    /// Host memory and CPU threads.
    Cpu = 1,
    /// An NVIDIA GPU.
    Cuda = 2,
}

/// How keys and queries get their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PositionMode {
    /// The cache applies `RoPE` to k and q.
    Rope = 1,
    /// The host has applied `RoPE` to k and q at their stream positions, which advance by one per token.
    RopeApplied = 2,
    /// No `RoPE`; scores get a bias of -slope x distance in cache positions.
    Alibi = 3,
    /// No `RoPE` and no bias.
    None = 4,
}

/// Which dims of a head `RoPE` rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RopeStyle {
    /// Dim i with dim i + `rope_dim` / 2.
    Neox = 1,
    /// Dim 2i with dim 2i + 1.
    Interleaved = 2,
}

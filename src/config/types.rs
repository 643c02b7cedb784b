//! Enumerated settings. Their numbers are those of the C ABI.

/// An element type of the caller's rows.
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

/// A type that K or V is stored in. A stored row (one token and head of K, or of V) is `dim` numbers, or `dim` integer
/// codes with bf16 scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StorageType {
    /// IEEE binary32.
    F32 = 1,
    /// IEEE binary16.
    F16 = 2,
    /// bfloat16.
    Bf16 = 3,
    /// 8-bit codes, one scale for each row.
    Q8 = 4,
    /// 4-bit codes, one scale for each group of 32 dims.
    Q4 = 5,
}

/// Dims of a row in q4 that share one scale; the last group of a row may be shorter.
pub const Q4_GROUP: usize = 32;

impl StorageType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8, Self::Q4];

    /// The element type, for types that store numbers as they are.
    #[must_use]
    pub const fn element(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::Bf16),
            Self::Q8 | Self::Q4 => None,
        }
    }

    /// Whether rows are integer codes with scales.
    #[must_use]
    pub const fn is_quantised(self) -> bool {
        self.element().is_none()
    }

    /// Bytes of a row's numbers or codes, without its scales. `dim` is a multiple of 8.
    #[must_use]
    pub const fn code_bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 => 4 * dim,
            Self::F16 | Self::Bf16 => 2 * dim,
            Self::Q8 => dim,
            Self::Q4 => dim / 2,
        }
    }

    /// Scales of a row.
    #[must_use]
    pub const fn scales(self, dim: usize) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Q8 => 1,
            Self::Q4 => dim.div_ceil(Q4_GROUP),
        }
    }

    /// Bytes of a row: codes and scales.
    #[must_use]
    pub const fn row_bytes(self, dim: usize) -> usize {
        self.code_bytes(dim) + 2 * self.scales(dim)
    }
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    K,
    V,
}

impl From<DType> for StorageType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::Bf16 => Self::Bf16,
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

//! What a user sets, and the one place where it is checked.

mod cuda;
mod layers;
mod settings;
mod types;
mod validate;

pub use self::cuda::CudaConfig;
pub(crate) use self::layers::{Layer, Layers};
pub use self::settings::{CacheConfig, Footprint, LayerConfig};
pub use self::types::{BackendKind, DType, PositionMode, RopeStyle, StorageType};
pub(crate) use self::types::{Q4_GROUP, Which};
pub(crate) use self::validate::{
    HEAD_DIM_MULTIPLE, MAX_CHUNK, MAX_HEAD_DIM, MAX_LAYERS, MAX_SEGMENTS, MAX_SEQS, MAX_THREADS, Shape,
};

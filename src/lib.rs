//! An attention-sink KV cache.
//!
//! A [`Cache`] holds the keys and values of all layers and sequences of one model: permanently the first `n_sink`
//! tokens of each sequence, and a rolling window of the most recent ones (StreamingLLM, arXiv 2309.17453). Attention
//! over it equals recomputing the window at every token, at any stream position. Results do not depend on how a stream
//! is cut into chunks, up to floating-point rounding.
//!
//! `RoPE` is applied to each key once, at its stream position, when it is appended. Each query is rotated twice: at its
//! stream position for window keys, and at its cache position (stream position minus evicted tokens) for sink keys.
//! Stored keys are never rotated again, so no error accumulates.
//!
//! The C ABI (`include/sinkcache.h`, module [`ffi`]) wraps the same objects.

pub mod backend;
mod batch;
mod cache;
mod config;
mod cpu_features;
mod error;
mod exec;
pub mod ffi;
mod memory;
mod process;
pub mod ranges;
pub mod ring;
pub mod rope;
mod sync;
mod tensor;
mod text;

pub use backend::{DeviceError, KernelChoice, TokenCall};
pub use batch::{Batch, DeviceBatch, DeviceEdit};
pub use cache::{Cache, HostTag, SeqInfo};
pub use config::{
    BackendKind, CacheConfig, CudaConfig, DType, Footprint, LayerConfig, PositionMode, RopeStyle, StorageType,
};
pub use cpu_features::{ISA_VARIABLE, Isa};
pub use error::{Error, Result, Status};
pub use exec::{ParallelFor, TaskFn};
pub use memory::{AllocFn, FreeFn, Memory};
pub use tensor::{AttendTensors, Element, RowsIn, RowsOut, StepTensors};

/// What the fuzz targets reach that the library does not offer.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::backend::cuda::kernel_file;
}

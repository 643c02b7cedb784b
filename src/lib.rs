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
//! # A first program
//! Each layer of a model's forward pass hands its q, k and v to [`Cache::step`], before `RoPE`, and gets the result of
//! attention.
//! ```
//! use sinkcache::{Batch, Cache, CacheConfig, LayerConfig, Result, RowsIn, RowsOut, StepTensors};
//!
//! fn main() -> Result<()> {
//!     let layer = LayerConfig { n_sink: 4, window: 252, ..LayerConfig::default() };
//!     let config = CacheConfig {
//!         n_layers: 2,
//!         n_q_heads: 8,
//!         n_kv_heads: 2,
//!         head_dim: 64,
//!         layers: vec![layer],
//!         ..CacheConfig::default()
//!     };
//!     let mut cache = Cache::new(&config)?;
//!     // One token's rows, as a model's projections would give them.
//!     let (q, k, v) = (vec![0.1_f32; 8 * 64], vec![0.1_f32; 2 * 64], vec![0.5_f32; 2 * 64]);
//!     let mut out = vec![0.0_f32; 8 * 64];
//!     for _token in 0..1000 {
//!         for layer in 0..2 {
//!             let tensors = StepTensors {
//!                 q: RowsIn::packed(&q),
//!                 k: RowsIn::packed(&k),
//!                 v: RowsIn::packed(&v),
//!                 out: RowsOut::packed(&mut out),
//!                 lse: None,
//!             };
//!             cache.step(layer, Batch::new(&[0], &[1]), tensors)?;
//!         }
//!     }
//!     let info = cache.seq_info(0, 0)?;
//!     assert_eq!((info.len_min, info.cached), (1000, 256));
//!     assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-3)); // the mean of equal values
//!     Ok(())
//! }
//! ```
//!
//! # Batches and edits
//! A [`Batch`] is ragged: any number of tokens of several sequences. An error names the value and what is allowed, and
//! the cache is as it was.
//! ```
//! use sinkcache::{Batch, Cache, CacheConfig, LayerConfig, Result, RowsIn, Status};
//!
//! fn main() -> Result<()> {
//!     let layer = LayerConfig { window: 60, max_pinned: 16, max_segments: 4, ..LayerConfig::default() };
//!     let config = CacheConfig {
//!         n_seqs: 3,
//!         n_q_heads: 4,
//!         n_kv_heads: 1,
//!         head_dim: 32,
//!         layers: vec![layer],
//!         ..CacheConfig::default()
//!     };
//!     let mut cache = Cache::new(&config)?;
//!     let rows = vec![0.25_f32; 41 * 32];
//!     // 40 tokens of sequence 0, then 1 token of sequence 2.
//!     cache.append(0, Batch::new(&[0, 2], &[40, 1]), RowsIn::packed(&rows), RowsIn::packed(&rows))?;
//!     cache.rewind(&[0], &[3])?; // a draft of 3 tokens was rejected
//!     cache.pin(&[0], &[4], &[16])?; // tokens 4 to 19, the system prompt, stay
//!     cache.evict_range(&[0], &[25], &[5])?; // tokens 25 to 29 go
//!     cache.fork(&[0], &[1])?; // sequence 1 goes on from where sequence 0 is
//!     assert_eq!(cache.seq_info(0, 1)?.cached, 32);
//!     let error = cache.rewind(&[0], &[100]).unwrap_err();
//!     assert_eq!(error.status(), Status::OutOfRange);
//!     println!("{error}");
//!     Ok(())
//! }
//! ```
//!
//! # More
//! `examples/rust` in the repository checks each row of a stream against a plain softmax, `examples/candle` is a Llama
//! in candle over this cache. The C ABI (`include/sinkcache.h`, module [`ffi`]) wraps the same objects.

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

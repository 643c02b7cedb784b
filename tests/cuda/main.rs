//! Tests of the CUDA backend through the public API: graphs, streams, contexts, memory, arrays in device memory. They
//! run on the driver that is found: a GPU's, or the stand-in's (`tools/cuda_shim`).
//!
//! Without a driver the tests are skipped, unless `SKC_TEST_BACKEND=cuda` says that there must be one.

#[path = "../common/mod.rs"]
mod common;

mod allocations;
mod chunk_splits;
mod codes;
mod create;
mod differential;
mod edits;
mod errors;
mod graphs;
mod scores;
mod segments;
mod snapshots;
mod soak;
mod steps;
mod support;

//! The CUDA backend as a host sees it: graphs, streams, contexts, memory, counts that never leave the device. Everything
//! through the public API, on whatever driver is found: a GPU's, or the host shim's (`tools/cuda_shim`).
//!
//! Without a driver the tests are skipped, unless `SKC_TEST_BACKEND=cuda` says that there must be one.

#[path = "../common/mod.rs"]
mod common;

mod create;
mod differential;
mod edits;
mod graphs;
mod soak;
mod steps;
mod support;

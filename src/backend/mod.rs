//! What a device must do. Which slots and positions a call means is decided before it gets here.

pub(crate) mod cpu;

use crate::batch::Entry;
use crate::config::{Layer, Shape};
use crate::tensor::Strided;

/// Memory and kernels of one device.
pub(crate) trait Backend: Send + Sync + std::fmt::Debug {
    /// Does part `ith` of `nth` of a job; all parts together do it once. Parts need no order among them and may run at
    /// the same time, but one `ith` only once.
    fn run(&self, job: &Job<'_>, ith: u32, nth: u32);

    /// Copies the first `slots` slots of every head of one sequence over another's, in one layer.
    fn copy_sequence(&self, layer: usize, src: usize, dst: usize, slots: u64);
}

/// Rotate and store, attend, or one after the other for each chunk.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub layer_index: usize,
    pub layer: &'a Layer,
    pub shape: &'a Shape,
    pub entries: &'a [Entry],
    pub append: Option<AppendRows>,
    pub attend: Option<AttendRows>,
}

/// Rows to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AppendRows {
    pub k: Strided,
    pub v: Strided,
}

/// Queries, and where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttendRows {
    pub q: Strided,
    pub out: Strided,
    pub lse: Option<Strided>,
}

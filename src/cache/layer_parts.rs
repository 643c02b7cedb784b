//! Layers, divided among the threads of a CPU cache: for snapshots and for edits that move rows.

use std::ops::Range;

use parking_lot::Mutex;

use super::state::{Cache, Place};
use crate::error::{Result, Status};

/// Below this many bytes, waking threads costs more than it saves.
const PARALLEL_BYTES: usize = 1 << 20;

impl Cache {
    /// Calls `body` with ranges that make up all layers, in several threads if there are so many `bytes`. If several
    /// fail, the error is that of the first layers.
    pub(super) fn for_layers(&self, bytes: usize, body: &(dyn Fn(Range<usize>) -> Result<()> + Sync)) -> Result<()> {
        let n = self.layers.len();
        let (exec, parts) = match &self.place {
            // At most 2^16 layers.
            Place::Host { exec, .. } if bytes >= PARALLEL_BYTES => (exec, exec.width().min(n as u32)),
            _ => return body(0..n),
        };
        let failure = Mutex::new(None);
        exec.run(parts, &|ith| {
            let begin = |i: u32| n * i as usize / parts as usize;
            if let Err(error) = body(begin(ith)..begin(ith + 1)) {
                let mut failure = failure.lock();
                if failure.as_ref().is_none_or(|&(first, _)| ith < first) {
                    *failure = Some((ith, error));
                }
            }
        })?;
        failure.into_inner().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Makes the cache unusable after a panic of a thread.
    pub(super) fn note_panic<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if outcome.as_ref().is_err_and(|e| e.status() == Status::Internal) {
            self.poison();
        }
        outcome
    }
}

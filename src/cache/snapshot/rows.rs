//! Where the rows of a layer are in its section of a snapshot: K, then V; KV heads; tokens in order of index, first the
//! sinks, then the window with what a rewind may bring back.

use std::ops::Range;

use crate::config::{Shape, Which};
use crate::ring::{Ring, Run, Seq};

/// Bytes before the rows: the layer's index, and a reserved word.
pub const HEAD_BYTES: usize = 8;

/// The tokens of one layer in a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct SavedTokens {
    sinks: u64,
    /// Index of the first window token.
    from: u64,
    len: u64,
}

impl SavedTokens {
    /// Of a sequence whose first saved window token is `seq.loaded_from`.
    pub fn new(ring: &Ring, seq: &Seq) -> Self {
        Self { sinks: seq.len.min(ring.n_sink), from: seq.loaded_from, len: seq.len }
    }

    /// Their number.
    pub fn n(&self) -> u64 {
        self.sinks + self.len.saturating_sub(self.from)
    }

    /// Bytes of the section's content, if they fit 64 bits.
    pub fn content_bytes(&self, shape: &Shape) -> Option<u64> {
        let row = (shape.row_bytes(Which::K) + shape.row_bytes(Which::V)) as u64;
        self.n().checked_mul(shape.n_kv_heads as u64)?.checked_mul(row)?.checked_add(HEAD_BYTES as u64)
    }

    /// The runs of slots that hold the sinks and the window tokens from `from` on, in order of index.
    pub fn runs(&self, ring: &Ring, from: u64) -> impl Iterator<Item = Run> + use<> {
        ring.runs(0, self.sinks).chain(ring.runs(from, self.len))
    }

    /// The bytes of a run's rows among those of all heads of K or of V.
    pub fn range(&self, run: &Run, head: usize, row_bytes: usize) -> Range<usize> {
        let place = if run.first < self.sinks { run.first } else { self.sinks + (run.first - self.from) };
        // All of it is in memory.
        let at = (head * self.n() as usize + place as usize) * row_bytes;
        at..at + run.n as usize * row_bytes
    }
}

//! Where the rows of a layer are in its section of a snapshot: K, then V; KV heads; of these first the sinks, then the
//! pinned tokens, then the window with what a rewind may bring back, each in order of index.

use std::ops::Range;

use crate::config::{Shape, Which};
use crate::ring::{Ring, Seq};

/// Bytes before the rows: the layer's index, and a reserved word.
pub const HEAD_BYTES: usize = 8;

/// The tokens of one layer in a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct SavedTokens {
    /// Sinks and pinned tokens.
    fixed: u64,
    /// Ring index of the first window token.
    from: u64,
    len: u64,
}

/// Consecutive tokens of a snapshot in consecutive slots.
#[derive(Clone, Copy, Debug)]
pub struct SavedRun {
    /// Tokens of the head that are before it.
    place: u64,
    /// Ring index of the first; `None` for sinks and pinned tokens.
    pub ring_index: Option<u64>,
    pub slot: u64,
    pub n: u64,
}

impl SavedTokens {
    /// Of a sequence whose first saved window token is `seq.loaded_from`.
    pub fn new(ring: &Ring, seq: &Seq) -> Self {
        let fixed = seq.len.min(ring.n_sink) + u64::from(seq.n_pinned); // mutant: pins_not_saved
        Self { fixed, from: seq.loaded_from, len: seq.len }
    }

    /// Their number.
    pub fn n(&self) -> u64 {
        self.fixed + self.len.saturating_sub(self.from)
    }

    /// Bytes of the section's content, if they fit 64 bits.
    pub fn content_bytes(&self, shape: &Shape) -> Option<u64> {
        let row = (shape.row_bytes(Which::K) + shape.row_bytes(Which::V)) as u64;
        self.n().checked_mul(shape.n_kv_heads as u64)?.checked_mul(row)?.checked_add(HEAD_BYTES as u64)
    }

    /// The runs of slots that hold the sinks, the pinned tokens, and the window tokens from ring index `from` on.
    pub fn runs(&self, ring: &Ring, from: u64) -> impl Iterator<Item = SavedRun> + use<> {
        let fixed = SavedRun { place: 0, ring_index: None, slot: 0, n: self.fixed };
        let (first, before) = (self.from, self.fixed);
        let window = ring.runs(from, self.len).map(move |run| SavedRun {
            place: before + (run.first - first),
            ring_index: Some(run.first),
            slot: run.slot,
            n: run.n,
        });
        std::iter::once(fixed).filter(|run| run.n > 0).chain(window)
    }

    /// The bytes of a run's rows among those of all heads of K or of V.
    pub fn range(&self, run: &SavedRun, head: usize, row_bytes: usize) -> Range<usize> {
        // All of it is in memory.
        let at = (head * self.n() as usize + run.place as usize) * row_bytes;
        at..at + run.n as usize * row_bytes
    }
}

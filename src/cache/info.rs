//! Queries: the state of a sequence, and which kernel a call runs.

use super::state::{Cache, Place};
use crate::backend::{KernelChoice, TokenCall};
use crate::config::MAX_SEQS;
use crate::error::{Result, bail};
use crate::ranges;

/// State of one sequence. Lengths are over all layers, the other values are those of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqInfo {
    /// Tokens in the shortest layer.
    pub len_min: u64,
    /// Tokens in the longest layer.
    pub len_max: u64,
    /// Stream position of token 0.
    pub start_position: u64,
    /// Tokens held: sinks, pinned tokens and window.
    pub cached: u64,
    /// Tokens that are not held any more.
    pub evicted: u64,
    /// Tokens that can be appended before one is dropped.
    pub room: u64,
    /// The largest count that [`Cache::rewind`] accepts.
    pub rewindable: u64,
    /// Pinned tokens, sinks not counted.
    pub pinned: u64,
    /// Held runs of consecutive indices.
    pub segments: u64,
    /// What `max_segments` counts: pinned runs, and evicted ranges younger than the oldest window token.
    pub counted: u64,
}

impl Cache {
    /// Warnings of the cache's creation, lines of text; usually none. For a CUDA cache: head shapes that run on the
    /// slower generic kernel because their own could not be compiled. The C ABI logs them at `SKC_LOG_WARN`.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which kernel a call on `n_tokens` tokens of each of `n_entries` sequences runs in a layer, if its rows begin at
    /// multiples of 16 bytes.
    ///
    /// # Errors
    /// `OutOfRange` for an invalid layer, or a number of entries or tokens that a call cannot have.
    pub fn kernel_choice(&self, layer: u32, call: TokenCall, n_entries: u32, n_tokens: u32) -> Result<KernelChoice> {
        let layer = self.check_layer(layer)?;
        if !(1..=MAX_SEQS).contains(&n_entries) {
            bail!(OutOfRange, "n_entries is {n_entries}: 1 to {MAX_SEQS} is allowed");
        }
        let most = if call == TokenCall::Step { i32::MAX as u32 } else { self.shape.max_chunk as u32 };
        if !(1..=most).contains(&n_tokens) {
            bail!(OutOfRange, "n_tokens is {n_tokens}: 1 to {most} is allowed");
        }
        match &self.place {
            Place::Host { backend, .. } => {
                let chunk = u64::from(n_tokens).min(self.shape.max_chunk);
                Ok(backend.choice(&self.shape, call, chunk))
            }
            Place::Device(device) => device.choice(layer, call, n_entries, n_tokens),
        }
    }

    /// Fails if the host's counters of a sequence are stale.
    pub(super) fn check_known(&self, seq: usize) -> Result<()> {
        if self.counters.known_in_all_layers(seq) {
            return Ok(());
        }
        bail!(
            LengthUnknown,
            "sequence {seq}: graph replays or counts in device memory have changed it: the host does not know \
             its length"
        )
    }

    /// State of one sequence in one layer.
    ///
    /// # Errors
    /// `LengthUnknown` if the host's counters of the sequence are stale: see [`Cache::read_back`]. Argument errors.
    pub fn seq_info(&self, layer: u32, seq_id: i32) -> Result<SeqInfo> {
        let layer = self.check_layer(layer)?;
        let seq = self.check_seq_id(seq_id)?;
        self.check_known(seq)?;
        let (state, ring) = (self.counters.seq(layer, seq), &self.layers[layer].ring);
        let cached = ring.held(state);
        let pinned = u64::from(state.n_pinned);
        let (segments, counted) = ranges::segments(ring, state, self.counters.ranges(layer, seq));
        Ok(SeqInfo {
            len_min: self.counters.layers(seq).map(|(_, s)| s.len).min().unwrap_or(0),
            len_max: self.counters.layers(seq).map(|(_, s)| s.len).max().unwrap_or(0),
            start_position: self.counters.starts[seq],
            cached,
            evicted: state.len - cached,
            room: ring.n_sink + ring.window + pinned - cached,
            rewindable: ring.rewindable(state),
            pinned,
            segments,
            counted,
        })
    }
}

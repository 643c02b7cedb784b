//! What can be asked of a cache.

use super::state::{Cache, Place};
use crate::backend::{KernelChoice, TokenCall};
use crate::config::MAX_SEQS;
use crate::error::{Result, bail};

/// State of one sequence. Lengths are over all layers, the rest is of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqInfo {
    /// Tokens in the shortest layer.
    pub len_min: u64,
    /// Tokens in the longest layer.
    pub len_max: u64,
    /// Stream position of token 0.
    pub start_position: u64,
    /// Tokens held: sinks and window.
    pub cached: u64,
    /// Tokens dropped between sinks and window.
    pub evicted: u64,
    /// Tokens that may come before one is dropped.
    pub room: u64,
    /// The most `rewind` would cut.
    pub rewindable: u64,
}

impl Cache {
    /// What a host should know about how the cache was made, lines of text; mostly none. On a GPU: which shapes run on the
    /// slower kernel for all of them, for want of a compiler. The C ABI logs them at `SKC_LOG_WARN`.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which kernel a call on `n_tokens` tokens of each of `n_entries` sequences runs in a layer, if its rows begin at
    /// multiples of 16 bytes.
    ///
    /// # Errors
    /// `OutOfRange` for a layer that is none, for no entry, no token, or more of them than a call can have.
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

    /// State of one sequence, seen from one layer.
    ///
    /// # Errors
    /// `LengthUnknown` where the device alone knows: see [`Cache::read_back`]. Argument errors.
    pub fn seq_info(&self, layer: u32, seq_id: i32) -> Result<SeqInfo> {
        let layer = self.check_layer(layer)?;
        let seq = self.check_seq_id(seq_id)?;
        if !self.mirror.sure_everywhere(seq) {
            bail!(
                LengthUnknown,
                "sequence {seq}: graphs or counts in device memory have changed it since the host last knew its length"
            );
        }
        let (state, ring) = (self.mirror.seq(layer, seq), &self.layers[layer].ring);
        let cached = ring.held(state.len, state.floor);
        Ok(SeqInfo {
            len_min: self.mirror.layers(seq).map(|(_, s)| s.len).min().unwrap_or(0),
            len_max: self.mirror.layers(seq).map(|(_, s)| s.len).max().unwrap_or(0),
            start_position: self.mirror.starts[seq],
            cached,
            evicted: ring.evicted(state.len, state.floor),
            room: ring.n_sink + ring.window - cached,
            rewindable: ring.rewindable(state),
        })
    }
}

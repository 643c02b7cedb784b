//! Pins and evicted ranges of a batch of sequences, in all layers. Every layer is checked before any is changed.

use super::state::{Cache, Place, SeqEdit};
use crate::backend::{EditCall, EditEntries, RowMove};
use crate::config::Which;
use crate::error::{Result, bail};
use crate::ranges::{RangeEdit, RangeRejection};

impl Cache {
    /// Holds the tokens `first[i]..first[i] + n_tokens[i]` of each sequence permanently, in all layers whose
    /// `max_pinned` is above 0. They no longer count as the window's. Tokens are named by their index since the last
    /// reset; those that are sinks or pinned already stay so.
    ///
    /// # Errors
    /// `OutOfRange` for an end beyond the sequence, `TokensGone` when a token is no longer held, or an aborted step has
    /// overwritten tokens of the window, `NoRoom` for more than `max_pinned` tokens or `max_segments` segments,
    /// `LayersOutOfStep`.
    pub fn pin(&mut self, seq_ids: &[i32], first: &[u64], n_tokens: &[i32]) -> Result<()> {
        self.edit_ranges(EditCall::Pin, seq_ids, first, n_tokens)
    }

    /// Permanently drops what is held of the tokens `first[i]..first[i] + n_tokens[i]` of each sequence, in all layers:
    /// window tokens and pinned ones. Newer tokens close the gap.
    ///
    /// # Errors
    /// `OutOfRange` for a sink in the range or an end beyond the sequence, `NoRoom` for more than `max_segments`
    /// segments, `TokensGone` when an aborted step has overwritten tokens of the window, `LayersOutOfStep`.
    pub fn evict_range(&mut self, seq_ids: &[i32], first: &[u64], n_tokens: &[i32]) -> Result<()> {
        self.edit_ranges(EditCall::EvictRange, seq_ids, first, n_tokens)
    }

    fn edit_ranges(&mut self, call: EditCall, seq_ids: &[i32], first: &[u64], n_tokens: &[i32]) -> Result<()> {
        if first.len() != seq_ids.len() {
            bail!(InvalidArgument, "{} sequence ids but {} first tokens", seq_ids.len(), first.len());
        }
        self.plan_cut(seq_ids, n_tokens, |cache, index, seq, n| {
            cache.check_range(call, index, seq, (first[index], n))?;
            Ok(n)
        })?;
        self.enqueue_edit(call, EditEntries::Host { ids: seq_ids, tokens: n_tokens, positions: first })?;
        for i in 0..self.edits.len() {
            let SeqEdit { seq, index, amount: n } = self.edits[i];
            self.apply_range(call, seq, (first[index], n))?;
        }
        Ok(())
    }

    /// Checks an edit in all layers, if the host knows the sequence; otherwise what it can.
    fn check_range(&self, call: EditCall, index: usize, seq: usize, (first, n): (u64, u64)) -> Result<()> {
        if call == EditCall::Pin && self.layers.iter().all(|layer| layer.ring.max_pinned == 0) {
            bail!(NoRoom, "n_tokens[{index}] is {n}: max_pinned is 0 in all layers");
        }
        for (layer, state) in self.known_layers(seq) {
            let ring = &self.layers[layer].ring;
            // No row that is not the sequence's may move to where it is visible again.
            if !ring.intact(state.len, state) {
                bail!(
                    TokensGone,
                    "sequence {seq}: an aborted step has overwritten tokens of its window in layer {layer}; reset it"
                );
            }
            match self.range_edit(call, layer, seq, (first, n)) {
                Ok(_) => {}
                Err(RangeRejection::Beyond(len)) => {
                    bail!(
                        OutOfRange,
                        "first[{index}] is {first}, n_tokens[{index}] is {n}: sequence {seq} has {len} tokens"
                    )
                }
                Err(RangeRejection::Sink) => bail!(
                    OutOfRange,
                    "first[{index}] is {first}: the first {} tokens of layer {layer} are sinks",
                    ring.n_sink
                ),
                Err(RangeRejection::NotHeld) => bail!(
                    TokensGone,
                    "first[{index}] is {first}, n_tokens[{index}] is {n}: layer {layer} does not hold all of them"
                ),
                Err(RangeRejection::Pinned(would_be)) => bail!(
                    NoRoom,
                    "n_tokens[{index}] is {n}: layer {layer} would pin {would_be} tokens, max_pinned is {}",
                    ring.max_pinned
                ),
                Err(RangeRejection::Segments(would_be)) => bail!(
                    NoRoom,
                    "n_tokens[{index}] is {n}: pinned runs and evicted ranges of layer {layer} would be {would_be}, \
                     max_segments is {}",
                    ring.max_segments
                ),
            }
        }
        Ok(())
    }

    fn range_edit(
        &self,
        call: EditCall,
        layer: usize,
        seq: usize,
        (first, n): (u64, u64),
    ) -> std::result::Result<RangeEdit, RangeRejection> {
        let (ring, state) = (&self.layers[layer].ring, self.counters.seq(layer, seq));
        let ranges = self.counters.ranges(layer, seq);
        match call {
            EditCall::Pin => RangeEdit::pin(ring, state, ranges, first, n),
            _ => RangeEdit::evict(ring, state, ranges, first, n),
        }
    }

    /// Moves rows and brings the counters of a checked edit up to date.
    fn apply_range(&mut self, call: EditCall, seq: usize, range: (u64, u64)) -> Result<()> {
        if self.is_unknown(seq) {
            // The device decides; the host no longer knows the sequence's ranges.
            (0..self.layers.len()).for_each(|layer| self.counters.invalidate(layer, seq));
            self.counters.invalidate_ranges(seq);
            return Ok(());
        }
        let mut rows = 0;
        (0..self.layers.len()).for_each(|layer| self.for_each_move(call, layer, seq, range, |_, _, n| rows += n));
        let row = self.shape.row_bytes(Which::K) + self.shape.row_bytes(Which::V);
        let bytes = (rows as usize).saturating_mul(self.shape.n_kv_heads * row);
        let moved = self.for_layers(bytes, &|layers| {
            layers.for_each(|layer| self.move_rows(call, layer, seq, range));
            Ok(())
        });
        self.note_panic(moved)?;
        let mut changes = false;
        for index in 0..self.layers.len() {
            let Ok(edit) = self.range_edit(call, index, seq, range) else { continue };
            let (state, ranges) = self.counters.seq_and_ranges(index, seq);
            edit.apply(&self.layers[index].ring, state, ranges);
            changes |= edit.changes();
        }
        if changes {
            // No query sees the sequence as it was, in any layer.
            (0..self.layers.len()).for_each(|layer| self.counters.seq_mut(layer, seq).attendable = 0);
        }
        Ok(())
    }

    /// Calls `visit` with the slots that an edit moves in a layer: from, to and their number.
    fn for_each_move(
        &self,
        call: EditCall,
        layer: usize,
        seq: usize,
        range: (u64, u64),
        visit: impl FnMut(u64, u64, u64),
    ) {
        if let Ok(edit) = self.range_edit(call, layer, seq, range) {
            let (state, ranges) = (self.counters.seq(layer, seq), self.counters.ranges(layer, seq));
            edit.moves(&self.layers[layer].ring, state, ranges, visit);
        }
    }

    /// Moves the rows of an edit in a layer of a CPU cache.
    fn move_rows(&self, call: EditCall, layer: usize, seq: usize, range: (u64, u64)) {
        if let Place::Host { backend, .. } = &self.place {
            self.for_each_move(call, layer, seq, range, |from, to, n| {
                backend.move_rows(layer, &self.layers[layer], seq, RowMove { from, to, n });
            });
        }
    }
}

//! Edits of a batch of sequences, in all layers, that change counters only; and fork, which copies K and V.

use super::state::{Cache, Place, SeqEdit};
use crate::backend::{EditCall, EditEntries};
use crate::batch::{HostBatch, check_seq};
use crate::config::Layer;
use crate::error::{Result, bail};
use crate::ranges::EditedRange;
use crate::ring::{EditRejection, Seq};

impl Cache {
    /// Permanently drops the `n_tokens[i]` oldest window tokens of each sequence, in all layers.
    ///
    /// # Errors
    /// `OutOfRange` when a layer's window holds fewer; `LayersOutOfStep`.
    pub fn evict(&mut self, seq_ids: &[i32], n_tokens: &[i32]) -> Result<()> {
        self.plan_cut(seq_ids, n_tokens, |cache, index, seq, n| {
            for (layer, state) in cache.known_layers(seq) {
                if let Err(EditRejection::TooMany(held)) = cache.layers[layer].ring.check_evict(state, n) {
                    bail!(OutOfRange, "n_tokens[{index}] is {n}: the window of layer {layer} holds {held}");
                }
            }
            Ok(n)
        })?;
        self.enqueue_edit(EditCall::Evict, EditEntries::Host { ids: seq_ids, tokens: n_tokens, positions: &[] })?;
        self.apply(|layer, state, ranges, n| state.evict(&layer.ring, &ranges[..state.n_ranges as usize], n));
        Ok(())
    }

    /// Removes the last `n_tokens[i]` tokens of each sequence, in all layers, as if they had never been appended.
    ///
    /// # Errors
    /// `OutOfRange` when the sequence is shorter, `TokensGone` when tokens that would be visible again have been
    /// overwritten or evicted, `LayersOutOfStep`.
    pub fn rewind(&mut self, seq_ids: &[i32], n_tokens: &[i32]) -> Result<()> {
        self.plan_cut(seq_ids, n_tokens, |cache, index, seq, n| {
            for (layer, state) in cache.known_layers(seq) {
                let ring = &cache.layers[layer].ring;
                match ring.check_rewind(state, n) {
                    Ok(()) => {}
                    Err(EditRejection::TooMany(held)) => {
                        bail!(OutOfRange, "n_tokens[{index}] is {n}: sequence {seq} holds {held}")
                    }
                    Err(EditRejection::Overwritten(most)) => bail!(
                        TokensGone,
                        "n_tokens[{index}] is {n}: tokens of layer {layer} are gone, at most {most} can be removed \
                         with max_rewind {}",
                        ring.max_rewind
                    ),
                    Err(EditRejection::Edited(most)) => bail!(
                        TokensGone,
                        "n_tokens[{index}] is {n}: tokens of layer {layer} are gone, at most {most} can be removed \
                         after the last edit"
                    ),
                }
            }
            // The host's length of a stale sequence may be below the real one, and below n.
            Ok(cache.counters.seq(0, seq).len.saturating_sub(n))
        })?;
        self.enqueue_edit(EditCall::Rewind, EditEntries::Host { ids: seq_ids, tokens: n_tokens, positions: &[] })?;
        self.apply(|_, state, _, len| state.cut(len)); // mutant: rewind_keeps_evicted
        Ok(())
    }

    /// Empties sequences. Their next tokens get the stream positions from `start_positions[i]`, or from 0, on.
    ///
    /// # Errors
    /// Argument errors.
    pub fn reset(&mut self, seq_ids: &[i32], start_positions: Option<&[u64]>) -> Result<()> {
        if let Some(starts) = start_positions
            && starts.len() != seq_ids.len()
        {
            bail!(InvalidArgument, "{} sequence ids but {} start positions", seq_ids.len(), starts.len());
        }
        self.collect_edits(seq_ids, |_| true, |_, index, _| Ok(start_positions.map_or(0, |s| s[index])))?;
        let positions = start_positions.unwrap_or(&[]);
        self.enqueue_edit(EditCall::Reset, EditEntries::Host { ids: seq_ids, tokens: &[], positions })?;
        self.apply(|_, state, _, _| *state = Seq::default()); // mutant: reset_keeps_floor
        if !self.capturing {
            for &SeqEdit { seq, amount: start, .. } in &self.edits {
                self.counters.starts[seq] = start;
                self.counters.refresh_ranges(seq);
                (0..self.layers.len()).for_each(|layer| self.counters.refresh(layer, seq));
            }
        }
        Ok(())
    }

    /// Makes each destination sequence an independent copy of its source. An entry with -1 on either side is padding:
    /// nothing of it is checked.
    ///
    /// # Errors
    /// `InvalidArgument` for a destination that is also a source or appears twice; `LayersOutOfStep` of a source.
    pub fn fork(&mut self, src_seq_ids: &[i32], dst_seq_ids: &[i32]) -> Result<()> {
        self.check_usable()?;
        if src_seq_ids.len() != dst_seq_ids.len() {
            bail!(InvalidArgument, "{} sources but {} destinations", src_seq_ids.len(), dst_seq_ids.len());
        }
        self.edits.clear();
        self.seq_ids.clear();
        for (index, (&src, &dst)) in src_seq_ids.iter().zip(dst_seq_ids).enumerate() {
            if src == -1 || dst == -1 {
                continue;
            }
            let src = check_seq("src_seq_ids", index, src, self.counters.starts.len())?;
            let dst = self.seq_ids.insert("dst_seq_ids", index, dst)?;
            self.check_equal_lengths(src)?;
            self.edits.push(SeqEdit { seq: dst, index, amount: src as u64 });
        }
        let is_destination = |edit: &&SeqEdit| self.seq_ids.contains(edit.amount as usize);
        if let Some(&SeqEdit { seq: dst, amount: src, .. }) = self.edits.iter().find(is_destination) {
            bail!(InvalidArgument, "sequence {src}, copied to {dst}, is also a destination");
        }
        self.enqueue_edit(EditCall::Fork, EditEntries::Host { ids: dst_seq_ids, tokens: src_seq_ids, positions: &[] })?;
        for &SeqEdit { seq: dst, amount: src, .. } in &self.edits {
            let src = src as usize;
            if self.capturing {
                (0..self.layers.len()).for_each(|layer| self.counters.invalidate(layer, dst));
                if self.counters.has_ranges() {
                    self.counters.invalidate_ranges(dst);
                }
                continue;
            }
            if self.counters.knows_ranges(src) {
                self.counters.refresh_ranges(dst);
            } else {
                self.counters.invalidate_ranges(dst);
            }
            self.counters.starts[dst] = self.counters.starts[src];
            for (index, layer) in self.layers.iter().enumerate() {
                let state = *self.counters.seq(index, src);
                if let Place::Host { backend, .. } = &self.place {
                    // mutant: fork_copies_too_little
                    backend.copy_sequence(index, layer, src, dst, layer.ring.used_slots(&state));
                }
                self.counters.copy(index, src, dst);
                if self.counters.known(index, src) {
                    self.counters.refresh(index, dst);
                } else {
                    self.counters.invalidate(index, dst);
                }
            }
        }
        Ok(())
    }

    /// After a failure between layers: cuts every layer of the sequences to the length of the shortest, so that the
    /// step can be repeated. `None` = all sequences.
    ///
    /// # Errors
    /// `TokensGone` when a longer layer has overwritten tokens that would be visible again: then only reset helps.
    pub fn abort_step(&mut self, seq_ids: Option<&[i32]>) -> Result<()> {
        self.check_usable()?;
        let shortest = |cache: &Self, seq| {
            let len = cache.counters.layers(seq).map(|(_, s)| s.len).min().unwrap_or(0);
            for (layer, state) in cache.known_layers(seq) {
                // Length 0 needs no token of the ring to be intact.
                if len > 0 && !cache.layers[layer].ring.intact(len, state) {
                    bail!(
                        TokensGone,
                        "sequence {seq}: layer {layer} has overwritten tokens needed at length {len}; reset it"
                    );
                }
            }
            Ok(len)
        };
        if let Some(ids) = seq_ids {
            self.collect_edits(ids, |_| true, |cache, _, seq| shortest(cache, seq))?;
        } else {
            self.edits.clear();
            for seq in 0..self.counters.starts.len() {
                let len = shortest(self, seq)?;
                self.edits.push(SeqEdit { seq, index: seq, amount: len });
            }
        }
        let entries = match seq_ids {
            Some(ids) => EditEntries::Host { ids, tokens: &[], positions: &[] },
            None => EditEntries::All,
        };
        self.enqueue_edit(EditCall::Abort, entries)?;
        self.apply(|_, state, _, len| match len {
            0 => *state = Seq::default(),
            _ => state.cut(len),
        });
        Ok(())
    }

    /// Checks the sequence ids of [`Self::abort_step`].
    pub(crate) fn check_abort(&mut self, seq_ids: Option<&[i32]>) -> Result<()> {
        self.check_usable()?;
        seq_ids.map_or(Ok(()), |ids| self.collect_edits(ids, |_| true, |_, _, _| Ok(0)))
    }

    /// Whether the host does not know a sequence when an edit runs: then the device checks it.
    pub(super) fn is_unknown(&self, seq: usize) -> bool {
        self.capturing || !self.counters.known_in_all_layers(seq)
    }

    /// A sequence's counters in every layer, or nothing if they are stale: then the device checks the edit.
    pub(super) fn known_layers(&self, seq: usize) -> impl Iterator<Item = (usize, &Seq)> {
        let known = !self.is_unknown(seq);
        self.counters.layers(seq).filter(move |_| known)
    }

    /// Checks that a sequence has the same length in all layers.
    pub(super) fn check_equal_lengths(&self, seq: usize) -> Result<()> {
        let len = self.counters.seq(0, seq).len;
        match self.known_layers(seq).find(|(_, s)| s.len != len) {
            None => Ok(()),
            Some((layer, s)) => bail!(
                LayersOutOfStep,
                "sequence {seq} has {len} tokens in layer 0 but {} in layer {layer}: finish or abort the step",
                s.len
            ),
        }
    }

    /// Fills `edits` for an edit with a token count per sequence. `amount` checks one and returns the amount to apply.
    /// An entry of 0 tokens is padding.
    pub(super) fn plan_cut(
        &mut self,
        seq_ids: &[i32],
        n_tokens: &[i32],
        amount: impl Fn(&Self, usize, usize, u64) -> Result<u64>,
    ) -> Result<()> {
        HostBatch { seq_ids, n_tokens }.check()?;
        self.collect_edits(
            seq_ids,
            |index| n_tokens[index] != 0,
            |cache, index, seq| {
                cache.check_equal_lengths(seq)?;
                amount(cache, index, seq, u64::from(n_tokens[index].unsigned_abs()))
            },
        )
    }

    /// Fills `edits`. Entries that are not `wanted`, and those with id -1, are padding: nothing of them is checked.
    /// `amount` checks one sequence and returns the amount to apply.
    pub(super) fn collect_edits(
        &mut self,
        seq_ids: &[i32],
        wanted: impl Fn(usize) -> bool,
        amount: impl Fn(&Self, usize, usize) -> Result<u64>,
    ) -> Result<()> {
        self.check_usable()?;
        self.edits.clear();
        self.seq_ids.clear();
        for (index, &id) in seq_ids.iter().enumerate().filter(|&(index, &id)| id != -1 && wanted(index)) {
            let seq = self.seq_ids.insert("seq_ids", index, id)?;
            let amount = amount(self, index, seq)?;
            self.edits.push(SeqEdit { seq, index, amount });
        }
        Ok(())
    }

    /// Applies `edits` to the host's counters of every layer. While the stream is captured they become stale instead:
    /// the edit happens at each replay.
    fn apply(&mut self, edit: impl Fn(&Layer, &mut Seq, &[EditedRange], u64)) {
        for &SeqEdit { seq, amount, .. } in &self.edits {
            for (index, layer) in self.layers.iter().enumerate() {
                if self.capturing {
                    self.counters.invalidate(index, seq);
                } else {
                    let (state, ranges) = self.counters.seq_and_ranges(index, seq);
                    edit(layer, state, ranges, amount);
                }
            }
        }
    }
}

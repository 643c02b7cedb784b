//! Edits: a batch of sequences, all layers at once. Counters only, but for fork.

use super::state::{Cache, Place};
use crate::backend::{EditCall, EditEntries};
use crate::batch::{HostBatch, check_seq};
use crate::config::Layer;
use crate::error::{Result, bail};
use crate::ring::{Refusal, Seq};

impl Cache {
    /// Drops the `n_tokens[i]` oldest window tokens of each sequence, in all layers.
    ///
    /// # Errors
    /// `OutOfRange` when a layer's window holds fewer; `LayersOutOfStep`.
    pub fn evict(&mut self, seq_ids: &[i32], n_tokens: &[i32]) -> Result<()> {
        self.plan_cut(seq_ids, n_tokens, |cache, index, seq, n| {
            for (layer, state) in cache.known_layers(seq) {
                if let Err(Refusal::TooMany(held)) = cache.layers[layer].ring.check_evict(state, n) {
                    bail!(OutOfRange, "n_tokens[{index}] is {n}: the window of layer {layer} holds {held}");
                }
            }
            Ok(n)
        })?;
        self.enqueue_edit(EditCall::Evict, EditEntries::Host { ids: seq_ids, tokens: n_tokens, positions: &[] })?;
        self.apply(|layer, state, n| state.evict(&layer.ring, n));
        Ok(())
    }

    /// Cuts the last `n_tokens[i]` tokens of each sequence, in all layers, as if they had never been.
    ///
    /// # Errors
    /// `OutOfRange` when the sequence is shorter, `TokensGone` when tokens that would be visible again are gone,
    /// `LayersOutOfStep`.
    pub fn rewind(&mut self, seq_ids: &[i32], n_tokens: &[i32]) -> Result<()> {
        self.plan_cut(seq_ids, n_tokens, |cache, index, seq, n| {
            for (layer, state) in cache.known_layers(seq) {
                let ring = &cache.layers[layer].ring;
                let what = match ring.check_rewind(state, n) {
                    Ok(()) => continue,
                    Err(Refusal::TooMany(held)) => {
                        bail!(OutOfRange, "n_tokens[{index}] is {n}: sequence {seq} holds {held}")
                    }
                    Err(Refusal::Overwritten(most)) => {
                        format!("at most {most} can be cut with max_rewind {}", ring.max_rewind)
                    }
                    Err(Refusal::Evicted(most)) => format!("at most {most} can be cut after the last evict"),
                };
                bail!(TokensGone, "n_tokens[{index}] is {n}: tokens of layer {layer} are gone, {what}");
            }
            // In doubt the count may be more than the host has seen.
            Ok(cache.mirror.seq(0, seq).len.saturating_sub(n))
        })?;
        self.enqueue_edit(EditCall::Rewind, EditEntries::Host { ids: seq_ids, tokens: n_tokens, positions: &[] })?;
        self.apply(|_, state, len| state.cut(len));
        Ok(())
    }

    /// Empties sequences; their next tokens start at `start_positions[i]`, or at 0.
    ///
    /// # Errors
    /// Argument errors.
    pub fn reset(&mut self, seq_ids: &[i32], start_positions: Option<&[u64]>) -> Result<()> {
        if let Some(starts) = start_positions
            && starts.len() != seq_ids.len()
        {
            bail!(InvalidArgument, "{} sequence ids but {} start positions", seq_ids.len(), starts.len());
        }
        self.collect_edits(seq_ids, |_, index, _| Ok(Some(start_positions.map_or(0, |s| s[index]))))?;
        let positions = start_positions.unwrap_or(&[]);
        self.enqueue_edit(EditCall::Reset, EditEntries::Host { ids: seq_ids, tokens: &[], positions })?;
        self.apply(|_, state, _| *state = Seq::default());
        if !self.capturing {
            for &(seq, start) in &self.edits {
                self.mirror.starts[seq] = start;
                (0..self.layers.len()).for_each(|layer| self.mirror.settle(layer, seq));
            }
        }
        Ok(())
    }

    /// Makes each destination sequence an independent copy of its source. An entry with -1 on either side is padding.
    ///
    /// # Errors
    /// A destination that is also a source or appears twice; `LayersOutOfStep` of a source.
    pub fn fork(&mut self, src_seq_ids: &[i32], dst_seq_ids: &[i32]) -> Result<()> {
        self.alive()?;
        if src_seq_ids.len() != dst_seq_ids.len() {
            bail!(InvalidArgument, "{} sources but {} destinations", src_seq_ids.len(), dst_seq_ids.len());
        }
        self.edits.clear();
        self.seen.clear();
        for (index, (&src, &dst)) in src_seq_ids.iter().zip(dst_seq_ids).enumerate() {
            // Ids beside padding must be ids all the same.
            let n_seqs = self.mirror.starts.len();
            let src = (src != -1).then(|| check_seq("src_seq_ids", index, src, n_seqs)).transpose()?;
            if dst != -1 {
                check_seq("dst_seq_ids", index, dst, n_seqs)?;
            }
            let Some(src) = src.filter(|_| dst != -1) else { continue };
            let dst = self.seen.insert("dst_seq_ids", index, dst)?;
            self.in_step(src)?;
            self.edits.push((dst, src as u64));
        }
        if let Some(&(dst, src)) = self.edits.iter().find(|&&(_, src)| self.seen.contains(src as usize)) {
            bail!(InvalidArgument, "sequence {src}, copied to {dst}, is also a destination");
        }
        self.enqueue_edit(EditCall::Fork, EditEntries::Host { ids: dst_seq_ids, tokens: src_seq_ids, positions: &[] })?;
        for &(dst, src) in &self.edits {
            let src = src as usize;
            if self.capturing {
                (0..self.layers.len()).for_each(|layer| self.mirror.lose(layer, dst));
                continue;
            }
            self.mirror.starts[dst] = self.mirror.starts[src];
            for (index, layer) in self.layers.iter().enumerate() {
                let state = *self.mirror.seq(index, src);
                if let Place::Host { backend, .. } = &self.place {
                    backend.copy_sequence(index, layer, src, dst, state.highest.min(layer.ring.slots()));
                }
                *self.mirror.seq_mut(index, dst) = state;
                if self.mirror.sure(index, src) {
                    self.mirror.settle(index, dst);
                } else {
                    self.mirror.lose(index, dst);
                }
            }
        }
        Ok(())
    }

    /// After a failure between layers: cuts every layer of the sequences back to the shortest. `None` = all sequences.
    ///
    /// # Errors
    /// `TokensGone` when a longer layer has overwritten tokens that would be visible again: only reset helps then.
    pub fn abort_step(&mut self, seq_ids: Option<&[i32]>) -> Result<()> {
        self.alive()?;
        let shortest = |cache: &Self, seq| {
            let len = cache.mirror.layers(seq).map(|(_, s)| s.len).min().unwrap_or(0);
            for (layer, state) in cache.known_layers(seq) {
                // An empty sequence needs nothing of what was there.
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
            self.collect_edits(ids, |cache, _, seq| shortest(cache, seq).map(Some))?;
        } else {
            self.edits.clear();
            for seq in 0..self.mirror.starts.len() {
                let len = shortest(self, seq)?;
                self.edits.push((seq, len));
            }
        }
        let entries = match seq_ids {
            Some(ids) => EditEntries::Host { ids, tokens: &[], positions: &[] },
            None => EditEntries::All,
        };
        self.enqueue_edit(EditCall::Abort, entries)?;
        self.apply(|_, state, len| match len {
            0 => *state = Seq::default(),
            _ => state.cut(len),
        });
        Ok(())
    }

    /// Every layer's state of a sequence, or none where the device alone knows: it checks there.
    fn known_layers(&self, seq: usize) -> impl Iterator<Item = (usize, &Seq)> {
        let known = !self.capturing && self.mirror.sure_everywhere(seq);
        self.mirror.layers(seq).filter(move |_| known)
    }

    /// All layers of a sequence at one length.
    fn in_step(&self, seq: usize) -> Result<()> {
        let len = self.mirror.seq(0, seq).len;
        match self.known_layers(seq).find(|(_, s)| s.len != len) {
            None => Ok(()),
            Some((layer, s)) => bail!(
                LayersOutOfStep,
                "sequence {seq} has {len} tokens in layer 0 but {} in layer {layer}: finish or abort the step",
                s.len
            ),
        }
    }

    /// Collects an edit that takes `n_tokens[i]` tokens off a sequence; `amount` checks each and says what to apply.
    /// An entry of 0 tokens is padding.
    fn plan_cut(
        &mut self,
        seq_ids: &[i32],
        n_tokens: &[i32],
        amount: impl Fn(&Self, usize, usize, u64) -> Result<u64>,
    ) -> Result<()> {
        HostBatch { seq_ids, n_tokens }.check()?;
        self.collect_edits(seq_ids, |cache, index, seq| {
            let n = u64::from(n_tokens[index].unsigned_abs());
            if n == 0 {
                return Ok(None);
            }
            cache.in_step(seq)?;
            amount(cache, index, seq, n).map(Some)
        })
    }

    /// Fills `edits`; `amount` checks each sequence and says what to apply, if anything.
    fn collect_edits(
        &mut self,
        seq_ids: &[i32],
        amount: impl Fn(&Self, usize, usize) -> Result<Option<u64>>,
    ) -> Result<()> {
        self.alive()?;
        self.edits.clear();
        self.seen.clear();
        for (index, &id) in seq_ids.iter().enumerate().filter(|&(_, &id)| id != -1) {
            let seq = self.seen.insert("seq_ids", index, id)?;
            if let Some(amount) = amount(self, index, seq)? {
                self.edits.push((seq, amount));
            }
        }
        Ok(())
    }

    /// Applies the collected edits to every layer; what is captured has not happened yet.
    fn apply(&mut self, edit: impl Fn(&Layer, &mut Seq, u64)) {
        for &(seq, amount) in &self.edits {
            for (index, layer) in self.layers.iter().enumerate() {
                if self.capturing {
                    self.mirror.lose(index, seq);
                } else {
                    edit(layer, self.mirror.seq_mut(index, seq), amount);
                }
            }
        }
    }
}

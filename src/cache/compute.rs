//! Append, attend and step: each is planned, run and committed.

use super::plan::PlannedCall;
use super::state::{Cache, Place};
use crate::backend::LayerCall;
use crate::batch::{Batch, Entry};
use crate::error::{Result, bail};
use crate::tensor::{AttendTensors, RowsIn, StepTensors};

impl Cache {
    /// Rotates (RoPE) and stores the next tokens of each sequence of a batch in one layer. K is
    /// `[rows, n_kv_heads, head_dim]`, V `[rows, n_kv_heads, head_dim_v]`.
    ///
    /// # Errors
    /// `ChunkTooLong` above `max_chunk` tokens of one sequence; `LayersOutOfStep` of a batch that is
    /// [in step](Batch::in_step); argument errors.
    pub fn append(&mut self, layer: u32, batch: Batch<'_>, k: RowsIn<'_>, v: RowsIn<'_>) -> Result<()> {
        let layer = self.check_layer(layer)?;
        let rows = self.plan_append(layer, batch, Some(self.shape.max_chunk))?;
        let call = PlannedCall { layer, append: Some(self.append_rows(rows, k, v)?), attend: None };
        self.execute(call, batch)?;
        self.commit(call);
        Ok(())
    }

    /// Computes attention for the queries of the last tokens appended.
    ///
    /// # Errors
    /// `OutOfRange` for more queries than the latest append had tokens; argument errors.
    pub fn attend(&mut self, layer: u32, batch: Batch<'_>, tensors: AttendTensors<'_>) -> Result<()> {
        let layer = self.check_layer(layer)?;
        let rows = self.plan(batch, |cache, e, seq| {
            if cache.is_stale(layer, seq) {
                return Ok(Entry::unchecked(e, seq));
            }
            let (state, start) = (cache.counters.seq(layer, seq), cache.counters.starts[seq]);
            Entry::attend(e, seq, state, start, &cache.layers[layer].ring)
        })?;
        let call = PlannedCall { layer, append: None, attend: Some(self.attend_rows(rows, tensors)?) };
        self.execute(call, batch)
    }

    /// Append and attend in one call, for any number of tokens: more than `max_chunk` are split into chunks.
    ///
    /// # Errors
    /// `LayersOutOfStep` of a batch that is [in step](Batch::in_step); argument errors.
    pub fn step(&mut self, layer: u32, batch: Batch<'_>, tensors: StepTensors<'_>) -> Result<()> {
        let call = self.plan_step(layer, batch, tensors)?;
        self.execute(call, batch)?;
        self.commit(call);
        Ok(())
    }

    /// Runs part `ith` of `nth` of a planned call. Parts may run concurrently; each `ith` must run once.
    ///
    /// # Errors
    /// `InvalidArgument` for a CUDA cache: its work is not divided among host threads.
    pub(crate) fn run_part(&self, call: PlannedCall, ith: u32, nth: u32) -> Result<()> {
        match &self.place {
            Place::Host { backend, .. } => {
                backend.run_part(&self.layer_call(call), ith, nth);
                Ok(())
            }
            Place::Device(_) => bail!(InvalidArgument, "a thread team cannot run a step of a CUDA cache"),
        }
    }

    fn layer_call(&self, call: PlannedCall) -> LayerCall<'_> {
        LayerCall {
            layer_index: call.layer,
            layer: &self.layers[call.layer],
            shape: &self.shape,
            entries: &self.entries,
            ranges: self.counters.layer_ranges(call.layer),
            append: call.append,
            attend: call.attend,
        }
    }

    /// Marks the slots that a planned call writes as overwritten. From here on the tokens they held are lost, even if
    /// the call is never committed.
    pub(crate) fn mark_overwritten(&mut self, call: PlannedCall) {
        for e in &self.entries {
            let seq = self.counters.seq_mut(call.layer, e.seq);
            seq.highest = seq.highest.max(e.first + e.n);
            // Keys that queries of an earlier append attend to may be overwritten too.
            seq.attendable = 0;
        }
    }

    /// Adds the tokens of a finished call to the sequences' lengths.
    pub(crate) fn commit(&mut self, call: PlannedCall) {
        if self.capturing {
            return;
        }
        for e in &self.entries {
            let seq = self.counters.seq_mut(call.layer, e.seq);
            // The length of a stale sequence is not the real one: it must not wrap around.
            seq.append(e.n.min(u64::MAX - seq.len));
            // After a step of several chunks only queries of the last chunk can be repeated.
            seq.attendable = e.n.min(self.shape.max_chunk);
        }
    }

    /// The largest number of parts that a step may be divided into.
    pub(crate) fn max_parts(&self) -> u32 {
        match &self.place {
            Place::Host { exec, .. } => exec.width(),
            Place::Device(_) => 1,
        }
    }

    /// Runs a planned call. A failure part way makes the cache unusable.
    fn execute(&mut self, call: PlannedCall, batch: Batch<'_>) -> Result<()> {
        match &self.place {
            Place::Host { backend, exec } => {
                let outcome = backend.run(&self.layer_call(call), exec);
                if outcome.is_err() {
                    self.poison();
                }
                outcome
            }
            Place::Device(_) => self.enqueue(call, batch),
        }
    }
}

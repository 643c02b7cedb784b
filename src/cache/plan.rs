//! Planning: the checks of append, attend and step, before anything changes.

use super::state::Cache;
use crate::backend::{AppendRows, AttendRows};
use crate::batch::{Batch, BatchArrays, Entry, RawEntry};
use crate::config::DType;
use crate::error::{Result, bail};
use crate::tensor::{AttendTensors, RowsIn, RowsOut, StepTensors};

/// A checked call on one layer. Its batch is in [`Cache`]`::entries`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedCall {
    pub(super) layer: usize,
    pub(super) append: Option<AppendRows>,
    pub(super) attend: Option<AttendRows>,
}

impl Cache {
    /// Checks a step. Its entries are kept until [`Cache::commit`].
    pub(crate) fn plan_step(&mut self, layer: u32, batch: Batch<'_>, tensors: StepTensors<'_>) -> Result<PlannedCall> {
        let layer = self.check_layer(layer)?;
        let rows = self.plan_append(layer, batch, None)?;
        let StepTensors { k, v, q, out, lse } = tensors;
        let append = Some(self.append_rows(rows, k, v)?);
        Ok(PlannedCall { layer, append, attend: Some(self.attend_rows(rows, AttendTensors { q, out, lse })?) })
    }

    /// Fills `entries` from a batch; returns the number of its rows, padding included.
    pub(super) fn plan(
        &mut self,
        batch: Batch<'_>,
        entry: impl Fn(&Self, &RawEntry, usize) -> Result<Entry>,
    ) -> Result<u64> {
        self.entries.clear();
        let batch = match batch.arrays() {
            BatchArrays::Host(batch) => batch,
            BatchArrays::Device(batch) => return self.plan_on_device(&batch),
        };
        batch.check()?;
        self.seq_ids.clear();
        for e in batch.entries() {
            let seq = self.seq_ids.insert("seq_ids", e.index, e.seq)?;
            let entry = entry(self, &e, seq)?;
            self.entries.push(entry);
        }
        Ok(batch.rows())
    }

    pub(super) fn plan_append(&mut self, layer: usize, batch: Batch<'_>, max_chunk: Option<u64>) -> Result<u64> {
        if let (BatchArrays::Device(b), Some(most)) = (batch.arrays(), max_chunk)
            && u64::from(b.max_tokens) > most
        {
            bail!(ChunkTooLong, "max_tokens is {}: max_chunk is {most}", b.max_tokens);
        }
        self.plan(batch, |cache, e, seq| {
            if let Some(most) = max_chunk.filter(|&most| e.n > most) {
                bail!(ChunkTooLong, "n_tokens[{}] is {}: max_chunk is {most}", e.index, e.n);
            }
            if cache.is_stale(layer, seq) {
                return Ok(Entry::unchecked(e, seq));
            }
            if batch.is_in_step() {
                cache.check_in_step(layer, seq, e)?;
            }
            let (state, start) = (cache.counters.seq(layer, seq), cache.counters.starts[seq]);
            Entry::append(e, seq, state, start, &cache.layers[layer].ring)
        })
    }

    /// Checks that the layers before `layer` have an entry's tokens already, and those after it have not.
    fn check_in_step(&self, layer: usize, seq: usize, entry: &RawEntry) -> Result<()> {
        let len = self.counters.seq(layer, seq).len;
        for (other, state) in self.known_layers(seq) {
            // mutant: in_step_of_later_layers_alone
            let needed = if other < layer { len.saturating_add(entry.n) } else { len };
            if state.len != needed {
                bail!(
                    LayersOutOfStep,
                    "sequence {seq} has {len} tokens in layer {layer} and {} in layer {other}: with {} more for layer \
                     {layer}, a forward pass in order has {needed} there; finish or abort the step",
                    state.len,
                    entry.n
                );
            }
        }
        Ok(())
    }

    pub(super) fn append_rows(&self, rows: u64, k: RowsIn<'_>, v: RowsIn<'_>) -> Result<AppendRows> {
        let s = &self.shape;
        self.check_device_pointers(&[("k", k.in_host_memory()), ("v", v.in_host_memory())])?;
        Ok(AppendRows {
            k: k.resolve("k", rows, s.n_kv_heads, s.head_dim, s.in_dtype)?,
            v: v.resolve("v", rows, s.n_kv_heads, s.head_dim_v, s.in_dtype)?,
        })
    }

    pub(super) fn attend_rows(&self, rows: u64, tensors: AttendTensors<'_>) -> Result<AttendRows> {
        let AttendTensors { q, out, lse } = tensors;
        let s = &self.shape;
        let lse_on_host = lse.as_ref().is_some_and(RowsOut::in_host_memory);
        self.check_device_pointers(&[("q", q.in_host_memory()), ("out", out.in_host_memory()), ("lse", lse_on_host)])?;
        Ok(AttendRows {
            q: q.resolve("q", rows, s.n_q_heads, s.head_dim, s.in_dtype)?,
            out: out.resolve("out", rows, s.n_q_heads, s.head_dim_v, s.out_dtype)?,
            lse: lse.map(|lse| lse.resolve("lse", rows, s.n_q_heads, 1, DType::F32)).transpose()?,
        })
    }

    pub(super) fn check_layer(&self, layer: u32) -> Result<usize> {
        self.check_usable()?;
        if (layer as usize) < self.layers.len() {
            return Ok(layer as usize);
        }
        bail!(OutOfRange, "layer is {layer}: 0 to {} is allowed", self.layers.len() - 1)
    }

    pub(super) fn check_seq_id(&self, seq_id: i32) -> Result<usize> {
        match usize::try_from(seq_id) {
            Ok(seq) if seq < self.n_seqs() => Ok(seq),
            _ => bail!(OutOfRange, "seq_id is {seq_id}: 0 to {} is allowed", self.n_seqs() - 1),
        }
    }

    /// Fails while the stream is being captured: a call that waits for it, or copies from the host, cannot be recorded.
    pub(super) fn check_not_capturing(&self) -> Result<()> {
        if self.capturing {
            bail!(InvalidArgument, "the stream is being captured: a snapshot cannot be part of a graph");
        }
        Ok(())
    }

    /// Whether the host does not know a sequence's length when the call will run: then the device checks the call.
    pub(super) fn is_stale(&self, layer: usize, seq: usize) -> bool {
        self.capturing || !self.counters.known(layer, seq)
    }
}

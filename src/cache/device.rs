//! What only a CUDA cache has: a stream, batches and edits whose arrays are in device memory, stale host counters.

use super::plan::PlannedCall;
use super::state::{Cache, Place};
use crate::backend::{Device, DeviceCall, DeviceError, Edit, EditCall, EditEntries, Stream};
use crate::batch::{Batch, BatchArrays, DeviceBatch, DeviceEdit};
use crate::config::MAX_SEQS;
use crate::error::{Result, Status, bail};
use crate::ring::Seq;

impl Cache {
    /// Sets the stream (`CUstream`) that the next calls put their work into, until it is set again; NULL is the legacy
    /// default stream. While the stream is being captured, calls are recorded into the graph: the host's counters do
    /// not change, and those of the sequences that a recorded call changes become stale.
    ///
    /// # Errors
    /// `InvalidArgument` on the CPU, or where the stream's capture has been invalidated; `DeviceLost`.
    ///
    /// # Safety
    /// The stream must belong to the cache's context and stay valid while calls use it. A caller that uses several
    /// streams for one cache must order their work.
    pub unsafe fn set_stream(&mut self, stream: *mut std::ffi::c_void) -> Result<()> {
        self.check_usable()?;
        match &self.place {
            Place::Host { .. } if stream.is_null() => Ok(()),
            Place::Host { .. } => bail!(InvalidArgument, "stream is {stream:p}: a CPU cache has none, it must be NULL"),
            Place::Device(device) => {
                let stream = Stream(stream.expose_provenance());
                let capturing = device.capturing(stream);
                self.capturing = self.note_device_loss(capturing)?;
                self.stream = stream;
                Ok(())
            }
        }
    }

    pub(super) fn device(&self) -> Option<&dyn Device> {
        match &self.place {
            Place::Host { .. } => None,
            Place::Device(device) => Some(device.as_ref()),
        }
    }

    /// Whether this is a CUDA cache: calls put their work into a stream.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.device().is_some()
    }

    fn require_device(&self, what: &str) -> Result<&dyn Device> {
        self.check_usable()?;
        match self.device() {
            Some(device) => Ok(device),
            None => bail!(InvalidArgument, "{what}: this cache is on the CPU"),
        }
    }

    /// Remembers `DeviceLost`: every further call fails.
    pub(super) fn note_device_loss<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && error.status() == Status::DeviceLost
        {
            self.failed = Some(Status::DeviceLost);
        }
        outcome
    }

    /// Rejects tensors that are known to be in host memory, if this is a CUDA cache.
    pub(super) fn check_device_pointers(&self, tensors: &[(&str, bool)]) -> Result<()> {
        if self.device().is_some()
            && let Some((name, _)) = tensors.iter().find(|(_, on_host)| *on_host)
        {
            bail!(InvalidArgument, "{name} is a slice in host memory: a CUDA cache needs device pointers");
        }
        Ok(())
    }

    /// Checks what the host can check of a batch in device memory; returns the number of its rows.
    pub(super) fn plan_on_device(&self, batch: &DeviceBatch) -> Result<u64> {
        self.require_device("a batch in device memory")?;
        if batch.n_entries > MAX_SEQS {
            bail!(OutOfRange, "n_entries is {}: at most {MAX_SEQS} is allowed", batch.n_entries);
        }
        if i32::try_from(batch.max_tokens).is_err() {
            bail!(OutOfRange, "max_tokens is {}: at most {} is allowed", batch.max_tokens, i32::MAX);
        }
        check_array("seq_ids", batch.seq_ids, 4, batch.n_entries)?;
        check_array("n_tokens", batch.n_tokens, 4, batch.n_entries)?;
        Ok(batch.n_rows)
    }

    /// Puts a planned call into the stream.
    pub(super) fn enqueue(&mut self, call: PlannedCall, batch: Batch<'_>) -> Result<()> {
        let PlannedCall { layer, append, attend } = call;
        let device_call = DeviceCall { layer, batch: batch.arrays(), append, attend, stream: self.stream };
        let outcome = self.require_device("a call in a stream")?.run(&device_call);
        let outcome = self.note_device_loss(outcome);
        // After a failure part way the host does not know what has been put into the stream.
        if append.is_some() && (outcome.is_err() || matches!(batch.arrays(), BatchArrays::Device(_))) {
            self.counters.invalidate_layer(layer);
        } else if append.is_some() && self.capturing {
            for e in &self.entries {
                self.counters.invalidate(layer, e.seq);
            }
        }
        outcome
    }

    /// Puts an edit into the stream of a CUDA cache. The caller then updates the host's counters.
    pub(super) fn enqueue_edit(&mut self, call: EditCall, entries: EditEntries<'_>) -> Result<()> {
        let Some(device) = self.device() else { return Ok(()) };
        let outcome = device.edit(&Edit { call, entries, stream: self.stream });
        let outcome = self.note_device_loss(outcome);
        if outcome.is_err() {
            self.counters.invalidate_all();
        }
        outcome
    }

    /// Evict with counts in device memory. Invalid entries are skipped on the device: see [`Cache::take_error`].
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// The arrays must be readable on the device whenever the work runs: at every replay if it is captured into a
    /// graph.
    pub unsafe fn evict_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        // SAFETY: the caller's arrays are readable on the device, as `edit_on_device` demands.
        unsafe { self.edit_on_device(EditCall::Evict, edit) }
    }

    /// Rewind with counts in device memory, such as the number of rejected drafts, which the host need not know.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn rewind_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        // SAFETY: as in `evict_on_device`.
        unsafe { self.edit_on_device(EditCall::Rewind, edit) }
    }

    /// Reset with arrays in device memory.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn reset_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        // SAFETY: as in `evict_on_device`.
        unsafe { self.edit_on_device(EditCall::Reset, edit) }
    }

    /// Fork with arrays in device memory.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn fork_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        // SAFETY: as in `evict_on_device`.
        unsafe { self.edit_on_device(EditCall::Fork, edit) }
    }

    /// Pin with arrays in device memory.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn pin_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        // SAFETY: as in `evict_on_device`.
        unsafe { self.edit_on_device(EditCall::Pin, edit) }
    }

    /// `evict_range` with arrays in device memory.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn evict_range_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        // SAFETY: as in `evict_on_device`.
        unsafe { self.edit_on_device(EditCall::EvictRange, edit) }
    }

    /// Any edit but abort with arrays in device memory.
    ///
    /// # Safety
    /// The arrays must be readable on the device whenever the work runs: at every replay if it is captured into a
    /// graph.
    pub(crate) unsafe fn edit_on_device(&mut self, call: EditCall, e: DeviceEdit) -> Result<()> {
        self.require_device("an edit with arrays in device memory")?;
        if e.n_entries > MAX_SEQS {
            bail!(OutOfRange, "n_entries is {}: at most {MAX_SEQS} is allowed", e.n_entries);
        }
        check_array("seq_ids", e.seq_ids, 4, e.n_entries)?;
        if call != EditCall::Reset {
            let name = if call == EditCall::Fork { "src_seq_ids" } else { "n_tokens" };
            check_array(name, e.n_tokens, 4, e.n_entries)?;
        }
        if matches!(call, EditCall::Pin | EditCall::EvictRange) {
            check_array("first", e.first, 8, e.n_entries)?;
        }
        if e.positions != 0 {
            check_array("start_positions", e.positions, 8, e.n_entries)?;
        }
        self.enqueue_edit(call, EditEntries::Device(e))?;
        self.counters.invalidate_all();
        // A fork may have any source.
        let forks_ranges = call == EditCall::Fork && self.counters.has_ranges();
        if matches!(call, EditCall::Pin | EditCall::EvictRange) || forks_ranges {
            self.counters.invalidate_all_ranges();
        }
        Ok(())
    }

    /// Brings the host's counters up to date after work that changed lengths unseen by the host: `n_tokens[i]` tokens
    /// were appended to `seq_ids[i]`, or removed if negative, in one layer or in all (`None`). The sequences are then
    /// known.
    ///
    /// # Errors
    /// Argument errors; `OutOfRange` for a count that the sequence cannot have had.
    pub fn note_replay(&mut self, layer: Option<u32>, seq_ids: &[i32], n_tokens: &[i32]) -> Result<()> {
        self.require_device("note_replay")?;
        if seq_ids.len() != n_tokens.len() {
            bail!(InvalidArgument, "{} sequence ids but {} token counts", seq_ids.len(), n_tokens.len());
        }
        let layers = match layer {
            Some(layer) => self.check_layer(layer).map(|l| l..l + 1)?,
            None => 0..self.layers.len(),
        };
        self.seq_ids.clear();
        for (index, (&id, &n)) in seq_ids.iter().zip(n_tokens).enumerate().filter(|(_, (id, _))| **id != -1) {
            let seq = self.seq_ids.insert("seq_ids", index, id)?;
            if !self.counters.knows_ranges(seq) {
                bail!(
                    LengthUnknown,
                    "seq_ids[{index}] is {id}: a pin or an evict_range may have changed it unseen by the host: a \
                     reset, a read-back, a load or a copy makes it known again"
                );
            }
            for layer in layers.clone() {
                let len = self.counters.seq(layer, seq).len;
                let room = u64::MAX - self.counters.starts[seq];
                if len.checked_add_signed(n.into()).is_none_or(|len| len > room) {
                    bail!(OutOfRange, "n_tokens[{index}] is {n}: sequence {seq} holds {len} tokens in layer {layer}");
                }
            }
        }
        for (&id, &n) in seq_ids.iter().zip(n_tokens) {
            let Ok(seq) = usize::try_from(id) else { continue };
            for layer in layers.clone() {
                let state = self.counters.seq_mut(layer, seq);
                if n > 0 {
                    state.append(n.unsigned_abs().into());
                    state.attendable = state.attendable.min(self.shape.max_chunk);
                } else if n < 0 {
                    state.cut(state.len - u64::from(n.unsigned_abs()));
                }
                self.counters.refresh(layer, seq);
            }
        }
        Ok(())
    }

    /// Waits for the stream and copies a sequence's counters from the device to the host: the sequence is then known.
    /// Does nothing for a CPU cache.
    ///
    /// # Errors
    /// `InvalidArgument` while the stream is being captured; argument errors; `DeviceLost`.
    pub fn read_back(&mut self, seq_id: i32) -> Result<()> {
        self.check_usable()?;
        let seq = self.check_seq_id(seq_id)?;
        let Some(device) = self.device() else { return Ok(()) };
        let mut states = crate::memory::filled(self.layers.len(), Seq::default(), "counters")?;
        let start = device.read_back(self.stream, seq, &mut states);
        let start = self.note_device_loss(start)?;
        self.counters.starts[seq] = start;
        for (layer, state) in states.into_iter().enumerate() {
            *self.counters.seq_mut(layer, seq) = state;
            self.read_ranges(layer, seq)?;
            self.counters.refresh(layer, seq);
        }
        self.counters.refresh_ranges(seq);
        Ok(())
    }

    /// Reads a sequence's ranges in a layer, whose counters have been read.
    fn read_ranges(&mut self, layer: usize, seq: usize) -> Result<()> {
        let (stream, n) = (self.stream, self.counters.seq(layer, seq).n_ranges as usize);
        let Place::Device(device) = &self.place else { return Ok(()) };
        if n == 0 {
            return Ok(());
        }
        let read = match self.counters.seq_and_ranges(layer, seq).1.get_mut(..n) {
            Some(ranges) => device.read_ranges(stream, layer, seq, ranges),
            None => bail!(Internal, "{n} ranges of sequence {seq} in layer {layer}"),
        };
        self.note_device_loss(read)
    }

    /// Returns and clears the record of invalid batch entries that completed device work has skipped. Never blocks.
    ///
    /// # Errors
    /// `DeviceLost` or `Internal` after a failure that made the cache unusable.
    pub fn take_error(&mut self) -> Result<Option<DeviceError>> {
        self.check_usable()?;
        Ok(self.device().and_then(Device::take_error))
    }

    /// Waits for all work of a CUDA cache, before it is dropped.
    ///
    /// # Errors
    /// `Busy` while a stream of the context is being captured.
    pub(crate) fn finish(&self) -> Result<()> {
        match self.device().map(Device::finish) {
            Some(Err(error)) if error.status() == Status::InvalidArgument => {
                bail!(Busy, "waiting for the device: {}", error.message())
            }
            // The work of a failed device need not be waited for.
            _ => Ok(()),
        }
    }
}

/// Rejects NULL and misaligned device arrays.
fn check_array(name: &str, address: u64, align: u64, n: u32) -> Result<()> {
    if n > 0 && address == 0 {
        bail!(NullPointer, "{name} is NULL");
    }
    if !address.is_multiple_of(align) {
        bail!(InvalidArgument, "{name} {address:#x} is not aligned to {align}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CacheConfig;
    use crate::error::Error;

    #[test]
    fn a_lost_device_and_no_other_error_ends_a_cache() {
        let config = CacheConfig { n_layers: 1, n_q_heads: 1, n_kv_heads: 1, head_dim: 8, ..CacheConfig::default() };
        let mut cache = Cache::new(&config).unwrap();
        for (status, usable) in [(Status::OutOfMemory, true), (Status::DeviceLost, false)] {
            let outcome: Result<()> = Err(Error::new(status, format_args!("a call failed")));
            assert_eq!(cache.note_device_loss(outcome).unwrap_err().status(), status);
            assert_eq!(cache.check_usable().is_ok(), usable);
        }
    }
}

//! What only a cache on a device has: a stream to work in, batches the host cannot read, counters it may not know.

use super::plan::Work;
use super::state::{Cache, Place};
use crate::backend::{Device, DeviceError, DeviceJob, Edit, EditCall, EditEntries, JobBatch, Stream};
use crate::batch::{Batch, DeviceBatch, DeviceEdit, Entries};
use crate::config::MAX_SEQS;
use crate::error::{Result, Status, bail};

impl Cache {
    /// The stream (`CUstream`) that the next calls put their work into, until it is set again; NULL is the legacy
    /// default stream. If it is being captured, calls are recorded, the host's counters stay as they are, and the
    /// sequences they change are in doubt for the host.
    ///
    /// # Errors
    /// `InvalidArgument` on the CPU, or where the stream's capture has been invalidated; `DeviceLost`.
    ///
    /// # Safety
    /// The stream must be a live one of the cache's context while calls use it. One cache follows one stream: work put
    /// into different ones must be ordered by the caller.
    pub unsafe fn set_stream(&mut self, stream: *mut std::ffi::c_void) -> Result<()> {
        self.alive()?;
        match &self.place {
            Place::Host { .. } if stream.is_null() => Ok(()),
            Place::Host { .. } => bail!(InvalidArgument, "stream is {stream:p}: a CPU cache has none, NULL is needed"),
            Place::Device(device) => {
                let stream = Stream(stream.expose_provenance());
                let capturing = device.capturing(stream);
                self.capturing = self.survive(capturing)?;
                self.stream = stream;
                Ok(())
            }
        }
    }

    pub(super) fn remote(&self) -> Option<&dyn Device> {
        match &self.place {
            Place::Host { .. } => None,
            Place::Device(device) => Some(device.as_ref()),
        }
    }

    /// Whether its work is done on a device, in a stream.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.remote().is_some()
    }

    fn need_device(&self, what: &str) -> Result<&dyn Device> {
        self.alive()?;
        match self.remote() {
            Some(device) => Ok(device),
            None => bail!(InvalidArgument, "{what}: this cache is on the CPU"),
        }
    }

    /// A device that has failed stays failed.
    pub(super) fn survive<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && error.status() == Status::DeviceLost
        {
            self.dead = Some(Status::DeviceLost);
        }
        outcome
    }

    /// Refuses tensors known to lie in host memory.
    pub(super) fn check_place(&self, tensors: &[(&str, bool)]) -> Result<()> {
        if self.remote().is_some()
            && let Some((name, _)) = tensors.iter().find(|(_, on_host)| *on_host)
        {
            bail!(InvalidArgument, "{name} is a slice in host memory: a CUDA cache needs device pointers");
        }
        Ok(())
    }

    /// Checks what the host can of a batch it cannot read; returns its rows.
    pub(super) fn plan_on_device(&self, batch: &DeviceBatch) -> Result<u64> {
        self.need_device("a batch in device memory")?;
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

    /// Puts planned work into the stream.
    pub(super) fn enqueue(&mut self, work: Work, batch: Batch<'_>) -> Result<()> {
        let batch = match batch.place() {
            Entries::Host(batch) => JobBatch::Host(batch),
            Entries::Device(batch) => JobBatch::Device(batch),
        };
        let (layer, stream) = (work.layer, self.stream);
        let job = DeviceJob { layer, batch, append: work.append, attend: work.attend, stream };
        let outcome = self.need_device("a job")?.run(&job);
        let outcome = self.survive(outcome);
        // What a call that failed half way has put into the stream, the host does not know either.
        if work.append.is_some() && (outcome.is_err() || matches!(batch, JobBatch::Device(_))) {
            self.mirror.lose_layer(layer);
        } else if work.append.is_some() && self.capturing {
            for e in &self.entries {
                self.mirror.lose(layer, e.seq);
            }
        }
        outcome
    }

    /// Puts an edit into the stream, if there is one. The host's counters follow after it.
    pub(super) fn enqueue_edit(&mut self, call: EditCall, entries: EditEntries<'_>) -> Result<()> {
        let Some(device) = self.remote() else { return Ok(()) };
        let outcome = device.edit(&Edit { call, entries, stream: self.stream });
        let outcome = self.survive(outcome);
        if outcome.is_err() {
            self.mirror.lose_all();
        }
        outcome
    }

    /// Evict, by counts in device memory. Entries that cannot be done are skipped there: see [`Cache::take_error`].
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// The arrays must be readable on the device whenever the work runs.
    pub unsafe fn evict_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        self.edit_on_device(EditCall::Evict, edit)
    }

    /// Rewind, by counts in device memory: how many drafts were rejected never leaves the device.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn rewind_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        self.edit_on_device(EditCall::Rewind, edit)
    }

    /// Reset, by arrays in device memory.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn reset_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        self.edit_on_device(EditCall::Reset, edit)
    }

    /// Fork, by arrays in device memory.
    ///
    /// # Errors
    /// Argument errors.
    ///
    /// # Safety
    /// As for [`Cache::evict_on_device`].
    pub unsafe fn fork_on_device(&mut self, edit: DeviceEdit) -> Result<()> {
        self.edit_on_device(EditCall::Fork, edit)
    }

    fn edit_on_device(&mut self, call: EditCall, e: DeviceEdit) -> Result<()> {
        self.need_device("an edit by arrays in device memory")?;
        if e.n_entries > MAX_SEQS {
            bail!(OutOfRange, "n_entries is {}: at most {MAX_SEQS} is allowed", e.n_entries);
        }
        check_array("seq_ids", e.seq_ids, 4, e.n_entries)?;
        if call != EditCall::Reset {
            let name = if call == EditCall::Fork { "src_seq_ids" } else { "n_tokens" };
            check_array(name, e.n_tokens, 4, e.n_entries)?;
        }
        if e.positions != 0 {
            check_array("start_positions", e.positions, 8, e.n_entries)?;
        }
        let (ids, tokens, positions, n) = (e.seq_ids, e.n_tokens, e.positions, e.n_entries);
        self.enqueue_edit(call, EditEntries::Device { ids, tokens, positions, n })?;
        self.mirror.lose_all();
        Ok(())
    }

    /// Tells the host's counters what work they could not see has done: `n_tokens[i]` more tokens of `seq_ids[i]`, or
    /// where negative as many cut, in one layer or in all. After it the host counts the sequence as known.
    ///
    /// # Errors
    /// Argument errors; a count that the sequence cannot have had.
    pub fn note_replay(&mut self, layer: Option<u32>, seq_ids: &[i32], n_tokens: &[i32]) -> Result<()> {
        self.need_device("note_replay")?;
        if seq_ids.len() != n_tokens.len() {
            bail!(InvalidArgument, "{} sequence ids but {} token counts", seq_ids.len(), n_tokens.len());
        }
        let layers = match layer {
            Some(layer) => self.check_layer(layer).map(|l| l..l + 1)?,
            None => 0..self.layers.len(),
        };
        self.seen.clear();
        for (index, (&id, &n)) in seq_ids.iter().zip(n_tokens).enumerate().filter(|(_, (id, _))| **id != -1) {
            let seq = self.seen.insert("seq_ids", index, id)?;
            for layer in layers.clone() {
                let len = self.mirror.seq(layer, seq).len;
                let room = u64::MAX - self.mirror.starts[seq];
                if len.checked_add_signed(n.into()).is_none_or(|len| len > room) {
                    bail!(OutOfRange, "n_tokens[{index}] is {n}: sequence {seq} holds {len} tokens in layer {layer}");
                }
            }
        }
        for (&id, &n) in seq_ids.iter().zip(n_tokens) {
            let Ok(seq) = usize::try_from(id) else { continue };
            for layer in layers.clone() {
                let state = self.mirror.seq_mut(layer, seq);
                if n > 0 {
                    state.append(n.unsigned_abs().into());
                    state.attendable = state.attendable.min(self.shape.max_chunk);
                } else if n < 0 {
                    state.cut(state.len - u64::from(n.unsigned_abs()));
                }
                self.mirror.settle(layer, seq);
            }
        }
        Ok(())
    }

    /// Waits for the stream and takes a sequence's counters from the device: after it the host knows them. On the CPU it
    /// always does.
    ///
    /// # Errors
    /// `InvalidArgument` while the stream is being captured; argument errors; `DeviceLost`.
    pub fn read_back(&mut self, seq_id: i32) -> Result<()> {
        self.alive()?;
        let seq = self.check_seq_id(seq_id)?;
        let Some(device) = self.remote() else { return Ok(()) };
        let mut states = crate::memory::filled(self.layers.len(), Default::default(), "counters")?;
        let start = device.read_back(self.stream, seq, &mut states);
        let start = self.survive(start)?;
        self.mirror.starts[seq] = start;
        for (layer, state) in states.into_iter().enumerate() {
            *self.mirror.seq_mut(layer, seq) = state;
            self.mirror.settle(layer, seq);
        }
        Ok(())
    }

    /// Takes the record of entries that the device has skipped because they could not be done, in work that has
    /// finished. Waits for nothing.
    ///
    /// # Errors
    /// After a failure that ended the cache.
    pub fn take_error(&mut self) -> Result<Option<DeviceError>> {
        self.alive()?;
        Ok(self.remote().and_then(Device::take_error))
    }

    /// Waits for all work of a device before the cache is dropped.
    ///
    /// # Errors
    /// `Busy` while a stream of the context is being captured.
    pub(crate) fn finish(&self) -> Result<()> {
        match self.remote().map(Device::finish) {
            Some(Err(error)) if error.status() == Status::InvalidArgument => {
                bail!(Busy, "the device cannot be waited for: {}", error.message())
            }
            // A device that has failed has nothing to be waited for.
            _ => Ok(()),
        }
    }
}

/// Refuses NULL and misaligned device arrays.
fn check_array(name: &str, address: u64, align: u64, n: u32) -> Result<()> {
    if n > 0 && address == 0 {
        bail!(NullPointer, "{name} is NULL");
    }
    if !address.is_multiple_of(align) {
        bail!(InvalidArgument, "{name} {address:#x} is not aligned to {align}");
    }
    Ok(())
}

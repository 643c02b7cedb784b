//! Copying a sequence from one cache to another.

use super::load::check_room;
use super::rows::SavedTokens;
use super::settings;
use crate::backend::SlotRun;
use crate::cache::state::{Cache, Place};
use crate::config::Which;
use crate::error::Result;
use crate::memory::filled;

/// Bytes of rows that are copied at a time between caches on the CPU: on the stack, as such calls allocate nothing. A
/// row is at most 2 KiB.
const STACK_BYTES: usize = 4096;
/// Bytes of rows that are copied at a time to or from a CUDA cache of another place.
const STAGED_BYTES: usize = 1 << 20;

/// Consecutive tokens in consecutive slots of both caches.
struct Piece {
    n: u64,
    from: u64,
    to: u64,
}

impl Cache {
    /// Makes a sequence an independent copy of one of another cache, whose settings must agree as for a load of a
    /// snapshot. Between caches of one CUDA context the copy is put into this cache's stream: the caller orders it with
    /// the work of the source's. Otherwise a CUDA cache waits for its stream.
    ///
    /// # Errors
    /// `InvalidArgument` for settings that differ; as [`Cache::save_sequence`] for the source.
    pub fn copy_sequence(&mut self, dst_seq_id: i32, source: &mut Self, src_seq_id: i32) -> Result<()> {
        self.check_usable()?;
        let dst = self.check_seq_id(dst_seq_id)?;
        self.check_not_capturing()?;
        let src = source.check_saveable(src_seq_id)?;
        settings::check_equal((&source.shape, &source.layers), (&self.shape, &self.layers))?;
        for layer in 0..self.layers.len() {
            check_room(layer, &self.layers[layer].ring, &source.saved_counters(layer, src))?;
        }
        let mut staged = match (&self.place, &source.place) {
            (Place::Host { .. }, Place::Host { .. }) => Vec::new(),
            _ => filled(STAGED_BYTES, 0, "a copy between caches")?,
        };
        let outcome = self.copy_layers(dst, source, src, &mut staged);
        if let Err(error) = outcome {
            // What the sequence now holds is unknown.
            self.poison();
            return self.note_device_loss(Err(error));
        }
        Ok(())
    }

    /// As [`Self::copy_sequence`] within this cache: a fork.
    pub(crate) fn copy_within(&mut self, dst_seq_id: i32, src_seq_id: i32) -> Result<()> {
        self.check_saveable(src_seq_id)?;
        self.check_seq_id(dst_seq_id)?;
        self.fork(&[src_seq_id], &[dst_seq_id])
    }

    fn copy_layers(&mut self, dst: usize, source: &Self, src: usize, staged: &mut [u8]) -> Result<()> {
        for layer in 0..self.layers.len() {
            let (here, there) = (&self.layers[layer].ring, &source.layers[layer].ring);
            let saved = source.saved_counters(layer, src);
            let restored = here.restored(&saved);
            let tokens = SavedTokens::new(there, &saved);
            for run in tokens.runs(here, restored.loaded_from) {
                let Some(first) = run.ring_index else {
                    let piece = Piece { n: run.n, from: run.slot, to: run.slot };
                    self.copy_piece((layer, dst), (source, src), &piece, staged)?;
                    continue;
                };
                // Where the rings are of different lengths they wrap at different tokens.
                for part in there.runs(first, first + run.n) {
                    let piece = Piece { n: part.n, from: part.slot, to: run.slot + (part.first - first) };
                    self.copy_piece((layer, dst), (source, src), &piece, staged)?;
                }
            }
            self.counters.replace(layer, dst, &restored, source.saved_ranges(layer, src));
            self.counters.refresh(layer, dst);
        }
        // The source's are known, or it could not be copied.
        self.counters.refresh_ranges(dst);
        self.counters.starts[dst] = source.counters.starts[src];
        self.send_counters(dst)
    }

    fn copy_piece(
        &self,
        (layer, dst): (usize, usize),
        (source, src): (&Self, usize),
        piece: &Piece,
        staged: &mut [u8],
    ) -> Result<()> {
        let mut on_stack = [0; STACK_BYTES];
        let buffer = if staged.is_empty() { &mut on_stack[..] } else { staged };
        for which in [Which::K, Which::V] {
            let row = self.shape.row_bytes(which);
            for head in 0..self.shape.n_kv_heads {
                let from = SlotRun {
                    shape: &source.shape,
                    layer,
                    settings: &source.layers[layer],
                    seq: src,
                    which,
                    head,
                    slot: piece.from,
                    n: piece.n,
                };
                let (shape, settings) = (&self.shape, &self.layers[layer]);
                let to = SlotRun { shape, settings, seq: dst, slot: piece.to, ..from };
                if let (Place::Device(device), Place::Device(other)) = (&self.place, &source.place)
                    && device.copy_rows(self.stream, &to, other.as_ref(), &from)?
                {
                    continue;
                }
                for done in (0..piece.n).step_by(buffer.len() / row) {
                    let n = (piece.n - done).min((buffer.len() / row) as u64);
                    let rows = &mut buffer[..n as usize * row];
                    source.read_run(&SlotRun { slot: from.slot + done, n, ..from }, rows)?;
                    if let Some(device) = source.device() {
                        device.wait(source.stream)?;
                    }
                    self.write_run(&SlotRun { slot: to.slot + done, n, ..to }, rows)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the rows of a run; from a CUDA cache they are there once its stream has been waited for.
    pub(super) fn read_run(&self, run: &SlotRun<'_>, out: &mut [u8]) -> Result<()> {
        match &self.place {
            Place::Host { backend, .. } => backend.read_rows(run, out),
            Place::Device(device) => device.read_rows(self.stream, run, out)?,
        }
        Ok(())
    }

    /// Writes the rows of a run.
    pub(super) fn write_run(&self, run: &SlotRun<'_>, rows: &[u8]) -> Result<()> {
        match &self.place {
            Place::Host { backend, .. } => backend.write_rows(run, rows),
            Place::Device(device) => device.write_rows(self.stream, run, rows)?,
        }
        Ok(())
    }
}

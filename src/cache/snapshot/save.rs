//! Saving a sequence.

use std::ops::Range;

use super::counters;
use super::edits;
use super::format::{HEADER_BYTES, HostTag, Tag, section_bytes, write_header, write_section};
use super::rows::{self, SavedTokens};
use super::settings;
use crate::backend::SlotRun;
use crate::cache::state::Cache;
use crate::config::Which;
use crate::error::{Result, bail};
use crate::ranges::{self, EditedRange};
use crate::ring::Seq;

/// Bytes of which each thread writes a part of its own.
struct SharedBytes(*mut [u8]);

// SAFETY: `part` demands that nobody else uses a part.
unsafe impl Sync for SharedBytes {}

impl SharedBytes {
    /// The `n` bytes from `at` on.
    ///
    /// # Safety
    /// Nobody else may use them while the result lives; nor may the bytes that `self` was made from end before.
    #[expect(clippy::mut_from_ref, reason = "parts do not overlap")]
    unsafe fn part(&self, at: usize, n: usize) -> &mut [u8] {
        assert!(at.checked_add(n).is_some_and(|end| end <= self.0.len()), "bytes {at} + {n} of {}", self.0.len());
        // SAFETY: within the bytes, by the assertion; the caller alone uses them.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast::<u8>().add(at), n) }
    }
}

/// Where the parts of a snapshot begin.
struct Plan {
    settings: usize,
    counters: usize,
    edits: usize,
    rows: usize,
    /// The whole snapshot.
    bytes: usize,
}

impl Cache {
    /// Bytes of a snapshot of a sequence as it is now.
    ///
    /// # Errors
    /// As for [`Cache::save_sequence`].
    pub fn snapshot_bytes(&self, seq_id: i32) -> Result<usize> {
        let seq = self.check_saveable(seq_id)?;
        Ok(self.plan_snapshot(seq)?.bytes)
    }

    /// Writes a snapshot of a sequence to the front of `out`, and returns its bytes. The sequence stays as it is. A
    /// CUDA cache waits for its stream.
    ///
    /// # Errors
    /// `OutOfRange` if `out` is too short, or the sequence does not exist; `LayersOutOfStep`; `TokensGone` for a
    /// sequence that an aborted step has damaged; `LengthUnknown` if the host's counters are stale: see
    /// [`Cache::read_back`]; `InvalidArgument` while the stream is being captured.
    pub fn save_sequence(&mut self, seq_id: i32, tag: &HostTag, out: &mut [u8]) -> Result<usize> {
        let seq = self.check_saveable(seq_id)?;
        let plan = self.plan_snapshot(seq)?;
        if out.len() < plan.bytes {
            bail!(OutOfRange, "n_bytes is {}: the snapshot has {} bytes", out.len(), plan.bytes);
        }
        let out = &mut out[..plan.bytes];
        // Every layer's rows, settings and counters.
        let n_edits = self.edit_bytes(seq) as usize;
        let n_sections = 2 + u32::from(n_edits > 0) + self.layers.len() as u32;
        write_header(out, n_sections, plan.bytes as u64, tag);
        let n = settings::bytes(&self.layers) as usize;
        write_section(&mut out[plan.settings..plan.counters], Tag::SETTINGS, n, |to| {
            settings::write(&self.shape, &self.layers, to);
        });
        let n = counters::bytes(self.layers.len()) as usize;
        let (start, len) = (self.counters.starts[seq], self.counters.seq(0, seq).len);
        write_section(&mut out[plan.counters..plan.edits], Tag::COUNTERS, n, |to| {
            let layers = (0..self.layers.len()).map(|layer| self.saved_counters(layer, seq));
            counters::write(start, len, layers, to);
        });
        if n_edits > 0 {
            write_section(&mut out[plan.edits..plan.rows], Tag::EDITS, n_edits, |to| {
                let layers = 0..self.layers.len();
                let ranges = layers.clone().flat_map(|layer| self.saved_ranges(layer, seq));
                edits::write(layers.map(|layer| self.saved_counters(layer, seq)), ranges, to);
            });
        }
        let rows = SharedBytes(&raw mut out[plan.rows..]);
        let outcome = self.for_layers(plan.bytes, &|range| self.save_layers(range, seq, &rows));
        let outcome = self.note_panic(outcome);
        self.note_device_loss(outcome)?;
        Ok(plan.bytes)
    }

    /// Writes the sections of some layers. `rows` are those of all.
    fn save_layers(&self, range: Range<usize>, seq: usize, rows: &SharedBytes) -> Result<()> {
        let content = |layer| self.saved_tokens(layer, seq).content_bytes(&self.shape).unwrap_or(0);
        let section_len = |layer| section_bytes(content(layer)).unwrap_or(0) as usize;
        let mut at = (0..range.start).map(section_len).sum();
        for layer in range {
            // SAFETY: the sections of different layers do not overlap, and each layer is in one range.
            let section = unsafe { rows.part(at, section_len(layer)) };
            at += section.len();
            let mut outcome = Ok(());
            write_section(section, Tag::ROWS, content(layer) as usize, |to| {
                outcome = self.save_rows(layer, seq, to);
                // The checksum follows. Copies must not go on after an error either.
                let waited = self.device().map_or(Ok(()), |device| device.wait(self.stream));
                outcome = std::mem::replace(&mut outcome, Ok(())).and(waited);
            });
            outcome?;
        }
        Ok(())
    }

    /// Checks that a sequence can be saved now.
    pub(super) fn check_saveable(&self, seq_id: i32) -> Result<usize> {
        self.check_usable()?;
        let seq = self.check_seq_id(seq_id)?;
        self.check_not_capturing()?;
        self.check_known(seq)?;
        self.check_equal_lengths(seq)?;
        for (layer, state) in self.counters.layers(seq) {
            if !self.layers[layer].ring.intact(state.len, state) {
                bail!(
                    TokensGone,
                    "sequence {seq}: an aborted step has overwritten tokens of its window in layer {layer}; reset it"
                );
            }
        }
        Ok(seq)
    }

    /// The counters of a sequence in a layer as a snapshot has them.
    pub(super) fn saved_counters(&self, layer: usize, seq: usize) -> Seq {
        let state = self.counters.seq(layer, seq);
        let n_ranges = self.saved_ranges(layer, seq).count() as u32;
        Seq { loaded_from: self.layers[layer].ring.kept_from(state), n_ranges, ..*state }
    }

    /// The ranges of a sequence in a layer as a snapshot has them: without evicted ones that are older than all window
    /// tokens in it.
    pub(super) fn saved_ranges(&self, layer: usize, seq: usize) -> impl Iterator<Item = EditedRange> + use<'_> {
        let ranges = self.counters.ranges(layer, seq);
        let kept_from = self.layers[layer].ring.kept_from(self.counters.seq(layer, seq));
        let oldest = ranges::index_of(ranges, kept_from);
        // mutant: saved_ranges_that_are_passed
        ranges.iter().copied().filter(move |r| r.pinned == 1 || r.first > oldest)
    }

    /// Bytes of the content of the section of edits; 0: there is none.
    fn edit_bytes(&self, seq: usize) -> u64 {
        let layers = (0..self.layers.len()).map(|layer| self.saved_counters(layer, seq));
        let any = layers.clone().zip(self.layers.iter()).any(|(seq, layer)| edits::needed(&layer.ring, &seq));
        if any { edits::bytes(layers) } else { 0 }
    }

    fn saved_tokens(&self, layer: usize, seq: usize) -> SavedTokens {
        SavedTokens::new(&self.layers[layer].ring, &self.saved_counters(layer, seq))
    }

    fn plan_snapshot(&self, seq: usize) -> Result<Plan> {
        let n_layers = self.layers.len();
        let whole = || {
            let settings = HEADER_BYTES as u64;
            let counters = settings.checked_add(section_bytes(settings::bytes(&self.layers))?)?;
            let edits = counters.checked_add(section_bytes(counters::bytes(n_layers))?)?;
            let n_edits = self.edit_bytes(seq);
            let rows = edits.checked_add(if n_edits > 0 { section_bytes(n_edits)? } else { 0 })?;
            let bytes = (0..n_layers).try_fold(rows, |sum, layer| {
                sum.checked_add(section_bytes(self.saved_tokens(layer, seq).content_bytes(&self.shape)?)?)
            })?;
            let bytes = usize::try_from(bytes).ok()?;
            let [settings, counters, edits, rows] = [settings, counters, edits, rows].map(|at| at as usize);
            Some(Plan { settings, counters, edits, rows, bytes })
        };
        match whole() {
            Some(plan) => Ok(plan),
            None => bail!(OutOfMemory, "a snapshot of sequence {seq} exceeds the address space"),
        }
    }

    /// Writes the content of a layer's section.
    fn save_rows(&self, layer: usize, seq: usize, out: &mut [u8]) -> Result<()> {
        let (settings, shape) = (&self.layers[layer], &self.shape);
        let tokens = self.saved_tokens(layer, seq);
        let from = self.saved_counters(layer, seq).loaded_from;
        let (head, mut rest) = out.split_at_mut(rows::HEAD_BYTES);
        head.copy_from_slice(&(layer as u64).to_le_bytes());
        for which in [Which::K, Which::V] {
            let row = shape.row_bytes(which);
            let (to, after) = rest.split_at_mut(tokens.n() as usize * row * shape.n_kv_heads);
            for head in 0..shape.n_kv_heads {
                for run in tokens.runs(&settings.ring, from) {
                    let to = &mut to[tokens.range(&run, head, row)];
                    let run = SlotRun { shape, layer, settings, seq, which, head, slot: run.slot, n: run.n };
                    self.read_run(&run, to)?;
                }
            }
            rest = after;
        }
        Ok(())
    }
}

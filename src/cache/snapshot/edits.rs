//! The pinned and evicted ranges of a sequence in a snapshot: a section that is there only if a sequence has any.

use super::format::{Reader, Writer};
use crate::error::{Result, bail};
use crate::ranges::EditedRange;
use crate::ring::{Ring, Seq};

/// For each layer: end of what was edited, first range, number of ranges.
const LAYER_BYTES: u64 = 24;
/// First token, tokens, kind.
const RANGE_BYTES: u64 = 24;

/// Whether the counters of a layer say more than those of a sequence without pins and evicted ranges.
pub fn needed(ring: &Ring, seq: &Seq) -> bool {
    seq.n_ranges > 0 || seq.edited != edited_by_evict(ring, seq.floor)
}

/// End of what was edited, where evict is the only edit.
pub fn edited_by_evict(ring: &Ring, floor: u64) -> u64 {
    if floor > 0 { ring.n_sink + floor } else { 0 }
}

/// Bytes of the section's content.
pub fn bytes(layers: impl Iterator<Item = Seq>) -> u64 {
    layers.map(|seq| LAYER_BYTES + RANGE_BYTES * u64::from(seq.n_ranges)).sum()
}

/// Writes the section's content: the counters of the layers, and the ranges of all of them.
pub fn write(layers: impl Iterator<Item = Seq>, ranges: impl Iterator<Item = EditedRange>, out: &mut [u8]) {
    let mut to = Writer::new(out);
    let mut first = 0;
    for seq in layers {
        to.u64(seq.edited);
        to.u64(first);
        to.u32(seq.n_ranges);
        to.u32(0);
        first += u64::from(seq.n_ranges);
    }
    for range in ranges {
        to.u64(range.first);
        to.u64(range.n);
        to.u32(range.pinned);
        to.u32(0);
    }
}

/// The section of a snapshot. What it says of a layer is checked when it is read.
#[derive(Clone, Copy, Debug)]
pub struct SavedEdits<'a> {
    layers: &'a [u8],
    ranges: &'a [u8],
}

impl<'a> SavedEdits<'a> {
    pub fn new(content: &'a [u8], n_layers: usize) -> Result<Self> {
        let table = n_layers * LAYER_BYTES as usize;
        let Some((layers, ranges)) = content.split_at_checked(table) else {
            bail!(InvalidSnapshot, "the snapshot has {} bytes of edits: at least {table} are needed", content.len());
        };
        let edits = Self { layers, ranges };
        // As many ranges as all layers say, one layer's after the other's.
        let mut first = 0_u64;
        for layer in 0..n_layers {
            let (_, begin, n) = edits.entry(layer)?;
            if begin != first {
                bail!(InvalidSnapshot, "layer {layer}: its ranges begin at {begin}: {first} is needed");
            }
            first += u64::from(n);
        }
        if first.checked_mul(RANGE_BYTES) != Some(ranges.len() as u64) {
            bail!(InvalidSnapshot, "the snapshot has {} bytes of {first} ranges", ranges.len());
        }
        Ok(edits)
    }

    fn entry(&self, layer: usize) -> Result<(u64, u64, u32)> {
        let mut from = Reader::new(self.layers.get(layer * LAYER_BYTES as usize..).unwrap_or_default());
        let entry = (from.u64()?, from.u64()?, from.u32()?);
        if from.u32()? != 0 {
            bail!(InvalidSnapshot, "layer {layer}: a reserved word of its edits is not 0");
        }
        Ok(entry)
    }

    /// The ranges of a layer as they were written: without what is summed over later ones.
    pub fn ranges(&self, layer: usize) -> impl DoubleEndedIterator<Item = EditedRange> + Clone + use<'a> {
        let (_, first, n) = self.entry(layer).unwrap_or_default();
        let bytes = RANGE_BYTES as usize;
        let from = (first as usize).saturating_mul(bytes);
        let of_layer = self.ranges.get(from..from + n as usize * bytes).unwrap_or_default();
        of_layer.chunks_exact(bytes).map(|range| {
            let mut from = Reader::new(range);
            // A range of 24 bytes has them all; a wrong reserved word makes it one of no kind.
            let (first, n) = (from.u64().unwrap_or(0), from.u64().unwrap_or(0));
            let (pinned, reserved) = (from.u32().unwrap_or(2), from.u32().unwrap_or(2));
            let pinned = if reserved == 0 { pinned } else { 2 };
            EditedRange { first, n, pinned, ..EditedRange::default() }
        })
    }

    /// Completes the counters of a layer.
    ///
    /// # Errors
    /// `InvalidSnapshot` for ranges that no sequence can have.
    pub fn complete(&self, layer: usize, ring: &Ring, seq: &mut Seq) -> Result<()> {
        let (edited, _, n) = self.entry(layer)?;
        let least = edited_by_evict(ring, seq.floor);
        if !(least..=seq.len).contains(&edited) {
            bail!(InvalidSnapshot, "layer {layer}: its edits end at {edited}: {least} to {} is possible", seq.len);
        }
        let (mut pinned, mut total) = (0_u64, 0_u64);
        let mut last: Option<EditedRange> = None;
        for r in self.ranges(layer) {
            let begin = last.map_or(ring.n_sink, |last| last.first + last.n);
            let end = r.first.checked_add(r.n).filter(|&end| r.n > 0 && r.first >= begin && end <= edited);
            if end.is_none() || r.pinned > 1 {
                bail!(
                    InvalidSnapshot,
                    "layer {layer}: a range of {} tokens from {} on, kind {}: from {begin} to {edited}, kind 0 or 1, \
                     is possible",
                    r.n,
                    r.first,
                    r.pinned
                );
            }
            if last.is_some_and(|last| r.first == begin && r.pinned == last.pinned) {
                bail!(InvalidSnapshot, "layer {layer}: two ranges of one kind meet at {begin}");
            }
            // Ranges do not overlap: sums are at most the length.
            total += r.n;
            pinned += if r.pinned == 1 { r.n } else { 0 };
            last = Some(r);
        }
        // Each pinned token has left the window.
        let most = seq.floor.min(u32::MAX.into());
        if pinned > most {
            bail!(InvalidSnapshot, "layer {layer}: {pinned} tokens are pinned: 0 to {most} is possible");
        }
        // The first saved token has an index: behind the first range, or after the sinks.
        let first = self.ranges(layer).next().map_or(0, |r| r.first + total);
        if seq.loaded_from < first.min(ring.n_sink + total) {
            bail!(
                InvalidSnapshot,
                "layer {layer}: its window tokens begin at {}: at least {} is possible with {total} edited tokens",
                seq.loaded_from,
                first.min(ring.n_sink + total)
            );
        }
        (seq.edited, seq.n_ranges, seq.n_pinned) = (edited, n, pinned as u32);
        Ok(())
    }
}

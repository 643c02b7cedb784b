//! The counters of a sequence in a snapshot: start position, length, and for each layer what bounds a rewind.

use super::edits::{SavedEdits, edited_by_evict};
use super::format::{Reader, Writer};
use crate::config::MAX_CHUNK;
use crate::error::{Result, bail};
use crate::ranges::EditedRange;
use crate::ring::{Ring, Seq};

const HEAD_BYTES: u64 = 16;
const LAYER_BYTES: u64 = 24;

/// Bytes of the counters.
pub fn bytes(n_layers: usize) -> u64 {
    HEAD_BYTES + LAYER_BYTES * n_layers as u64
}

/// Writes the counters; `layers` gives those of each layer, with `loaded_from` the first window token that is saved.
pub fn write(start: u64, len: u64, layers: impl Iterator<Item = Seq>, out: &mut [u8]) {
    let mut to = Writer::new(out);
    to.u64(start);
    to.u64(len);
    for seq in layers {
        to.u64(seq.highest);
        to.u64(seq.floor);
        to.u64(seq.loaded_from);
    }
}

/// The counters of a snapshot. Those of a layer are checked when they are read.
#[derive(Clone, Copy, Debug)]
pub struct SavedCounters<'a> {
    pub start: u64,
    pub len: u64,
    layers: &'a [u8],
    edits: Option<SavedEdits<'a>>,
}

impl<'a> SavedCounters<'a> {
    /// Of the sections of counters and of edits.
    pub fn new(content: &'a [u8], edits: Option<&'a [u8]>, n_layers: usize) -> Result<Self> {
        if content.len() as u64 != bytes(n_layers) {
            let n = content.len();
            bail!(InvalidSnapshot, "the snapshot has {n} bytes of counters: {} are needed", bytes(n_layers));
        }
        let mut from = Reader::new(content);
        let (start, len) = (from.u64()?, from.u64()?);
        if start.checked_add(len).is_none() {
            bail!(InvalidSnapshot, "the snapshot has {len} tokens from stream position {start}: that exceeds 2^64 - 1");
        }
        let edits = edits.map(|edits| SavedEdits::new(edits, n_layers)).transpose()?;
        Ok(Self { start, len, layers: &content[HEAD_BYTES as usize..], edits })
    }

    /// The ranges of a layer, without what is summed over later ones.
    pub fn ranges(&self, layer: usize) -> impl Iterator<Item = EditedRange> + use<'a> {
        self.edits.into_iter().flat_map(move |edits| edits.ranges(layer))
    }

    /// The counters in a layer, with `loaded_from` the first window token that is in the snapshot.
    ///
    /// # Errors
    /// `InvalidSnapshot` for counters that no sequence of this layer can have.
    pub fn layer(&self, index: usize, ring: &Ring) -> Result<Seq> {
        let len = self.len;
        let mut from = Reader::new(self.layers.get(index * LAYER_BYTES as usize..).unwrap_or_default());
        let (highest, floor, loaded_from) = (from.u64()?, from.u64()?, from.u64()?);
        if highest < len || self.start.checked_add(highest).is_none() {
            bail!(
                InvalidSnapshot,
                "layer {index}: the highest length is {highest}: {len} to {} is possible",
                u64::MAX - self.start
            );
        }
        // A window that an evict has shortened begins at or before the sequence's end.
        if floor > 0 && ring.n_sink.checked_add(floor).is_none_or(|oldest| oldest > len) {
            let most = len.saturating_sub(ring.n_sink);
            bail!(InvalidSnapshot, "layer {index}: {floor} tokens were evicted: 0 to {most} is possible");
        }
        let window_start = ring.window_start(len, floor);
        // No cache has kept more behind its window than the largest max_rewind.
        let least = (ring.n_sink + floor).max(window_start.saturating_sub(MAX_CHUNK.into()));
        if !(least..=window_start).contains(&loaded_from) {
            bail!(
                InvalidSnapshot,
                "layer {index}: its window tokens begin at {loaded_from}: {least} to {window_start} is possible"
            );
        }
        let edited = edited_by_evict(ring, floor);
        let mut seq = Seq { len, highest, floor, loaded_from, edited, ..Seq::default() };
        self.edits.map_or(Ok(()), |edits| edits.complete(index, ring, &mut seq))?;
        Ok(seq)
    }
}

//! The visible range of a query, and blocks of visible keys in consecutive slots.

use std::ops::Range;

use super::kv_layout::{SLOT_ALIGN, physical};
use crate::ring::Ring;

/// A row of queries, as far as its visible range depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VisibleRange {
    /// Index of its token in the sequence.
    pub index: u64,
    /// E(p + 1): tokens evicted when it is computed.
    pub evicted: u64,
}

impl VisibleRange {
    /// The visible sinks, or the visible window tokens, by index.
    pub fn keys(self, ring: &Ring, sinks: bool) -> Range<u64> {
        let end = self.index + 1; // mutant: future_token_visible
        if sinks { 0..end.min(ring.n_sink) } else { ring.n_sink + self.evicted..end } // mutant: evicted_token_visible
    }

    /// Distance in cache positions to a visible key.
    pub fn distance(self, sinks: bool, key: u64) -> u64 {
        // Cache positions: index - E for the row and for window keys, the index for sinks.
        if sinks { self.index - self.evicted - key } else { self.index - key } // mutant: sink_distance_in_stream
    }
}

/// Visible keys in consecutive physical slots. Column c is slot `slot + c`; columns `lo..hi` hold the tokens from
/// `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub sinks: bool,
    pub first: u64,
    /// A multiple of [`SLOT_ALIGN`].
    pub slot: u64,
    pub lo: usize,
    pub hi: usize,
}

impl Block {
    /// The columns that a row sees, possibly none.
    pub fn columns(&self, ring: &Ring, visible_range: VisibleRange) -> Range<usize> {
        let keys = visible_range.keys(ring, self.sinks);
        let end = self.first + (self.hi - self.lo) as u64;
        let column = |key: u64| self.lo + (key.clamp(self.first, end) - self.first) as usize;
        // An empty window may begin beyond its end.
        column(keys.start)..column(keys.end.max(keys.start))
    }

    /// The token in a column.
    pub fn token(&self, column: usize) -> u64 {
        self.first + (column - self.lo) as u64
    }
}

/// The blocks of a range of tokens. They end where physical slots, counted from the beginning of their region, reach a
/// multiple of `size`, so that block borders depend on the tokens only.
pub(super) fn blocks(ring: &Ring, keys: Range<u64>, size: u64) -> impl Iterator<Item = Block> + use<'_> {
    let sinks = keys.start < ring.n_sink;
    ring.runs(keys.start, keys.end).flat_map(move |run| {
        let (begin, region) = physical(ring, run.slot);
        let mut at = 0;
        std::iter::from_fn(move || {
            let offset = begin - region + at;
            let n = (run.n - at).min(size - offset % size);
            let block = (n > 0).then(|| {
                let lo = offset % SLOT_ALIGN; // mutant: block_begins_late
                Block {
                    sinks,
                    first: run.first + at,
                    slot: region + offset - lo,
                    lo: lo as usize,
                    hi: (lo + n) as usize,
                }
            });
            at += n;
            block
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every token is in one column of one block, in order, in its own physical slot; blocks keep to their size.
        #[test]
        fn blocks_hold_each_token_once(n_sink in 0u32..70, window in 1u32..300, chunk in 1u32..70,
                                       from in 0u64..900, n in 1u64..300,
                                       size in prop::sample::select(vec![32_u64, 128])) {
            let ring = Ring::new(n_sink, window, chunk, 0);
            let from = if from < ring.n_sink { from } else { from.max(ring.n_sink) };
            let to = if from < ring.n_sink { ring.n_sink.min(from + n) } else { from + n.min(ring.ring_slots) };
            let mut next = from;
            for b in blocks(&ring, from..to, size) {
                prop_assert!(b.hi > b.lo && b.hi as u64 <= size && b.slot.is_multiple_of(SLOT_ALIGN));
                prop_assert_eq!(b.first, next);
                for c in b.lo..b.hi {
                    prop_assert_eq!(b.slot + c as u64, physical(&ring, ring.slot(b.token(c))).0);
                }
                next += (b.hi - b.lo) as u64;
            }
            prop_assert_eq!(next, to);
        }
    }
}

//! Which keys a row of queries sees.

use std::ops::Range;

use super::kv_layout::{SLOT_ALIGN, physical};
use crate::ring::Ring;

/// What a row sees.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VisibleRange {
    /// Index in the sequence.
    pub index: u64,
    /// E(p + 1).
    pub evicted: u64,
}

impl VisibleRange {
    /// Which keys of sinks or window the row sees.
    pub fn keys(self, ring: &Ring, sinks: bool) -> Range<u64> {
        let end = self.index + 1;
        if sinks { 0..end.min(ring.n_sink) } else { ring.n_sink + self.evicted..end }
    }

    /// Distance in cache positions of a key that it sees.
    pub fn distance(self, sinks: bool, key: u64) -> u64 {
        // On the axis of cache positions the row is at p - E, and so is a window key; a sink is where it was.
        if sinks { self.index - self.evicted - key } else { self.index - key }
    }
}

/// Visible keys in consecutive physical slots: columns `lo..hi` of those from `slot` on hold tokens from `first` on.
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
    /// Columns that a row sees; empty if it sees none.
    pub fn columns(&self, ring: &Ring, visible_range: VisibleRange) -> Range<usize> {
        let keys = visible_range.keys(ring, self.sinks);
        let end = self.first + (self.hi - self.lo) as u64;
        let column = |key: u64| self.lo + (key.clamp(self.first, end) - self.first) as usize;
        // A window that is empty may begin beyond its end.
        column(keys.start)..column(keys.end.max(keys.start))
    }

    /// Token in a column.
    pub fn token(&self, column: usize) -> u64 {
        self.first + (column - self.lo) as u64
    }
}

/// The blocks of tokens `from..to`, cut where physical slots, counted from the beginning of their region, reach a multiple
/// of `size`: where a block begins depends on nothing but the tokens.
pub(super) fn blocks(ring: &Ring, keys: Range<u64>, size: u64) -> impl Iterator<Item = Block> + use<'_> {
    let sinks = keys.start < ring.n_sink;
    ring.runs(keys.start, keys.end).flat_map(move |run| {
        let (begin, region) = physical(ring, run.slot);
        let mut at = 0;
        std::iter::from_fn(move || {
            let offset = begin - region + at;
            let n = (run.n - at).min(size - offset % size);
            let block = (n > 0).then(|| {
                let lo = offset % SLOT_ALIGN;
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
                                       from in 0u64..900, n in 1u64..300, size in prop::sample::select(vec![32_u64, 128])) {
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

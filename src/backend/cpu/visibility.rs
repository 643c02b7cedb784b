//! The visible range of a query, and blocks of visible keys in consecutive slots.

use std::ops::Range;

use super::kv_layout::{SLOT_ALIGN, physical};
use crate::ring::{Ring, Run};

/// A row of queries, as far as its visible range depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VisibleRange {
    /// Index of its token in the sequence.
    pub index: u64,
    /// E(p + 1): ring indices between sinks and window when it is computed.
    pub evicted: u64,
    /// Pinned tokens. The row sees all of them.
    pub pinned: u64,
}

impl VisibleRange {
    /// The slots of the visible sinks and pinned tokens, or the ring indices of the visible window tokens.
    pub fn keys(self, ring: &Ring, fixed: bool) -> Range<u64> {
        let end = self.index + 1; // mutant: future_token_visible
        // mutant: evicted_token_visible
        if fixed { 0..end.min(ring.n_sink) + self.pinned } else { ring.n_sink + self.evicted..end }
    }

    /// Tokens dropped between the sinks and the row's own token.
    pub fn sink_offset(self) -> u64 {
        self.evicted - self.pinned // mutant: pins_dropped_for_sinks
    }
}

/// Visible keys in consecutive physical slots. Column c is slot `slot + c`; columns `lo..hi` hold the keys whose places
/// (slots of sinks and pinned tokens, or ring indices) begin at `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Sinks and pinned tokens, or window tokens.
    pub fixed: bool,
    pub first: u64,
    /// A multiple of [`SLOT_ALIGN`].
    pub slot: u64,
    pub lo: usize,
    pub hi: usize,
}

impl Block {
    /// The columns that a row sees, possibly none.
    pub fn columns(&self, ring: &Ring, visible_range: VisibleRange) -> Range<usize> {
        let keys = visible_range.keys(ring, self.fixed);
        let end = self.places().end;
        let column = |key: u64| self.lo + (key.clamp(self.first, end) - self.first) as usize;
        // An empty window may begin beyond its end.
        column(keys.start)..column(keys.end.max(keys.start))
    }

    /// The places of its keys.
    pub fn places(&self) -> Range<u64> {
        self.first..self.first + (self.hi - self.lo) as u64
    }

    /// The place of the key in a column.
    pub fn place(&self, column: usize) -> u64 {
        self.first + (column - self.lo) as u64
    }
}

/// The blocks of keys in a range of places. They end where physical slots, counted from the beginning of their region,
/// reach a multiple of `size`, so that block borders depend on the places only.
pub(super) fn blocks(ring: &Ring, fixed: bool, keys: Range<u64>, size: u64) -> impl Iterator<Item = Block> + use<'_> {
    // Slots of sinks and pinned tokens do not wrap.
    let slots = fixed.then(|| Run { first: keys.start, slot: keys.start, n: keys.end - keys.start });
    let runs = (!fixed).then(|| ring.runs(keys.start, keys.end)).into_iter().flatten();
    slots.into_iter().chain(runs).flat_map(move |run| {
        let (begin, region) = physical(ring, run.slot);
        let mut at = 0;
        std::iter::from_fn(move || {
            let offset = begin - region + at;
            let n = (run.n - at).min(size - offset % size);
            let block = (n > 0).then(|| {
                let lo = offset % SLOT_ALIGN; // mutant: block_begins_late
                Block {
                    fixed,
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
        /// Every key is in one column of one block, in order, in its own physical slot; blocks keep to their size.
        #[test]
        fn blocks_hold_each_key_once(n_sink in 0u32..70, pinned in 0u32..70, window in 1u32..300, chunk in 1u32..70,
                                     fixed: bool, from in 0u64..900, n in 1u64..300,
                                     size in prop::sample::select(vec![32_u64, 128])) {
            let ring = Ring::new(n_sink, window, chunk, 0).with_edits(pinned, 9);
            let keys = if fixed {
                let from = from.min(ring.fixed_slots());
                from..ring.fixed_slots().min(from + n)
            } else {
                let from = from.max(ring.n_sink);
                from..from + n.min(ring.ring_slots)
            };
            let mut next = keys.start;
            for b in blocks(&ring, fixed, keys.clone(), size) {
                prop_assert!(b.hi > b.lo && b.hi as u64 <= size && b.slot.is_multiple_of(SLOT_ALIGN));
                prop_assert_eq!(b.first, next);
                for c in b.lo..b.hi {
                    let slot = if fixed { b.place(c) } else { ring.slot(b.place(c)) };
                    prop_assert_eq!(b.slot + c as u64, physical(&ring, slot).0);
                }
                next += (b.hi - b.lo) as u64;
            }
            prop_assert_eq!(next, keys.end);
        }
    }
}

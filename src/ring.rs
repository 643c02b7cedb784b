//! Slot arithmetic: which slot a token is stored in, and which tokens are visible at which length. Pure functions of
//! counters; no K or V is touched.
//!
//! A token is named by its index in its sequence, counted from 0 since the last reset. Tokens below `n_sink` and pinned
//! ones have slots of their own; the others use `ring_slots` slots in a circle. The visible range follows from indices
//! alone, never from what a slot holds, so an overwritten slot cannot become visible.
//!
//! The place of a window token in the circle is its **ring index**: its index plus the tokens that edits (pin,
//! evict_range) have taken out of the window behind it (`ranges.rs`). Without such edits, and for all tokens that come
//! after the last one, it is the index. So ring indices of the window are consecutive, and all arithmetic of this file
//! is that of a plain window.

/// Geometry of the cache of one layer, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// First tokens of a sequence, which are never dropped.
    pub n_sink: u64,
    /// Most recent tokens that a query attends to, its own included.
    pub window: u64,
    /// Slots shared by all tokens that are not sinks: `window + max(max_chunk, max_rewind)`.
    pub ring_slots: u64,
    /// How far below its highest length a sequence may be rewound.
    pub max_rewind: u64,
    /// The most pinned tokens, sinks not counted.
    pub max_pinned: u64,
    /// The most pinned runs and evicted ranges.
    pub max_segments: u64,
}

/// Counters of one sequence in one layer, in tokens. The CUDA kernels read and write the same struct in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seq {
    /// Tokens appended and not rewound.
    pub len: u64,
    /// Highest `len` since the last reset: any token below it may have overwritten a slot.
    pub highest: u64,
    /// Lower bound on the evicted tokens (ring indices between sinks and window), raised by edits.
    pub floor: u64,
    /// Tokens of the latest append whose queries may still be passed to attend.
    pub attendable: u64,
    /// Ring index of the oldest window token that the load of a snapshot has restored; 0 in a sequence that was not
    /// loaded. Older ones are in no slot.
    pub loaded_from: u64,
    /// End of what explicit edits have touched: no rewind may cut below it. 0 = nothing.
    pub edited: u64,
    /// Pinned and evicted ranges in the sequence's list.
    pub n_ranges: u32,
    /// Pinned tokens, sinks not counted.
    pub n_pinned: u32,
}

/// Consecutive tokens in consecutive slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Ring index of the first token.
    pub first: u64,
    /// Slot of the first token.
    pub slot: u64,
    /// Tokens in the run.
    pub n: u64,
}

/// Why an edit is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditRejection {
    /// More tokens than the sequence, or its window, holds. Value: the number it holds.
    TooMany(u64),
    /// Tokens that would become visible again have been overwritten. Value: the most tokens that can be removed.
    Overwritten(u64),
    /// An explicit edit has touched what would be cut. Value: the most that can be removed.
    Edited(u64),
}

impl Ring {
    /// The ring for `n_sink + window` visible tokens, chunks of `max_chunk` and rewinds of `max_rewind` tokens.
    ///
    /// Hence the extra slots: when append and attend are separate calls, the first query of a chunk needs the tokens
    /// that the chunk's last token pushes out of the window; and a rewind needs those that the removed tokens pushed
    /// out.
    #[must_use]
    pub fn new(n_sink: u32, window: u32, max_chunk: u32, max_rewind: u32) -> Self {
        let (window, max_rewind) = (u64::from(window), u64::from(max_rewind));
        let ring_slots = window + max_rewind.max(u64::from(max_chunk)); // mutant: ring_without_chunk_room
        Self { n_sink: n_sink.into(), window, ring_slots, max_rewind, max_pinned: 0, max_segments: 0 }
    }

    /// The ring with room for pinned tokens and for pinned and evicted ranges.
    #[must_use]
    pub fn with_edits(self, max_pinned: u32, max_segments: u32) -> Self {
        Self { max_pinned: max_pinned.into(), max_segments: max_segments.into(), ..self }
    }

    /// Slots of tokens that stay for ever: sinks, then pinned tokens in order of index.
    #[must_use]
    pub fn fixed_slots(&self) -> u64 {
        self.n_sink + self.max_pinned
    }

    /// Slots of one sequence: those of sinks and pinned tokens, then the ring.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.fixed_slots() + self.ring_slots
    }

    /// Slot of the sink, or of the window token, with ring index `t`.
    #[must_use]
    pub fn slot(&self, t: u64) -> u64 {
        if t < self.n_sink { t } else { self.fixed_slots() + (t - self.n_sink) % self.ring_slots }
    }

    /// Slots in use of sinks and pinned tokens, and of the ring, in a sequence with these counters.
    #[must_use]
    pub fn used_slots(&self, seq: &Seq) -> [u64; 2] {
        let fixed = seq.highest.min(self.n_sink) + u64::from(seq.n_pinned); // mutant: fork_without_pins
        [fixed, seq.highest.saturating_sub(self.n_sink).min(self.ring_slots)]
    }

    /// E(len): ring indices between sinks and window when the sequence holds `len` tokens: as many as there are dropped
    /// and pinned tokens.
    #[must_use]
    pub fn evicted(&self, len: u64, floor: u64) -> u64 {
        floor.max(len.saturating_sub(self.n_sink + self.window)) // mutant: evicted_one_too_few
    }

    /// Ring index of the oldest window token at length `len`.
    #[must_use]
    pub fn window_start(&self, len: u64, floor: u64) -> u64 {
        self.n_sink + self.evicted(len, floor)
    }

    /// Window tokens held at length `len`.
    #[must_use]
    pub fn window_len(&self, len: u64, floor: u64) -> u64 {
        len.saturating_sub(self.window_start(len, floor))
    }

    /// Tokens held: sinks, pinned tokens and window.
    #[must_use]
    pub fn held(&self, seq: &Seq) -> u64 {
        seq.len.min(self.n_sink) + u64::from(seq.n_pinned) + self.window_len(seq.len, seq.floor)
    }

    /// Sinks and window tokens with ring indices `first..end` as runs of consecutive slots, in order. A run ends where
    /// the sinks end and where the ring wraps.
    pub fn runs(&self, first: u64, end: u64) -> impl Iterator<Item = Run> + use<> {
        let ring = *self;
        let mut at = first;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let slot = ring.slot(at);
            let room = if at < ring.n_sink { ring.n_sink - slot } else { ring.slots() - slot };
            let run = Run { first: at, slot, n: room.min(end - at) };
            at += run.n;
            Some(run)
        })
    }

    /// Oldest ring token that no token below `highest` can have overwritten.
    #[must_use]
    pub fn intact_from(&self, highest: u64) -> u64 {
        self.n_sink.max(highest.saturating_sub(self.ring_slots))
    }

    /// Whether the tokens visible at length `len` are all still in their slots.
    #[must_use]
    pub fn intact(&self, len: u64, seq: &Seq) -> bool {
        // mutant: abort_below_a_load
        self.window_start(len, seq.floor) >= self.intact_from(seq.highest).max(seq.loaded_from)
    }

    /// Checks an evict of the `n` oldest window tokens.
    ///
    /// # Errors
    /// `TooMany` when the window holds fewer.
    pub fn check_evict(&self, seq: &Seq, n: u64) -> Result<(), EditRejection> {
        let held = self.window_len(seq.len, seq.floor);
        if n > held { Err(EditRejection::TooMany(held)) } else { Ok(()) }
    }

    /// Checks a rewind of the last `n` tokens.
    ///
    /// # Errors
    /// When the sequence is shorter, or when tokens that would be visible again have been overwritten or evicted.
    pub fn check_rewind(&self, seq: &Seq, n: u64) -> Result<(), EditRejection> {
        if n > seq.len {
            return Err(EditRejection::TooMany(seq.len));
        }
        if n == 0 {
            return Ok(());
        }
        let new = seq.len - n;
        if new < seq.edited {
            return Err(EditRejection::Edited(self.rewindable(seq))); // mutant: rewind_across_an_edit
        }
        if self.window_start(new, seq.floor) < self.rewind_limit(seq) {
            return Err(EditRejection::Overwritten(self.rewindable(seq)));
        }
        Ok(())
    }

    /// Ring index of the oldest window token that a rewind may make visible again.
    fn rewind_limit(&self, seq: &Seq) -> u64 {
        seq.highest.saturating_sub(self.window + self.max_rewind).max(seq.loaded_from) // mutant: rewind_below_a_load
    }

    /// Oldest window token that is visible, or that a rewind may make visible: what a snapshot keeps of the window
    /// begins here.
    #[must_use]
    pub fn kept_from(&self, seq: &Seq) -> u64 {
        let back = self.rewind_limit(seq).max(self.n_sink + seq.floor);
        self.window_start(seq.len, seq.floor).min(back) // mutant: snapshot_of_the_window_alone
    }

    /// The counters of a sequence after a load: `saved` are those of the snapshot, whose window tokens begin at
    /// `saved.loaded_from`. The window, and the sinks, are those of the ring that it was saved from; the other settings
    /// may differ. A rewind brings back what both rings allow.
    #[must_use]
    pub fn restored(&self, saved: &Seq) -> Seq {
        // Nothing above `len` is written. A ring shorter than the saved one would take its window for overwritten.
        let highest = self.window_start(saved.len, saved.floor).saturating_add(self.ring_slots).min(saved.highest);
        let mut seq = Seq { highest, attendable: 0, ..*saved };
        seq.loaded_from = self.kept_from(&seq);
        seq
    }

    /// The most tokens that [`Self::check_rewind`] accepts.
    #[must_use]
    pub fn rewindable(&self, seq: &Seq) -> u64 {
        // window_start(new) >= limit, solved for new. The floor alone may satisfy it; otherwise new must be large
        // enough.
        let limit = self.rewind_limit(seq);
        let below_ring = if self.n_sink + seq.floor >= limit { 0 } else { limit + self.window };
        seq.len.saturating_sub(seq.edited.max(below_ring))
    }
}

impl Seq {
    /// Appends `n` tokens.
    pub fn append(&mut self, n: u64) {
        self.len += n;
        self.highest = self.highest.max(self.len);
        self.attendable = n;
    }

    /// Takes `n` tokens out of the window: those older than them have moved up by `n` ring indices.
    pub fn shorten(&mut self, ring: &Ring, n: u64) {
        self.floor = ring.evicted(self.len, self.floor) + n; // mutant: evict_counts_from_zero
        self.attendable = 0;
    }

    /// Sets the length to `len`, as checked before. At an unchanged length the queries stay valid.
    pub fn cut(&mut self, len: u64) {
        if len != self.len {
            self.len = len; // mutant: rewind_forgets_highest
            self.attendable = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_wrap_after_the_sinks() {
        let ring = Ring::new(4, 28, 32, 16);
        assert_eq!((ring.ring_slots, ring.slots()), (60, 64));
        assert_eq!([0, 3, 4, 63, 64, 124].map(|t| ring.slot(t)), [0, 3, 4, 63, 4, 4]);
    }

    #[test]
    fn runs_break_at_sinks_and_wrap() {
        let ring = Ring::new(2, 3, 2, 0);
        let runs: Vec<_> = ring.runs(0, 9).collect();
        let run = |first, slot, n| Run { first, slot, n };
        assert_eq!(runs, [run(0, 0, 2), run(2, 2, 5), run(7, 2, 2)]);
        assert_eq!(ring.runs(5, 5).count(), 0);
    }

    #[test]
    fn far_lengths_do_not_overflow() {
        let ring = Ring::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(ring.evicted(u64::MAX, 0), u64::MAX - 2 * u64::from(u32::MAX));
        assert_eq!(ring.window_len(u64::MAX, 0), u64::from(u32::MAX));
    }

    fn small_rings() -> impl Strategy<Value = Ring> {
        (0u32..5, 1u32..9, 1u32..9, 0u32..9)
            .prop_map(|(sink, window, chunk, back)| Ring::new(sink, window, chunk, back))
    }

    proptest! {
        /// `rewindable` is exactly the largest n that `check_rewind` accepts.
        #[test]
        fn rewindable_is_the_largest_accepted(ring in small_rings(), len in 0u64..60, above in 0u64..20,
                                              floor in 0u64..40, loaded_from in 0u64..60) {
            let floor = floor.min(len.saturating_sub(ring.n_sink));
            let loaded_from = loaded_from.min(ring.window_start(len, floor));
            let edited = if floor > 0 { ring.n_sink + floor } else { 0 };
            let seq = Seq { len, highest: len + above, floor, loaded_from, edited, ..Seq::default() };
            let best = (0..=len).filter(|&n| ring.check_rewind(&seq, n).is_ok()).max();
            prop_assert_eq!(best, Some(ring.rewindable(&seq)));
        }

        /// Every token that an accepted rewind makes visible is still in its slot.
        #[test]
        fn an_accepted_rewind_is_intact(ring in small_rings(), len in 0u64..60, above in 0u64..8) {
            let seq = Seq { len, highest: len + above, ..Seq::default() };
            for n in 1..=ring.rewindable(&seq) {
                prop_assert!(ring.intact(len - n, &seq));
            }
        }

        /// A loaded sequence may be rewound by what both rings allow, and every token that it may show has a slot of
        /// its own.
        #[test]
        fn a_load_brings_back_what_both_rings_allow(ring in small_rings(), other in (1u32..9, 0u32..9),
                                                    len in 0u64..60, above in 0u64..9, floor in 0u64..40) {
            let floor = floor.min(len.saturating_sub(ring.n_sink));
            // As far above its length as a sequence can be that has all of its window.
            let highest = (len + above).min(ring.window_start(len, floor) + ring.ring_slots);
            let above = highest - len;
            let edited = if floor > 0 { ring.n_sink + floor } else { 0 };
            let mut seq = Seq { len, highest, floor, edited, ..Seq::default() };
            let here = ring.rewindable(&seq);
            seq.loaded_from = ring.kept_from(&seq);
            prop_assert_eq!(ring.rewindable(&seq), here);
            let other = Ring::new(ring.n_sink as u32, ring.window as u32, other.0, other.1);
            let loaded = other.restored(&seq);
            prop_assert!(loaded.highest >= len && other.intact(len, &loaded));
            prop_assert!(len.saturating_sub(loaded.loaded_from) <= other.ring_slots);
            prop_assert!(loaded.loaded_from >= seq.loaded_from);
            let there = other.rewindable(&loaded);
            for n in 1..=there {
                prop_assert!(other.window_start(len - n, floor) >= loaded.loaded_from);
            }
            // A length that needs a token which was not loaded is none to go back to.
            for shorter in (0..len).filter(|&l| other.window_start(l, floor) < loaded.loaded_from) {
                prop_assert!(!other.intact(shorter, &loaded));
            }
            // With the same settings nothing has changed.
            if other == ring {
                prop_assert_eq!((loaded.highest, there), (seq.highest, here));
            }
            // An aborted step may leave a sequence further below its highest length than a rewind may.
            if above <= ring.max_rewind {
                prop_assert!(there <= here);
                if loaded.highest == seq.highest {
                    let by_setting = other.rewindable(&Seq { loaded_from: 0, ..seq });
                    prop_assert_eq!(there, here.min(by_setting));
                }
            }
        }

        /// Two tokens that can be visible at the same time never share a slot.
        #[test]
        fn live_tokens_have_slots_of_their_own(n_sink in 0u32..5, window in 1u32..9, chunk in 1u32..9,
                                               len in 1u64..99) {
            let ring = Ring::new(n_sink, window, chunk, 0);
            let n = u64::from(chunk).min(len);
            let first = ring.window_start(len - n + 1, 0);
            let mut seen = std::collections::HashSet::new();
            for t in (0..u64::from(n_sink).min(len)).chain(first..len) {
                prop_assert!(seen.insert(ring.slot(t)));
                prop_assert!(ring.slot(t) < ring.slots());
            }
        }
    }
}

//! Pinned and evicted ranges of a sequence in one layer: what `pin` and `evict_range` change, and what follows from it
//! for attention. Pure functions of counters and of a short list; no K or V is touched.
//!
//! Both edits take tokens out of the window. Pinned tokens go to slots of their own, evicted ones are gone; window
//! tokens that are older move up by as many slots, so that the window stays consecutive in the ring (`ring.rs`). What
//! must be remembered is a list of ranges: pinned runs, and evicted ranges that still have window tokens before them.
//! From it follow the index of every ring index, and the **segments** of the cache: runs of tokens with one distance to
//! the query's position. Keys stay as they are; the query is rotated for each segment (docs/semantics.md).

use crate::ring::{Ring, Seq};

/// Consecutive tokens that an edit has taken out of the window. Lists are in order of index; neighbours of one kind
/// never touch. The CUDA kernels read and write the same struct in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EditedRange {
    /// Index of the first token.
    pub first: u64,
    /// Tokens.
    pub n: u64,
    /// Tokens of all later ranges of the list.
    pub later: u64,
    /// Pinned tokens of all later ranges.
    pub later_pinned: u32,
    /// 1: pinned, 0: evicted.
    pub pinned: u32,
}

impl EditedRange {
    const NONE: Self = Self { first: 0, n: 0, later: 0, later_pinned: 0, pinned: 0 };

    fn new(first: u64, end: u64, pinned: u32) -> Self {
        Self { first, n: end - first, pinned, ..Self::NONE }
    }

    /// Index of the token after the range.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.n
    }

    /// Ring index of the first window token after the range; the window token before it has the ring index before.
    #[must_use]
    pub fn ring_end(&self) -> u64 {
        self.end() + self.later // mutant: segment_border_off_by_one
    }

    /// Evicted tokens of all later ranges.
    #[must_use]
    pub fn later_evicted(&self) -> u64 {
        self.later - u64::from(self.later_pinned)
    }

    /// Evicted tokens of this range and all later ones.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.later_evicted() + if self.pinned == 1 { 0 } else { self.n } // mutant: pin_counted_as_dropped
    }

    fn touches(&self, first: u64, end: u64) -> bool {
        self.first <= end && first <= self.end()
    }

    fn overlaps(&self, first: u64, end: u64) -> bool {
        self.first < end && first < self.end()
    }
}

/// Index of the window token with ring index `at`.
#[must_use]
pub fn index_of(ranges: &[EditedRange], at: u64) -> u64 {
    // The ranges that are later than the token.
    let i = ranges.partition_point(|r| r.ring_end() <= at);
    ranges.get(i).map_or(at, |r| at - r.later - r.n)
}

/// Ring index of the oldest window token with index `index` or more, as far as the list knows.
#[must_use]
pub fn ring_index_from(ranges: &[EditedRange], index: u64) -> u64 {
    // The first range that does not end before it.
    let i = ranges.partition_point(|r| r.end() <= index);
    // Inside a range: the first token after it.
    ranges.get(i).map_or(index, |r| if index < r.first { index + r.n + r.later } else { r.ring_end() })
}

/// A run of window tokens whose distance to a query's position is one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSegment {
    /// Ring index of the first token.
    pub from: u64,
    /// Ring index of the token after the last.
    pub end: u64,
    /// Tokens that were dropped behind it, before the query: the query meets it rotated back by so many positions.
    pub offset: u64,
    /// Ring index of a token less its index.
    pub shift: u64,
}

/// The segments of the window tokens with ring indices `from..end`, in order.
pub fn window_segments(ranges: &[EditedRange], from: u64, end: u64) -> impl Iterator<Item = WindowSegment> + use<'_> {
    let mut i = ranges.partition_point(|r| r.ring_end() <= from);
    let mut at = from;
    std::iter::from_fn(move || {
        while at < end {
            let segment = match ranges.get(i) {
                None => WindowSegment { from: at, end, offset: 0, shift: 0 },
                Some(r) => {
                    i += 1;
                    let (offset, shift) = (r.evicted(), r.n + r.later);
                    WindowSegment { from: at, end: r.ring_end().min(end), offset, shift }
                }
            };
            at = segment.end;
            if segment.from < segment.end {
                return Some(segment);
            }
        }
        None
    })
}

/// Why an edit is invalid in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRejection {
    /// The range ends beyond the sequence. Value: the sequence's length.
    Beyond(u64),
    /// The range to evict has a sink.
    Sink,
    /// A token to pin is not held.
    NotHeld,
    /// More pinned tokens than `max_pinned`. Value: as many as there would be.
    Pinned(u64),
    /// More ranges than `max_segments`. Value: as many as there would be.
    Segments(u64),
}

/// What an edit changes in one layer, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeEdit {
    /// Indices of the edit's tokens that are no sinks: `first..end`.
    first: u64,
    end: u64,
    /// Whether they are pinned, or evicted.
    pins: bool,
    /// Ring index of the first window token that leaves the window, and their number.
    from: u64,
    taken: u64,
    /// Pinned tokens before `first`, and those of the edit.
    pinned_before: u64,
    pinned_within: u64,
    /// Ring index of the oldest window token before the edit, and its index.
    oldest: u64,
    oldest_index: u64,
    /// Index of the oldest window token after the edit.
    oldest_after: u64,
    /// Ranges of the list that the edit replaces: from this one on, so many.
    at: usize,
    replaced: usize,
}

impl RangeEdit {
    /// Checks a pin of the `n > 0` tokens from index `first` on. In a layer without room for pins nothing is changed.
    ///
    /// # Errors
    /// See [`RangeRejection`].
    pub fn pin(ring: &Ring, seq: &Seq, ranges: &[EditedRange], first: u64, n: u64) -> Result<Self, RangeRejection> {
        let end = end_of(seq, first, n)?;
        let first = first.max(ring.n_sink);
        if ring.max_pinned == 0 || end <= first {
            return Ok(Self::default());
        }
        // Pinned neighbours are joined.
        let edit = Self {
            pins: true,
            ..Self::new(ring, seq, ranges, (first, end), |r| r.pinned == 1 && r.touches(first, end))
        };
        if edit.taken + edit.pinned_within < end - first {
            return Err(RangeRejection::NotHeld);
        }
        edit.with_room(ring, seq, ranges)
    }

    /// Checks an evict of what is held of the `n > 0` tokens from index `first` on.
    ///
    /// # Errors
    /// See [`RangeRejection`].
    pub fn evict(ring: &Ring, seq: &Seq, ranges: &[EditedRange], first: u64, n: u64) -> Result<Self, RangeRejection> {
        let end = end_of(seq, first, n)?;
        if first < ring.n_sink {
            return Err(RangeRejection::Sink);
        }
        // Evicted neighbours are joined.
        let replaces = |r: &EditedRange| r.overlaps(first, end) || (r.pinned == 0 && r.touches(first, end));
        Self::new(ring, seq, ranges, (first, end), replaces).with_room(ring, seq, ranges)
    }

    fn new(
        ring: &Ring,
        seq: &Seq,
        ranges: &[EditedRange],
        (first, end): (u64, u64),
        replaces: impl Fn(&EditedRange) -> bool,
    ) -> Self {
        let oldest = ring.window_start(seq.len, seq.floor).min(seq.len);
        let from = ring_index_from(ranges, first).max(oldest);
        let taken = ring_index_from(ranges, end).max(from) - from;
        let oldest_after = index_of(ranges, if from == oldest { from + taken } else { oldest });
        // Neighbours of the tokens are neighbours in the list.
        let at = ranges.iter().position(&replaces).unwrap_or_else(|| ranges.partition_point(|r| r.first < first));
        let replaced = ranges[at..].iter().take_while(|r| replaces(r)).count();
        let pinned = |to: u64| {
            let within = |r: &EditedRange| if r.pinned == 1 { to.clamp(r.first, r.end()) - r.first } else { 0 };
            ranges.iter().map(within).sum::<u64>()
        };
        let pinned_before = pinned(first);
        let pinned_within = pinned(end) - pinned_before;
        let oldest_index = index_of(ranges, oldest);
        Self {
            first,
            end,
            pins: false,
            from,
            taken,
            pinned_before,
            pinned_within,
            oldest,
            oldest_index,
            oldest_after,
            at,
            replaced,
        }
    }

    /// Whether anything is changed.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.taken > 0 || (!self.pins && self.pinned_within > 0)
    }

    /// Checks whether there is room for the edit.
    fn with_room(self, ring: &Ring, seq: &Seq, ranges: &[EditedRange]) -> Result<Self, RangeRejection> {
        if !self.changes() {
            return Ok(self);
        }
        let n_pinned = self.n_pinned(seq);
        if n_pinned > ring.max_pinned {
            return Err(RangeRejection::Pinned(n_pinned));
        }
        let n = self.count(ranges);
        if n > ring.max_segments { Err(RangeRejection::Segments(n)) } else { Ok(self) }
    }

    /// Pinned tokens after the edit.
    fn n_pinned(&self, seq: &Seq) -> u64 {
        let before = u64::from(seq.n_pinned);
        if self.pins { before + self.taken } else { before - self.pinned_within }
    }

    /// The ranges that take the place of those replaced; those of 0 tokens are none.
    fn new_ranges(&self, ranges: &[EditedRange]) -> [EditedRange; 3] {
        let old = &ranges[self.at..self.at + self.replaced];
        let (first, last) = (old.first().copied(), old.last().copied());
        let (mut from, mut end) = (self.first, self.end);
        let mut new = [EditedRange::NONE; 3];
        // What lies outside the edit's tokens is joined, or stays as it was.
        if let Some(r) = first.filter(|r| r.first < from) {
            if (r.pinned == 1) == self.pins {
                from = r.first
            } else {
                new[0] = EditedRange::new(r.first, from, r.pinned)
            }
        }
        if let Some(r) = last.filter(|r| r.end() > end) {
            if (r.pinned == 1) == self.pins { end = r.end() } else { new[2] = EditedRange::new(end, r.end(), r.pinned) }
        }
        new[1] = EditedRange::new(from, end, u32::from(self.pins));
        new
    }

    /// Whether a range stays in the list: evicted ones do while window tokens are older.
    fn keeps(&self, r: &EditedRange) -> bool {
        r.n > 0 && (r.pinned == 1 || r.first > self.oldest_after) // mutant: passed_range_kept
    }

    /// Ranges of the list after the edit.
    fn count(&self, ranges: &[EditedRange]) -> u64 {
        let (before, after) = (&ranges[..self.at], &ranges[self.at + self.replaced..]);
        let new = self.new_ranges(ranges);
        before.iter().chain(after).chain(&new).filter(|r| self.keeps(r)).count() as u64
    }

    /// Brings a list and its counters up to date. `list` has room for the layer's `max_segments` ranges, of which the
    /// sequence has `seq.n_ranges`.
    pub fn apply(&self, ring: &Ring, seq: &mut Seq, list: &mut [EditedRange]) {
        if !self.changes() {
            return;
        }
        let old = seq.n_ranges as usize;
        let new = self.new_ranges(&list[..old]);
        // What is not kept makes room first: then there is room at every moment.
        let (mut n, mut at) = (0, 0);
        for i in 0..old {
            if i < self.at && self.keeps(&list[i]) {
                at += 1;
            }
            if !(self.at..self.at + self.replaced).contains(&i) && self.keeps(&list[i]) {
                list[n] = list[i];
                n += 1;
            }
        }
        for r in new.into_iter().filter(|r| self.keeps(r)) {
            list.copy_within(at..n, at + 1);
            list[at] = r;
            (at, n) = (at + 1, n + 1);
        }
        sum_later(&mut list[..n]);
        seq.edited = seq.edited.max(self.end).max(self.oldest_index); // mutant: edit_forgets_the_window
        (seq.n_ranges, seq.n_pinned) = (n as u32, self.n_pinned(seq) as u32);
        seq.shorten(ring, self.taken);
    }

    /// The rows that move, each a number of consecutive slots from one slot to another, which may overlap. They must be
    /// moved in this order. `ranges` is the list before the edit.
    pub fn moves(&self, ring: &Ring, seq: &Seq, ranges: &[EditedRange], mut move_rows: impl FnMut(u64, u64, u64)) {
        if !self.changes() {
            return;
        }
        let slot_of_pinned = |rank: u64| ring.n_sink + rank;
        let (before, within) = (self.pinned_before, self.pinned_within);
        let after = u64::from(seq.n_pinned) - before - within;
        if self.pins {
            // Pinned tokens that are newer make room, the newest first.
            move_rows(slot_of_pinned(before + within), slot_of_pinned(before + within + self.taken), after);
            // Then those between the tokens to pin, and these themselves.
            let (mut rank, mut taken, mut end) = (before + within, self.taken, self.end);
            for r in ranges.iter().rev().filter(|r| r.pinned == 1 && r.overlaps(self.first, self.end)) {
                let (first, last) = (r.first.max(self.first), r.end().min(self.end));
                (rank, taken) = self.pin_rows(ring, rank, taken, end.saturating_sub(last), &mut move_rows);
                rank -= last - first;
                // mutant: pin_overwrites_a_pin
                move_rows(slot_of_pinned(rank), slot_of_pinned(rank + taken), last - first);
                end = first;
            }
            self.pin_rows(ring, rank, taken, end - self.first, &mut move_rows);
        } else if within > 0 {
            // mutant: evicted_pin_stays
            move_rows(slot_of_pinned(before + within), slot_of_pinned(before), after);
        }
        // Older window tokens close the gap, the newest first.
        let mut end = self.from;
        if self.taken == 0 {
            return;
        }
        while end > self.oldest {
            let to_wrap = |at: u64| (at - 1 - ring.n_sink) % ring.ring_slots + 1;
            let n = (end - self.oldest).min(to_wrap(end)).min(to_wrap(end + self.taken));
            end -= n;
            move_rows(ring.slot(end), ring.slot(end + self.taken), n); // mutant: window_moves_one_too_far
        }
    }

    /// Moves the last `n` of the first `taken` window tokens of the edit to their slots: `rank` pinned tokens come
    /// before all of these. Returns `rank`, and the window tokens that are left.
    fn pin_rows(
        &self,
        ring: &Ring,
        rank: u64,
        taken: u64,
        n: u64,
        move_rows: &mut impl FnMut(u64, u64, u64),
    ) -> (u64, u64) {
        let left = taken - n;
        for run in ring.runs(self.from + left, self.from + taken) {
            // mutant: pinned_from_its_old_slot
            move_rows(run.slot, ring.n_sink + rank + (run.first - self.from), run.n);
        }
        (rank, left)
    }
}

impl Seq {
    /// Drops the `n > 0` oldest window tokens, as checked before. Keys of the latest append's queries may be among
    /// them. `ranges` are those of the sequence.
    pub fn evict(&mut self, ring: &Ring, ranges: &[EditedRange], n: u64) {
        self.shorten(ring, n);
        let last = ring.n_sink + self.floor - 1;
        self.edited = self.edited.max(index_of(ranges, last) + 1);
    }
}

/// The index after `n` tokens from `first` on.
fn end_of(seq: &Seq, first: u64, n: u64) -> Result<u64, RangeRejection> {
    first.checked_add(n).filter(|&end| end <= seq.len).ok_or(RangeRejection::Beyond(seq.len))
}

/// Fills in what is later than each range of a list.
pub fn sum_later(list: &mut [EditedRange]) {
    let (mut later, mut later_pinned) = (0, 0);
    for r in list.iter_mut().rev() {
        (r.later, r.later_pinned) = (later, later_pinned);
        later += r.n;
        later_pinned += if r.pinned == 1 { r.n as u32 } else { 0 };
    }
}

/// Held runs of consecutive indices, and the ranges that count towards `max_segments`.
#[must_use]
pub fn segments(ring: &Ring, seq: &Seq, ranges: &[EditedRange]) -> (u64, u64) {
    let oldest = ring.window_start(seq.len, seq.floor).min(seq.len);
    let oldest_index = index_of(ranges, oldest);
    let counted = ranges.iter().filter(|r| r.pinned == 1 || r.first > oldest_index).count() as u64;
    let mut runs = 0;
    // End of the run so far.
    let mut end = None;
    let mut add = |first: u64, last: u64| {
        if first < last {
            runs += u64::from(end != Some(first));
            end = Some(last);
        }
    };
    add(0, seq.len.min(ring.n_sink));
    let mut from = oldest_index;
    for r in ranges {
        add(from, r.first);
        if r.pinned == 1 {
            add(r.first, r.end());
        }
        from = from.max(r.end());
    }
    add(from, seq.len);
    (runs, counted)
}

//! Segments of visible keys, and how queries are rotated for each.

use std::ops::Range;

use super::visibility::VisibleRange;
use crate::ranges::{EditedRange, window_segments};
use crate::ring::Ring;

/// The queries that meet a segment's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentQuery {
    /// Those of the newest tokens: nothing was dropped in between.
    Window,
    /// Those of the sinks.
    Sinks,
    /// Neither: one of them, turned.
    Turned(Turn),
}

/// How far the queries of a segment are from those of the window, or of the sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// While a query's window begins at this ring index or before, only ranges lie between the segment and the query.
    pub ring_end: u64,
    /// The evicted tokens of these: the window's query is turned back by so many positions.
    pub behind: u64,
    /// Otherwise: the tokens that were dropped between sinks and segment. The sinks' query is turned on by so many.
    pub before: u64,
}

impl Turn {
    /// Whether a row's query is that of the sinks, turned on.
    pub fn has_passed(&self, ring: &Ring, row: VisibleRange) -> bool {
        ring.n_sink + row.evicted > self.ring_end
    }
}

/// Consecutive keys that meet the same queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Places of keys in their region: slots of sinks and pinned tokens, or ring indices.
    pub from: u64,
    pub end: u64,
    /// Place less index of a token, modulo 2^64.
    pub shift: u64,
    pub query: SegmentQuery,
}

impl Segment {
    /// Distance in cache positions of a row's query to the key in a place.
    pub fn distance(&self, ring: &Ring, row: VisibleRange, place: u64) -> u64 {
        let offset = match self.query {
            SegmentQuery::Window => 0,
            SegmentQuery::Sinks => row.sink_offset(),
            SegmentQuery::Turned(turn) if turn.has_passed(ring, row) => row.sink_offset() - turn.before,
            SegmentQuery::Turned(turn) => turn.behind,
        };
        // mutant: sink_distance_in_stream
        row.index - offset - place.wrapping_sub(self.shift)
    }
}

/// The segments of sinks and pinned tokens with places in `slots`, in order.
pub(super) fn fixed_segments<'a>(
    ring: &Ring,
    ranges: &'a [EditedRange],
    slots: Range<u64>,
) -> impl Iterator<Item = Segment> + use<'a> {
    let n_sink = ring.n_sink;
    // Pinned tokens before the range.
    let mut pinned = 0;
    let sinks = Segment { from: 0, end: n_sink, shift: 0, query: SegmentQuery::Sinks };
    let pins = ranges.iter().filter(|r| r.pinned == 1).map(move |r| {
        let from = n_sink + pinned;
        pinned += r.n;
        let before = r.end() - n_sink - pinned;
        let turn = Turn { ring_end: r.ring_end(), behind: r.later_evicted(), before };
        // Pinned beside the sinks: it is as far away as they are.
        let query = if before == 0 { SegmentQuery::Sinks } else { SegmentQuery::Turned(turn) };
        Segment { from, end: from + r.n, shift: from.wrapping_sub(r.first), query }
    });
    std::iter::once(sinks).chain(pins).filter_map(move |s| within(s, &slots))
}

/// The segments of the window tokens with ring indices in `keys`, in order.
pub(super) fn ring_segments(ranges: &[EditedRange], keys: Range<u64>) -> impl Iterator<Item = Segment> + use<'_> {
    window_segments(ranges, keys.start, keys.end).map(|s| {
        let turn = Turn { ring_end: u64::MAX, behind: s.offset, before: 0 };
        let query = if s.offset == 0 { SegmentQuery::Window } else { SegmentQuery::Turned(turn) };
        Segment { from: s.from, end: s.end, shift: s.shift, query }
    })
}

/// The part of a segment in a range of places.
fn within(s: Segment, places: &Range<u64>) -> Option<Segment> {
    let (from, end) = (s.from.max(places.start), s.end.min(places.end));
    (from < end).then_some(Segment { from, end, ..s })
}

/// Some columns of a block that meet the same queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub from: usize,
    pub to: usize,
    pub query: SegmentQuery,
}

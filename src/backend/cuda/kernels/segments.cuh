// Segments of a sequence's held tokens: runs of consecutive tokens, each with one distance to a query's position. Keys
// are as they were stored; the query is rotated for each segment. src/ranges.rs says what makes them.
#pragma once

#include "query.cuh"

// Consecutive keys in consecutive slots (of the window: in a circle).
struct Segment {
    u64 index;   // of key 0's token in its sequence
    u64 place;   // of the window: ring index of key 0; else 0
    u64 slot;    // of key 0
    u64 n;
    bool window;
    // Tokens that were dropped between the segment and a query: `behind`, while the query's window begins at the ring
    // index `ring_end` or before; later, all that is not held from the ring index `before` on.
    u64 ring_end;
    u64 before;
    u64 behind;

    // The query meets the keys rotated back by so many positions.
    SKC_DEVICE u64 offset_from(u64 window_start) const {
        return window_start > ring_end ? window_start - before : behind; // mutant: segment_offset_off_by_one
    }

    SKC_DEVICE u64 offset(const Ring& ring, const Queries& q, u64 token) const {
        return offset_from(ring.n_sink + query_evicted(ring, q, token));
    }

    // Distance of a query to key 0 in cache positions.
    SKC_DEVICE u64 distance(const Ring& ring, const Queries& q, u64 token) const {
        return token - offset(ring, q, token) - index;
    }
};

// What segments are made of: a sequence's ranges, and the window tokens that some query sees.
struct SegmentList {
    Ring ring;
    RangeList ranges;
    u64 n_pinned;
    u64 oldest;  // ring indices oldest .. end
    u64 end;

    // Of these some may be empty. In order: sinks; for each range the window tokens between the range before and it,
    // and its pinned tokens; the newest window tokens.
    SKC_DEVICE u32 count() const { return 2 * ranges.n + 2; }
    SKC_DEVICE u32 last() const { return count() - 1; }

    SKC_DEVICE Segment segment(u32 i) const {
        if (i == 0) return {0, 0, 0, min_u64(ring.n_sink, end), false, 0, ring.n_sink + n_pinned, 0};
        u32 r = (i - 1) / 2;
        return i % 2 != 0 ? window_segment(r) : pinned_segment(ranges.at[r]);
    }

    // Ring index of the first token of window_segment(r).
    SKC_DEVICE u64 window_from(u32 r) const {
        return r == 0 ? oldest : max_u64(oldest, range_ring_end(ranges.at[r - 1]));
    }

    SKC_DEVICE Segment window_segment(u32 r) const {
        u64 from = window_from(r);
        u64 to = end;
        u64 shift = 0;
        u64 behind = 0;
        if (r < ranges.n) {
            const SkcRange& next = ranges.at[r];
            to = min_u64(end, range_ring_end(next));
            shift = next.n + next.later;
            behind = range_evicted(next); // mutant: hole_counted_as_window
        }
        u64 slot = ring_fixed_slots(ring) + (from - ring.n_sink) % ring.ring_slots;
        return {from - shift, from, slot, saturating_sub(to, from), true, ~0ull, 0, behind};
    }

    SKC_DEVICE Segment pinned_segment(const SkcRange& r) const {
        u64 n = r.pinned == 1 ? r.n : 0;
        u64 slot = ring.n_sink + (n_pinned - r.later_pinned - n); // mutant: pinned_rows_of_another_range
        return {r.first, 0, slot, n, false, range_ring_end(r), range_end(r) + r.later_pinned, range_later_evicted(r)};
    }
};

// The ranges of a sequence.
SKC_DEVICE const SkcRange* ranges_of(const SkcLayer& l, u32 seq) {
    return l.ranges ? l.ranges + seq * l.max_segments : nullptr;
}

// The segments that the queries of an attend see: of the tokens from the one whose window begins at `oldest` to `last`.
SKC_DEVICE SegmentList segment_list(const SkcLayer& l, u32 seq, u64 oldest, u64 last) {
    const SkcSeq& s = l.seqs[seq];
    return {ring_of(l), {ranges_of(l, seq), s.n_ranges}, s.n_pinned, oldest, last + 1};
}

// What pin and evict_range change in one layer: `RangeEdit` of src/ranges.rs, function by function.
// tests/ring_on_device.rs drives both with the same random histories.
#pragma once

#include "ring.cuh"

// Why an edit is invalid in a layer.
enum RangeRejection {
    RANGE_ACCEPTED = 0,
    RANGE_BEYOND = 1,    // it ends beyond the sequence
    RANGE_SINK = 2,      // the range to evict has a sink
    RANGE_NOT_HELD = 3,  // a token to pin is not held
    RANGE_PINNED = 4,    // more pinned tokens than max_pinned
    RANGE_SEGMENTS = 5,  // more ranges than max_segments
};

struct RangeEdit {
    // Indices of the edit's tokens that are no sinks: first .. end.
    u64 first;
    u64 end;
    // Ring index of the first window token that leaves the window, and their number.
    u64 from;
    u64 taken;
    // Pinned tokens before `first`, and those of the edit.
    u64 pinned_before;
    u64 pinned_within;
    // Ring index of the oldest window token before the edit, and its index; the index of the oldest one after it.
    u64 oldest;
    u64 oldest_index;
    u64 oldest_after;
    // Ranges of the list that the edit replaces: from this one on, so many.
    u32 at;
    u32 replaced;
    bool pins;
    RangeRejection rejection;

    // Whether anything is changed.
    SKC_DEVICE bool changes() const { return taken > 0 || (!pins && pinned_within > 0); }

    // Whether the edit's tokens take the place of a range. Neighbours of their kind are joined.
    SKC_DEVICE bool replaces(const SkcRange& r) const {
        if (pins) return r.pinned == 1 && range_touches(r, first, end);
        return range_overlaps(r, first, end) || (r.pinned == 0 && range_touches(r, first, end));
    }

    // Whether a range stays in the list: evicted ones do while window tokens are older.
    SKC_DEVICE bool keeps(const SkcRange& r) const { return r.n > 0 && (r.pinned == 1 || r.first > oldest_after); }

    SKC_DEVICE bool is_replaced(u32 i) const { return at <= i && i < at + replaced; }
};

// Pinned tokens of a list with indices below `index`.
SKC_DEVICE u64 pinned_below(const RangeList& list, u64 index) {
    u64 sum = 0;
    for (u32 i = 0; i < list.n && list.at[i].first < index; ++i) {
        if (list.at[i].pinned == 1) sum += min_u64(index, range_end(list.at[i])) - list.at[i].first;
    }
    return sum;
}

SKC_DEVICE RangeEdit range_edit(const Ring& ring, const SkcSeq& seq, const RangeList& list, u64 first, u64 end,
                                bool pins) {
    RangeEdit e = {};
    e.first = first;
    e.end = end;
    e.pins = pins;
    e.oldest = min_u64(ring_window_start(ring, seq.len, seq.floor), seq.len);
    e.oldest_index = index_of(list, e.oldest);
    e.from = max_u64(ring_index_from(list, first), e.oldest);
    e.taken = max_u64(ring_index_from(list, end), e.from) - e.from;
    e.oldest_after = e.from == e.oldest ? index_of(list, e.from + e.taken) : e.oldest_index;
    // Neighbours of the tokens are neighbours in the list.
    e.at = 0;
    while (e.at < list.n && !e.replaces(list.at[e.at])) ++e.at;
    if (e.at == list.n) e.at = partition_point(list, [&](const SkcRange& r) { return r.first < first; });
    while (e.at + e.replaced < list.n && e.replaces(list.at[e.at + e.replaced])) ++e.replaced;
    e.pinned_before = pinned_below(list, first);
    e.pinned_within = pinned_below(list, end) - e.pinned_before;
    return e;
}

SKC_DEVICE SkcRange make_range(u64 first, u64 end, bool pinned) { return {first, end - first, 0, 0, pinned ? 1u : 0u}; }

// The ranges that take the place of those replaced; those of 0 tokens are none.
struct NewRanges {
    SkcRange range[3];
};

SKC_DEVICE NewRanges new_ranges(const RangeEdit& e, const RangeList& list) {
    NewRanges x = {};
    u64 from = e.first;
    u64 end = e.end;
    // What lies outside the edit's tokens is joined, or stays as it was.
    if (e.replaced > 0) {
        const SkcRange& first = list.at[e.at];
        const SkcRange& last = list.at[e.at + e.replaced - 1];
        if (first.first < from) {
            if ((first.pinned == 1) == e.pins) {
                from = first.first;
            } else {
                x.range[0] = make_range(first.first, from, first.pinned == 1);
            }
        }
        if (range_end(last) > end) {
            if ((last.pinned == 1) == e.pins) {
                end = range_end(last);
            } else {
                x.range[2] = make_range(end, range_end(last), last.pinned == 1);
            }
        }
    }
    x.range[1] = make_range(from, end, e.pins);
    return x;
}

// Ranges of the list after the edit.
SKC_DEVICE u32 count_ranges(const RangeEdit& e, const RangeList& list) {
    NewRanges fresh = new_ranges(e, list);
    u32 n = 0;
    for (u32 i = 0; i < list.n; ++i) n += !e.is_replaced(i) && e.keeps(list.at[i]);
#pragma unroll
    for (u32 i = 0; i < 3; ++i) n += e.keeps(fresh.range[i]);
    return n;
}

// Pinned tokens after the edit.
SKC_DEVICE u64 pinned_after(const RangeEdit& e, const SkcSeq& seq) {
    return e.pins ? seq.n_pinned + e.taken : seq.n_pinned - e.pinned_within;
}

SKC_DEVICE RangeEdit rejected(RangeRejection why) {
    RangeEdit e = {};
    e.rejection = why;
    return e;
}

// Checks whether there is room for the edit.
SKC_DEVICE RangeEdit with_room(RangeEdit e, const Ring& ring, const SkcSeq& seq, const RangeList& list) {
    if (!e.changes()) return e;
    if (pinned_after(e, seq) > ring.max_pinned) return rejected(RANGE_PINNED);
    return count_ranges(e, list) > ring.max_segments ? rejected(RANGE_SEGMENTS) : e;
}

// Checks a pin of the `n` > 0 tokens from index `first` on. In a layer without room for pins nothing is changed.
SKC_DEVICE RangeEdit check_pin(const Ring& ring, const SkcSeq& seq, const RangeList& list, u64 first, u64 n) {
    if (first > seq.len || n > seq.len - first) return rejected(RANGE_BEYOND);
    u64 end = first + n;
    first = max_u64(first, ring.n_sink);
    if (ring.max_pinned == 0 || end <= first) return {};
    RangeEdit e = range_edit(ring, seq, list, first, end, true);
    if (e.taken + e.pinned_within < end - first) return rejected(RANGE_NOT_HELD);
    return with_room(e, ring, seq, list);
}

// Checks an evict of what is held of the `n` > 0 tokens from index `first` on.
SKC_DEVICE RangeEdit check_evict_range(const Ring& ring, const SkcSeq& seq, const RangeList& list, u64 first, u64 n) {
    // mutant: range_end_overflows
    if (first > seq.len || n > seq.len - first) return rejected(RANGE_BEYOND);
    if (first < ring.n_sink) return rejected(RANGE_SINK);
    return with_room(range_edit(ring, seq, list, first, first + n, false), ring, seq, list);
}

// Fills in what is later than each of `n` ranges.
SKC_DEVICE void sum_later(SkcRange* list, u32 n) {
    u64 later = 0;
    u32 later_pinned = 0;
    for (u32 i = n; i > 0; --i) {
        SkcRange& r = list[i - 1];
        r.later = later;
        r.later_pinned = later_pinned;
        later += r.n;
        if (r.pinned == 1) later_pinned += (u32)r.n;
    }
}

// Brings a list and its counters up to date. `list` has room for the layer's max_segments ranges, of which the sequence
// has `seq.n_ranges`.
SKC_DEVICE void apply_range_edit(const RangeEdit& e, const Ring& ring, SkcSeq& seq, SkcRange* list) {
    if (!e.changes()) return;
    NewRanges fresh = new_ranges(e, {list, seq.n_ranges});
    // What is not kept makes room first: then there is room at every moment.
    u32 n = 0;
    u32 at = 0;
    for (u32 i = 0; i < seq.n_ranges; ++i) {
        if (e.is_replaced(i) || !e.keeps(list[i])) continue;
        if (i < e.at) ++at;
        list[n++] = list[i];
    }
#pragma unroll
    for (u32 j = 0; j < 3; ++j) {
        if (!e.keeps(fresh.range[j])) continue;
        for (u32 i = n; i > at; --i) list[i] = list[i - 1];
        list[at++] = fresh.range[j];
        ++n;
    }
    sum_later(list, n);
    seq.edited = max_u64(max_u64(seq.edited, e.end), e.oldest_index); // mutant: device_edit_forgets_the_window
    seq.n_pinned = (u32)pinned_after(e, seq);
    seq.n_ranges = n;
    seq_shorten(seq, ring, e.taken);
}

// Moves the window tokens with ring indices from .. end to slots from `slot` on.
template <class MoveRows>
SKC_DEVICE void move_to_pins(const Ring& ring, u64 from, u64 end, u64 slot, const MoveRows& move_rows) {
    while (from < end) {
        u64 at = ring_slot(ring, from);
        u64 n = min_u64(end - from, ring_total_slots(ring) - at);
        move_rows(at, slot, n); // mutant: device_pin_from_its_old_slot
        from += n;
        slot += n;
    }
}

// The rows that move, each time a number of consecutive slots from one slot to another, which may overlap:
// move_rows(from, to, n), in this order. `list` is that before the edit.
template <class MoveRows>
SKC_DEVICE void range_moves(const RangeEdit& e, const Ring& ring, const SkcSeq& seq, const RangeList& list,
                            const MoveRows& move_rows) {
    if (!e.changes()) return;
    // Slots of pinned tokens before the edit's, and behind them.
    u64 before = ring.n_sink + e.pinned_before;
    u64 behind = before + e.pinned_within;
    u64 after = seq.n_pinned - e.pinned_before - e.pinned_within;
    if (e.pins) {
        // Pinned tokens that are newer make room, the newest first.
        move_rows(behind, behind + e.taken, after);
        // Then those between the tokens to pin, and these themselves.
        u64 slot = behind;
        u64 taken = e.taken;
        u64 end = e.end;
        for (u32 i = list.n; i > 0; --i) {
            const SkcRange& r = list.at[i - 1];
            if (r.pinned != 1 || !range_overlaps(r, e.first, e.end)) continue;
            u64 first = max_u64(r.first, e.first);
            u64 last = min_u64(range_end(r), e.end);
            u64 left = taken - saturating_sub(end, last);
            move_to_pins(ring, e.from + left, e.from + taken, slot + left, move_rows);
            taken = left;
            slot -= last - first;
            move_rows(slot, slot + taken, last - first); // mutant: device_pin_overwrites_a_pin
            end = first;
        }
        u64 left = taken - (end - e.first);
        move_to_pins(ring, e.from + left, e.from + taken, slot + left, move_rows);
    } else if (e.pinned_within > 0) {
        move_rows(behind, before, after); // mutant: device_evicted_pin_stays
    }
    if (e.taken == 0) return;
    // Older window tokens close the gap, the newest first.
    u64 end = e.from;
    while (end > e.oldest) {
        u64 n = min_u64(end - e.oldest, (end - 1 - ring.n_sink) % ring.ring_slots + 1);
        n = min_u64(n, (end + e.taken - 1 - ring.n_sink) % ring.ring_slots + 1);
        end -= n;
        move_rows(ring_slot(ring, end), ring_slot(ring, end + e.taken), n); // mutant: device_window_moves_one_too_far
    }
}

// The list of a sequence's pinned and evicted ranges: src/ranges.rs function by function. tests/ring_on_device.rs
// drives both with the same random histories. Edits of the list are in range_edit.cuh.
#pragma once

#include "params.cuh"
#include "ptx.cuh"

// Ranges in order of index.
struct RangeList {
    const SkcRange* at;
    u32 n;
};

// Index of the token after a range.
SKC_DEVICE u64 range_end(const SkcRange& r) { return r.first + r.n; }

// Ring index of the first window token after a range; the window token before it has the ring index before.
SKC_DEVICE u64 range_ring_end(const SkcRange& r) { return range_end(r) + r.later; }

// Evicted tokens of all later ranges.
SKC_DEVICE u64 range_later_evicted(const SkcRange& r) { return r.later - r.later_pinned; }

// Evicted tokens of a range and all later ones.
SKC_DEVICE u64 range_evicted(const SkcRange& r) { return range_later_evicted(r) + (r.pinned == 1 ? 0 : r.n); }

SKC_DEVICE bool range_touches(const SkcRange& r, u64 first, u64 end) { return r.first <= end && first <= range_end(r); }

SKC_DEVICE bool range_overlaps(const SkcRange& r, u64 first, u64 end) { return r.first < end && first < range_end(r); }

// How many ranges of a list come before the first for which `before` does not hold.
template <class Before>
SKC_DEVICE u32 partition_point(const RangeList& list, const Before& before) {
    u32 low = 0;
    u32 high = list.n;
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (before(list.at[middle])) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// Index of the window token with ring index `at`.
SKC_DEVICE u64 index_of(const RangeList& list, u64 at) {
    // The ranges that are later than the token.
    u32 i = partition_point(list, [&](const SkcRange& r) { return range_ring_end(r) <= at; });
    return i < list.n ? at - list.at[i].later - list.at[i].n : at;
}

// Ring index of the oldest window token with index `index` or more, as far as the list knows.
SKC_DEVICE u64 ring_index_from(const RangeList& list, u64 index) {
    // The first range that does not end before it.
    u32 i = partition_point(list, [&](const SkcRange& r) { return range_end(r) <= index; });
    if (i == list.n) return index;
    const SkcRange& r = list.at[i];
    // Inside a range: the first token after it.
    return index < r.first ? index + r.n + r.later : range_ring_end(r);
}

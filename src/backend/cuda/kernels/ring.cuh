// Slot arithmetic: src/ring.rs function by function. tests/ring_on_device.rs drives both with the same random
// histories.
#pragma once

#include "ranges.cuh"

struct Ring {
    u64 n_sink;
    u64 window;
    u64 ring_slots;
    u64 max_rewind;
    u64 max_pinned;
    u64 max_segments;
};

// Why an edit is invalid.
enum EditRejection { REJECTION_NONE = 0, REJECTION_TOO_MANY = 1, REJECTION_OVERWRITTEN = 2, REJECTION_EDITED = 3 };

SKC_DEVICE u64 saturating_sub(u64 a, u64 b) { return a > b ? a - b : 0; }
SKC_DEVICE u64 max_u64(u64 a, u64 b) { return a > b ? a : b; }
SKC_DEVICE u64 min_u64(u64 a, u64 b) { return a < b ? a : b; }

// Slots of tokens that stay for ever: sinks, then pinned tokens in order of index.
SKC_DEVICE u64 ring_fixed_slots(const Ring& r) { return r.n_sink + r.max_pinned; }

SKC_DEVICE u64 ring_total_slots(const Ring& r) { return ring_fixed_slots(r) + r.ring_slots; }

// Slot of the sink, or of the window token, with ring index `t`.
SKC_DEVICE u64 ring_slot(const Ring& r, u64 t) {
    return t < r.n_sink ? t : ring_fixed_slots(r) + (t - r.n_sink) % r.ring_slots;
}

// Slots in use of sinks and pinned tokens, and of the ring.
struct UsedSlots {
    u64 fixed;
    u64 ring;
};

SKC_DEVICE UsedSlots ring_used_slots(const Ring& r, const SkcSeq& seq) {
    // mutant: device_fork_without_pins
    u64 fixed = min_u64(seq.highest, r.n_sink) + seq.n_pinned;
    return {fixed, min_u64(saturating_sub(seq.highest, r.n_sink), r.ring_slots)};
}

// E(len): ring indices between sinks and window at length `len`.
SKC_DEVICE u64 ring_evicted(const Ring& r, u64 len, u64 floor) {
    return max_u64(floor, saturating_sub(len, r.n_sink + r.window));
}

SKC_DEVICE u64 ring_window_start(const Ring& r, u64 len, u64 floor) { return r.n_sink + ring_evicted(r, len, floor); }

SKC_DEVICE u64 ring_window_len(const Ring& r, u64 len, u64 floor) {
    return saturating_sub(len, ring_window_start(r, len, floor));
}

// The oldest window token whose slot no token below `highest` can have overwritten.
SKC_DEVICE u64 ring_intact_from(const Ring& r, u64 highest) {
    return max_u64(r.n_sink, saturating_sub(highest, r.ring_slots));
}

SKC_DEVICE bool ring_intact(const Ring& r, u64 len, const SkcSeq& seq) {
    u64 from = max_u64(ring_intact_from(r, seq.highest), seq.loaded_from);
    return ring_window_start(r, len, seq.floor) >= from;
}

SKC_DEVICE EditRejection ring_check_evict(const Ring& r, const SkcSeq& seq, u64 n) {
    return n > ring_window_len(r, seq.len, seq.floor) ? REJECTION_TOO_MANY : REJECTION_NONE;
}

SKC_DEVICE EditRejection ring_check_rewind(const Ring& r, const SkcSeq& seq, u64 n) {
    if (n > seq.len) return REJECTION_TOO_MANY;
    if (n == 0) return REJECTION_NONE;
    u64 left = seq.len - n;
    if (left < seq.edited) return REJECTION_EDITED; // mutant: device_rewind_across_an_edit
    u64 kept_from = max_u64(saturating_sub(seq.highest, r.window + r.max_rewind), seq.loaded_from);
    return ring_window_start(r, left, seq.floor) < kept_from ? REJECTION_OVERWRITTEN : REJECTION_NONE;
}

SKC_DEVICE void seq_append(SkcSeq& seq, u64 n) {
    seq.len += n;
    seq.highest = max_u64(seq.highest, seq.len);
    seq.attendable = n;
}

// Takes `n` tokens out of the window: those older than them have moved up by `n` ring indices.
SKC_DEVICE void seq_shorten(SkcSeq& seq, const Ring& r, u64 n) {
    seq.floor = ring_evicted(r, seq.len, seq.floor) + n;
    seq.attendable = 0;
}

// Drops the `n` > 0 oldest window tokens. `list`: the sequence's.
SKC_DEVICE void seq_evict(SkcSeq& seq, const Ring& r, const RangeList& list, u64 n) {
    seq_shorten(seq, r, n);
    seq.edited = max_u64(seq.edited, index_of(list, r.n_sink + seq.floor - 1) + 1);
}

SKC_DEVICE void seq_cut(SkcSeq& seq, u64 len) {
    if (len != seq.len) {
        seq.len = len;
        seq.attendable = 0;
    }
}

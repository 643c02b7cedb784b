// Slot arithmetic: src/ring.rs function by function. tests/ring_on_device.rs drives both with the same random
// histories.
#pragma once

#include "params.cuh"
#include "ptx.cuh"

struct Ring {
    u64 n_sink;
    u64 window;
    u64 ring_slots;
    u64 max_rewind;
};

// Why an edit is invalid.
enum EditRejection { REJECTION_NONE = 0, REJECTION_TOO_MANY = 1, REJECTION_OVERWRITTEN = 2, REJECTION_EVICTED = 3 };

SKC_DEVICE u64 saturating_sub(u64 a, u64 b) { return a > b ? a - b : 0; }
SKC_DEVICE u64 max_u64(u64 a, u64 b) { return a > b ? a : b; }
SKC_DEVICE u64 min_u64(u64 a, u64 b) { return a < b ? a : b; }

SKC_DEVICE u64 ring_total_slots(const Ring& r) { return r.n_sink + r.ring_slots; }

SKC_DEVICE u64 ring_slot(const Ring& r, u64 t) {
    return t < r.n_sink ? t : r.n_sink + (t - r.n_sink) % r.ring_slots;
}

// E(len): tokens evicted between sinks and window at length `len`.
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
    if (seq.floor > 0 && left < r.n_sink + seq.floor) return REJECTION_EVICTED;
    u64 kept_from = max_u64(saturating_sub(seq.highest, r.window + r.max_rewind), seq.loaded_from);
    return ring_window_start(r, left, seq.floor) < kept_from ? REJECTION_OVERWRITTEN : REJECTION_NONE;
}

SKC_DEVICE void seq_append(SkcSeq& seq, u64 n) {
    seq.len += n;
    seq.highest = max_u64(seq.highest, seq.len);
    seq.attendable = n;
}

SKC_DEVICE void seq_evict(SkcSeq& seq, const Ring& r, u64 n) {
    seq.floor = ring_evicted(r, seq.len, seq.floor) + n;
    seq.attendable = 0;
}

SKC_DEVICE void seq_cut(SkcSeq& seq, u64 len) {
    if (len != seq.len) {
        seq.len = len;
        seq.attendable = 0;
    }
}

// The slot arithmetic of kernels/ring.cuh as plain functions, for a test that compares it with src/ring.rs.
#include "range_edit.cuh"

#define FUNCTION extern "C" SKC_EXPORT

FUNCTION u64 skc_ring_slot(const Ring* r, u64 t) { return ring_slot(*r, t); }
FUNCTION u64 skc_ring_total_slots(const Ring* r) { return ring_total_slots(*r); }
FUNCTION u64 skc_ring_evicted(const Ring* r, u64 len, u64 floor) { return ring_evicted(*r, len, floor); }
FUNCTION u64 skc_ring_window_start(const Ring* r, u64 len, u64 floor) { return ring_window_start(*r, len, floor); }
FUNCTION u64 skc_ring_window_len(const Ring* r, u64 len, u64 floor) { return ring_window_len(*r, len, floor); }
FUNCTION u64 skc_ring_intact_from(const Ring* r, u64 highest) { return ring_intact_from(*r, highest); }
FUNCTION i32 skc_ring_intact(const Ring* r, u64 len, const SkcSeq* seq) { return ring_intact(*r, len, *seq); }
FUNCTION i32 skc_ring_check_evict(const Ring* r, const SkcSeq* seq, u64 n) { return ring_check_evict(*r, *seq, n); }
FUNCTION i32 skc_ring_check_rewind(const Ring* r, const SkcSeq* seq, u64 n) { return ring_check_rewind(*r, *seq, n); }
FUNCTION void skc_seq_append(SkcSeq* seq, u64 n) { seq_append(*seq, n); }
FUNCTION void skc_seq_evict(SkcSeq* seq, const Ring* r, const SkcRange* list, u64 n) {
    seq_evict(*seq, *r, {list, seq->n_ranges}, n);
}
FUNCTION void skc_seq_cut(SkcSeq* seq, u64 len) { seq_cut(*seq, len); }

// A pin, or an evict_range, of one sequence in one layer: the reason why it is invalid, or 0.
FUNCTION i32 skc_check_range(const Ring* r, const SkcSeq* seq, const SkcRange* list, const u64* range, i32 pins) {
    RangeList ranges = {list, seq->n_ranges};
    RangeEdit e = pins ? check_pin(*r, *seq, ranges, range[0], range[1])
                       : check_evict_range(*r, *seq, ranges, range[0], range[1]);
    return e.rejection;
}

// Applies a checked one. `moves` gets from, to and n of each move of rows; returns their number.
FUNCTION u64 skc_apply_range(const Ring* r, SkcSeq* seq, SkcRange* list, const u64* range, u64* moves) {
    bool pins = range[2] != 0;
    RangeList ranges = {list, seq->n_ranges};
    RangeEdit e = pins ? check_pin(*r, *seq, ranges, range[0], range[1])
                       : check_evict_range(*r, *seq, ranges, range[0], range[1]);
    u64 n = 0;
    range_moves(e, *r, *seq, ranges, [&](u64 from, u64 to, u64 rows) {
        if (rows == 0) return;
        moves[3 * n] = from;
        moves[3 * n + 1] = to;
        moves[3 * n + 2] = rows;
        ++n;
    });
    apply_range_edit(e, *r, *seq, list);
    return n;
}

FUNCTION u64 skc_index_of(const SkcRange* list, u64 n, u64 at) { return index_of({list, (u32)n}, at); }
FUNCTION u64 skc_ring_index_from(const SkcRange* list, u64 n, u64 i) { return ring_index_from({list, (u32)n}, i); }

// The slot arithmetic of kernels/ring.cuh as plain functions, for a test that compares it with src/ring.rs.
#include "ring.cuh"

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
FUNCTION void skc_seq_evict(SkcSeq* seq, const Ring* r, u64 n) { seq_evict(*seq, *r, n); }
FUNCTION void skc_seq_cut(SkcSeq* seq, u64 len) { seq_cut(*seq, len); }

// An entry's queries and the keys they see: shared by all attention kernels.
#pragma once

#include "batch_entry.cuh"

// An entry's queries in one launch: the last m tokens of its sequence.
struct Queries {
    u64 row;    // row of the first one in the caller's tensors
    u64 first;  // index of its token
    u64 m;
    u64 start;  // stream position of token 0
    u64 floor;
    u32 seq;
    bool active;
};

// E(p + 1): tokens that are evicted as the query of token p sees it.
SKC_DEVICE u64 query_evicted(const Ring& ring, const Queries& q, u64 token) {
    return ring_evicted(ring, token + 1, q.floor);
}

// Finds and checks entry block_x() of an attend. An invalid entry is reported once per call. The whole block must call
// it.
SKC_DEVICE Queries find_queries(const SkcAttend& p, u64* scratch, u32 warps) {
    const SkcLayer& l = p.layer;
    const SkcBatch& b = p.batch;
    Ring ring = ring_of(l);
    Entry e = find_entry(b, block_x(), scratch, warps);
    Queries q = {0, 0, 0, 0, 0, e.seq, false};
    if (!e.active && e.status == 0) return q;
    i32 status = e.status;
    if (status == 0) {
        u64 m = min_u64(saturating_sub(e.n, b.chunk_begin), b.chunk_len);
        if (m == 0) return q;
        const SkcSeq& seq = l.seqs[e.seq];
        u64 first = seq.len - m;
        if (m > seq.attendable || m > seq.len) {
            status = SKC_STATUS_OUT_OF_RANGE;
        } else if (ring_window_start(ring, first + 1, seq.floor) < ring_intact_from(ring, seq.highest)) {
            status = SKC_STATUS_TOKENS_GONE;
        } else {
            return {e.row + b.chunk_begin, first, m, l.starts[e.seq], seq.floor, e.seq, true};
        }
    }
    if (thread() == 0 && block_y() == 0 && block_z() == 0 && b.chunk_begin == 0) {
        report_entry(l, b, e, status, SKC_CALL_ATTEND); // mutant: attend_reported_as_append
    }
    return q;
}

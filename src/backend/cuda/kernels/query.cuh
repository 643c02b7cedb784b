// What a query sees, and from where: shared by all attention kernels.
#pragma once

#include "batch_entry.cuh"

// An entry's queries in one launch: the last m tokens of its sequence.
struct Queries {
    u64 row;    // row in the caller's tensors of the first one
    u64 first;  // index of its token
    u64 m;
    u64 start;  // stream position of token 0
    u64 floor;
    u32 seq;
    bool live;
};

// E(p + 1) of the query of token p.
SKC_DEVICE u64 query_evicted(const Ring& ring, const Queries& q, u64 token) { return ring_evicted(ring, token + 1, q.floor); }

// Finds and checks entry block_x() of an attend; the whole block must call it. What is refused is reported once per call.
SKC_DEVICE Queries find_queries(const SkcAttend& p, const Ring& ring, u64* scratch, u32 warps) {
    const SkcLayer& l = p.layer;
    Entry e = find_entry(p.batch, block_x(), scratch, warps);
    Queries q = {0, 0, 0, 0, 0, e.seq, false};
    if (!e.live && e.status == 0) return q;
    i32 status = e.status;
    u64 m = 0;
    if (status == 0) {
        m = min_u64(saturating_sub(e.n, p.batch.at), p.batch.step);
        if (m == 0) return q;
        const SkcSeq& seq = l.seqs[e.seq];
        u64 first = seq.len - m;
        if (m > seq.attendable || m > seq.len) {
            status = SKC_STATUS_OUT_OF_RANGE;
        } else if (ring_window_start(ring, first + 1, seq.floor) < ring_intact_from(ring, seq.highest)) {
            status = SKC_STATUS_TOKENS_GONE;
        } else {
            return {e.row + p.batch.at, first, m, l.starts[e.seq], seq.floor, e.seq, true};
        }
    }
    if (thread() == 0 && block_y() == 0 && block_z() == 0 && p.batch.at == 0) {
        report(l.error, status, l.layer, block_x(), e.given, SKC_CALL_ATTEND, shown(batch_tokens(p.batch, block_x())));
    }
    return q;
}

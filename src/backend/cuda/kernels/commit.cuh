// How an append is checked and made to count: the same for skc_append and for a step in one launch.
#pragma once

#include "batch_entry.cuh"

// What a launch does with an entry whose tokens are to follow what its sequence holds.
struct Advance {
    u64 m;       // tokens of this launch
    i32 status;  // why refused, or 0
    bool skip;   // nothing is done, and nothing counted
};

// Whether tokens can follow what the sequence holds: Entry::append of src/batch.rs.
SKC_DEVICE i32 check_append(const Ring& ring, const SkcSeq& seq, u64 start, u64 n) {
    if (seq.len > ~0ull - start || n > ~0ull - start - seq.len) return SKC_STATUS_OUT_OF_RANGE;
    return ring_intact(ring, seq.len, seq) ? 0 : SKC_STATUS_TOKENS_GONE;
}

// `seq` and `start` are those of the entry's sequence, read before any block could have changed them.
SKC_DEVICE Advance advance_of(const SkcLayer& l, const SkcBatch& b, const Ring& ring, const Entry& e, const SkcSeq& seq, u64 start) {
    u64 left = saturating_sub(e.n, b.at);
    Advance a = {min_u64(left, b.step), e.status, !e.live && e.status == 0};
    if (a.skip || a.status != 0) return a;
    // All of a long call is checked with its first chunk. Whether that was done shows in what it left.
    a.skip = a.m == 0 || (b.at > 0 && seq.attendable != min_u64(b.at, l.max_chunk));
    if (!a.skip) a.status = check_append(ring, seq, start, left);
    return a;
}

// Reports what was refused, once per call. One thread of one block of the entry calls it.
SKC_DEVICE void report_advance(const SkcLayer& l, const SkcBatch& b, u32 index, const Entry& e, const Advance& a) {
    if (b.at == 0) report(l.error, a.status, l.layer, index, e.given, SKC_CALL_APPEND, shown(batch_tokens(b, index)));
}

// The last of the entry's blocks to arrive makes its tokens count. One thread of each block calls it, after all threads of
// its block have read the counters.
SKC_DEVICE void arrive(const SkcLayer& l, const SkcBatch& b, u32 seq_id, const Advance& a, u32 blocks) {
    if (atomic_inc(&l.arrivals[seq_id], blocks - 1) != blocks - 1) return; // mutant: lengths_before_all_blocks_read
    SkcSeq seq = l.seqs[seq_id];
    if (a.status == 0) {
        seq_append(seq, a.m);
        seq.attendable = min_u64(b.at + a.m, l.max_chunk);
    } else {
        // The attend that follows is refused too.
        seq.attendable = 0;
    }
    l.seqs[seq_id] = seq;
}

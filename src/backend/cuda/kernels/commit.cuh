// How an append is checked and committed: the same for skc_append and for a step in one launch.
#pragma once

#include "batch_entry.cuh"

// What a launch does with an entry of an append.
struct AppendPlan {
    u64 m;       // tokens of this launch
    i32 status;  // why the entry is invalid, or 0
    bool skip;   // nothing is stored and no counter changes
};

// What a block reads of its entry's sequence.
struct Counters {
    SkcSeq seq;
    u64 start;
};

// Every block of an entry reads the counters before it arrives; only the last to arrive changes them. The blocks of
// other entries never read them: a padding or invalid entry has none, whichever sequence it names.
SKC_DEVICE Counters read_counters(const SkcLayer& l, const Entry& e) {
    if (!e.active) return {{}, 0};
    return {l.seqs[e.seq], l.starts[e.seq]};
}

// Whether n tokens can follow what the sequence holds: Entry::append of src/batch.rs.
SKC_DEVICE i32 check_append(const Ring& ring, const SkcSeq& seq, u64 start, u64 n) {
    if (seq.len > ~0ull - start || n > ~0ull - start - seq.len) return SKC_STATUS_OUT_OF_RANGE;
    return ring_intact(ring, seq.len, seq) ? 0 : SKC_STATUS_TOKENS_GONE;
}

SKC_DEVICE AppendPlan plan_append(const SkcLayer& l, const SkcBatch& b, const Entry& e, const Counters& c) {
    u64 left = saturating_sub(e.n, b.chunk_begin);
    AppendPlan a = {min_u64(left, b.chunk_len), e.status, !e.active && e.status == 0};
    if (a.skip || a.status != 0) return a;
    // The first chunk's launch checks the whole call. The launches of later chunks see from `attendable` whether the
    // chunks before them were appended.
    a.skip = a.m == 0 || (b.chunk_begin > 0 && c.seq.attendable != min_u64(b.chunk_begin, l.max_chunk));
    if (!a.skip) a.status = check_append(ring_of(l), c.seq, c.start, left);
    return a;
}

// Reports an invalid entry, once per call. One thread of one block of the entry calls it.
SKC_DEVICE void report_append(const SkcLayer& l, const SkcBatch& b, const Entry& e, const AppendPlan& a) {
    if (b.chunk_begin == 0) report_entry(l, b, e, a.status, SKC_CALL_APPEND);
}

// Counts a block's arrival; the last of the entry's `blocks` blocks commits the counters. One thread of each block
// calls it, after all threads of its block have read the counters.
SKC_DEVICE void arrive(const SkcLayer& l, const SkcBatch& b, u32 seq_id, const AppendPlan& a, u32 blocks) {
    // mutant: lengths_before_all_blocks_read
    if (atomic_inc(&l.append_arrivals[seq_id], blocks - 1) != blocks - 1) return;
    SkcSeq seq = l.seqs[seq_id];
    if (a.status == 0) {
        seq_append(seq, a.m);
        seq.attendable = min_u64(b.chunk_begin + a.m, l.max_chunk);
    } else {
        // So that the attend that follows is invalid too.
        seq.attendable = 0;
    }
    l.seqs[seq_id] = seq;
}

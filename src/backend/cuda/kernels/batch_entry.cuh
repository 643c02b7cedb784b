// Which rows of which sequence a block works on, and whether the entry is valid. The host may not know the counts:
// every kernel checks them the same way, so that all blocks of all kernels of a call agree.
#pragma once

#include "error_record.cuh"
#include "params.cuh"
#include "ptx.cuh"
#include "ring.cuh"

// One entry of a batch, checked.
struct Entry {
    u64 row;        // its first row in the caller's tensors
    u64 n;          // tokens
    u32 seq;
    bool active;    // false: padding, or invalid
    i32 status;     // why it is invalid, or 0
    i32 given_id;   // sequence id as given
    bool owns_seq;  // its id is valid, and no entry before it has the same: only then may it change the counters
};

SKC_DEVICE i32 batch_id(const SkcBatch& b, u32 i) {
    if (b.all) return (i32)i;
    return b.seq_ids ? b.seq_ids[i] : b.inline_ids[i];
}

SKC_DEVICE i32 batch_tokens(const SkcBatch& b, u32 i) {
    if (b.all) return 1;
    // Ids in device memory: the counts are there too, or the call has none.
    if (b.seq_ids) return b.n_tokens ? b.n_tokens[i] : 0;
    return b.inline_tokens[i];
}

SKC_DEVICE bool is_seq(i32 id, u32 n_seqs) { return id >= 0 && (u32)id < n_seqs; }

SKC_DEVICE Ring ring_of(const SkcLayer& l) {
    return {l.n_sink, l.window, l.ring_slots, l.max_rewind, l.max_pinned, l.max_segments};
}

// Sum over the block, for every thread. `scratch` is shared memory, 8 bytes for each of the block's `warps` warps; it
// may be written again when this returns. The whole block must call it.
SKC_DEVICE u64 block_sum(u64 x, u64* scratch, u32 warps) {
    for (u32 mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    if (lane() == 0) scratch[warp()] = x;
    block_sync();
    u64 sum = 0;
    for (u32 w = 0; w < warps; ++w) sum += scratch[w];
    block_sync();
    return sum;
}

// What the entries before entry `index` mean for it.
struct EarlierEntries {
    u64 rows;         // rows they take; a negative count takes none
    bool duplicates;  // one of them has the same sequence
};

SKC_DEVICE EarlierEntries earlier_entries(const SkcBatch& b, u32 index, u64* scratch, u32 warps) {
    // The first entry of a batch does not wait for the sum.
    if (b.all || index == 0) return {0, false};
    i32 id = batch_id(b, index);
    u64 rows = 0;
    u64 duplicate = 0;
    for (u32 i = thread(); i < index; i += 32 * warps) {
        i32 n = batch_tokens(b, i);
        if (n > 0) rows += (u64)n;
        if (n != 0 && batch_id(b, i) == id) duplicate = 1ull << 56;
    }
    // One sum for both: at most 128 threads add to the upper byte, and fewer than 2^31 entries (a grid has no more) of
    // fewer than 2^31 rows do not overflow 64 bits. Rows that reach into the upper byte exceed every tensor anyway.
    u64 sum = block_sum(rows + duplicate, scratch, warps);
    return {sum & ((1ull << 56) - 1), sum >> 56 != 0};
}

// Finds and checks entry `index` of a batch with tokens. The whole block must call it.
SKC_DEVICE Entry find_entry(const SkcBatch& b, u32 index, u64* scratch, u32 warps) {
    i32 id = batch_id(b, index);
    i32 count = batch_tokens(b, index);
    EarlierEntries earlier = earlier_entries(b, index, scratch, warps);
    Entry e = {earlier.rows, 0, 0, false, 0, id, false};
    if (id == -1 || count == 0) return e;
    if (count < 0 || earlier.duplicates) {
        e.status = SKC_STATUS_INVALID_ARGUMENT;
    } else if (!is_seq(id, b.n_seqs)) {
        e.status = SKC_STATUS_OUT_OF_RANGE;
    } else if ((u32)count > b.max_tokens) {
        e.status = SKC_STATUS_CHUNK_TOO_LONG;
    } else if (!b.all && earlier.rows + (u64)count > b.n_rows) {
        e.status = SKC_STATUS_OUT_OF_RANGE;
    } else {
        e.active = true;
    }
    e.n = count < 0 ? 0 : (u64)count;
    e.owns_seq = !earlier.duplicates && is_seq(id, b.n_seqs);
    e.seq = e.owns_seq ? (u32)id : 0;
    return e;
}

// An invalid count as the record shows it: sign-extended.
SKC_DEVICE u64 recorded_count(i32 count) { return (u64)(i64)count; }

// Records an entry of a call on tokens.
SKC_DEVICE void report_entry(const SkcLayer& l, const SkcBatch& b, const Entry& e, i32 status, SkcCall call) {
    u64 count = recorded_count(batch_tokens(b, block_x()));
    report(l.errors, {status, l.layer, block_x(), e.given_id, (u32)call, count});
}

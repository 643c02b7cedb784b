// Which rows of which sequence a block works on, and whether that can be done. The host may not know the counts: every
// kernel checks them the same way, so that all blocks of all kernels of a call agree.
#pragma once

#include "ptx.cuh"
#include "params.cuh"
#include "ring.cuh"

struct Entry {
    u64 row;   // first row in the caller's tensors
    u64 n;     // tokens
    u32 seq;
    bool live; // false: padding, or refused
    i32 status; // why refused, or 0
    i32 given;  // sequence id as given
    bool own;   // no entry before it has its sequence, which is one of the cache's
};

SKC_DEVICE i32 batch_id(const SkcBatch& b, u32 i) {
    if (b.all) return (i32)i;
    return b.seq_ids ? b.seq_ids[i] : b.inline_ids[i];
}

SKC_DEVICE i32 batch_tokens(const SkcBatch& b, u32 i) {
    if (b.all) return 1;
    // One of the two arrays may be absent on the device: then ids say which kind the batch is.
    return b.seq_ids ? (b.n_tokens ? b.n_tokens[i] : 0) : b.inline_tokens[i];
}

SKC_DEVICE Ring ring_of(const SkcLayer& l) { return {l.n_sink, l.window, l.ring_slots, l.max_rewind}; }

// Sum over the block; every thread gets it. `scratch`: 8 bytes per warp of shared memory. Whoever uses scratch leaves it with a
// barrier, so that the next may write at once.
SKC_DEVICE u64 block_sum(u64 x, u64* scratch, u32 warps) {
    for (u32 mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    if (lane() == 0) scratch[warp()] = x;
    block_sync();
    u64 sum = 0;
    for (u32 w = 0; w < warps; ++w) sum += scratch[w];
    block_sync();
    return sum;
}

// Finds and checks entry `index` of a batch with tokens. The whole block must call it.
SKC_DEVICE Entry find_entry(const SkcBatch& b, u32 index, u64* scratch, u32 warps) {
    i32 id = batch_id(b, index);
    i32 count = batch_tokens(b, index);
    bool padding = id == -1 || count == 0;
    // Rows before it, and whether an entry before it has its sequence. A negative count takes no rows. The first entry of a
    // batch has no need to wait for any of this.
    u64 before = 0;
    bool twice = false;
    if (!b.all && index > 0) {
        // Both in one sum, the finds of at most 128 threads in its upper byte. Fewer than 2^31 entries (a grid has no more) of
        // fewer than 2^31 rows cannot make it overflow, and where rows reach into that byte no tensor has as many.
        u64 found = 0;
        for (u32 i = thread(); i < index; i += 32 * warps) {
            i32 n = batch_tokens(b, i);
            if (n > 0) before += (u64)n;
            if (n != 0 && batch_id(b, i) == id) found = 1ull << 56;
        }
        u64 sum = block_sum(before + found, scratch, warps);
        before = sum & ((1ull << 56) - 1);
        twice = sum >> 56 != 0;
    }
    Entry e = {before, 0, 0, false, 0, id, false};
    if (padding) return e;
    if (count < 0 || twice) {
        e.status = SKC_STATUS_INVALID_ARGUMENT;
    } else if (id < 0 || (u32)id >= b.n_seqs) {
        e.status = SKC_STATUS_OUT_OF_RANGE;
    } else if ((u32)count > b.max_tokens) {
        e.status = SKC_STATUS_CHUNK_TOO_LONG;
    } else if (!b.all && before + (u64)count > b.n_rows) {
        e.status = SKC_STATUS_OUT_OF_RANGE;
    } else {
        e.live = true;
    }
    e.n = count < 0 ? 0 : (u64)count;
    e.own = !twice && id >= 0 && (u32)id < b.n_seqs;
    e.seq = e.own ? (u32)id : 0;
    return e;
}

// Notes that an entry was skipped. One thread of one block of the entry calls it.
SKC_DEVICE void report(SkcError* error, i32 status, u32 layer, u32 entry, i32 seq, u32 call, u64 value) {
    if (atomic_add_system(&error->count, 1) != 0) return;
    error->layer = layer;
    error->entry = entry;
    error->seq = seq;
    error->call = call;
    error->value = value;
    store_release_system(&error->status, status);
}

// The count as the record shows it.
SKC_DEVICE u64 shown(i32 count) { return (u64)(i64)count; }

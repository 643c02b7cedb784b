// skc_edit: evict, rewind, reset, abort of a step, and the counters of a fork, in all layers of a sequence or in none.
//
// Grid: entries. 128 threads, which share the layers. No shared memory but 64 bytes of scratch.
#pragma once

#include "batch_entry.cuh"

struct Target {
    u32 dst;
    u32 src;     // fork
    u64 n;       // tokens to take off
    bool live;
    i32 status;
    i32 given;
};

SKC_DEVICE Ring edit_ring(const SkcEdit& p, u32 layer) {
    const u64* r = p.rings + 4ull * layer;
    return {r[0], r[1], r[2], r[3]};
}

SKC_DEVICE bool is_seq(i32 id, u32 n_seqs) { return id >= 0 && (u32)id < n_seqs; }

// Finds and checks entry `index` of an edit; the whole block must call it.
SKC_DEVICE Target find_target(const SkcEdit& p, u32 index, u64* scratch) {
    const SkcBatch& b = p.batch;
    bool fork = p.call == SKC_CALL_FORK;
    bool counted = p.call == SKC_CALL_EVICT || p.call == SKC_CALL_REWIND;
    i32 id = batch_id(b, index);
    i32 other = fork || counted ? batch_tokens(b, index) : 1;
    Target t = {0, 0, 0, false, 0, id};
    // Padding on either side of a fork; a count of nothing.
    bool padding = id == -1 || (fork ? other == -1 : counted && other == 0);
    u64 twice = 0;
    if (!b.all) {
        for (u32 i = thread(); i < b.n_entries; i += 128) {
            i32 there = batch_id(b, i);
            if (fork) {
                i32 source = batch_tokens(b, i);
                if (there == -1 || source == -1) continue;
                // A destination given before, or one that is a source anywhere.
                if ((i < index && there == id) || source == id) twice = 1;
            } else if (i < index && there == id && !(counted && batch_tokens(b, i) == 0)) {
                twice = 1;
            }
        }
    }
    twice = block_sum(twice, scratch, 4);
    if (padding) return t;
    if (twice != 0 || (counted && other < 0)) {
        t.status = SKC_STATUS_INVALID_ARGUMENT;
    } else if (!is_seq(id, b.n_seqs) || (fork && !is_seq(other, b.n_seqs))) {
        t.status = SKC_STATUS_OUT_OF_RANGE;
    } else {
        t.live = true;
        t.dst = (u32)id;
        t.src = fork ? (u32)other : (u32)id;
        t.n = counted ? (u64)other : 0;
    }
    return t;
}

// What speaks against the edit in one layer.
SKC_DEVICE i32 check_layer(const SkcEdit& p, const Target& t, u32 layer, u64 shortest, u64 longest) {
    const SkcSeq& seq = p.seqs[(u64)layer * p.batch.n_seqs + t.src];
    Ring ring = edit_ring(p, layer);
    if (p.call == SKC_CALL_ABORT) {
        // An empty sequence needs nothing of what was there.
        return shortest > 0 && !ring_intact(ring, shortest, seq) ? SKC_STATUS_TOKENS_GONE : 0;
    }
    if (p.call == SKC_CALL_RESET) return 0;
    if (shortest != longest) return SKC_STATUS_LAYERS_OUT_OF_STEP;
    Refusal refusal = REFUSAL_NONE;
    if (p.call == SKC_CALL_EVICT) refusal = ring_check_evict(ring, seq, t.n);
    if (p.call == SKC_CALL_REWIND) refusal = ring_check_rewind(ring, seq, t.n);
    if (refusal == REFUSAL_NONE) return 0;
    return refusal == REFUSAL_TOO_MANY ? SKC_STATUS_OUT_OF_RANGE : SKC_STATUS_TOKENS_GONE;
}

// Checks all layers: 0, or the least status of any. The whole block must call it.
SKC_DEVICE i32 check_edit(const SkcEdit& p, const Target& t, u64* scratch, u64* shortest_out) {
    u64 shortest = ~0ull, longest = 0;
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        u64 len = p.seqs[(u64)layer * p.batch.n_seqs + t.src].len;
        shortest = min_u64(shortest, len);
        longest = max_u64(longest, len);
    }
    for (u32 mask = 16; mask > 0; mask /= 2) {
        shortest = min_u64(shortest, shuffle_xor(shortest, mask));
        longest = max_u64(longest, shuffle_xor(longest, mask));
    }
    if (lane() == 0) {
        scratch[2 * warp()] = shortest;
        scratch[2 * warp() + 1] = longest;
    }
    block_sync();
    for (u32 w = 0; w < 4; ++w) {
        shortest = min_u64(shortest, scratch[2 * w]);
        longest = max_u64(longest, scratch[2 * w + 1]);
    }
    block_sync();
    *shortest_out = shortest;
    // A status per kind: what is out of step comes before what is out of range, as on the host.
    u64 found = 0;
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        i32 status = check_layer(p, t, layer, shortest, longest);
        if (status == SKC_STATUS_LAYERS_OUT_OF_STEP) found |= 1;
        if (status == SKC_STATUS_OUT_OF_RANGE) found |= 1ull << 20;
        if (status == SKC_STATUS_TOKENS_GONE) found |= 1ull << 40;
    }
    found = block_sum(found, scratch, 4);
    if (found == 0) return 0;
    if (found & ((1ull << 20) - 1)) return SKC_STATUS_LAYERS_OUT_OF_STEP;
    return found & (((1ull << 20) - 1) << 20) ? SKC_STATUS_OUT_OF_RANGE : SKC_STATUS_TOKENS_GONE;
}

SKC_DEVICE void apply_edit(const SkcEdit& p, const Target& t, u64 shortest) {
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        u64 at = (u64)layer * p.batch.n_seqs;
        SkcSeq& seq = p.seqs[at + t.dst];
        switch (p.call) {
            case SKC_CALL_EVICT: seq_evict(seq, edit_ring(p, layer), t.n); break;
            case SKC_CALL_REWIND: seq_cut(seq, seq.len - t.n); break;
            case SKC_CALL_FORK: seq = p.seqs[at + t.src]; break;
            case SKC_CALL_RESET: seq = {0, 0, 0, 0}; break;
            default:
                if (shortest == 0) {
                    seq = {0, 0, 0, 0};
                } else {
                    seq_cut(seq, shortest);
                }
        }
    }
}

SKC_KERNEL(128, skc_edit, SkcEdit) {
    begin_kernel();
    u64* scratch = (u64*)shared_memory();
    u32 index = block_x();
    Target t = find_target(p, index, scratch);
    if (!t.live && t.status == 0) return;
    u64 shortest = 0;
    i32 status = t.status != 0 ? t.status : check_edit(p, t, scratch, &shortest);
    if (status != 0) {
        if (thread() == 0) {
            i32 n = p.call == SKC_CALL_RESET || p.call == SKC_CALL_ABORT ? 0 : batch_tokens(p.batch, index);
            report(p.error, status, ~0u, index, t.given, p.call, shown(n));
        }
        return;
    }
    // The check has ended with a barrier: nobody still reads what is about to change.
    apply_edit(p, t, shortest);
    if (thread() == 0) {
        if (p.call == SKC_CALL_FORK) p.starts[t.dst] = p.starts[t.src];
        if (p.call == SKC_CALL_RESET) {
            // Positions beside ids in device memory are an array or absent.
            u64 position = p.batch.seq_ids ? 0 : p.inline_positions[index];
            p.starts[t.dst] = p.positions ? p.positions[index] : position;
        }
    }
}

// skc_edit: evict, rewind, reset, abort of a step, and the counters of a fork, a pin and an evict_range: in all
// layers of a sequence or in none.
//
// Grid: entries. 128 threads, which share the layers. Shared: EDIT_SHARED bytes of scratch.
#pragma once

#include "batch_entry.cuh"
#include "range_edit.cuh"

// The sequence that an entry of an edit changes, checked.
struct EditTarget {
    u32 dst;
    u32 src;       // fork: the source; else dst
    u64 n;         // evict, rewind: tokens to remove; pin, evict_range: tokens of the range
    u64 first;     // pin, evict_range: index of the first of them
    bool active;   // false: padding, or invalid
    i32 status;    // why it is invalid, or 0
    i32 given_id;  // sequence id as given
};

SKC_DEVICE Ring edit_ring(const SkcEdit& p, u32 layer) {
    const SkcRing& r = p.rings[layer];
    return {r.n_sink, r.window, r.ring_slots, r.max_rewind, r.max_pinned, r.max_segments};
}

// Room for the ranges of a sequence in a layer, or NULL.
SKC_DEVICE SkcRange* edit_ranges(const SkcEdit& p, u32 layer, u32 seq) {
    const SkcRing& r = p.rings[layer];
    return r.ranges ? r.ranges + seq * r.max_segments : nullptr;
}

SKC_DEVICE RangeList edit_list(const SkcEdit& p, u32 layer, u32 seq) {
    return {edit_ranges(p, layer, seq), p.seqs[(u64)layer * p.batch.n_seqs + seq].n_ranges};
}

SKC_DEVICE bool edits_ranges(const SkcEdit& p) { return p.call == SKC_CALL_PIN || p.call == SKC_CALL_EVICT_RANGE; }

// These have a count of tokens with each id.
SKC_DEVICE bool has_count(const SkcEdit& p) {
    return p.call == SKC_CALL_EVICT || p.call == SKC_CALL_REWIND || edits_ranges(p);
}

// The position, or the first token, of entry `index`; 0 where the call has none.
SKC_DEVICE u64 edit_position(const SkcEdit& p, u32 index) {
    if (p.positions) return p.positions[index];
    // Beside ids in device memory, positions are a device array too, or absent.
    return p.batch.seq_ids ? 0 : p.inline_positions[index];
}

// Whether another entry forbids entry `index`: one before it has the same id (padding entries do not count); of a fork,
// also any that has its destination as its source. `scratch` as for block_sum; the whole block must call it.
SKC_DEVICE bool conflicts(const SkcEdit& p, u32 index, u64* scratch) {
    const SkcBatch& b = p.batch;
    i32 id = batch_id(b, index);
    u64 found = 0;
    // All sequences, each once, have no arrays and no conflicts.
    u32 n_entries = b.all ? 0 : b.n_entries;
    for (u32 i = thread(); i < n_entries; i += 128) {
        i32 other = batch_id(b, i);
        if (p.call == SKC_CALL_FORK) {
            i32 source = batch_tokens(b, i);
            if (other == -1 || source == -1) continue;
            if ((i < index && other == id) || source == id) found = 1;
        } else if (i < index && other == id && !(has_count(p) && batch_tokens(b, i) == 0)) {
            found = 1;
        }
    }
    return block_sum(found, scratch, 4) != 0;
}

// Finds and checks entry `index` of an edit. The whole block must call it.
SKC_DEVICE EditTarget find_target(const SkcEdit& p, u32 index, u64* scratch) {
    const SkcBatch& b = p.batch;
    bool fork = p.call == SKC_CALL_FORK;
    bool counted = has_count(p);
    i32 id = batch_id(b, index);
    // The source of a fork, the count of an evict or a rewind.
    i32 value = fork || counted ? batch_tokens(b, index) : 1;
    bool conflict = conflicts(p, index, scratch);
    EditTarget t = {0, 0, 0, 0, false, 0, id};
    bool padding = id == -1 || (fork && value == -1) || (counted && value == 0);
    if (padding) return t;
    if (conflict || (counted && value < 0)) {
        t.status = SKC_STATUS_INVALID_ARGUMENT;
    } else if (!is_seq(id, b.n_seqs) || (fork && !is_seq(value, b.n_seqs))) {
        t.status = SKC_STATUS_OUT_OF_RANGE;
    } else {
        t.active = true;
        t.dst = (u32)id;
        t.src = fork ? (u32)value : (u32)id;
        t.n = counted ? (u64)value : 0;
        t.first = edits_ranges(p) ? edit_position(p, index) : 0;
    }
    return t;
}

// The least and the greatest length of a sequence over all layers.
struct Lengths {
    u64 shortest;
    u64 longest;
};

// `scratch`: two numbers for each of four warps. The whole block must call it.
SKC_DEVICE Lengths lengths_of(const SkcEdit& p, u32 seq, u64* scratch) {
    Lengths x = {~0ull, 0};
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        u64 len = p.seqs[(u64)layer * p.batch.n_seqs + seq].len;
        x = {min_u64(x.shortest, len), max_u64(x.longest, len)};
    }
    for (u32 mask = 16; mask > 0; mask /= 2) {
        x = {min_u64(x.shortest, shuffle_xor(x.shortest, mask)), max_u64(x.longest, shuffle_xor(x.longest, mask))};
    }
    if (lane() == 0) {
        scratch[2 * warp()] = x.shortest;
        scratch[2 * warp() + 1] = x.longest;
    }
    block_sync();
    for (u32 w = 0; w < 4; ++w) {
        x = {min_u64(x.shortest, scratch[2 * w]), max_u64(x.longest, scratch[2 * w + 1])};
    }
    block_sync();
    return x;
}

// A pin or an evict_range in one layer, checked.
SKC_DEVICE RangeEdit find_range_edit(const SkcEdit& p, const EditTarget& t, u32 layer) {
    Ring ring = edit_ring(p, layer);
    const SkcSeq& seq = p.seqs[(u64)layer * p.batch.n_seqs + t.dst];
    RangeList list = edit_list(p, layer, t.dst);
    if (p.call == SKC_CALL_PIN) return check_pin(ring, seq, list, t.first, t.n);
    return check_evict_range(ring, seq, list, t.first, t.n);
}

SKC_DEVICE i32 range_status(RangeRejection why) {
    switch (why) {
        case RANGE_ACCEPTED: return 0;
        case RANGE_NOT_HELD: return SKC_STATUS_TOKENS_GONE;
        case RANGE_PINNED:
        case RANGE_SEGMENTS: return SKC_STATUS_NO_ROOM;
        default: return SKC_STATUS_OUT_OF_RANGE;
    }
}

// Why the edit is invalid in one layer, or 0.
SKC_DEVICE i32 check_layer(const SkcEdit& p, const EditTarget& t, u32 layer, const Lengths& lengths) {
    const SkcSeq& seq = p.seqs[(u64)layer * p.batch.n_seqs + t.src];
    Ring ring = edit_ring(p, layer);
    if (p.call == SKC_CALL_ABORT) {
        // An empty sequence needs none of its slots.
        bool gone = lengths.shortest > 0 && !ring_intact(ring, lengths.shortest, seq);
        return gone ? SKC_STATUS_TOKENS_GONE : 0;
    }
    if (p.call == SKC_CALL_RESET) return 0;
    if (lengths.shortest != lengths.longest) return SKC_STATUS_LAYERS_OUT_OF_STEP;
    if (p.call == SKC_CALL_PIN && !p.can_pin) return SKC_STATUS_NO_ROOM;
    if (edits_ranges(p)) {
        // As on the host: no row that is not the sequence's may move to where it is visible again.
        if (!ring_intact(ring, seq.len, seq)) return SKC_STATUS_TOKENS_GONE;
        return range_status(find_range_edit(p, t, layer).rejection);
    }
    EditRejection rejection = REJECTION_NONE;
    if (p.call == SKC_CALL_EVICT) rejection = ring_check_evict(ring, seq, t.n);
    if (p.call == SKC_CALL_REWIND) rejection = ring_check_rewind(ring, seq, t.n);
    if (rejection == REJECTION_NONE) return 0;
    return rejection == REJECTION_TOO_MANY ? SKC_STATUS_OUT_OF_RANGE : SKC_STATUS_TOKENS_GONE;
}

// Checks the edit in all layers: 0, or the status of the first layer that it is invalid in, as on the host. `scratch`
// as for block_sum; the whole block must call it.
SKC_DEVICE i32 check_edit(const SkcEdit& p, const EditTarget& t, const Lengths& lengths, u64* scratch) {
    // A layer, and its status in the lower 32 bits.
    u64 first = ~0ull;
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        i32 status = check_layer(p, t, layer, lengths);
        if (status == 0) continue;
        first = (u64)layer << 32 | (u32)status;
        break;
    }
    for (u32 mask = 16; mask > 0; mask /= 2) first = min_u64(first, shuffle_xor(first, mask));
    if (lane() == 0) scratch[warp()] = first;
    block_sync();
    for (u32 w = 0; w < 4; ++w) first = min_u64(first, scratch[w]);
    block_sync();
    return first == ~0ull ? 0 : (i32)(u32)first;
}

// Applies a checked pin or evict_range. Its rows have been moved. The whole block must call it.
SKC_DEVICE void apply_range_edits(const SkcEdit& p, const EditTarget& t, u64* scratch) {
    u64 changes = 0;
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        RangeEdit edit = find_range_edit(p, t, layer);
        SkcSeq& seq = p.seqs[(u64)layer * p.batch.n_seqs + t.dst];
        apply_range_edit(edit, edit_ring(p, layer), seq, edit_ranges(p, layer, t.dst));
        changes += edit.changes();
    }
    if (block_sum(changes, scratch, 4) == 0) return;
    // No query sees the sequence as it was, in any layer.
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        p.seqs[(u64)layer * p.batch.n_seqs + t.dst].attendable = 0; // mutant: range_edit_leaves_queries
    }
}

SKC_DEVICE void apply_edit(const SkcEdit& p, const EditTarget& t, u64 shortest) {
    for (u32 layer = thread(); layer < p.n_layers; layer += 128) {
        u64 at = (u64)layer * p.batch.n_seqs;
        SkcSeq& seq = p.seqs[at + t.dst];
        switch (p.call) {
            case SKC_CALL_EVICT: seq_evict(seq, edit_ring(p, layer), edit_list(p, layer, t.dst), t.n); break;
            case SKC_CALL_REWIND: seq_cut(seq, seq.len - t.n); break;
            case SKC_CALL_FORK: seq = p.seqs[at + t.src]; break;
            case SKC_CALL_RESET: seq = {}; break;
            default:
                if (shortest == 0) {
                    seq = {};
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
    EditTarget t = find_target(p, index, scratch);
    if (!t.active && t.status == 0) return;
    Lengths lengths = {0, 0};
    i32 status = t.status;
    if (status == 0) {
        lengths = lengths_of(p, t.src, scratch);
        status = check_edit(p, t, lengths, scratch);
    }
    if (status != 0) {
        if (thread() == 0) {
            bool has_no_count = p.call == SKC_CALL_RESET || p.call == SKC_CALL_ABORT;
            u64 count = recorded_count(has_no_count ? 0 : batch_tokens(p.batch, index));
            report(p.errors, {status, ~0u, index, t.given_id, p.call, count});
        }
        return;
    }
    // check_edit ended with a barrier: no thread still reads the counters that change now.
    if (edits_ranges(p)) {
        apply_range_edits(p, t, scratch);
        return;
    }
    apply_edit(p, t, lengths.shortest);
    if (thread() == 0) {
        if (p.call == SKC_CALL_FORK) p.starts[t.dst] = p.starts[t.src];
        if (p.call == SKC_CALL_RESET) p.starts[t.dst] = edit_position(p, index);
    }
}

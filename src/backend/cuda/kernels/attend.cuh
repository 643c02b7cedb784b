// skc_attend_generic: attention of any shape and type, in f32. One block computes one query head of one token.
//
// Grid: entries, tokens (loop), query heads (loop). 128 threads. Shared: GENERIC_SHARED(head_dim) bytes.
#pragma once

#include "hadamard.cuh"
#include "launch_config.cuh"
#include "segments.cuh"
#include "softmax.cuh"
#include "stored_rows.cuh"

// The block's shared memory.
struct GenericShared {
    float* query[2];  // [head_dim] rotated for keys of the first segment of a pair, and of the second
    float* probs;     // [128] scores of a block of keys, then probabilities
    float* scratch;   // for block-wide sums
};

// The keys of a segment that a query sees, all of them.
struct SegmentKeys {
    u64 slot;      // of the first key
    u64 end_slot;  // behind the last slot: from here the keys go on at `wrap_slot`
    u64 wrap_slot;
    u64 n;
    u64 offset;    // of the query that meets them
    u64 distance;  // of that query to the first key, in cache positions

    SKC_DEVICE u64 slot_of(u64 i) const {
        // A window is not longer than the ring: it wraps once at most.
        u64 at = slot + i;
        return at >= end_slot ? at - (end_slot - wrap_slot) : at;
    }
};

// Two segments, which are computed in one go: without pinned and evicted ranges the sinks and the window.
struct KeyPair {
    SegmentKeys of[2];

    SKC_DEVICE u64 n() const { return of[0].n + of[1].n; }
    SKC_DEVICE u32 segment_of(u64 i) const { return i < of[0].n ? 0 : 1; }
    SKC_DEVICE u64 slot_of(u64 i) const { return i < of[0].n ? of[0].slot_of(i) : of[1].slot_of(i - of[0].n); }
    SKC_DEVICE u64 distance_of(u64 i) const {
        return i < of[0].n ? of[0].distance - i : of[1].distance - (i - of[0].n);
    }
};

// The next segment with keys from segment `i` of a list on, which is that of the query of `token`; `i` becomes the one
// after it. Behind the last there are no keys.
SKC_DEVICE SegmentKeys next_keys(const SegmentList& list, u64 token, u32& i) {
    while (i < list.count()) {
        Segment s = list.segment(i++);
        if (s.n == 0) continue;
        u64 offset = s.offset_from(list.oldest);
        u64 end_slot = s.window ? ring_total_slots(list.ring) : s.slot + s.n;
        return {s.slot, end_slot, ring_fixed_slots(list.ring), s.n, offset, token - offset - s.index};
    }
    return {};
}

// Registers of a lane that hold a row of up to 512 dims.
constexpr u32 GENERIC_ROW = 16;

// Writes a query to shared memory twice, rotated for the keys of both segments.
SKC_DEVICE void load_query(const SkcLayer& l, const u8* from, u64 position, const KeyPair& keys,
                           const GenericShared& shared) {
    for (u32 pair = thread(); pair < l.k.dim / 2; pair += 128) {
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            PairRotation r = query_rotation(l, position, keys.of[j].offset, pair);
            Pair x = {load_element(from, l.in_dtype, r.first), load_element(from, l.in_dtype, r.second)};
            Pair y = r.rotated ? rotate(x, r.angle) : x;
            shared.query[j][r.first] = y.first;
            shared.query[j][r.second] = y.second;
        }
    }
}

// Turns both queries as keys of q8 and q4 are turned. The whole block must call it.
SKC_DEVICE void turn_queries(u32 dim, const GenericShared& shared) {
    if (warp() >= 2) return;
    float* query = warp() == 0 ? shared.query[0] : shared.query[1];
    WarpRow<GENERIC_ROW> row;
    row.load((const u8*)query, SKC_F32, dim);
    hadamard(row, dim);
#pragma unroll
    for (u32 j = 0; j < GENERIC_ROW; ++j) {
        if (row.element(j) < dim) query[row.element(j)] = row.x[j];
    }
}

// Maximum over the block, NaN ignored, for every thread. `scratch`: a float for each warp.
SKC_DEVICE float block_max(float x, float* scratch) {
    for (u32 mask = 16; mask > 0; mask /= 2) x = max_f(x, shuffle_xor(x, mask));
    if (lane() == 0) scratch[warp()] = x;
    block_sync();
    x = max_f(max_f(scratch[0], scratch[1]), max_f(scratch[2], scratch[3]));
    block_sync();
    return x;
}

// Sum over the block, for every thread. `scratch`: a float for each warp.
SKC_DEVICE float block_total(float x, float* scratch) {
    for (u32 mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    if (lane() == 0) scratch[warp()] = x;
    block_sync();
    x = (scratch[0] + scratch[1]) + (scratch[2] + scratch[3]);
    block_sync();
    return x;
}

// Product of a query and a key, for all of the eight lanes that share it: neighbouring lanes read neighbouring dims.
// Where `valid` is false nothing is read.
SKC_DEVICE float dot(const float* q, const StoredRow& k, const SkcStore& store, bool valid) {
    // Four sums: shorter dependency chains and smaller rounding errors. Head dims are multiples of 8.
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (valid) {
#pragma unroll 4
        for (u32 i = lane() % 8 * 4; i < store.dim; i += 32) {
            float x[4];
            load_stored_four(x, k, store.type, i);
            for (u32 j = 0; j < 4; ++j) sum[j] += q[i + j] * x[j];
        }
    }
    float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (u32 mask = 1; mask < 8; mask *= 2) total += shuffle_xor(total, mask);
    return total;
}

// Scales, caps and biases a product of query and key.
SKC_DEVICE float score_of(const SkcLayer& l, u32 head, float product, u64 distance) {
    float score = product * l.scale;
    if (l.softcap > 0.0f) score = l.softcap * tanh_f(score / l.softcap);
    if (l.alibi_slopes) score -= l.alibi_slopes[head] * (float)distance;
    return score;
}

// What a thread has of a row's result: four dims of V, so that `key_shares` groups of threads have all dims. The groups
// divide the keys among them.
struct ValueShare {
    u32 dim_groups;
    u32 key_shares;
    u32 dim;
    u32 key_share;
};

SKC_DEVICE ValueShare value_share(const SkcLayer& l) {
    u32 groups = l.v.dim / 4;
    return {groups, 128 / groups, thread() % groups * 4, thread() / groups};
}

// The query head of one token that a block computes, and its KV head, counted over all sequences.
struct GenericHead {
    u32 head;
    u64 kv_head;
};

// Takes in the keys of two segments. The whole block must call it.
SKC_DEVICE void add_keys(SoftmaxState<4, BaseE>& state, const SkcLayer& l, const KeyPair& keys, const GenericHead& h,
                         const GenericShared& shared) {
    const float none = minus_infinity();
    ValueShare share = value_share(l);
    float* probs = shared.probs;
    for (u64 block = 0; block < keys.n(); block += 128) {
        u32 n = (u32)min_u64(128, keys.n() - block);
        // QK^T: eight lanes to a key, so that a warp's four keys are in range or not together.
        for (u32 j = thread() / 8; j / 4 * 4 < n; j += 16) {
            u64 i = block + j;
            bool valid = j < n;
            const float* query = keys.segment_of(i) == 0 ? shared.query[0] : shared.query[1];
            float product = dot(query, stored_row(l.k, h.kv_head, valid ? keys.slot_of(i) : 0), l.k, valid);
            float score = score_of(l, h.head, product, keys.distance_of(i));
            if (lane() % 8 == 0 && valid) probs[j] = score;
        }
        block_sync();
        float score = thread() < n ? probs[thread()] : none;
        float new_max = block_max(max_f(state.stats.max, score), shared.scratch);
        // Every score so far is minus infinity (a NaN would have to show): nothing to add, and V must not be multiplied
        // by zero, since it may be infinite.
        if (new_max == none && block_total(score != none ? 1.0f : 0.0f, shared.scratch) == 0.0f) continue;
        float alpha = state.stats.raise(new_max);
        float prob = thread() < n ? state.stats.probability(score) : 0.0f;
        probs[thread()] = prob;
        // Each block of keys is summed by itself, so that rounding errors grow with the number of blocks, not of keys.
        state.stats.add(alpha, block_total(prob, shared.scratch));
        if (share.key_share < share.key_shares) {
            float block_acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
            for (u32 j = share.key_share; j < n; j += share.key_shares) {
                float x[4];
                load_stored_four(x, stored_row(l.v, h.kv_head, keys.slot_of(block + j)), l.v.type, share.dim);
                for (u32 d = 0; d < 4; ++d) block_acc[d] += probs[j] * x[d];
            }
            for (u32 d = 0; d < 4; ++d) state.acc[d] = state.acc[d] * alpha + block_acc[d];
        }
        block_sync();
    }
}

// Normalises the result of a query head and writes it to row `row` of the caller's tensors. The whole block must call
// it.
SKC_DEVICE void store_result(SoftmaxState<4, BaseE>& state, const SkcAttend& p, u64 row, u32 head,
                             const GenericShared& shared) {
    const SkcLayer& l = p.layer;
    ValueShare share = value_share(l);
    float* probs = shared.probs;
    float factor = state.stats.finish(l, head);
    u8* out = row_at(p.out, row, head);
    // The groups' accumulators are added through shared memory, one of the four dims of a thread after the other.
    for (u32 d = 0; d < 4; ++d) {
        probs[thread()] = state.acc[d];
        block_sync();
        if (share.key_share == 0) {
            float x = 0.0f;
            for (u32 i = 0; i < share.key_shares; ++i) x += probs[i * share.dim_groups + thread()];
            store_element(out, l.out_dtype, share.dim + d, x * factor);
        }
        block_sync();
    }
    if (thread() == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, head) = state.stats.lse();
}

SKC_KERNEL(128, skc_attend_generic, SkcAttend) {
    begin_kernel();
    const SkcLayer& l = p.layer;
    float* floats = (float*)shared_memory();
    GenericShared shared = {{floats, floats + l.k.dim}, floats + 2 * l.k.dim, floats + 2 * l.k.dim + 128};
    Queries q = find_queries(p, (u64*)shared.scratch, 4);
    if (!q.active) return;
    Ring ring = ring_of(l);
    for (u64 t = block_y(); t < q.m; t += grid_y()) {
        u64 token = q.first + t;
        u64 row = q.row + t;
        SegmentList list = segment_list(l, q.seq, ring.n_sink + query_evicted(ring, q, token), token);
        for (u32 head = block_z(); head < l.n_kv_heads * l.group; head += grid_z()) {
            auto state = SoftmaxState<4, BaseE>::empty();
            GenericHead h = {head, (u64)q.seq * l.n_kv_heads + head / l.group};
            for (u32 i = 0; i < list.count();) {
                SegmentKeys first = next_keys(list, token, i);
                KeyPair keys = {{first, next_keys(list, token, i)}};
                load_query(l, row_at(p.q, row, head), q.start + token, keys, shared);
                block_sync();
                if (is_quantised(l.k.type)) {
                    turn_queries(l.k.dim, shared); // mutant: queries_not_turned
                    block_sync();
                }
                add_keys(state, l, keys, h, shared);
            }
            store_result(state, p, row, head, shared);
        }
    }
}

// skc_attend_generic: attention of any shape and type, in f32. One block computes one query head of one token.
//
// Grid: entries, tokens (loop), query heads (loop). 128 threads. Shared: GENERIC_SHARED(head_dim) bytes.
#pragma once

#include "hadamard.cuh"
#include "launch_config.cuh"
#include "query.cuh"
#include "softmax.cuh"
#include "stored_rows.cuh"

// The block's shared memory.
struct GenericShared {
    float* window_query;  // [head_dim] rotated for window keys
    float* sink_query;    // [head_dim] rotated for sink keys
    float* probs;         // [128] scores of a block of keys, then probabilities
    float* scratch;       // for block-wide sums
};

// A query's visible keys in order: sinks, then the window from its oldest token on.
struct VisibleKeys {
    u64 token;       // the query's
    u64 evicted;     // E(token + 1)
    u64 oldest;      // the oldest window token
    u64 n_sinks;     // visible sinks
    u64 n_keys;      // sinks and window
    u64 n_sink;      // slots of sinks
    u64 ring_slots;
    u64 ring_begin;  // the oldest window token's place in the ring
};

SKC_DEVICE VisibleKeys visible_keys(const Ring& ring, const Queries& q, u64 token) {
    u64 evicted = query_evicted(ring, q, token);
    u64 oldest = ring.n_sink + evicted;
    u64 n_sinks = min_u64(ring.n_sink, token + 1);
    u64 n_keys = n_sinks + saturating_sub(token + 1, oldest);
    return {token, evicted, oldest, n_sinks, n_keys, ring.n_sink, ring.ring_slots, evicted % ring.ring_slots};
}

// Slot of the i-th visible key.
SKC_DEVICE u64 key_slot(const VisibleKeys& keys, u64 i) {
    if (i < keys.n_sinks) return i;
    // A window is not longer than the ring: it wraps once at most.
    u64 at = keys.ring_begin + (i - keys.n_sinks);
    return keys.n_sink + (at >= keys.ring_slots ? at - keys.ring_slots : at);
}

// Distance of the i-th visible key to the query, in cache positions.
SKC_DEVICE u64 key_distance(const VisibleKeys& keys, u64 i) {
    if (i < keys.n_sinks) return keys.token - keys.evicted - i;
    return keys.token - (keys.oldest + (i - keys.n_sinks));
}

// Registers of a lane that hold a row of up to 512 dims.
constexpr u32 GENERIC_ROW = 16;

// Writes a query to shared memory twice, rotated for window keys and for sink keys.
SKC_DEVICE void load_query(const SkcLayer& l, const u8* from, u64 position, u64 evicted, const GenericShared& shared) {
    for (u32 pair = thread(); pair < l.k.dim / 2; pair += 128) {
        PairRotation window = query_rotation(l, position, evicted, false, pair);
        PairRotation sinks = query_rotation(l, position, evicted, true, pair);
        u32 first = window.first;
        u32 second = window.second;
        Pair x = {load_element(from, l.in_dtype, first), load_element(from, l.in_dtype, second)};
        Pair w = window.rotated ? rotate(x, window.angle) : x;
        Pair s = sinks.rotated ? rotate(x, sinks.angle) : x;
        shared.window_query[first] = w.first;
        shared.window_query[second] = w.second;
        shared.sink_query[first] = s.first;
        shared.sink_query[second] = s.second;
    }
}

// Turns both queries as keys of q8 and q4 are turned. The whole block must call it.
SKC_DEVICE void turn_queries(u32 dim, const GenericShared& shared) {
    if (warp() >= 2) return;
    float* query = warp() == 0 ? shared.window_query : shared.sink_query;
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

// Attention of query head `head` of one token, which is row `row` of the caller's tensors. The whole block must call
// it. `kv_head`: its KV head, counted over all sequences.
SKC_DEVICE void attend_query(const SkcAttend& p, const VisibleKeys& keys, u64 kv_head, u64 row, u32 head,
                             const GenericShared& shared) {
    const SkcLayer& l = p.layer;
    const float none = minus_infinity();
    // PV: a thread has four dims of V, so that `key_shares` groups of threads have all dims: they divide the keys among
    // them.
    u32 dim_groups = l.v.dim / 4;
    u32 key_shares = 128 / dim_groups;
    u32 dim = thread() % dim_groups * 4;
    u32 key_share = thread() / dim_groups;
    float* probs = shared.probs;
    auto state = SoftmaxState<4, BaseE>::empty();
    for (u64 block = 0; block < keys.n_keys; block += 128) {
        u32 n = (u32)min_u64(128, keys.n_keys - block);
        // QK^T: eight lanes to a key, so that a warp's four keys are in range or not together.
        for (u32 j = thread() / 8; j / 4 * 4 < n; j += 16) {
            u64 i = block + j;
            bool valid = j < n;
            const float* query = i < keys.n_sinks ? shared.sink_query : shared.window_query;
            float product = dot(query, stored_row(l.k, kv_head, valid ? key_slot(keys, i) : 0), l.k, valid);
            float score = score_of(l, head, product, key_distance(keys, i));
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
        if (key_share < key_shares) {
            float block_acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
            for (u32 j = key_share; j < n; j += key_shares) {
                float x[4];
                load_stored_four(x, stored_row(l.v, kv_head, key_slot(keys, block + j)), l.v.type, dim);
                for (u32 d = 0; d < 4; ++d) block_acc[d] += probs[j] * x[d];
            }
            for (u32 d = 0; d < 4; ++d) state.acc[d] = state.acc[d] * alpha + block_acc[d];
        }
        block_sync();
    }
    float factor = state.stats.finish(l, head);
    u8* out = row_at(p.out, row, head);
    // The groups' accumulators are added through shared memory, one of the four dims of a thread after the other.
    for (u32 d = 0; d < 4; ++d) {
        probs[thread()] = state.acc[d];
        block_sync();
        if (key_share == 0) {
            float x = 0.0f;
            for (u32 i = 0; i < key_shares; ++i) x += probs[i * dim_groups + thread()];
            store_element(out, l.out_dtype, dim + d, x * factor);
        }
        block_sync();
    }
    if (thread() == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, head) = state.stats.lse();
}

SKC_KERNEL(128, skc_attend_generic, SkcAttend) {
    begin_kernel();
    const SkcLayer& l = p.layer;
    float* floats = (float*)shared_memory();
    GenericShared shared = {floats, floats + l.k.dim, floats + 2 * l.k.dim, floats + 2 * l.k.dim + 128};
    Queries q = find_queries(p, (u64*)shared.scratch, 4);
    if (!q.active) return;
    Ring ring = ring_of(l);
    for (u64 t = block_y(); t < q.m; t += grid_y()) {
        u64 token = q.first + t;
        u64 row = q.row + t;
        VisibleKeys keys = visible_keys(ring, q, token);
        for (u32 head = block_z(); head < l.n_kv_heads * l.group; head += grid_z()) {
            load_query(l, row_at(p.q, row, head), q.start + token, keys.evicted, shared);
            block_sync();
            if (is_quantised(l.k.type)) {
                turn_queries(l.k.dim, shared); // mutant: queries_not_turned
                block_sync();
            }
            attend_query(p, keys, (u64)q.seq * l.n_kv_heads + head / l.group, row, head, shared);
        }
    }
}

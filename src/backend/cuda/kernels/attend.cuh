// skc_attend_generic: attention of any shape and type, all in f32. One block per query token and query head.
//
// Grid: entries, tokens (loop), query heads (loop). 128 threads. Shared: GENERIC_SHARED(head_dim) bytes.
#pragma once

#include "dtype.cuh"
#include "geometry.cuh"
#include "phase.cuh"
#include "query.cuh"

// The query as window keys and as sinks see it, into shared memory.
SKC_DEVICE void load_query(const SkcAttend& p, const Queries& q, u64 token, u64 evicted, const u8* from, float* window, float* sink) {
    const SkcLayer& l = p.layer;
    for (u32 i = 2 * l.half + thread(); i < l.head_dim; i += 128) window[i] = sink[i] = load_element(from, l.in_dtype, i);
    for (u32 i = thread(); i < l.half; i += 128) {
        u32 a = pair_first(l.rope_style, i), b = pair_second(l.rope_style, l.half, i);
        float x0 = load_element(from, l.in_dtype, a), x1 = load_element(from, l.in_dtype, b);
        u64 f = l.frequencies[i];
        bool rotates = l.position_mode == SKC_ROPE;
        // The host has rotated and scaled: turn back by E, purely.
        u64 position = rotates ? q.start + token - evicted : 0ull - evicted;
        float scale = rotates ? l.mscale : 1.0f;
        Angle s = angle_of(position * f);
        sink[a] = (x0 * s.cos - x1 * s.sin) * scale;
        sink[b] = (x1 * s.cos + x0 * s.sin) * scale;
        if (rotates) {
            Angle w = angle_of((q.start + token) * f);
            window[a] = (x0 * w.cos - x1 * w.sin) * scale;
            window[b] = (x1 * w.cos + x0 * w.sin) * scale;
        } else {
            window[a] = x0;
            window[b] = x1;
        }
    }
}

// Largest of the block's numbers, NaN left out. `scratch`: a float per warp.
SKC_DEVICE float block_max(float x, float* scratch) {
    for (u32 mask = 16; mask > 0; mask /= 2) x = max_f(x, shuffle_xor(x, mask));
    if (lane() == 0) scratch[warp()] = x;
    block_sync();
    x = max_f(max_f(scratch[0], scratch[1]), max_f(scratch[2], scratch[3]));
    block_sync();
    return x;
}

SKC_DEVICE float block_total(float x, float* scratch) {
    for (u32 mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    if (lane() == 0) scratch[warp()] = x;
    block_sync();
    x = (scratch[0] + scratch[1]) + (scratch[2] + scratch[3]);
    block_sync();
    return x;
}

// Product of query and key, in all of the eight lanes that share it: neighbours read neighbouring pieces of the key.
SKC_DEVICE float dot(const float* q, const u8* k, u32 dtype, u32 dim, bool valid) {
    // Four sums: shorter chains, smaller rounding. Dims are multiples of 8.
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (valid) {
#pragma unroll 4
        for (u32 i = lane() % 8 * 4; i < dim; i += 32) {
            float x[4];
            load_four(x, k, dtype, i);
            for (u32 j = 0; j < 4; ++j) sum[j] += q[i + j] * x[j];
        }
    }
    float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (u32 mask = 1; mask < 8; mask *= 2) total += shuffle_xor(total, mask);
    return total;
}

// Slots of a query's keys, in order: sinks, then the window from its oldest token on.
struct Walk {
    u64 n_sinks;
    u64 n_sink;
    u64 ring_slots;
    u64 offset;  // of the oldest window token in the ring
};

SKC_DEVICE u64 walk_slot(const Walk& w, u64 i) {
    if (i < w.n_sinks) return i;
    // The window is no longer than the ring: one wrap at most.
    u64 at = w.offset + (i - w.n_sinks);
    return w.n_sink + (at >= w.ring_slots ? at - w.ring_slots : at);
}

SKC_KERNEL(128, skc_attend_generic, SkcAttend) {
    begin_kernel();
    const SkcLayer& l = p.layer;
    float* window = (float*)shared_memory();
    float* sink = window + l.head_dim;
    float* weights = sink + l.head_dim;
    float* scratch = weights + 128;
    Ring ring = ring_of(l);
    Queries q = find_queries(p, ring, (u64*)scratch, 4);
    if (!q.live) return;
    u64 slots = ring_total_slots(ring);
    u32 size = element_size(l.kv_dtype);
    u32 n_q_heads = l.n_kv_heads * l.group;
    const float none = minus_infinity();
    // Four dims of V to a thread, which makes `shares` sets of threads for all of them: each takes its share of the keys.
    u32 fours = l.head_dim_v / 4, shares = 128 / fours;
    u32 dim = thread() % fours * 4, share = thread() / fours;
    for (u64 t = block_y(); t < q.m; t += grid_y()) {
        u64 token = q.first + t;
        u64 evicted = query_evicted(ring, q, token);
        u64 n_sinks = min_u64(ring.n_sink, token + 1);
        u64 oldest = ring.n_sink + evicted;
        Walk walk = {n_sinks, ring.n_sink, ring.ring_slots, evicted % ring.ring_slots};
        u64 n_keys = n_sinks + saturating_sub(token + 1, oldest);
        for (u32 head = block_z(); head < n_q_heads; head += grid_z()) {
            load_query(p, q, token, evicted, row_at(p.q, q.row + t, head), window, sink);
            block_sync();
            u64 base = ((u64)q.seq * l.n_kv_heads + head / l.group) * slots;
            float max = l.sink_logits ? l.sink_logits[head] : none;
            float sum = l.sink_logits ? 1.0f : 0.0f;
            float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (u64 block = 0; block < n_keys; block += 128) {
                u32 n = (u32)min_u64(128, n_keys - block);
                for (u32 j = thread() / 8; j / 4 * 4 < n; j += 16) {
                    u64 i = block + j;
                    bool in_sinks = i < n_sinks, valid = j < n;
                    u64 key = in_sinks ? i : oldest + (i - n_sinks);
                    const u8* k = l.k + (base + (valid ? walk_slot(walk, i) : 0)) * l.head_dim * size;
                    float score = dot(in_sinks ? sink : window, k, l.kv_dtype, l.head_dim, valid) * l.scale;
                    if (l.softcap > 0.0f) score = l.softcap * tanh_f(score / l.softcap);
                    if (l.alibi) score -= l.alibi[head] * (float)(in_sinks ? token - evicted - key : token - key);
                    if (lane() % 8 == 0 && valid) weights[j] = score;
                }
                block_sync();
                float score = thread() < n ? weights[thread()] : none;
                float highest = block_max(max_f(max, score), scratch);
                // Nothing but weights of zero so far, and no maximum to subtract. A NaN among them must show.
                if (highest == none && block_total(score != none ? 1.0f : 0.0f, scratch) == 0.0f) continue;
                float weight = thread() < n ? exp_f(score - highest) : 0.0f;
                weights[thread()] = weight;
                // A block is summed by itself: rounding then grows with the number of blocks, not of keys.
                float total = block_total(weight, scratch);
                float keep = exp_f(max - highest);
                sum = sum * keep + total;
                max = highest;
                if (share < shares) {
                    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
                    for (u32 j = share; j < n; j += shares) {
                        float x[4];
                        load_four(x, l.v + (base + walk_slot(walk, block + j)) * l.head_dim_v * size, l.kv_dtype, dim);
                        for (u32 d = 0; d < 4; ++d) part[d] += weights[j] * x[d];
                    }
                    for (u32 d = 0; d < 4; ++d) acc[d] = acc[d] * keep + part[d];
                }
                block_sync();
            }
            u8* out = row_at(p.out, q.row + t, head);
            // One of a thread's four dims at a time: there is room for so many.
            for (u32 d = 0; d < 4; ++d) {
                weights[thread()] = acc[d];
                block_sync();
                if (share == 0) {
                    float x = 0.0f;
                    for (u32 i = 0; i < shares; ++i) x += weights[i * fours + thread()];
                    store_element(out, l.out_dtype, dim + d, x / sum);
                }
                block_sync();
            }
            if (thread() == 0 && p.lse.ptr) *(float*)row_at(p.lse, q.row + t, head) = max + log_f(sum);
        }
    }
}

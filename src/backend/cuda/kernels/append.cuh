// skc_append: rotates each key once, at its stream position, and stores K and V in their slots; the last block of an entry
// makes its tokens count.
//
// Grid: entries, blocks over tokens (which loop). 128 threads. Shared: cosines and sines of one token, 8 x half bytes
// rounded up to 16, then 64 bytes.
#pragma once

#include "commit.cuh"
#include "dtype.cuh"
#include "phase.cuh"

// What a thread moves at once: its loads wait for memory together.
constexpr u32 BATCH = 4;

// Rotated pairs of all heads of a token.
struct Pairs {
    float x[BATCH][2];

    SKC_DEVICE static u32 count(const SkcLayer& l) { return l.n_kv_heads * l.half; }
    SKC_DEVICE void load(const SkcAppend& p, u64 row, u32 first) {
        const SkcLayer& l = p.layer;
#pragma unroll
        for (u32 j = 0; j < BATCH; ++j) {
            u32 i = first + 128 * j;
            if (i >= count(l)) break;
            const u8* from = row_at(p.k, row, i / l.half);
            x[j][0] = load_element(from, l.in_dtype, pair_first(l.rope_style, i % l.half));
            x[j][1] = load_element(from, l.in_dtype, pair_second(l.rope_style, l.half, i % l.half));
        }
    }
    // `to`: the token's slot of head 0; `stride`: bytes from one head to the next.
    SKC_DEVICE void store(const SkcLayer& l, u8* to, u64 stride, const float* cos, const float* sin, u32 first) const {
#pragma unroll
        for (u32 j = 0; j < BATCH; ++j) {
            u32 i = first + 128 * j;
            if (i >= count(l)) break;
            u32 pair = i % l.half;
            u8* key = to + i / l.half * stride;
            Turned t = turned(x[j][0], x[j][1], cos[pair], sin[pair]);
            store_element(key, l.kv_dtype, pair_first(l.rope_style, pair), t.first);
            store_element(key, l.kv_dtype, pair_second(l.rope_style, l.half, pair), t.second);
        }
    }
};

// Dims of all heads of a token that are stored as they come, but for their type: bit for bit where that is the same, and 16
// bytes at a time where rows allow it.
struct Plain {
    SkcRows rows;
    u8* to;      // the token's slot of head 0
    u64 stride;  // bytes from one head to the next
    u32 first;   // dim
    u32 n;       // dims
    bool wide;

    SKC_DEVICE void move(const SkcLayer& l, u64 row) const {
        u32 size = element_size(l.kv_dtype);
        if (wide) {
            u32 pieces = n * size / 16, count = l.n_kv_heads * pieces;
            for (u32 at = thread(); at < count; at += BATCH * 128) {
                Quad x[BATCH];
#pragma unroll
                for (u32 j = 0; j < BATCH; ++j) {
                    u32 i = at + j * 128;
                    if (i < count) x[j] = *(const Quad*)(row_at(rows, row, i / pieces) + first * size + 16 * (i % pieces));
                }
#pragma unroll
                for (u32 j = 0; j < BATCH; ++j) {
                    u32 i = at + j * 128;
                    if (i < count) *(Quad*)(to + i / pieces * stride + first * size + 16 * (i % pieces)) = x[j];
                }
            }
            return;
        }
        for (u32 i = thread(); i < l.n_kv_heads * n; i += 128) {
            const u8* from = row_at(rows, row, i / n);
            u8* slot = to + i / n * stride;
            u32 dim = first + i % n;
            if (l.in_dtype == l.kv_dtype) {
                copy_element(slot, from, l.kv_dtype, dim);
            } else {
                store_element(slot, l.kv_dtype, dim, load_element(from, l.in_dtype, dim));
            }
        }
    }
};

// Dims first .. dim of K or V in slot `slot` of the entry's sequence.
SKC_DEVICE Plain plain_of(const SkcLayer& l, const SkcRows& rows, u8* store, u32 seq, u64 slots, u64 slot, u32 first, u32 dim) {
    u64 bytes = (u64)dim * element_size(l.kv_dtype);
    bool wide = l.in_dtype == l.kv_dtype && ((u64)rows.ptr | (u64)rows.token | (u64)rows.head | first * element_size(l.kv_dtype)) % 16 == 0;
    return {rows, store + ((u64)seq * l.n_kv_heads * slots + slot) * bytes, slots * bytes, first, dim - first, wide};
}

SKC_KERNEL(128, skc_append, SkcAppend) {
    begin_kernel(); // mutant: launch_before_the_last_ended
    const SkcLayer& l = p.layer;
    u32 index = block_x();
    u32 angles = (8 * l.half + 15) / 16 * 16;
    float* cos = (float*)shared_memory();
    float* sin = cos + l.half;
    u64* scratch = (u64*)(shared_memory() + angles);
    Entry e = find_entry(p.batch, index, scratch, 4);
    Ring ring = ring_of(l);
    // Read by every block before any commits: the last to arrive does.
    SkcSeq seq = l.seqs[e.seq];
    u64 start = l.starts[e.seq];
    Advance a = advance_of(l, p.batch, ring, e, seq, start);
    if (a.skip) return;
    if (a.status != 0) {
        if (block_y() == 0 && thread() == 0) report_advance(l, p.batch, index, e, a);
    } else {
        bool rotates = l.position_mode == SKC_ROPE && l.half > 0;
        u64 slots = ring_total_slots(ring);
        u32 turned = rotates ? 2 * l.half : 0;
        for (u64 t = block_y(); t < a.m; t += grid_y()) {
            u64 token = seq.len + t, slot = ring_slot(ring, token), row = e.row + p.batch.at + t;
            Plain keys = plain_of(l, p.k, l.k, e.seq, slots, slot, turned, l.head_dim);
            Plain values = plain_of(l, p.v, l.v, e.seq, slots, slot, 0, l.head_dim_v);
            if (rotates) {
                Pairs pairs;
                // On their way while angles are computed.
                pairs.load(p, row, thread());
                block_sync();
                for (u32 i = thread(); i < l.half; i += 128) {
                    Angle turn = angle_of((start + token) * l.frequencies[i]);
                    cos[i] = turn.cos * l.mscale;
                    sin[i] = turn.sin * l.mscale;
                }
                block_sync();
                pairs.store(l, keys.to, keys.stride, cos, sin, thread());
                for (u32 i = thread() + BATCH * 128; i < Pairs::count(l); i += BATCH * 128) {
                    pairs.load(p, row, i);
                    pairs.store(l, keys.to, keys.stride, cos, sin, i);
                }
            }
            if (turned < l.head_dim) keys.move(l, row);
            values.move(l, row);
        }
    }
    // An id that is none, or another entry's, has no counters of its own to change.
    if (!e.own) return;
    block_sync();
    if (thread() == 0) arrive(l, p.batch, e.seq, a, grid_y());
}

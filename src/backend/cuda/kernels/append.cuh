// skc_append: rotates each key once, at its stream position, and stores K and V in their slots; the last block of an entry
// makes its tokens count.
//
// Grid: entries, blocks over tokens (which loop). 128 threads. Shared: cosines and sines of one token, 8 x half bytes
// rounded up to 16, then 64 bytes.
#pragma once

#include "element.cuh"
#include "entry.cuh"
#include "phase.cuh"

// Whether tokens can follow what the sequence holds: Entry::append of src/batch.rs.
SKC_DEVICE i32 check_append(const Ring& ring, const SkcSeq& seq, u64 start, u64 n) {
    if (seq.len > ~0ull - start || n > ~0ull - start - seq.len) return SKC_STATUS_OUT_OF_RANGE;
    return ring_intact(ring, seq.len, seq) ? 0 : SKC_STATUS_TOKENS_GONE;
}

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
            store_element(key, l.kv_dtype, pair_first(l.rope_style, pair), x[j][0] * cos[pair] - x[j][1] * sin[pair]);
            store_element(key, l.kv_dtype, pair_second(l.rope_style, l.half, pair), x[j][1] * cos[pair] + x[j][0] * sin[pair]);
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
    const SkcLayer& l = p.layer;
    u32 index = block_x();
    u32 angles = (8 * l.half + 15) / 16 * 16;
    float* cos = (float*)shared_memory();
    float* sin = cos + l.half;
    u64* scratch = (u64*)(shared_memory() + angles);
    Entry e = find_entry(p.batch, index, scratch, 4);
    if (!e.live && e.status == 0) return;
    Ring ring = ring_of(l);
    bool first_block = block_y() == 0;
    // Read by every block before any commits: the last to arrive does.
    SkcSeq seq = l.seqs[e.seq];
    u64 start = l.starts[e.seq];
    u64 at = p.batch.at;
    u64 left = saturating_sub(e.n, at);
    u64 m = min_u64(left, p.batch.step);
    i32 status = e.status;
    if (status == 0 && m == 0) return;
    // All of a long call is checked with its first chunk. Whether that was done shows in what it left.
    if (status == 0 && at > 0 && seq.attendable != min_u64(at, l.max_chunk)) return;
    if (status == 0) status = check_append(ring, seq, start, left);
    if (status != 0) {
        // Reported once per call.
        if (first_block && thread() == 0 && at == 0) {
            report(l.error, status, l.layer, index, e.given, SKC_CALL_APPEND, shown(batch_tokens(p.batch, index)));
        }
    } else {
        bool rotates = l.position_mode == SKC_ROPE && l.half > 0;
        u64 slots = ring_total_slots(ring);
        u32 turned = rotates ? 2 * l.half : 0;
        for (u64 t = block_y(); t < m; t += grid_y()) {
            u64 token = seq.len + t, slot = ring_slot(ring, token), row = e.row + at + t;
            Plain keys = plain_of(l, p.k, l.k, e.seq, slots, slot, turned, l.head_dim);
            Plain values = plain_of(l, p.v, l.v, e.seq, slots, slot, 0, l.head_dim_v);
            if (rotates) {
                Pairs pairs;
                // On their way while angles are computed.
                pairs.load(p, row, thread());
                block_sync();
                for (u32 i = thread(); i < l.half; i += 128) {
                    Angle a = angle_of((start + token) * l.frequencies[i]);
                    cos[i] = a.cos * l.mscale;
                    sin[i] = a.sin * l.mscale;
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
    if (thread() == 0) {
        if (atomic_inc(&l.arrivals[e.seq], grid_y() - 1) == grid_y() - 1) {
            if (status == 0) {
                seq_append(seq, m);
                seq.attendable = min_u64(at + m, l.max_chunk);
            } else {
                // The attend that follows is refused too.
                seq.attendable = 0;
            }
            l.seqs[e.seq] = seq;
        }
    }
}

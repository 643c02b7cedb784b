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

// One head of one token: rotated if `rotates`, rounded to the stored type.
SKC_DEVICE void store_key(const SkcLayer& l, u8* to, const u8* from, bool rotates, const float* cos, const float* sin, u32 at,
                          u32 step) {
    u32 plain = rotates ? 2 * l.half : 0;
    if (rotates) {
        for (u32 i = at; i < l.half; i += step) {
            u32 a = pair_first(l.rope_style, i), b = pair_second(l.rope_style, l.half, i);
            float x0 = load_element(from, l.in_dtype, a), x1 = load_element(from, l.in_dtype, b);
            store_element(to, l.kv_dtype, a, x0 * cos[i] - x1 * sin[i]);
            store_element(to, l.kv_dtype, b, x1 * cos[i] + x0 * sin[i]);
        }
    }
    for (u32 i = plain + at; i < l.head_dim; i += step) {
        if (l.in_dtype == l.kv_dtype) {
            copy_element(to, from, l.kv_dtype, i);
        } else {
            store_element(to, l.kv_dtype, i, load_element(from, l.in_dtype, i));
        }
    }
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
        u32 size = element_size(l.kv_dtype);
        for (u64 t = block_y(); t < m; t += grid_y()) {
            u64 token = seq.len + t;
            if (rotates) {
                block_sync();
                for (u32 i = thread(); i < l.half; i += 128) {
                    Angle a = angle_of((start + token) * l.frequencies[i]);
                    cos[i] = a.cos * l.mscale;
                    sin[i] = a.sin * l.mscale;
                }
                block_sync();
            }
            u64 slot = ring_slot(ring, token);
            u64 row = e.row + at + t;
            // A warp takes a head at a time.
            for (u32 head = warp(); head < l.n_kv_heads; head += 4) {
                u64 place = ((u64)e.seq * l.n_kv_heads + head) * slots + slot;
                store_key(l, l.k + place * l.head_dim * size, row_at(p.k, row, head), rotates, cos, sin, lane(), 32);
                u8* to = l.v + place * l.head_dim_v * size;
                const u8* from = row_at(p.v, row, head);
                for (u32 i = lane(); i < l.head_dim_v; i += 32) {
                    if (l.in_dtype == l.kv_dtype) {
                        copy_element(to, from, l.kv_dtype, i);
                    } else {
                        store_element(to, l.kv_dtype, i, load_element(from, l.in_dtype, i));
                    }
                }
            }
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

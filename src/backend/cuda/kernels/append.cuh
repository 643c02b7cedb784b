// skc_append, and skc_append_quantised where K or V is quantised: rotates each key once, at its stream position, and
// stores K and V in their slots. The last block of an entry to finish commits the counters. There are two kernels since
// rows in registers would leave the first fewer blocks on a multiprocessor.
//
// Grid: entries, blocks over tokens (loop). 128 threads. Shared: cosines and sines of one token, 8 x rope_pairs bytes
// rounded up to 16, then 64 bytes of scratch.
#pragma once

#include "commit.cuh"
#include "hadamard.cuh"
#include "quantise.cuh"

// Items that a thread loads before it stores the first: their latencies overlap.
constexpr u32 APPEND_UNROLL = 4;

// Registers of a lane that hold a row of up to 512 dims.
constexpr u32 APPEND_ROW = 16;

// A token that an append stores.
struct AppendedToken {
    u64 row;       // in the caller's tensors
    u64 position;  // in the stream
    u64 slot;
    u32 seq;
};

// One slot of K or of V in every head of a sequence, in a type of plain numbers.
struct HeadSlots {
    u8* first;   // head 0's
    u64 stride;  // bytes from one head's to the next's
    u32 type;
};

SKC_DEVICE HeadSlots slots_of(const SkcLayer& l, const SkcStore& store, const AppendedToken& t) {
    return {stored_row(store, (u64)t.seq * l.n_kv_heads, t.slot).codes, store.head_codes, store.type};
}

// Pairs of a token's keys that are rotated, numbered over all heads: a thread has every 128th.
struct KeyPairs {
    Pair x[APPEND_UNROLL];

    SKC_DEVICE static u32 count(const SkcLayer& l) { return l.n_kv_heads * l.rope_pairs; }

    SKC_DEVICE void load(const SkcAppend& p, u64 row, u32 begin) {
        const SkcLayer& l = p.layer;
#pragma unroll
        for (u32 j = 0; j < APPEND_UNROLL; ++j) {
            u32 i = begin + 128 * j;
            if (i >= count(l)) break;
            const u8* from = row_at(p.k, row, i / l.rope_pairs);
            PairRotation dims = unrotated_pair(l, i % l.rope_pairs);
            x[j].first = load_element(from, l.in_dtype, dims.first);
            x[j].second = load_element(from, l.in_dtype, dims.second);
        }
    }

    SKC_DEVICE void store(const SkcLayer& l, const HeadSlots& to, const SinCos* angles, u32 begin) const {
#pragma unroll
        for (u32 j = 0; j < APPEND_UNROLL; ++j) {
            u32 i = begin + 128 * j;
            if (i >= count(l)) break;
            u8* key = to.first + i / l.rope_pairs * to.stride;
            u32 pair = i % l.rope_pairs;
            PairRotation dims = unrotated_pair(l, pair);
            Pair y = rotate(x[j], angles[pair]);
            store_element(key, to.type, dims.first, y.first);
            store_element(key, to.type, dims.second, y.second);
        }
    }
};

// Dims begin .. begin + n of all heads of a row, which are stored without rotation.
struct CopiedDims {
    u32 begin;
    u32 n;
};

// Copies 16 bytes at a time; rows and dims are aligned to that, and the types are the same.
SKC_DEVICE void copy_dims_aligned(const SkcLayer& l, const HeadSlots& to, const SkcRows& rows, u64 row,
                                  CopiedDims dims) {
    u32 offset = dims.begin * element_size(to.type);
    u32 vectors = dims.n * element_size(to.type) / 16;
    u32 count = l.n_kv_heads * vectors;
    for (u32 begin = thread(); begin < count; begin += APPEND_UNROLL * 128) {
        U32x4 x[APPEND_UNROLL];
#pragma unroll
        for (u32 j = 0; j < APPEND_UNROLL; ++j) {
            u32 i = begin + j * 128;
            if (i < count) x[j] = *(const U32x4*)(row_at(rows, row, i / vectors) + offset + 16 * (i % vectors));
        }
#pragma unroll
        for (u32 j = 0; j < APPEND_UNROLL; ++j) {
            u32 i = begin + j * 128;
            if (i < count) *(U32x4*)(to.first + i / vectors * to.stride + offset + 16 * (i % vectors)) = x[j];
        }
    }
}

// Stores dims of a row: bit for bit where the caller's type is the stored one.
SKC_DEVICE void store_dims(const SkcLayer& l, const HeadSlots& to, const SkcRows& rows, u64 row, CopiedDims dims) {
    bool same_type = l.in_dtype == to.type;
    u64 strides = (u64)rows.token_stride | (u64)rows.head_stride;
    u64 addresses = (u64)rows.ptr | strides | dims.begin * element_size(to.type);
    if (same_type && addresses % 16 == 0) {
        copy_dims_aligned(l, to, rows, row, dims);
        return;
    }
    for (u32 i = thread(); i < l.n_kv_heads * dims.n; i += 128) {
        const u8* from = row_at(rows, row, i / dims.n);
        u8* slot = to.first + i / dims.n * to.stride;
        u32 dim = dims.begin + i % dims.n;
        if (same_type) {
            copy_element(slot, from, to.type, dim);
        } else {
            store_element(slot, to.type, dim, load_element(from, l.in_dtype, dim));
        }
    }
}

// Stores keys of one token in q8 or q4: rotated by `angles`, then turned. A warp has every fourth head.
SKC_DEVICE void store_quantised_keys(const SkcAppend& p, const AppendedToken& t, const SinCos* angles) {
    const SkcLayer& l = p.layer;
    for (u32 head = warp(); head < l.n_kv_heads; head += 4) {
        const u8* from = row_at(p.k, t.row, head);
        WarpRow<APPEND_ROW> row;
        if (rotates_keys(l)) {
            row.load_rotated(l, from, l.k.dim, [&](u32 pair) { return angles[pair]; });
        } else {
            row.load(from, l.in_dtype, l.k.dim);
        }
        hadamard(row, l.k.dim); // mutant: keys_not_turned
        store_quantised(stored_row(l.k, (u64)t.seq * l.n_kv_heads + head, t.slot), l.k.type, row, l.k.dim);
    }
}

// Stores values of one token in q8 or q4.
SKC_DEVICE void store_quantised_values(const SkcAppend& p, const AppendedToken& t) {
    const SkcLayer& l = p.layer;
    for (u32 head = warp(); head < l.n_kv_heads; head += 4) {
        WarpRow<APPEND_ROW> row;
        row.load(row_at(p.v, t.row, head), l.in_dtype, l.v.dim);
        store_quantised(stored_row(l.v, (u64)t.seq * l.n_kv_heads + head, t.slot), l.v.type, row, l.v.dim);
    }
}

// Computes the angles of the token's keys. Its barriers order the writes among what the block does with other tokens.
SKC_DEVICE void load_angles(const SkcLayer& l, const AppendedToken& t, SinCos* angles) {
    block_sync();
    for (u32 i = thread(); i < l.rope_pairs; i += 128) angles[i] = rotation_at(l, t.position, i);
    block_sync();
}

// Stores keys of one token in a type of plain numbers.
SKC_DEVICE void store_keys(const SkcAppend& p, const AppendedToken& t, SinCos* angles) {
    const SkcLayer& l = p.layer;
    HeadSlots keys = slots_of(l, l.k, t);
    u32 rotated_dims = 0;
    if (rotates_keys(l)) {
        rotated_dims = 2 * l.rope_pairs;
        KeyPairs pairs;
        // The first loads' latency overlaps with the computation of the angles.
        pairs.load(p, t.row, thread());
        load_angles(l, t, angles);
        pairs.store(l, keys, angles, thread());
        for (u32 i = thread() + APPEND_UNROLL * 128; i < KeyPairs::count(l); i += APPEND_UNROLL * 128) {
            pairs.load(p, t.row, i);
            pairs.store(l, keys, angles, i);
        }
    }
    if (rotated_dims < l.k.dim) store_dims(l, keys, p.k, t.row, {rotated_dims, l.k.dim - rotated_dims});
}

// Stores K and V of one token in all heads. QUANTISED_ROWS: K or V may be in q8 or q4. `angles`: shared memory for
// l.rope_pairs of them. The whole block must call it.
template <bool QUANTISED_ROWS>
SKC_DEVICE void store_token(const SkcAppend& p, const AppendedToken& t, SinCos* angles) {
    const SkcLayer& l = p.layer;
    if (QUANTISED_ROWS && is_quantised(l.k.type)) {
        if (rotates_keys(l)) load_angles(l, t, angles);
        store_quantised_keys(p, t, angles);
    } else {
        store_keys(p, t, angles);
    }
    if (QUANTISED_ROWS && is_quantised(l.v.type)) {
        store_quantised_values(p, t);
    } else {
        store_dims(l, slots_of(l, l.v, t), p.v, t.row, {0, l.v.dim});
    }
}

template <bool QUANTISED_ROWS>
SKC_DEVICE void append(const SkcAppend& p) {
    begin_kernel(); // mutant: launch_before_the_last_ended
    const SkcLayer& l = p.layer;
    const SkcBatch& b = p.batch;
    SinCos* angles = (SinCos*)shared_memory();
    u64* scratch = (u64*)(shared_memory() + (8 * l.rope_pairs + 15) / 16 * 16);
    Entry e = find_entry(b, block_x(), scratch, 4);
    Counters c = read_counters(l, e);
    AppendPlan a = plan_append(l, b, e, c);
    if (a.skip) return;
    if (a.status == 0) {
        for (u64 t = block_y(); t < a.m; t += grid_y()) {
            u64 token = c.seq.len + t;
            u64 slot = ring_slot(ring_of(l), token);
            store_token<QUANTISED_ROWS>(p, {e.row + b.chunk_begin + t, c.start + token, slot, e.seq}, angles);
        }
    } else if (block_y() == 0 && thread() == 0) {
        report_append(l, b, e, a);
    }
    // An entry with an invalid id, or with the id of an earlier entry, has no counters to change.
    if (!e.owns_seq) return;
    block_sync();
    if (thread() == 0) arrive(l, b, e.seq, a, grid_y());
}

SKC_KERNEL(128, skc_append, SkcAppend) { append<false>(p); }

SKC_KERNEL(128, skc_append_quantised, SkcAppend) { append<true>(p); }

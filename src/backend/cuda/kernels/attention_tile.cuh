// What the kernels specialised for a shape share: the element type, ranges of keys, tiles of keys in shared memory,
// queries, scores and masks.
#pragma once

#include "dtype.cuh"
#include "launch_config.cuh"
#include "query.cuh"
#include "rope.cuh"
#include "softmax.cuh"

constexpr u32 DIM = SKC_DIM;
constexpr u32 GROUP = SKC_GROUP;
constexpr u32 ROW_BYTES = TILE_ROW_BYTES(SKC_DIM);
// Vectors of 16 bytes in a row, without its padding.
constexpr u32 ROW_VECTORS = DIM / 8;

// EXPONENT_MASK: the bits of the exponent, which are all set in infinities and NaN.
#if SKC_TYPE == 2
SKC_DEVICE u32 pack(float lo, float hi) { return pack_f16(lo, hi); }
SKC_DEVICE float widen(u16 h) { return f16_to_f32(h); }
SKC_DEVICE u16 narrow(float x) { return f32_to_f16(x); }
SKC_DEVICE void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_16816_f16(c, a, b); }
constexpr u32 EXPONENT_MASK = 0x7c00;
#else
SKC_DEVICE u32 pack(float lo, float hi) { return pack_bf16(lo, hi); }
SKC_DEVICE float widen(u16 h) { return bf16_to_f32(h); }
SKC_DEVICE u16 narrow(float x) { return f32_to_bf16(x); }
SKC_DEVICE void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_16816_bf16(c, a, b); }
constexpr u32 EXPONENT_MASK = 0x7f80;
#endif

// ---- Ranges of keys

// Tokens that the queries of a block see in the window: the first query's oldest to the last query's own.
struct WindowTokens {
    u64 oldest;
    u64 last;
};

// The sinks, or the window, of one KV head: n keys in the order of their tokens. Slots are below 2^31 in these kernels.
struct KeyRange {
    u64 base;        // bytes before the head's slots, in K and in V
    u32 first_slot;  // slot of key 0
    u32 end_slot;    // behind the last slot: from here the range goes on ...
    u32 wrap_slot;   // ... at this slot
    u32 n;
    bool sinks;
};

SKC_DEVICE KeyRange key_range(const SkcLayer& l, u32 seq, u32 kv_head, bool sinks, WindowTokens tokens) {
    Ring ring = ring_of(l);
    u64 base = ((u64)seq * l.n_kv_heads + kv_head) * l.k.head_codes;
    if (sinks) {
        u32 n = (u32)min_u64(ring.n_sink, tokens.last + 1);
        return {base, 0, n, 0, n, true};
    }
    u32 n_sink = (u32)ring.n_sink;
    u32 first_slot = n_sink + (u32)((tokens.oldest - ring.n_sink) % ring.ring_slots);
    u32 n = (u32)saturating_sub(tokens.last + 1, tokens.oldest);
    return {base, first_slot, (u32)ring_total_slots(ring), n_sink, n, false};
}

// Keys begin .. end of a range: those that one query sees. Both bounds grow with the query's token.
struct VisibleRange {
    u32 begin;
    u32 end;
};

// What the query of `token` sees of the sinks or of the window; `oldest`: the token of the window range's key 0.
SKC_DEVICE VisibleRange visible_range(const Ring& ring, const Queries& q, u64 token, bool sinks, u64 oldest) {
    if (sinks) return {0, (u32)min_u64(ring.n_sink, token + 1)};
    u64 begin = ring.n_sink + query_evicted(ring, q, token);
    return {(u32)(begin - oldest), (u32)(max_u64(token + 1, begin) - oldest)};
}

// ---- Tiles of keys in shared memory

struct KvTile {
    u8* k;
    u8* v;
};

// Starts copying keys first .. first + KEYS of a range into a tile, as thread `index` of THREADS threads. Keys beyond
// the range's end become zeros: their scores are masked, and a probability of zero times a value of zero is zero,
// whatever their slots hold.
template <u32 KEYS, u32 THREADS>
SKC_DEVICE void copy_tile(const SkcLayer& l, const KeyRange& keys, u32 first, const KvTile& tile, u32 index) {
    // Fully unrolled, so that all copies are issued back to back.
#pragma unroll
    for (u32 round = 0; round < (KEYS * ROW_VECTORS + THREADS - 1) / THREADS; ++round) {
        u32 i = index + round * THREADS;
        if (KEYS * ROW_VECTORS % THREADS != 0 && i >= KEYS * ROW_VECTORS) break;
        u32 row = i / ROW_VECTORS;
        u32 offset = 16 * (i % ROW_VECTORS);
        u32 key = first + row;
        bool valid = key < keys.n; // mutant: last_key_left_out
        u32 slot = keys.first_slot + key;
        if (slot >= keys.end_slot) slot -= keys.end_slot - keys.wrap_slot;
        u64 from = keys.base + (valid ? (u64)slot * (2 * DIM) + offset : 0);
        copy_async16(tile.k + row * ROW_BYTES + offset, l.k.codes + from, valid);
        copy_async16(tile.v + row * ROW_BYTES + offset, l.v.codes + from, valid);
    }
}

// Whether rows of a tile hold an infinity or a NaN. The whole warp must call it.
SKC_DEVICE bool has_non_finite(const u8* rows, u32 n) {
    bool found = false;
    for (u32 i = lane(); i < n * ROW_VECTORS; i += 32) {
        const U32x4 x = *(const U32x4*)(rows + i / ROW_VECTORS * ROW_BYTES + 16 * (i % ROW_VECTORS));
        const u32 words[4] = {x.x, x.y, x.z, x.w};
        for (u32 w = 0; w < 4; ++w) {
            found |= (words[w] & EXPONENT_MASK) == EXPONENT_MASK;
            found |= (words[w] >> 16 & EXPONENT_MASK) == EXPONENT_MASK;
        }
    }
    return warp_any(found);
}

// ---- Queries and keys on their way to shared memory

// Writes a pair of dims to a row, rotated. Dims without rotation keep their bits.
SKC_DEVICE void store_pair(u16* row, const PairRotation& r, u16 first, u16 second) {
    if (r.rotated) {
        Pair y = rotate({widen(first), widen(second)}, r.angle);
        first = narrow(y.first);
        second = narrow(y.second);
    }
    row[r.first] = first;
    row[r.second] = second;
}

// Some query heads of one token, and the row of shared memory that the first of them goes to.
struct QueryHeads {
    u64 token;
    u32 first;
    u32 n;
    bool for_sinks;
    u8* to;
};

// Loads pair `pair` of all of them, rotated for sink keys or for window keys; UNROLL heads at a time, whose loads'
// latencies overlap.
template <u32 UNROLL>
SKC_DEVICE void load_query_pair(const SkcAttend& p, const Queries& q, const QueryHeads& heads, u32 pair) {
    const SkcLayer& l = p.layer;
    u64 row = q.row + (heads.token - q.first);
    u64 evicted = query_evicted(ring_of(l), q, heads.token);
    PairRotation r = query_rotation(l, q.start + heads.token, evicted, heads.for_sinks, pair);
#pragma unroll 1
    for (u32 begin = 0; begin < heads.n; begin += UNROLL) {
        u16 x[UNROLL][2];
#pragma unroll
        for (u32 j = 0; j < UNROLL; ++j) {
            if (begin + j >= heads.n) break;
            const u16* from = (const u16*)row_at(p.q, row, heads.first + begin + j);
            x[j][0] = from[r.first];
            x[j][1] = from[r.second];
        }
#pragma unroll
        for (u32 j = 0; j < UNROLL; ++j) {
            if (begin + j >= heads.n) break;
            store_pair((u16*)(heads.to + (begin + j) * ROW_BYTES), r, x[j][0], x[j][1]);
        }
    }
}

// ---- Scores and masks

// What turns a product of query and key into a score in base 2.
struct Scorer {
    float scale;    // times log2 e, where there is no softcap
    float softcap;
};

SKC_DEVICE Scorer scorer_of(const SkcLayer& l) {
    return {SKC_TRANSFORM & 1 ? l.scale : l.scale * LOG2_E, l.softcap};
}

// ALiBi of one query head: score -= slope * distance.
struct AlibiBias {
    float slope;        // times log2 e
    u32 distance_to_0;  // distance to key 0 of the range
};

SKC_DEVICE AlibiBias alibi_bias(const SkcLayer& l, u32 head, u32 distance_to_0) {
    return {SKC_TRANSFORM & 2 ? l.alibi_slopes[head] * LOG2_E : 0.0f, distance_to_0};
}

// The score of key `key` of a range.
SKC_DEVICE float score_of(const Scorer& s, const AlibiBias& bias, float x, u32 key) {
#if SKC_TRANSFORM & 1
    x = s.softcap * tanh_f(x * s.scale / s.softcap) * LOG2_E;
#else
    x *= s.scale;
#endif
#if SKC_TRANSFORM & 2
    x -= bias.slope * (float)(bias.distance_to_0 - key);
#endif
    return x;
}

// The mma fragments of a kernel are described by a struct Layout. A row (one query and head) is shared by LANES lanes;
// a lane has some keys and some dims of it:
//   own()              the lane's number among those that share its rows
//   lane_of(i)         lane i of those
//   key(slot, i)       the key, in its tile, of the scores in slot `slot` of lane i
//   dim(i)             the dim of the lane's accumulator i
//   LOW, HIGH          for RowStats: the bits that the numbers of the lanes differ in

// Turns products of a row into scores; `first` is the tile's first key.
template <class Layout, u32 SLOTS>
SKC_DEVICE void score_row(float (&s)[SLOTS], const Scorer& scorer, const AlibiBias& bias, u32 first) {
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) s[i] = score_of(scorer, bias, s[i], first + Layout::key(i, Layout::own()));
}

// Masks the scores of keys that a row does not see.
template <class Layout, u32 SLOTS>
SKC_DEVICE void mask_row(float (&s)[SLOTS], const VisibleRange& visible, u32 first) {
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) {
        u32 key = first + Layout::key(i, Layout::own());
        // One unsigned comparison for both bounds.
        s[i] = key - visible.begin < visible.end - visible.begin ? s[i] : minus_infinity();
    }
}

// PV of a tile one key at a time, leaving out probabilities of zero: for tiles with infinite or NaN values at keys that
// are masked for some rows. A matrix product would multiply those values by zero, which is NaN.
template <class Layout, u32 ROWS, u32 SLOTS, u32 N>
SKC_DEVICE void add_values_one_by_one(SoftmaxState<N> (&rows)[ROWS], const float (&probs)[ROWS][SLOTS], const u8* v) {
    // Unrolled over slots, since registers cannot be indexed at run time, but not over lanes, to limit the code's size.
#pragma unroll
    for (u32 slot = 0; slot < SLOTS; ++slot) {
#pragma unroll 1
        for (u32 i = 0; i < Layout::LANES; ++i) {
            const u16* value = (const u16*)(v + Layout::key(slot, i) * ROW_BYTES);
            float prob[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) prob[r] = shuffle(probs[r][slot], Layout::lane_of(i));
#pragma unroll
            for (u32 d = 0; d < N; ++d) {
                float x = widen(value[Layout::dim(d)]);
#pragma unroll
                for (u32 r = 0; r < ROWS; ++r) {
                    if (prob[r] != 0.0f) rows[r].acc[d] += prob[r] * x;
                }
            }
        }
    }
}

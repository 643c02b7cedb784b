// What the kernels specialised for a shape share: ranges of keys, tiles of keys in shared memory, scores and masks.
#pragma once

#include "launch_config.cuh"
#include "query.cuh"
#include "rope.cuh"
#include "segments.cuh"
#include "softmax.cuh"
#include "stored_rows.cuh"

// Whether the layer has room for pinned and evicted ranges.
#define SEGMENTED (SKC_FEATURES & 4)

constexpr u32 DIM = SKC_DIM;
constexpr u32 GROUP = SKC_GROUP;
// Of a query in shared memory.
constexpr u32 ROW_BYTES = QUERY_ROW_BYTES(SKC_DIM);

// How K or V of one storage type lies in a tile and in the cache.
template <u32 TYPE>
struct RowForm {
    static constexpr u32 CODES = ROW_CODES(TYPE, SKC_DIM);    // bytes of a row's codes, or of its numbers
    static constexpr u32 SCALES = ROW_SCALES(TYPE, SKC_DIM);  // bytes of a row's scales
    static constexpr u32 STRIDE = TILE_STRIDE(TYPE, SKC_DIM);
    // Codes are copied by so many bytes: rows in the cache are no further aligned.
    static constexpr u32 VECTOR = CODES % 16 == 0 ? 16 : 8;
    static constexpr u32 VECTORS = CODES / VECTOR;
    // Vectors of codes and words of scales.
    static constexpr u32 PIECES = VECTORS + SCALES / 4;
};
using KeyForm = RowForm<K_TYPE(SKC_TYPE)>;
using ValueForm = RowForm<V_TYPE(SKC_TYPE)>;

// Bytes of a tile of `keys` rows.
template <class Form>
SKC_DEVICE constexpr u32 tile_bytes(u32 keys) {
    return keys * (Form::STRIDE + Form::SCALES);
}

// The scales of a row of a tile of KEYS keys.
template <class Form, u32 KEYS>
SKC_DEVICE u8* tile_scales(u8* tile, u32 row) {
    return tile + KEYS * Form::STRIDE + row * Form::SCALES;
}

// A row in the cache, as stored_row() has it.
template <class Form>
SKC_DEVICE StoredRow cached_row(const SkcStore& s, u64 head, u64 slot) {
    u8* scales = s.scales + head * s.head_scales + slot * Form::SCALES;
    return {s.codes + head * s.head_codes + slot * Form::CODES, (u16*)scales};
}

// Copies piece `piece` of a row.
template <class Form>
SKC_DEVICE void copy_piece(const StoredRow& to, const StoredRow& from, u32 piece) {
    if (piece >= Form::VECTORS) {
        u32 word = piece - Form::VECTORS;
        ((u32*)to.scales)[word] = ((const u32*)from.scales)[word];
    } else if (Form::VECTOR == 16) {
        ((U32x4*)to.codes)[piece] = ((const U32x4*)from.codes)[piece];
    } else {
        ((U32x2*)to.codes)[piece] = ((const U32x2*)from.codes)[piece];
    }
}

// ---- Ranges of keys

// Tokens that the queries of a block see in the window: the first query's oldest to the last query's own.
struct WindowTokens {
    u64 oldest;
    u64 last;
};

// A segment's keys, of one KV head, in the order of their tokens. Slots are below 2^31 in these kernels.
struct KeyRange {
    u64 head;        // of all sequences
    u32 first_slot;  // slot of key 0
    u32 end_slot;    // behind the last slot: from here the range goes on ...
    u32 wrap_slot;   // ... at this slot
    u32 n;
};

// Keys begin .. end of a range: those that one query sees. Both bounds grow with the query's token.
struct VisibleRange {
    u32 begin;
    u32 end;
};

#if SEGMENTED

using KeySegment = Segment;

SKC_DEVICE KeyRange key_range(const SkcLayer& l, u64 head, const KeySegment& s, WindowTokens) {
    Ring ring = ring_of(l);
    u32 slot = (u32)s.slot;
    u32 n = (u32)s.n;
    return {head, slot, s.window ? (u32)ring_total_slots(ring) : slot + n, (u32)ring_fixed_slots(ring), n};
}

// What the query of `token` sees of a segment.
SKC_DEVICE VisibleRange visible_range(const Ring& ring, const Queries& q, u64 token, const KeySegment& s) {
    u64 window_start = ring.n_sink + query_evicted(ring, q, token);
    u64 begin = s.window ? min_u64(saturating_sub(window_start, s.place), s.n) : 0; // mutant: passed_token_visible
    u64 end = min_u64(saturating_sub(token + 1, s.place), s.n);
    return {(u32)begin, (u32)max_u64(begin, end)};
}

#else

// The sinks, or the window from its oldest token on.
struct KeySegment {
    bool sinks;
    u64 oldest;

    SKC_DEVICE u64 offset(const Ring& ring, const Queries& q, u64 token) const {
        return sinks ? query_evicted(ring, q, token) : 0;
    }

    // Key 0 of the sinks lies at the cache position 0, key 0 of the window at that of its oldest token.
    SKC_DEVICE u64 distance(const Ring& ring, const Queries& q, u64 token) const {
        return token - (sinks ? query_evicted(ring, q, token) : oldest);
    }
};

SKC_DEVICE KeyRange key_range(const SkcLayer& l, u64 head, const KeySegment& s, WindowTokens tokens) {
    Ring ring = ring_of(l);
    if (s.sinks) {
        u32 n = (u32)min_u64(ring.n_sink, tokens.last + 1);
        return {head, 0, n, 0, n};
    }
    u32 fixed = (u32)ring_fixed_slots(ring);
    u32 first_slot = fixed + (u32)((tokens.oldest - ring.n_sink) % ring.ring_slots);
    u32 n = (u32)saturating_sub(tokens.last + 1, tokens.oldest);
    return {head, first_slot, (u32)ring_total_slots(ring), fixed, n};
}

SKC_DEVICE VisibleRange visible_range(const Ring& ring, const Queries& q, u64 token, const KeySegment& s) {
    if (s.sinks) return {0, (u32)min_u64(ring.n_sink, token + 1)};
    u64 begin = ring.n_sink + query_evicted(ring, q, token);
    return {(u32)(begin - s.oldest), (u32)(max_u64(token + 1, begin) - s.oldest)};
}

#endif

// The slot of a key of a range.
SKC_DEVICE u32 slot_of(const KeyRange& keys, u32 key) {
    u32 slot = keys.first_slot + key;
    return slot >= keys.end_slot ? slot - (keys.end_slot - keys.wrap_slot) : slot;
}

// ---- Tiles of keys in shared memory

struct KvTile {
    u8* k;
    u8* v;
};

// Some query heads of one token, and the row of shared memory that the first of them goes to.
struct QueryHeads {
    u64 token;
    u32 first;
    u32 n;
    u64 offset;  // of the segment whose keys they meet
    u8* to;
};

// ---- Scores and masks

// What turns a product of query and key into a score in base 2.
struct Scorer {
    float scale;    // times log2 e, where there is no softcap
    float softcap;
};

SKC_DEVICE Scorer scorer_of(const SkcLayer& l) {
    return {SKC_FEATURES & 1 ? l.scale : l.scale * LOG2_E, l.softcap};
}

// ALiBi of one query head: score -= slope * distance.
struct AlibiBias {
    float slope;        // times log2 e
    u32 distance_to_0;  // distance to key 0 of the range
};

SKC_DEVICE AlibiBias alibi_bias(const SkcLayer& l, u32 head, u32 distance_to_0) {
    return {SKC_FEATURES & 2 ? l.alibi_slopes[head] * LOG2_E : 0.0f, distance_to_0};
}

// The score of key `key` of a range.
SKC_DEVICE float score_of(const Scorer& s, const AlibiBias& bias, float x, u32 key) {
#if SKC_FEATURES & 1
    x = s.softcap * tanh_f(x * s.scale / s.softcap) * LOG2_E;
#else
    x *= s.scale;
#endif
#if SKC_FEATURES & 2
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

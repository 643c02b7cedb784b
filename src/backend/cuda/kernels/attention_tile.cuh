// What the fast kernels share: the element type, tiles of keys in shared memory, queries, scores.
#pragma once

#include "dtype.cuh"
#include "geometry.cuh"
#include "phase.cuh"
#include "query.cuh"

#define SKC_LOG2E 1.4426950408889634f
#define SKC_LN2 0.6931471805599453f

constexpr u32 DIM = SKC_DIM;
constexpr u32 GROUP = SKC_GROUP;
constexpr u32 ROW = TILE_ROW(SKC_DIM);
// 16-byte pieces of a row.
constexpr u32 PIECES = DIM / 8;

#if SKC_TYPE == 2
SKC_DEVICE u32 pack(float lo, float hi) { return pack_f16(lo, hi); }
SKC_DEVICE float widen(u16 h) { return f16_to_f32(h); }
SKC_DEVICE u16 narrow(float x) { return f32_to_f16(x); }
SKC_DEVICE void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_16816_f16(c, a, b); }
// Infinity and NaN have all bits of the exponent.
constexpr u32 EXPONENT = 0x7c00;
#else
SKC_DEVICE u32 pack(float lo, float hi) { return pack_bf16(lo, hi); }
SKC_DEVICE float widen(u16 h) { return bf16_to_f32(h); }
SKC_DEVICE u16 narrow(float x) { return f32_to_bf16(x); }
SKC_DEVICE void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_16816_bf16(c, a, b); }
constexpr u32 EXPONENT = 0x7f80;
#endif

struct alignas(8) Two {
    float x, y;
};

// The sinks, or the window, of one head: keys 0 .. n in the order of their tokens.
struct Span {
    u64 base;        // bytes before the head's slots, of K and V alike
    u32 first_slot;  // slot of key 0 ...
    u32 wrap;        // ... from which on slots begin anew
    u32 origin;      // slot they begin with
    u32 n;
    bool sinks;
};

// Keys of `q` from `oldest` to token `last`; slots are below 2^31 where fast kernels run.
SKC_DEVICE Span span_of(const SkcLayer& l, const Ring& ring, u32 seq, u32 kv_head, bool sinks, u64 oldest, u64 last) {
    Span s = {((u64)seq * l.n_kv_heads + kv_head) * ring_total_slots(ring) * (2 * DIM), 0, 0, 0, 0, sinks};
    if (sinks) {
        s.n = (u32)min_u64(ring.n_sink, last + 1);
        s.wrap = s.n;
    } else {
        s.origin = (u32)ring.n_sink;
        s.first_slot = s.origin + (u32)((oldest - ring.n_sink) % ring.ring_slots);
        s.wrap = (u32)ring_total_slots(ring);
        s.n = (u32)saturating_sub(last + 1, oldest);
    }
    return s;
}

// Keys of a span that a token sees. Both bounds rise with the token.
struct Visible {
    u32 from;
    u32 to;
};

SKC_DEVICE Visible visible_of(const Ring& ring, const Queries& q, u64 token, bool sinks, u64 oldest) {
    if (sinks) return {0, (u32)min_u64(ring.n_sink, token + 1)};
    u64 from = ring.n_sink + query_evicted(ring, q, token);
    return {(u32)(from - oldest), (u32)(max_u64(token + 1, from) - oldest)};
}

// Starts copying keys first .. first + KEYS of a span into two tiles, as one of THREADS threads. Keys beyond its end become
// zeros: their scores are masked, and zero times a weight of zero is zero whatever the slots hold.
template <u32 KEYS, u32 THREADS>
SKC_DEVICE void copy_tile(const SkcLayer& l, const Span& s, u32 first, u8* k_tile, u8* v_tile, u32 at) {
    // No loop is left: all copies are on their way at once.
#pragma unroll
    for (u32 round = 0; round < (KEYS * PIECES + THREADS - 1) / THREADS; ++round) {
        u32 i = at + round * THREADS;
        if (KEYS * PIECES % THREADS != 0 && i >= KEYS * PIECES) break;
        u32 row = i / PIECES, piece = i % PIECES;
        u32 key = first + row;
        bool valid = key < s.n; // mutant: last_key_left_out
        u32 slot = s.first_slot + key;
        if (slot >= s.wrap) slot -= s.wrap - s.origin;
        u64 from = s.base + (valid ? (u64)slot * (2 * DIM) + 16 * piece : 0);
        copy_async16(k_tile + row * ROW + 16 * piece, l.k + from, valid);
        copy_async16(v_tile + row * ROW + 16 * piece, l.v + from, valid);
    }
}

// Whether the tile holds an infinity or a NaN; the whole warp asks.
SKC_DEVICE bool tile_overflows(const u8* tile, u32 keys) {
    bool found = false;
    for (u32 i = lane(); i < keys * PIECES; i += 32) {
        const Quad x = *(const Quad*)(tile + i / PIECES * ROW + 16 * (i % PIECES));
        const u32 words[4] = {x.x, x.y, x.z, x.w};
        for (u32 w = 0; w < 4; ++w) {
            found |= (words[w] & EXPONENT) == EXPONENT || (words[w] >> 16 & EXPONENT) == EXPONENT;
        }
    }
    return warp_any(found);
}

// Dims `pair` turns of the query heads of one token, as sinks or as the window see them, into rows `to`, `to` + ROW, ...
// `skip` heads are left out at the front, `n` are done, AT_ONCE of them at a time.
template <u32 AT_ONCE>
SKC_DEVICE void load_query_pair(const SkcAttend& p, const Queries& q, u64 token, u32 kv_head, u32 skip, u32 n, u32 pair, bool sinks,
                                u64 evicted, u8* to) {
    const SkcLayer& l = p.layer;
    u64 row = q.row + (token - q.first);
    u32 a = 2 * pair, b = a + 1;
    Angle turn = {1.0f, 0.0f};
    float scale = 1.0f;
    if (pair < l.half) {
        a = pair_first(l.rope_style, pair);
        b = pair_second(l.rope_style, l.half, pair);
        u64 f = l.frequencies[pair];
        if (l.position_mode == SKC_ROPE) {
            turn = angle_of((q.start + token - (sinks ? evicted : 0)) * f);
            scale = l.mscale;
        } else if (sinks) {
            // The host has rotated and scaled: turn back by E, purely.
            turn = angle_of((0ull - evicted) * f);
        }
    }
    float cos = turn.cos * scale, sin = turn.sin * scale;
#pragma unroll 1
    for (u32 first = 0; first < n; first += AT_ONCE) {
        // Loads before the first use: they wait for memory together.
        u16 x[AT_ONCE][2];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; ++j) {
            if (first + j >= n) break;
            const u16* from = (const u16*)row_at(p.q, row, kv_head * GROUP + skip + first + j);
            x[j][0] = from[a];
            x[j][1] = from[b];
        }
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; ++j) {
            if (first + j >= n) break;
            float x0 = widen(x[j][0]), x1 = widen(x[j][1]);
            u16* out = (u16*)(to + (first + j) * ROW);
            Turned t = turned(x0, x1, cos, sin);
            out[a] = narrow(t.first);
            out[b] = narrow(t.second);
        }
    }
}

// What turns a product of query and key into a score in base 2.
struct Scorer {
    float scale;    // times log2 e where nothing else is done
    float softcap;
};

SKC_DEVICE Scorer scorer_of(const SkcLayer& l) { return {SKC_TRANSFORM & 1 ? l.scale : l.scale * SKC_LOG2E, l.softcap}; }

// The bias of a query head's distances.
struct Bias {
    float slope;  // times log2 e
    u32 offset;   // distance to key 0 of the span
};

SKC_DEVICE Bias bias_of(const SkcLayer& l, u32 head, u32 offset) {
    return {SKC_TRANSFORM & 2 ? l.alibi[head] * SKC_LOG2E : 0.0f, offset};
}

SKC_DEVICE float score_of(const Scorer& s, const Bias& b, float x, u32 key) {
#if SKC_TRANSFORM & 1
    x = s.softcap * tanh_f(x * s.scale / s.softcap) * SKC_LOG2E;
#else
    x *= s.scale;
#endif
#if SKC_TRANSFORM & 2
    x -= b.slope * (float)(b.offset - key);
#endif
    return x;
}

// Nothing seen yet: subtracting this keeps weights of minus infinity at 0, and a NaN shows.
SKC_DEVICE float base_of(float max) { return max == minus_infinity() ? 0.0f : max; }

// Four dims of a row of the result, from dim `dim` on; rows begin at multiples of 16 bytes.
SKC_DEVICE void store_four(u8* row, u32 dtype, u32 dim, const float (&x)[4]) {
    if (dtype == SKC_F32) {
        *(Four*)(row + 4 * dim) = {x[0], x[1], x[2], x[3]};
    } else if (dtype == SKC_F16) {
        *(Pair*)(row + 2 * dim) = {pack_f16(x[0], x[1]), pack_f16(x[2], x[3])};
    } else {
        *(Pair*)(row + 2 * dim) = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])};
    }
}

// Two dims.
SKC_DEVICE void store_two(u8* row, u32 dtype, u32 dim, float x, float y) {
    if (dtype == SKC_F32) {
        *(Two*)(row + 4 * dim) = {x, y};
    } else {
        *(u32*)(row + 2 * dim) = dtype == SKC_F16 ? pack_f16(x, y) : pack_bf16(x, y);
    }
}

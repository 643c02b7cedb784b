// Tiles of f16 or bf16 (SKC_TYPE): the element type, queries as they are multiplied, and values that are not finite.
#pragma once

#include "attention_tile.cuh"

// Vectors of 16 bytes in a row of K or V.
constexpr u32 ROW_VECTORS = DIM / 8;
static_assert(KeyForm::STRIDE == ROW_BYTES, "rows of queries, K and V lie alike");

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

// Dims of a lane's accumulator i in a decode and in a chunk: those of the fragments.
SKC_DEVICE u32 decode_dim(u32 i) { return 8 * i + lane() / 4; }
SKC_DEVICE u32 chunk_dim(u32 i) { return i / 2 * 8 + 2 * (lane() % 4) + i % 2; }

// Starts copying keys first .. first + KEYS of a range into a tile, as thread `index` of THREADS threads. Keys beyond
// the range's end become zeros: their scores are masked, and a probability of zero times a value of zero is zero,
// whatever their slots hold.
template <u32 KEYS, u32 THREADS>
SKC_DEVICE void copy_tile(const SkcLayer& l, const KeyRange& keys, u32 first, const KvTile& tile, u32 index) {
    // K and V lie alike.
    u64 base = keys.head * l.k.head_codes;
    // Fully unrolled, so that all copies are issued back to back.
#pragma unroll
    for (u32 round = 0; round < (KEYS * ROW_VECTORS + THREADS - 1) / THREADS; ++round) {
        u32 i = index + round * THREADS;
        if (KEYS * ROW_VECTORS % THREADS != 0 && i >= KEYS * ROW_VECTORS) break;
        u32 row = i / ROW_VECTORS;
        u32 offset = 16 * (i % ROW_VECTORS);
        u32 key = first + row;
        bool valid = key < keys.n; // mutant: last_key_left_out
        u64 from = base + (valid ? (u64)slot_of(keys, key) * (2 * DIM) + offset : 0);
        copy_async<16>(tile.k + row * ROW_BYTES + offset, l.k.codes + from, valid);
        copy_async<16>(tile.v + row * ROW_BYTES + offset, l.v.codes + from, valid);
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

// Threads that load the queries of a token: one for each pair of dims.
constexpr u32 QUERY_ITEMS = DIM / 2;
constexpr u32 CHUNK_UNROLL = GROUP < 4 ? GROUP : 4;

// Loads pair `pair` of query heads, rotated for a segment; UNROLL heads at a time, whose loads'
// latencies overlap.
template <u32 UNROLL>
SKC_DEVICE void load_query_item(const SkcAttend& p, const Queries& q, const QueryHeads& heads, u32 pair) {
    const SkcLayer& l = p.layer;
    u64 row = q.row + (heads.token - q.first);
    PairRotation r = query_rotation(l, q.start + heads.token, heads.offset, pair);
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

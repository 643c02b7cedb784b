// Tiles of q8 and q4 (SKC_TYPE: K and V): codes as bf16, scales, queries as they are multiplied.
//
// A code is exact in bf16, and so are products in f32: codes are multiplied as they are, and scales apart. Those of
// keys multiply sums of products, those of values the probabilities. bf16 also where rows come in f16 or f32: its range
// is f32's, so neither turned queries nor probabilities times scales can overflow or vanish, and its rounding is small
// beside that of 8 bits.
#pragma once

#include "attention_tile.cuh"
#include "hadamard.cuh"

constexpr bool K_IS_Q8 = K_TYPE(SKC_TYPE) == SKC_Q8;
constexpr bool V_IS_Q8 = V_TYPE(SKC_TYPE) == SKC_Q8;

SKC_DEVICE u32 pack(float lo, float hi) { return pack_bf16(lo, hi); }
SKC_DEVICE void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_16816_bf16(c, a, b); }

// Steps of 16 dims whose products share a scale.
constexpr u32 K_SCALE_STEPS = K_IS_Q8 ? DIM / 16 : Q4_GROUP / 16;

// ---- Copies

// Starts copying K, or V, of keys first .. first + KEYS of a range into a tile, as thread `index` of THREADS threads.
// Keys beyond the range's end become zeros: their scores are masked, and a probability of zero times a value of zero is
// zero, whatever their slots hold.
template <class Form, u32 KEYS, u32 THREADS>
SKC_DEVICE void copy_rows(const SkcStore& store, const KeyRange& keys, u32 first, u8* tile, u32 index) {
    const u8* codes = store.codes + keys.head * store.head_codes;
    // Fully unrolled, so that all copies are issued back to back.
#pragma unroll
    for (u32 round = 0; round < (KEYS * Form::VECTORS + THREADS - 1) / THREADS; ++round) {
        u32 i = index + round * THREADS;
        if (KEYS * Form::VECTORS % THREADS != 0 && i >= KEYS * Form::VECTORS) break;
        u32 row = i / Form::VECTORS;
        u32 offset = Form::VECTOR * (i % Form::VECTORS);
        u32 key = first + row;
        bool valid = key < keys.n; // mutant: last_code_left_out
        const u8* from = codes + (valid ? (u64)slot_of(keys, key) * Form::CODES + offset : 0);
        copy_async<Form::VECTOR>(tile + row * Form::STRIDE + offset, from, valid);
    }
    const u8* scales = store.scales + keys.head * store.head_scales;
#pragma unroll
    for (u32 row = index; row < KEYS; row += THREADS) {
        u32 key = first + row;
        bool valid = key < keys.n;
        const u8* from = scales + (valid ? (u64)slot_of(keys, key) * Form::SCALES : 0);
        copy_async<Form::SCALES>(tile_scales<Form, KEYS>(tile, row), from, valid);
    }
}

// Both; as thread `index` of THREADS threads.
template <u32 KEYS, u32 THREADS>
SKC_DEVICE void copy_tile(const SkcLayer& l, const KeyRange& keys, u32 first, const KvTile& tile, u32 index) {
    copy_rows<KeyForm, KEYS, THREADS>(l.k, keys, first, tile.k, index);
    copy_rows<ValueForm, KEYS, THREADS>(l.v, keys, first, tile.v, index);
}

// ---- Codes as bf16. Two at a time, in bytes 0 and 2; what other bits hold does not matter.

// Signed bytes. 128 + (the low seven bits) is a bf16, and so is 128 + (the sign bit): their difference is the code.
SKC_DEVICE u32 bf16_of_q8(u32 x) {
    return add_bf16x2((x & 0x007f007f) | 0x43004300, (x & 0x00800080) | 0xc300c300); // mutant: code_without_its_sign
}

// Low halves of the bytes: 128 + (code + 8), less 136.
SKC_DEVICE u32 bf16_of_q4(u32 x) { return add_bf16x2((x & 0x000f000f) ^ 0x43084308, 0xc308c308); }

// The codes of keys that a lane multiplies in one step: four dims of one key. `row`: the codes of the key.
struct KeyCodes {
    u32 low;   // k = 2t, 2t + 1 of the fragment
    u32 high;  // k = 2t + 8, 2t + 9

    SKC_DEVICE static KeyCodes load(const u8* row, u32 step) {
        u32 t = lane() % 4;
        if (K_IS_Q8) {
            u32 x = *(const u32*)(row + 16 * step + 4 * t);
            return {bf16_of_q8(byte_permute(x, 0, 0x4140)), bf16_of_q8(byte_permute(x, 0, 0x4342))};
        }
        u32 x = byte_permute(*(const u16*)(row + 8 * step + 2 * t), 0, 0x4140);
        return {bf16_of_q4(x), bf16_of_q4(x >> 4)};
    }
};

// The place of a query's dim in its row of shared memory, so that fragments of queries have the dims of KeyCodes.
SKC_DEVICE u32 query_place(u32 dim) {
    u32 t = dim % 16 / 4;
    u32 i = dim % 4;
    // Of q4, the even dims are the low halves.
    u32 high = K_IS_Q8 ? i / 2 : i % 2;
    u32 second = K_IS_Q8 ? i % 2 : i / 2;
    return dim / 16 * 16 + 8 * high + 2 * t + second;
}

// Values are multiplied in blocks of 32 dims, of which a lane has 4, of each of four keys: 2t, 2t + 1, 2t + 8 and
// 2t + 9. The last block may have 16 dims: 2 for a lane.
constexpr u32 VALUE_BLOCKS = (DIM + 31) / 32;
SKC_DEVICE constexpr u32 block_dims(u32 block) { return 32 * block + 32 <= DIM ? 4 : 2; }

// The lane's dims of a block, as they are loaded: of each of the four keys.
struct ValueCodes {
    u32 words[4];
    u32 block;

    // `rows`: 16 keys of a tile.
    SKC_DEVICE ValueCodes(const u8* rows, u32 block) : block(block) {
        constexpr u32 STRIDE = ValueForm::STRIDE;
        const u8* at = rows + lane() % 4 * 2 * STRIDE;
        words[0] = word(at, block);
        words[1] = word(at + STRIDE, block);
        words[2] = word(at + 8 * STRIDE, block);
        words[3] = word(at + 9 * STRIDE, block);
    }

    // The codes of dim `d` of the lane: of keys 2t and 2t + 1 (half 0), or of keys 2t + 8 and 2t + 9 (half 1).
    SKC_DEVICE u32 pair(u32 d, u32 half) const {
        // The byte of both keys that has the code.
        u32 byte = V_IS_Q8 ? d : d / 2;
        u32 codes = byte_permute(words[2 * half], words[2 * half + 1], byte * 0x1111 + 0x4400);
        return V_IS_Q8 ? bf16_of_q8(codes) : bf16_of_q4(d % 2 == 0 ? codes : codes >> 4);
    }

    // The lane's codes of one key.
    SKC_DEVICE static u32 word(const u8* row, u32 block) {
        u32 g = lane() / 4;
        if (block_dims(block) == 4) {
            return V_IS_Q8 ? *(const u32*)(row + 32 * block + 4 * g) : *(const u16*)(row + 16 * block + 2 * g);
        }
        return V_IS_Q8 ? *(const u16*)(row + 32 * block + 2 * g) : row[16 * block + g];
    }
};

// Dims of a lane's accumulator i. In a decode dims are rows, of which the lane has two of every 16; in a chunk they are
// columns, of which it has two of every 8.
SKC_DEVICE u32 decode_dim(u32 i) {
    u32 block = i / 4;
    return 32 * block + lane() / 4 * block_dims(block) + i % 4;
}
SKC_DEVICE u32 chunk_dim(u32 i) {
    u32 block = i / 8;
    return 32 * block + (2 * (lane() % 4) + i % 2) * block_dims(block) + i % 8 / 2;
}

// ---- Scales

// Scale `index` of a row of a tile of KEYS keys.
template <class Form, u32 KEYS>
SKC_DEVICE float scale_of(const u8* tile, u32 row, u32 index) {
    return bf16_to_f32(*(const u16*)(tile + KEYS * Form::STRIDE + row * Form::SCALES + 2 * index));
}

// Probabilities are multiplied with the scales of their values. Where a row does not see a key its probability is 0,
// and the scale may be NaN. `masked`: there are such keys.

// In q8, one scale for the whole row.
SKC_DEVICE float scaled_probability(float prob, float scale, bool masked) {
    return masked && prob == 0.0f ? 0.0f : prob * scale; // mutant: hidden_scale
}

// In q4, a scale for each block of dims: probabilities of two neighbouring keys, in bf16, times scales `block` of the
// first, `key`, and of the second. Another rounding, which is small beside that of 4 bits.
template <u32 KEYS>
SKC_DEVICE u32 scaled_pair(u32 probs, const u8* v, u32 key, u32 block, bool masked) {
    const u8* scales = v + KEYS * ValueForm::STRIDE + key * ValueForm::SCALES + 2 * block;
    u32 both = byte_permute(*(const u16*)scales, *(const u16*)(scales + ValueForm::SCALES), 0x5410);
    u32 product = multiply_bf16x2(probs, both);
    u32 low = masked && (probs & 0xffff) == 0 ? 0 : 0xffff; // mutant: hidden_block_scale
    u32 high = masked && probs >> 16 == 0 ? 0 : 0xffff0000;
    return product & (low | high);
}

// ---- Queries

// A lane's part in the rotation of queries of one token.
template <u32 N>
struct QueryRotation {
    SinCos angle[N];
    u32 other[N];   // the pair's other dim
    u32 rotated;    // bit j: element j is rotated
    u32 second;     // bit j: element j is the second of its pair

    SKC_DEVICE QueryRotation(const SkcAttend& p, const Queries& q, const QueryHeads& heads) : rotated(0), second(0) {
        const SkcLayer& l = p.layer;
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            angle[j] = {1.0f, 0.0f};
            other[j] = 0;
            u32 dim = WarpRow<N>::element(j);
            if (dim >= 2 * l.rope_pairs) continue;
            PairMember m = pair_member(l, dim);
            PairRotation r = query_rotation(l, q.start + heads.token, heads.offset, m.pair);
            if (!r.rotated) continue;
            angle[j] = r.angle;
            other[j] = m.other;
            rotated |= 1u << j;
            second |= (m.second ? 1u : 0u) << j;
        }
    }
};

// Threads that load the queries of a token: a warp, for its rows are turned.
constexpr u32 QUERY_ITEMS = 32;
constexpr u32 CHUNK_UNROLL = 1;

// Loads query heads, rotated for a segment and turned as keys are; UNROLL heads at a time, whose
// loads' latencies overlap. The whole warp must call it; `item` is the lane.
template <u32 UNROLL>
SKC_DEVICE void load_query_item(const SkcAttend& p, const Queries& q, const QueryHeads& heads, u32) {
    constexpr u32 N = (DIM + 31) / 32;
    u32 dtype = p.layer.in_dtype;
    u64 row = q.row + (heads.token - q.first);
    QueryRotation<N> r(p, q, heads);
#pragma unroll 1
    for (u32 begin = 0; begin < heads.n; begin += UNROLL) {
        WarpRow<N> own[UNROLL];
        float other[UNROLL][N];
#pragma unroll
        for (u32 h = 0; h < UNROLL; ++h) {
            if (begin + h >= heads.n) break;
            const u8* from = row_at(p.q, row, heads.first + begin + h);
            own[h].load(from, dtype, DIM);
#pragma unroll
            for (u32 j = 0; j < N; ++j) {
                other[h][j] = r.rotated >> j & 1 ? load_element(from, dtype, r.other[j]) : 0.0f;
            }
        }
#pragma unroll
        for (u32 h = 0; h < UNROLL; ++h) {
            if (begin + h >= heads.n) break;
#pragma unroll
            for (u32 j = 0; j < N; ++j) {
                float y = rotate_member(own[h].x[j], other[h][j], r.second >> j & 1, r.angle[j]);
                own[h].x[j] = r.rotated >> j & 1 ? y : own[h].x[j];
            }
            hadamard(own[h], DIM); // mutant: fast_queries_not_turned
            u16* to = (u16*)(heads.to + (begin + h) * ROW_BYTES);
#pragma unroll
            for (u32 j = 0; j < N; ++j) {
                u32 dim = WarpRow<N>::element(j);
                if (dim < DIM) to[query_place(dim)] = f32_to_bf16(own[h].x[j]);
            }
        }
    }
}

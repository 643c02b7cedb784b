// The new tokens of a step in one launch. For each KV head, the block whose tiles of keys they fall into rotates their
// keys, uses K and V as they will be stored, and stores them. No other block reads their slots: a ring has room for a
// chunk beside the window, so no query of the launch sees what they overwrite.
#pragma once

#include "commit.cuh"
#include "decode_tile.cuh"
#include "quantise.cuh"

// The tiles of keys of a KV head that a block works on: begin .. end of all. Those of the segment with the newest
// tokens come behind all others.
struct TileShare {
    u32 older_tiles;
    u32 begin;
    u32 end;
};

struct NewTokens {
    u8* rows;       // shared memory: K and V of each token
    u64 first;      // index of the first token
    u64 oldest;     // the token of key 0 of the newest segment
    u32 n;
    u32 n_sinks;    // so many of them are the last sinks, the others the window's last tokens
    TileShare share;

    // As they are stored.
    static constexpr u32 KEY_BYTES = NEW_ROW_BYTES(K_TYPE(SKC_TYPE), SKC_DIM);
    static constexpr u32 BYTES = NEW_TOKEN_BYTES(SKC_TYPE, SKC_DIM);
    SKC_DEVICE StoredRow key(u32 index) const { return row<KeyForm>(rows + index * BYTES); }
    SKC_DEVICE StoredRow value(u32 index) const { return row<ValueForm>(rows + index * BYTES + KEY_BYTES); }
    template <class Form>
    SKC_DEVICE static StoredRow row(u8* codes) {
        return {codes, (u16*)(codes + Form::CODES)};
    }

    // Whether token `index` of the launch falls into the block's tiles.
    SKC_DEVICE bool is_own(u32 index) const {
        u64 token = first + index;
        u32 tile = index < n_sinks ? (u32)token / DECODE_KEYS : share.older_tiles + (u32)(token - oldest) / DECODE_KEYS;
        return share.begin <= tile && tile < share.end;
    }
};

#if !QUANTISED(SKC_TYPE)

// Loads the block's tokens into shared memory, keys rotated. The whole block of THREADS threads must call it.
template <u32 THREADS>
SKC_DEVICE void load_new_tokens(const NewTokens& t, const SkcStep& p, const Queries& q, u32 kv_head) {
    // Of each token: pairs of its key, vectors of its value.
    constexpr u32 ITEMS = DIM / 2 + ROW_VECTORS;
    for (u32 i = thread(); i < t.n * ITEMS; i += THREADS) {
        u32 index = i / ITEMS;
        u32 item = i % ITEMS;
        if (!t.is_own(index)) continue;
        if (item < DIM / 2) {
            const u16* from = (const u16*)row_at(p.k, q.row + index, kv_head);
            PairRotation r = key_rotation(p.attend.layer, q.start + t.first + index, item);
            store_pair((u16*)t.key(index).codes, r, from[r.first], from[r.second]);
        } else {
            u32 offset = 16 * (item - DIM / 2);
            *(U32x4*)(t.value(index).codes + offset) = *(const U32x4*)(row_at(p.v, q.row + index, kv_head) + offset);
        }
    }
}

#else

// Loads the block's tokens into shared memory, quantised, by the same functions as an append. The whole block of
// THREADS threads must call it.
template <u32 THREADS>
SKC_DEVICE void load_new_tokens(const NewTokens& t, const SkcStep& p, const Queries& q, u32 kv_head) {
    const SkcLayer& l = p.attend.layer;
    // Items of a warp: a token's key, its value.
    for (u32 i = warp(); i < 2 * t.n; i += THREADS / 32) {
        u32 index = i / 2;
        if (!t.is_own(index)) continue;
        WarpRow<(DIM + 31) / 32> row;
        if (i % 2 == 0) {
            const u8* from = row_at(p.k, q.row + index, kv_head);
            if (rotates_keys(l)) {
                u64 position = q.start + t.first + index;
                row.load_rotated(l, from, DIM, [&](u32 pair) { return rotation_at(l, position, pair); });
            } else {
                row.load(from, l.in_dtype, DIM);
            }
            hadamard(row, DIM); // mutant: new_key_not_turned
            store_quantised(t.key(index), K_TYPE(SKC_TYPE), row, DIM);
        } else {
            row.load(row_at(p.v, q.row + index, kv_head), l.in_dtype, DIM);
            store_quantised(t.value(index), V_TYPE(SKC_TYPE), row, DIM);
        }
    }
}

#endif

// A piece of a token: of its key, or of its value.
struct TokenPiece {
    bool is_key;
    u32 index;

    static constexpr u32 N = KeyForm::PIECES + ValueForm::PIECES;
    SKC_DEVICE explicit TokenPiece(u32 i) : is_key(i < KeyForm::PIECES), index(is_key ? i : i - KeyForm::PIECES) {}
};

// Stores the block's tokens in their slots, after a barrier. `head`: as of KeyRange.
template <u32 THREADS>
SKC_DEVICE void store_new_tokens(const NewTokens& t, const SkcLayer& l, u64 head) {
    Ring ring = ring_of(l);
    for (u32 i = thread(); i < t.n * TokenPiece::N; i += THREADS) {
        u32 index = i / TokenPiece::N;
        if (!t.is_own(index)) continue;
        u64 slot = ring_slot(ring, t.first + index);
        TokenPiece piece(i % TokenPiece::N);
        if (piece.is_key) { // mutant: new_token_not_stored
            copy_piece<KeyForm>(cached_row<KeyForm>(l.k, head, slot), t.key(index), piece.index);
        } else {
            copy_piece<ValueForm>(cached_row<ValueForm>(l.v, head, slot), t.value(index), piece.index);
        }
    }
}

// The new tokens of one segment: n of them from token `index` of the launch on, behind `stored` keys that are in
// memory.
struct NewKeys {
    u32 stored;
    u32 index;
    u32 n;
};

// Those of the sinks, or of the newest segment.
SKC_DEVICE NewKeys new_keys(const NewTokens& t, u32 stored, bool sinks) {
    if (sinks) return {stored, 0, t.n_sinks};
    return {stored, t.n_sinks, t.n - t.n_sinks};
}

// A row of a decode's tile.
template <class Form>
SKC_DEVICE StoredRow tile_row(u8* tile, u32 row) {
    return {tile + row * Form::STRIDE, (u16*)tile_scales<Form, DECODE_KEYS>(tile, row)};
}

// Writes new tokens over their rows of a tile that holds keys first .. first + 16 of a range and belongs to the calling
// warp. The tile's copies from memory have landed.
SKC_DEVICE void patch_tile(const NewTokens& t, const NewKeys& keys, const KvTile& tile, u32 first) {
    // These fall into an earlier tile.
    u32 skipped = first > keys.stored ? first - keys.stored : 0; // mutant: new_token_in_another_tile
    for (u32 i = lane() + skipped * TokenPiece::N; i < keys.n * TokenPiece::N; i += 32) {
        u32 j = i / TokenPiece::N;
        u32 row = keys.stored + j - first;
        if (row >= DECODE_KEYS) break;
        TokenPiece piece(i % TokenPiece::N);
        if (piece.is_key) {
            copy_piece<KeyForm>(tile_row<KeyForm>(tile.k, row), t.key(keys.index + j), piece.index);
        } else {
            copy_piece<ValueForm>(tile_row<ValueForm>(tile.v, row), t.value(keys.index + j), piece.index);
        }
    }
    warp_sync();
}

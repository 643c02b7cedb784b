// The new tokens of a step in one launch. For each KV head, the block whose tiles of keys they fall into rotates their
// keys, uses K and V as they will be stored, and stores them. No other block reads their slots: a ring has room for a
// chunk beside the window, so no query of the launch sees what they overwrite.
#pragma once

#include "attention_tile.cuh"
#include "commit.cuh"

// The tiles of keys of a KV head that a block works on: begin .. end of all. Those of the sinks come before the
// window's.
struct TileShare {
    u32 sink_tiles;
    u32 begin;
    u32 end;
};

struct NewTokens {
    u8* rows;       // shared memory: K and V of each token
    u64 first;      // index of the first token
    u64 oldest;     // the token of the window range's key 0
    u32 n;
    u32 n_sinks;    // so many of them are the last sinks, the others the window's last tokens
    TileShare share;

    SKC_DEVICE u8* key(u32 index) const { return rows + 2 * index * ROW_BYTES; }
    SKC_DEVICE u8* value(u32 index) const { return rows + (2 * index + 1) * ROW_BYTES; }

    // Whether token `index` of the launch falls into the block's tiles.
    SKC_DEVICE bool is_own(u32 index) const {
        u64 token = first + index;
        u32 tile = index < n_sinks ? (u32)token / DECODE_KEYS : share.sink_tiles + (u32)(token - oldest) / DECODE_KEYS;
        return share.begin <= tile && tile < share.end;
    }
};

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
            store_pair((u16*)t.key(index), r, from[r.first], from[r.second]);
        } else {
            u32 offset = 16 * (item - DIM / 2);
            *(U32x4*)(t.value(index) + offset) = *(const U32x4*)(row_at(p.v, q.row + index, kv_head) + offset);
        }
    }
}

// Stores the block's tokens in their slots, after a barrier. `base`: as of KeyRange.
template <u32 THREADS>
SKC_DEVICE void store_new_tokens(const NewTokens& t, const SkcLayer& l, u64 base) {
    Ring ring = ring_of(l);
    for (u32 i = thread(); i < t.n * 2 * ROW_VECTORS; i += THREADS) {
        u32 index = i / (2 * ROW_VECTORS);
        u32 offset = 16 * (i % ROW_VECTORS);
        if (!t.is_own(index)) continue;
        bool is_key = i / ROW_VECTORS % 2 == 0; // mutant: new_token_not_stored
        u8* slot = (is_key ? l.k : l.v).codes + base + ring_slot(ring, t.first + index) * (2 * DIM);
        *(U32x4*)(slot + offset) = *(const U32x4*)((is_key ? t.key(index) : t.value(index)) + offset);
    }
}

// The new tokens of one key range: n of them from token `index` of the launch on, behind `stored` keys that are in
// memory.
struct NewKeys {
    u32 stored;
    u32 index;
    u32 n;
};

SKC_DEVICE NewKeys new_keys(const NewTokens& t, const KeyRange& stored) {
    if (stored.sinks) return {stored.n, 0, t.n_sinks};
    return {stored.n, t.n_sinks, t.n - t.n_sinks};
}

// Writes new tokens over their rows of a tile that holds keys first .. first + 16 of a range and belongs to the calling
// warp. The tile's copies from memory have landed.
SKC_DEVICE void patch_tile(const NewTokens& t, const NewKeys& keys, const KvTile& tile, u32 first) {
    // These fall into an earlier tile.
    u32 skipped = first > keys.stored ? first - keys.stored : 0; // mutant: new_token_in_another_tile
    for (u32 i = lane() + skipped * 2 * ROW_VECTORS; i < keys.n * 2 * ROW_VECTORS; i += 32) {
        u32 j = i / (2 * ROW_VECTORS);
        u32 row = keys.stored + j - first;
        if (row >= DECODE_KEYS) break;
        u32 offset = 16 * (i % ROW_VECTORS);
        bool is_key = i / ROW_VECTORS % 2 == 0;
        const u8* from = is_key ? t.key(keys.index + j) : t.value(keys.index + j);
        u8* to = is_key ? tile.k : tile.v;
        *(U32x4*)(to + row * ROW_BYTES + offset) = *(const U32x4*)(from + offset);
    }
    warp_sync();
}

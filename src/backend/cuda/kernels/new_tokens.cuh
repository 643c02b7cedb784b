// The tokens that a step brings: their keys are turned and used as they are stored, by the one block of each KV head whose
// tiles they fall into, and stored by the same block. Nobody else reads their slots: a ring has room for a chunk beside the
// window, so what they overwrite is not seen by any query of the launch.
#pragma once

#include "commit.cuh"
#include "attention_tile.cuh"

struct Fresh {
    u8* rows;        // shared memory: K and V of each token
    u32 in_sinks;    // the tokens' keys are the last of the sinks ...
    u32 in_window;   // ... and of the window
    u32 sink_tiles;  // tiles of 16 keys of the sinks, which come before those of the window
    u32 begin, end;  // the block's tiles
};

SKC_DEVICE u8* fresh_key(const Fresh& f, u32 index) { return f.rows + 2 * index * ROW; }
SKC_DEVICE u8* fresh_value(const Fresh& f, u32 index) { return f.rows + (2 * index + 1) * ROW; }

// Whether token `index` of the launch falls into the block's tiles.
SKC_DEVICE bool fresh_is_own(const Fresh& f, const Queries& q, u64 oldest, u32 index) {
    u32 tile = index < f.in_sinks ? (u32)(q.first + index) / DECODE_KEYS : f.sink_tiles + (u32)(q.first + index - oldest) / DECODE_KEYS;
    return f.begin <= tile && tile < f.end;
}

// Turns the block's keys and fetches its values into shared memory; the whole block of THREADS must call it.
template <u32 THREADS>
SKC_DEVICE void load_fresh(const Fresh& f, const SkcStep& p, const Queries& q, u64 oldest, u32 kv_head) {
    const SkcLayer& l = p.attend.layer;
    constexpr u32 ITEMS = DIM / 2 + PIECES;
    for (u32 i = thread(); i < (u32)q.m * ITEMS; i += THREADS) {
        u32 index = i / ITEMS, item = i % ITEMS;
        if (!fresh_is_own(f, q, oldest, index)) continue;
        if (item >= DIM / 2) {
            u32 at = 16 * (item - DIM / 2);
            *(Quad*)(fresh_value(f, index) + at) = *(const Quad*)(row_at(p.v, q.row + index, kv_head) + at);
            continue;
        }
        const u16* from = (const u16*)row_at(p.k, q.row + index, kv_head);
        u16* to = (u16*)fresh_key(f, index);
        if (l.position_mode == SKC_ROPE && item < l.half) {
            u32 a = pair_first(l.rope_style, item), b = pair_second(l.rope_style, l.half, item);
            Angle turn = angle_of((q.start + q.first + index) * l.frequencies[item]);
            Turned x = turned(widen(from[a]), widen(from[b]), turn.cos * l.mscale, turn.sin * l.mscale);
            to[a] = narrow(x.first);
            to[b] = narrow(x.second);
        } else {
            to[2 * item] = from[2 * item];
            to[2 * item + 1] = from[2 * item + 1];
        }
    }
}

// Stores the block's tokens in their slots, after a barrier.
template <u32 THREADS>
SKC_DEVICE void store_fresh(const Fresh& f, const SkcLayer& l, const Ring& ring, const Queries& q, u64 oldest, u64 base) {
    for (u32 i = thread(); i < (u32)q.m * 2 * PIECES; i += THREADS) {
        u32 index = i / (2 * PIECES), at = 16 * (i % PIECES);
        if (!fresh_is_own(f, q, oldest, index)) continue;
        bool key = i / PIECES % 2 == 0; // mutant: fresh_token_not_stored
        u8* slot = (key ? l.k : l.v) + base + ring_slot(ring, q.first + index) * (2 * DIM);
        *(Quad*)(slot + at) = *(const Quad*)((key ? fresh_key(f, index) : fresh_value(f, index)) + at);
    }
}

// Puts tokens of the launch into a tile of a warp's own, whose copies from memory have landed: of the keys first .. first +
// 16 of a span those from `stored` on, the launch's token `index` and the `n - 1` after it.
SKC_DEVICE void patch_tile(const Fresh& f, u8* k_tile, u8* v_tile, u32 first, u32 stored, u32 index, u32 n) {
    // In the tile before or after, the others.
    u32 skipped = first > stored ? first - stored : 0; // mutant: fresh_token_in_another_tile
    for (u32 i = lane() + skipped * 2 * PIECES; i < n * 2 * PIECES; i += 32) {
        u32 at = i / (2 * PIECES), row = stored + at - first, piece = 16 * (i % PIECES);
        if (row >= DECODE_KEYS) break;
        bool key = i / PIECES % 2 == 0;
        *(Quad*)((key ? k_tile : v_tile) + row * ROW + piece) = *(const Quad*)((key ? fresh_key(f, index + at) : fresh_value(f, index + at)) + piece);
    }
    warp_sync();
}

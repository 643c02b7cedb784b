// What a block of a decode works on, and its queries. `Tiles` is a walk over tiles of keys: decode_window.cuh has
// that of sinks and window, decode_segments.cuh that of any segments.
#pragma once

#include "new_tokens.cuh"

template <class Tiles>
struct DecodeBlock {
    DecodeQueries d;
    Tiles keys;
    u8* queries;  // shared memory: the columns' queries rotated for keys of two segments
    u8* stages;   // shared memory: the warps' tiles
};

// Keys of one tile: its segment's, from key `first` on.
struct TileKeys {
    KeyRange range;
    u32 first;
};

SKC_DEVICE u32 tiles_of(u64 n) { return (u32)((n + DECODE_KEYS - 1) / DECODE_KEYS); }

// The block's share of the tiles of its KV head, `newest` of which belong to the segment with the newest tokens.
SKC_DEVICE TileShare tile_share(u32 tiles, u32 newest, u32 n_splits) {
    u32 share = (tiles + n_splits - 1) / n_splits;
    u32 begin = block_z() * share;
    return {tiles - newest, begin, (u32)min_u64((u64)begin + share, tiles)};
}

// The calling warp's tile in a stage.
template <class Tiles>
SKC_DEVICE KvTile warp_tile(const DecodeBlock<Tiles>& b, u32 stage) {
    constexpr u32 K_BYTES = tile_bytes<KeyForm>(DECODE_KEYS);
    constexpr u32 V_BYTES = tile_bytes<ValueForm>(DECODE_KEYS);
    u8* k = b.stages + warp() * (K_BYTES + V_BYTES) + stage * STAGE_BYTES;
    return {k, k + K_BYTES};
}

// Starts copying a tile into a stage, and commits the copies as a group. Beyond the block's share the group is empty.
template <class Tiles>
SKC_DEVICE void start_tile(const SkcLayer& l, DecodeBlock<Tiles>& b, u32 tile, u32 stage) {
    if (tile < b.keys.share.end) {
        TileKeys keys = b.keys.find(l, b.d, tile);
        copy_tile<DECODE_KEYS, 32>(l, keys.range, keys.first, warp_tile(b, stage), lane());
    }
    copy_async_commit();
}

// The queries of columns beyond the last are zeros, in both buffers.
template <class Tiles>
SKC_DEVICE void clear_columns(const DecodeBlock<Tiles>& b) {
    u32 columns = (u32)b.d.q.m * GROUP;
    for (u32 i = columns * ROW_BYTES / 16 + thread(); i < DECODE_COLUMNS * ROW_BYTES / 16; i += DECODE_THREADS) {
        ((U32x4*)b.queries)[i] = {0, 0, 0, 0};
        ((U32x4*)(b.queries + DECODE_COLUMNS * ROW_BYTES))[i] = {0, 0, 0, 0};
    }
}

// Heads of a token are loaded in parts where a warp loads them, so that all warps have some.
constexpr u32 QUERY_PARTS = QUANTISED(SKC_TYPE) && GROUP > 1 ? 2 : 1;
constexpr u32 QUERY_HEADS = (GROUP + QUERY_PARTS - 1) / QUERY_PARTS;
// Heads at a time: few where accumulators hold most registers.
constexpr u32 QUERY_UNROLL = SEGMENTED ? CHUNK_UNROLL : QUERY_HEADS;

// Loads item `i` of the queries, rotated for a segment with that offset, into a buffer. There are QUERY_PARTS *
// QUERY_ITEMS items of each token.
template <class Tiles>
SKC_DEVICE void load_query_part(const SkcAttend& p, const DecodeBlock<Tiles>& b, u32 i, u64 offset, u8* buffer) {
    const Queries& q = b.d.q;
    u32 part = i / QUERY_ITEMS;
    u32 first = part % QUERY_PARTS * QUERY_HEADS;
    u32 index = part / QUERY_PARTS;
    u32 n = GROUP - first < QUERY_HEADS ? GROUP - first : QUERY_HEADS;
    u8* to = buffer + (index * GROUP + first) * ROW_BYTES;
    QueryHeads heads = {q.first + index, b.d.kv_head * GROUP + first, n, offset, to};
    load_query_item<QUERY_UNROLL>(p, q, heads, i % QUERY_ITEMS);
}

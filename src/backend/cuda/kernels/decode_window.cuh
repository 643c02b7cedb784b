// A decode over sinks and window, in a layer without pinned and evicted ranges. Queries are rotated for both before the
// first tile.
#pragma once

#include "decode_block.cuh"

// The tiles of a KV head: the sinks', then the window's.
struct WindowTiles {
    KeyRange sinks;
    KeyRange window;
    u64 oldest;  // token of key 0 of the window
    TileShare share;

    SKC_DEVICE u64 newest_from(const SkcLayer&, const Queries&) const { return oldest; }

    // Tokens of this launch, the last of both, which are not in memory.
    SKC_DEVICE void leave_out(u32 new_sinks, u32 new_tokens) {
        sinks.n -= new_sinks;
        window.n -= new_tokens; // mutant: step_reads_old_slots
    }

    // Field by field, so that it stays in registers.
    SKC_DEVICE TileKeys find(const SkcLayer&, const DecodeQueries&, u32 tile) const {
        bool of_sinks = tile < share.older_tiles;
        TileKeys t;
        t.range.head = window.head;
        t.range.first_slot = of_sinks ? sinks.first_slot : window.first_slot;
        t.range.end_slot = of_sinks ? sinks.end_slot : window.end_slot;
        t.range.wrap_slot = of_sinks ? sinks.wrap_slot : window.wrap_slot;
        t.range.n = of_sinks ? sinks.n : window.n;
        t.first = (of_sinks ? tile : tile - share.older_tiles) * DECODE_KEYS;
        return t;
    }

    SKC_DEVICE KeySegment segment(bool of_sinks) const { return {of_sinks, oldest}; }
};

using KeyTiles = WindowTiles;

SKC_DEVICE WindowTiles key_tiles(const SkcLayer& l, const DecodeQueries& d, WindowTokens tokens, u32 n_splits) {
    u64 head = d.head(l);
    KeyRange sinks = key_range(l, head, {true, tokens.oldest}, tokens);
    KeyRange window = key_range(l, head, {false, tokens.oldest}, tokens);
    u32 newest = tiles_of(window.n);
    return {sinks, window, tokens.oldest, tile_share(tiles_of(sinks.n) + newest, newest, n_splits)};
}

// Loads the block's queries, for the window into the first buffer, for the sinks into the second.
SKC_DEVICE void load_queries(const SkcAttend& p, const DecodeBlock<WindowTiles>& b) {
    clear_columns(b);
    const Queries& q = b.d.q;
    u32 items = QUERY_PARTS * QUERY_ITEMS;
    // Of each token, for window and sinks.
    for (u32 i = thread(); i < (u32)q.m * 2 * items; i += DECODE_THREADS) {
        u32 index = i / items / 2;
        bool sinks = i / items % 2 != 0;
        u64 offset = sinks ? query_evicted(ring_of(p.layer), q, q.first + index) : 0;
        u8* buffer = b.queries + (sinks ? DECODE_COLUMNS * ROW_BYTES : 0);
        load_query_part(p, b, index * items + i % items, offset, buffer);
    }
}

// The columns of the calling warp, after all of its tiles. Copies of the first STAGES - 1 of them have been started.
// `new_tokens`: used by a step only.
template <bool STEP>
SKC_DEVICE DecodeColumns run_tiles(const SkcAttend& p, DecodeBlock<WindowTiles>& b, const NewTokens& new_tokens) {
    const SkcLayer& l = p.layer;
    const TileShare& share = b.keys.share;
    u32 tile = share.begin + warp();
    bool sinks = tile < share.older_tiles;
    DecodeColumns c = DecodeColumns::empty(l);
    load_columns(c, b.queries + (sinks ? DECODE_COLUMNS : 0) * ROW_BYTES);
    set_segment(c, l, b.d, b.keys.segment(sinks));
    u32 stage = 0;
    for (; tile < share.end; tile += WARPS) {
        copy_async_wait<STAGES - 2>(); // mutant: copies_not_waited_for
        warp_sync();
        // Into the stage that was read in the round before.
        start_tile(l, b, tile + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
        if (sinks && tile >= share.older_tiles) {
            sinks = false;
            load_columns(c, b.queries);
            set_segment(c, l, b.d, b.keys.segment(false));
        }
        KvTile kv = warp_tile(b, stage);
        TileKeys own = b.keys.find(l, b.d, tile);
        if (STEP) {
            NewKeys keys = new_keys(new_tokens, own.range.n, sinks);
            // mutant: step_without_its_own_key
            if (keys.n != 0 && own.first + DECODE_KEYS > keys.stored) patch_tile(new_tokens, keys, kv, own.first);
        }
        add_tile(c, kv, own.first);
        stage = (stage + 1) % STAGES;
    }
    return c;
}

// A decode over segments, in a layer that has room for pinned and evicted ranges. The block goes from one segment to
// the next: its threads rotate the queries for it into one of two buffers, and meet. Copies of keys run ahead of
// that.
#pragma once

#include "decode_block.cuh"

// A segment's number in its list and its tiles: begin .. end of the KV head's.
struct SegmentCursor {
    u32 i;
    u32 begin;
    u32 end;
};

// The tiles of a KV head, segment by segment. What follows from the queries is computed anew at each border of
// segments: the loop over tiles needs the registers.
struct SegmentTiles {
    // Of the sequence. A step reads its counters once, before they change.
    u32 n_ranges;
    u32 n_pinned;
    // Tokens of this launch, which are not in memory: the last sinks, and the last of the newest segment.
    u32 new_sinks;
    u32 new_tokens;
    TileShare share;
    SegmentCursor first;  // the segment of the block's first tile
    SegmentCursor ahead;  // the segment whose keys are being copied ...
    KeyRange range;       // ... and these

    SKC_DEVICE SegmentList list(const SkcLayer& l, const Queries& q) const {
        Ring ring = ring_of(l);
        u64 oldest = ring.n_sink + query_evicted(ring, q, q.first);
        return {ring, {ranges_of(l, q.seq), n_ranges}, n_pinned, oldest, q.first + q.m};
    }

    SKC_DEVICE u64 newest_from(const SkcLayer& l, const Queries& q) const {
        SegmentList segments = list(l, q);
        return segments.segment(segments.last()).index;
    }

    SKC_DEVICE void leave_out(u32 sinks, u32 tokens) {
        new_sinks = sinks;
        new_tokens = tokens; // mutant: segments_read_old_slots
    }

    // The last of the list.
    SKC_DEVICE u32 newest() const { return 2 * n_ranges + 1; }

    // Keys of a segment that are in memory.
    SKC_DEVICE u32 stored(u32 i, u32 n) const { return n - (i == 0 ? new_sinks : i == newest() ? new_tokens : 0); }

    // The next segment that has tiles.
    SKC_DEVICE SegmentCursor after(const SegmentList& segments, SegmentCursor c) const {
        do {
            ++c.i;
            c.begin = c.end;
            if (c.i <= newest()) c.end += tiles_of(segments.segment(c.i).n);
        } while (c.begin == c.end && c.i <= newest());
        return c;
    }

    // The keys of a tile. Tiles are asked for in order.
    SKC_DEVICE TileKeys find(const SkcLayer& l, const DecodeQueries& d, u32 tile) {
        if (tile >= ahead.end) {
            SegmentList segments = list(l, d.q);
            while (tile >= ahead.end) ahead = after(segments, ahead);
            range = key_range(l, d.head(l), segments.segment(ahead.i), {0, 0});
            range.n = stored(ahead.i, range.n);
        }
        return {range, (tile - ahead.begin) * DECODE_KEYS};
    }
};

using KeyTiles = SegmentTiles;

SKC_DEVICE u32 tiles_at(const SegmentList& segments, u32 i) {
    return i < segments.count() ? tiles_of(segments.segment(i).n) : 0;
}

// The tiles of all segments. The whole warp must call it.
SKC_DEVICE u32 count_tiles(const SegmentList& segments) {
    u32 sum = 0;
    for (u32 i = lane(); i < segments.count(); i += 32) sum += tiles_at(segments, i);
    for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    return sum;
}

// The segment of a tile. The whole warp must call it: each lane counts the tiles of every 32nd segment.
SKC_DEVICE SegmentCursor seek_tile(const SegmentList& segments, u32 tile) {
    u32 before = 0;
    u32 n = segments.count();
    for (u32 from = 0; from < n; from += 32) {
        u32 own = tiles_at(segments, from + lane());
        u32 end = own;
        for (u32 d = 1; d < 32; d *= 2) {
            u32 x = shuffle(end, lane() >= d ? lane() - d : 0);
            if (lane() >= d) end += x;
        }
        end += before;
        u32 found = end > tile ? lane() : 32;
        for (u32 mask = 16; mask > 0; mask /= 2) {
            u32 other = shuffle_xor(found, mask);
            found = other < found ? other : found;
        }
        if (found < 32) return {from + found, shuffle(end - own, found), shuffle(end, found)};
        before = shuffle(end, 31);
    }
    return {n, before, before};
}

SKC_DEVICE SegmentTiles key_tiles(const SkcLayer& l, const DecodeQueries& d, WindowTokens, u32 n_splits) {
    SegmentTiles t;
    t.n_ranges = l.seqs[d.q.seq].n_ranges;
    t.n_pinned = l.seqs[d.q.seq].n_pinned;
    t.new_sinks = 0;
    t.new_tokens = 0;
    SegmentList segments = t.list(l, d.q);
    t.share = tile_share(count_tiles(segments), tiles_at(segments, segments.last()), n_splits);
    t.first = seek_tile(segments, t.share.begin);
    // In front of that: the first tile that is asked for moves it there.
    t.ahead = {t.first.i - 1, t.first.begin, t.first.begin};
    return t;
}

// Queries are loaded segment by segment.
SKC_DEVICE void load_queries(const SkcAttend&, const DecodeBlock<SegmentTiles>& b) { clear_columns(b); }

// Loads the block's queries into a buffer, rotated for a segment.
SKC_DEVICE void load_queries_for(const SkcAttend& p, const DecodeBlock<SegmentTiles>& b, const Segment& s,
                                 u8* buffer) {
    const Queries& q = b.d.q;
    Ring ring = ring_of(p.layer);
    u32 items = QUERY_PARTS * QUERY_ITEMS;
    for (u32 i = thread(); i < (u32)q.m * items; i += DECODE_THREADS) {
        load_query_part(p, b, i, s.offset(ring, q, q.first + i / items), buffer);
    }
}

// The columns of the calling warp, after all of its tiles. Copies of the first STAGES - 1 of them have been started.
// `new_tokens`: used by a step only. The whole block must call it.
template <bool STEP>
SKC_DEVICE DecodeColumns run_tiles(const SkcAttend& p, DecodeBlock<SegmentTiles>& b, const NewTokens& new_tokens) {
    const SkcLayer& l = p.layer;
    DecodeColumns c = DecodeColumns::empty(l);
    SegmentCursor at = b.keys.first;
    u32 tile = b.keys.share.begin + warp();
    u32 stage = 0;
    u8* buffer = b.queries;
    u8* other = b.queries + DECODE_COLUMNS * ROW_BYTES;
#pragma unroll 1
    while (at.begin < b.keys.share.end) {
        Segment s = b.keys.list(l, b.d.q).segment(at.i);
        load_queries_for(p, b, s, buffer);
        // A warp that is ahead writes to the other buffer next, which all warps have read before they came here.
        block_sync(); // mutant: segment_missing_barrier
        load_columns(c, buffer);
        set_segment(c, l, b.d, s);
        u32 stored = b.keys.stored(at.i, (u32)s.n);
        u32 end = (u32)min_u64(at.end, b.keys.share.end);
        for (; tile < end; tile += WARPS) {
            copy_async_wait<STAGES - 2>(); // mutant: segment_copies_not_waited_for
            warp_sync();
            // Into the stage that was read in the round before.
            start_tile(l, b, tile + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
            KvTile kv = warp_tile(b, stage);
            u32 first = (tile - at.begin) * DECODE_KEYS;
            if (STEP) {
                bool newest = at.i == b.keys.newest();
                NewKeys keys = new_keys(new_tokens, stored, at.i == 0);
                // mutant: segment_step_without_its_own_key
                if ((at.i == 0 || newest) && keys.n != 0 && first + DECODE_KEYS > stored) {
                    patch_tile(new_tokens, keys, kv, first);
                }
            }
            add_tile(c, kv, first);
            stage = (stage + 1) % STAGES;
        }
        at = b.keys.after(b.keys.list(l, b.d.q), at);
        u8* filled = buffer;
        buffer = other;
        other = filled;
    }
    return c;
}

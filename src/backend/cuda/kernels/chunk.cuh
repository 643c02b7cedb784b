// skc_attend_chunk: many queries. Rows are tokens times the heads of a group, 64 to a block and 16 to a warp; the block's
// warps share tiles of keys, first of the sinks, then of the window. Only tiles at the edge of what some row sees are masked.
//
// Grid: entries, KV heads, tiles of rows (loop). 128 threads. Shared: CHUNK_SHARED bytes.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4 a
// lane holds of the products rows g and g + 8 of columns 2t and 2t + 1.
#pragma once

#include "tile.cuh"

constexpr u32 KEYS = CHUNK_KEYS(SKC_DIM);
constexpr u32 KEY_BLOCKS = KEYS / 8;
constexpr u32 DIM_BLOCKS = DIM / 8;

// One of a lane's two rows.
struct Row {
    u64 token;
    u32 head;   // query head
    bool live;  // the row is one of the call's
    u32 from;   // keys of the span it sees
    u32 to;
    Scorer scorer;
    float max;
    float sum;  // of the lane's own columns
};

struct Chunk {
    float acc[DIM_BLOCKS][4];
    Row row[2];
};

SKC_DEVICE void aim_row(Row& r, const SkcAttend& p, const Ring& ring, const Queries& q, bool sinks, u64 oldest) {
    r.from = r.to = 0;
    if (!r.live) return;
    u64 evicted = query_evicted(ring, q, r.token);
    if (sinks) {
        r.to = (u32)min_u64(ring.n_sink, r.token + 1);
    } else {
        u64 from = ring.n_sink + evicted;
        r.from = (u32)(from - oldest);
        r.to = (u32)(max_u64(r.token + 1, from) - oldest);
    }
    r.scorer = scorer_of(p.layer, r.head, (u32)(sinks ? r.token - evicted : r.token - oldest));
}

// Weights times values one key at a time, leaving out weights of zero: for tiles whose hidden keys hold infinities.
SKC_DEVICE void add_values_one_by_one(Chunk& c, const float (&s)[KEY_BLOCKS][4], const u8* v) {
    u32 t = lane() % 4;
#pragma unroll
    for (u32 block = 0; block < KEY_BLOCKS; ++block) {
#pragma unroll
        for (u32 odd = 0; odd < 2; ++odd) {
            for (u32 column = 0; column < 4; ++column) {
                u32 from = lane() / 4 * 4 + column;
                float w0 = shuffle(s[block][odd], from);
                float w1 = shuffle(s[block][2 + odd], from);
                const u16* row = (const u16*)(v + (8 * block + 2 * column + odd) * ROW);
#pragma unroll
                for (u32 i = 0; i < DIM_BLOCKS; ++i) {
                    float x0 = widen(row[8 * i + 2 * t]), x1 = widen(row[8 * i + 2 * t + 1]);
                    if (w0 != 0.0f) {
                        c.acc[i][0] += w0 * x0;
                        c.acc[i][1] += w0 * x1;
                    }
                    if (w1 != 0.0f) {
                        c.acc[i][2] += w1 * x0;
                        c.acc[i][3] += w1 * x1;
                    }
                }
            }
        }
    }
}

// Adds a tile whose first key is key `first` of its span to the warp's 16 rows.
SKC_DEVICE void add_tile(Chunk& c, const u8* queries, const u8* k, const u8* v, u32 first, bool edge) {
    u32 matrix = lane() / 8, line = lane() % 8, t = lane() % 4;
    float s[KEY_BLOCKS][4];
#pragma unroll
    for (u32 b = 0; b < KEY_BLOCKS; ++b) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) s[b][i] = 0.0f;
    }
    // Matrices of the queries: rows 0-7, 8-15 of dims 0-7, then of dims 8-15; of the keys: dims 0-7, 8-15 of keys 0-7, then
    // of keys 8-15.
    const u8* q_row = queries + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;
    const u8* k_row = k + (line + matrix / 2 * 8) * ROW + matrix % 2 * 16;
#pragma unroll
    for (u32 step = 0; step < DIM / 16; ++step) {
        u32 a[4];
        load_matrix_x4(a, q_row + 32 * step);
#pragma unroll
        for (u32 pair = 0; pair < KEY_BLOCKS / 2; ++pair) {
            u32 b[4];
            load_matrix_x4(b, k_row + 16 * pair * ROW + 32 * step);
            mma(s[2 * pair], a, {b[0], b[1]});
            mma(s[2 * pair + 1], a, {b[2], b[3]});
        }
    }
    float keep[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        Row& r = c.row[half];
        float highest = r.max;
#pragma unroll
        for (u32 b = 0; b < KEY_BLOCKS; ++b) {
#pragma unroll
            for (u32 odd = 0; odd < 2; ++odd) {
                u32 key = first + 8 * b + 2 * t + odd;
                float& x = s[b][2 * half + odd];
                x = !edge || (key >= r.from && key < r.to) ? score_of(r.scorer, x, key) : minus_infinity();
                highest = x > highest ? x : highest;
            }
        }
        for (u32 mask = 1; mask < 4; mask *= 2) {
            float other = shuffle_xor(highest, mask);
            highest = other > highest ? other : highest;
        }
        float base = base_of(highest);
        keep[half] = exp2_fast(r.max - base);
        float sum = 0.0f;
#pragma unroll
        for (u32 b = 0; b < KEY_BLOCKS; ++b) {
#pragma unroll
            for (u32 odd = 0; odd < 2; ++odd) {
                float& x = s[b][2 * half + odd];
                x = exp2_fast(x - base);
                sum += x;
            }
        }
        r.sum = r.sum * keep[half] + sum;
        r.max = highest;
    }
#pragma unroll
    for (u32 b = 0; b < DIM_BLOCKS; ++b) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) c.acc[b][i] *= keep[i / 2];
    }
    if (edge && tile_overflows(v, KEYS)) {
        add_values_one_by_one(c, s, v);
        return;
    }
    // Products' fragments are left-hand fragments of 16 keys; values transposed on the way, matrices in the order keys 0-7,
    // 8-15 of dims 0-7, then of dims 8-15.
    const u8* v_row = v + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;
#pragma unroll
    for (u32 step = 0; step < KEYS / 16; ++step) {
        const float(&x)[4] = s[2 * step];
        const float(&y)[4] = s[2 * step + 1];
        u32 a[4] = {pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3])};
#pragma unroll
        for (u32 pair = 0; pair < DIM_BLOCKS / 2; ++pair) {
            u32 b[4];
            load_matrix_x4_trans(b, v_row + 16 * step * ROW + 32 * pair);
            mma(c.acc[2 * pair], a, {b[0], b[1]});
            mma(c.acc[2 * pair + 1], a, {b[2], b[3]});
        }
    }
}

// Turns the queries of rows row0 .. row0 + 64 for one of the two spans.
SKC_DEVICE void load_rows(const SkcAttend& p, const Ring& ring, const Queries& q, u32 kv_head, u64 row0, u32 rows, bool sinks, u8* to) {
    u32 skip = (u32)(row0 % GROUP);
    u64 first = row0 / GROUP;
    // Tokens that have rows here: the first and the last with some of their heads only.
    u32 tokens = (skip + rows + GROUP - 1) / GROUP;
    for (u32 i = thread(); i < tokens * (DIM / 2); i += 128) {
        u32 pair = i % (DIM / 2), index = i / (DIM / 2);
        u32 front = index == 0 ? skip : 0;
        u32 at = index * GROUP + front - skip;
        u32 n = (u32)min_u64(GROUP - front, rows - at);
        u64 token = q.first + first + index;
        load_query_pair(p, q, token, kv_head, front, n, pair, sinks, query_evicted(ring, q, token), to + at * ROW);
    }
}

// Runs over the keys of one span.
SKC_DEVICE void add_span(Chunk& c, const SkcAttend& p, const Ring& ring, const Queries& q, u32 kv_head, const Span& span, u64 oldest,
                         u64 row0, u32 rows, u8* queries, u8* tiles) {
    constexpr u32 TILE = KEYS * ROW;
    if (span.n == 0) return;
    block_sync();
    copy_tile<KEYS, 128>(span, 0, tiles, tiles + TILE, thread());
    copy_async_commit();
    load_rows(p, ring, q, kv_head, row0, rows, span.sinks, queries);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) aim_row(c.row[half], p, ring, q, span.sinks, oldest);
    // What all and what any of the warp's rows see. The bounds rise with the rows.
    Row ends[2];
    u32 low = warp() * 16, high = (u32)min_u64(low + 16, rows);
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        ends[i].live = low < rows;
        ends[i].token = q.first + (row0 + (i == 0 ? low : high - 1)) / GROUP;
        ends[i].head = kv_head * GROUP;
        aim_row(ends[i], p, ring, q, span.sinks, oldest);
    }
    bool ragged = high - low < 16 || low >= rows;
    u32 buffer = 0;
    for (u32 first = 0; first < span.n; first += KEYS) {
        copy_async_wait<0>();
        block_sync();
        if (first + KEYS < span.n) {
            // Into the buffer that was read in the round before.
            u8* next = tiles + (1 - buffer) * 2 * TILE;
            copy_tile<KEYS, 128>(span, first + KEYS, next, next + TILE, thread());
        }
        copy_async_commit();
        const u8* k = tiles + buffer * 2 * TILE;
        if (ends[0].live && first < ends[1].to && first + KEYS > ends[0].from) {
            bool edge = ragged || first < ends[1].from || first + KEYS > ends[0].to;
            add_tile(c, queries + warp() * 16 * ROW, k, k + TILE, first, edge);
        }
        buffer = 1 - buffer;
    }
}

SKC_KERNEL(128, skc_attend_chunk, SkcAttend) {
    const SkcLayer& l = p.layer;
    u8* queries = shared_memory();
    u8* tiles = queries + CHUNK_ROWS * ROW;
    u64* scratch = (u64*)(tiles + 4 * KEYS * ROW);
    Ring ring = ring_of(l);
    Queries q = find_queries(p, ring, scratch, 4);
    if (!q.live) return;
    for (u32 kv_head = block_y(); kv_head < l.n_kv_heads; kv_head += grid_y()) {
        for (u64 row0 = (u64)block_z() * CHUNK_ROWS; row0 < q.m * GROUP; row0 += (u64)grid_z() * CHUNK_ROWS) {
            u32 rows = (u32)min_u64(CHUNK_ROWS, q.m * GROUP - row0);
            u64 last = q.first + (row0 + rows - 1) / GROUP;
            u64 oldest = ring.n_sink + query_evicted(ring, q, q.first + row0 / GROUP);
            Chunk c;
#pragma unroll
            for (u32 b = 0; b < DIM_BLOCKS; ++b) {
#pragma unroll
                for (u32 i = 0; i < 4; ++i) c.acc[b][i] = 0.0f;
            }
            block_sync();
            // Rows beyond the last are zeros, and see nothing.
            for (u32 i = rows * ROW / 16 + thread(); i < CHUNK_ROWS * ROW / 16; i += 128) ((Quad*)queries)[i] = {0, 0, 0, 0};
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                Row& r = c.row[half];
                u32 index = warp() * 16 + lane() / 4 + 8 * half;
                r.live = index < rows;
                r.token = q.first + (row0 + index) / GROUP;
                r.head = kv_head * GROUP + (u32)((row0 + index) % GROUP);
                r.scorer = {0.0f, 1.0f, 0.0f, 0};
                r.max = minus_infinity();
                r.sum = 0.0f;
            }
            add_span(c, p, ring, q, kv_head, span_of(l, ring, q.seq, kv_head, true, oldest, last), oldest, row0, rows, queries, tiles);
            add_span(c, p, ring, q, kv_head, span_of(l, ring, q.seq, kv_head, false, oldest, last), oldest, row0, rows, queries, tiles);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                Row& r = c.row[half];
                r.sum += shuffle_xor(r.sum, 1);
                r.sum += shuffle_xor(r.sum, 2);
                if (!r.live) continue;
                float scale = 1.0f;
                if (l.sink_logits) {
                    // A key with this score and a value of zero.
                    float logit = l.sink_logits[r.head] * SKC_LOG2E;
                    float max = logit > r.max ? logit : r.max;
                    scale = exp2_fast(r.max - max);
                    r.sum = r.sum * scale + exp2_fast(logit - max);
                    r.max = max;
                }
                scale /= r.sum;
                u64 row = q.row + (r.token - q.first);
                u8* out = row_at(p.out, row, r.head);
#pragma unroll
                for (u32 b = 0; b < DIM_BLOCKS; ++b) {
                    u32 dim = 8 * b + 2 * (lane() % 4);
                    store_element(out, l.out_dtype, dim, c.acc[b][2 * half] * scale);
                    store_element(out, l.out_dtype, dim + 1, c.acc[b][2 * half + 1] * scale);
                }
                if (lane() % 4 == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, r.head) = r.max * SKC_LN2 + log_f(r.sum);
            }
        }
    }
}

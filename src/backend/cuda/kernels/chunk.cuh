// skc_attend_chunk: many queries. Rows are tokens times the heads of a group; a warp has one or two times 16 of them, and
// the block's warps share tiles of keys, first of the sinks, then of the window. Only tiles at the edge of what some row sees
// are masked.
//
// Grid: entries, KV heads, tiles of 64 or 128 rows (loop). 128 threads. Shared: CHUNK_SHARED bytes.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4 a
// lane holds of the products rows g and g + 8 of columns 2t and 2t + 1.
#pragma once

#include "attention_tile.cuh"

constexpr u32 DIM_BLOCKS = DIM / 8;

// What a row sees of a span. Lies behind the row's query in shared memory, where rows are padded: only tiles at an edge and
// biases ask for it, and registers are short.
struct alignas(16) Sight {
    Visible visible;
    Bias bias;
};
static_assert(sizeof(Sight) == ROW - 2 * DIM, "fits into the padding");

SKC_DEVICE Sight* sight_at(u8* queries, u32 row) { return (Sight*)(queries + row * ROW + 2 * DIM); }

// A row's softmax so far: the maximum in base 2, the weight of a lane's own keys.
struct Row {
    float max;
    float sum;
};

// A lane's rows: 8 from one to the next.
template <u32 MATRICES>
struct Chunk {
    float acc[MATRICES][DIM_BLOCKS][4];
    Row row[2 * MATRICES];
    Scorer scorer;
};

// What the block works on. Kept in shared memory: the loops over keys need the registers.
struct Tile {
    Queries q;
    u64 query;  // the one that the first row belongs to
    u32 skip;   // heads of it that come before
    u32 rows;
};
static_assert(sizeof(Tile) == 64, "fits behind the tiles of keys");

// The row's query, its token and its query head.
SKC_DEVICE u64 query_of(const Tile& tile, u32 row) { return tile.query + (tile.skip + row) / GROUP; }
SKC_DEVICE u64 token_of(const Tile& tile, u32 row) { return tile.q.first + query_of(tile, row); }
SKC_DEVICE u32 head_of(const Tile& tile, u32 row) { return block_y() * GROUP + (tile.skip + row) % GROUP; }

// Weights times values one key at a time, leaving out weights of zero: for tiles whose hidden keys hold infinities.
template <u32 MATRICES, u32 KEYS>
SKC_DEVICE void add_values_one_by_one(Chunk<MATRICES>& c, const float (&s)[MATRICES][KEYS / 8][4], const u8* v) {
#pragma unroll
    for (u32 i = 0; i < KEYS / 4; ++i) {
        // Rare: four keys share their code. Registers cannot be indexed, so that not all do.
#pragma unroll 1
        for (u32 column = 0; column < 4; ++column) {
            const u16* row = (const u16*)(v + (i / 2 * 8 + 2 * column + i % 2) * ROW) + 2 * (lane() % 4);
#pragma unroll
            for (u32 half = 0; half < 2 * MATRICES; ++half) {
                float w = shuffle(s[half / 2][i / 2][half % 2 * 2 + i % 2], lane() / 4 * 4 + column);
                if (w == 0.0f) continue;
#pragma unroll
                for (u32 b = 0; b < DIM_BLOCKS; ++b) {
                    c.acc[half / 2][b][half % 2 * 2] += w * widen(row[8 * b]);
                    c.acc[half / 2][b][half % 2 * 2 + 1] += w * widen(row[8 * b + 1]);
                }
            }
        }
    }
}

// Adds a tile whose first key is key `first` of its span to the warp's rows.
template <u32 MATRICES, u32 KEYS>
SKC_DEVICE void add_tile(Chunk<MATRICES>& c, u8* queries, const u8* k, const u8* v, u32 first, bool edge) {
    u32 matrix = lane() / 8, line = lane() % 8, t = lane() % 4;
    float s[MATRICES][KEYS / 8][4];
#pragma unroll
    for (u32 i = 0; i < MATRICES * (KEYS / 8) * 4; ++i) s[i / (KEYS / 2)][i / 4 % (KEYS / 8)][i % 4] = 0.0f;
    // Matrices of the queries: rows 0-7, 8-15 of dims 0-7, then of dims 8-15; of the keys: dims 0-7, 8-15 of keys 0-7, then
    // of keys 8-15.
    const u8* q_row = queries + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;
    const u8* k_row = k + (line + matrix / 2 * 8) * ROW + matrix % 2 * 16;
#pragma unroll
    for (u32 step = 0; step < DIM / 16; ++step) {
        u32 a[MATRICES][4];
#pragma unroll
        for (u32 m = 0; m < MATRICES; ++m) load_matrix_x4(a[m], q_row + 16 * m * ROW + 32 * step);
#pragma unroll
        for (u32 pair = 0; pair < KEYS / 16; ++pair) {
            u32 b[4];
            load_matrix_x4(b, k_row + 16 * pair * ROW + 32 * step);
#pragma unroll
            for (u32 m = 0; m < MATRICES; ++m) {
                mma(s[m][2 * pair], a[m], {b[0], b[1]});
                mma(s[m][2 * pair + 1], a[m], {b[2], b[3]});
            }
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2 * MATRICES; ++half) {
        Bias bias = {0.0f, 0};
        if (SKC_TRANSFORM & 2) bias = sight_at(queries, lane() / 4 + 8 * half)->bias;
#pragma unroll
        for (u32 i = 0; i < KEYS / 4; ++i) {
            float& x = s[half / 2][i / 2][half % 2 * 2 + i % 2];
            x = score_of(c.scorer, bias, x, first + i / 2 * 8 + 2 * t + i % 2);
        }
    }
    // Apart, so that the other tiles have no branches.
    if (edge) {
#pragma unroll
        for (u32 half = 0; half < 2 * MATRICES; ++half) {
            Visible seen = sight_at(queries, lane() / 4 + 8 * half)->visible;
#pragma unroll
            for (u32 i = 0; i < KEYS / 4; ++i) {
                u32 key = first + i / 2 * 8 + 2 * t + i % 2;
                float& x = s[half / 2][i / 2][half % 2 * 2 + i % 2];
                // One comparison for both bounds.
                x = key - seen.from < seen.to - seen.from ? x : minus_infinity();
            }
        }
    }
    float keep[2 * MATRICES];
    bool changed = false;
#pragma unroll
    for (u32 half = 0; half < 2 * MATRICES; ++half) {
        Row& r = c.row[half];
        float highest = r.max;
#pragma unroll
        for (u32 i = 0; i < KEYS / 4; ++i) highest = max_f(highest, s[half / 2][i / 2][half % 2 * 2 + i % 2]);
        for (u32 mask = 1; mask < 4; mask *= 2) highest = max_f(highest, shuffle_xor(highest, mask));
        float base = base_of(highest);
        keep[half] = exp2_fast(r.max - base);
        changed |= highest != r.max;
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < KEYS / 4; ++i) {
            float& x = s[half / 2][i / 2][half % 2 * 2 + i % 2];
            x = exp2_fast(x - base);
            sum += x;
        }
        r.sum = r.sum * keep[half] + sum;
        r.max = highest;
    }
    // Once the largest scores have been met, nothing is rescaled: sums of rows without any are zero.
    if (warp_any(changed)) {
#pragma unroll
        for (u32 half = 0; half < 2 * MATRICES; ++half) {
#pragma unroll
            for (u32 b = 0; b < DIM_BLOCKS; ++b) {
                c.acc[half / 2][b][half % 2 * 2] *= keep[half];
                c.acc[half / 2][b][half % 2 * 2 + 1] *= keep[half];
            }
        }
    }
    // mutant: hidden_infinity
    if (edge && tile_overflows(v, KEYS)) {
        add_values_one_by_one<MATRICES, KEYS>(c, s, v);
        return;
    }
    // Products' fragments are left-hand fragments of 16 keys; values transposed on the way, matrices in the order keys 0-7,
    // 8-15 of dims 0-7, then of dims 8-15.
    const u8* v_row = v + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;
#pragma unroll
    for (u32 step = 0; step < KEYS / 16; ++step) {
        u32 weights[MATRICES][4];
#pragma unroll
        for (u32 m = 0; m < MATRICES; ++m) {
            const float(&x)[4] = s[m][2 * step];
            const float(&y)[4] = s[m][2 * step + 1];
            // mutant: chunk_wrong_fragment
            u32 a[4] = {pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3])};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) weights[m][i] = a[i];
        }
#pragma unroll
        for (u32 pair = 0; pair < DIM_BLOCKS / 2; ++pair) {
            u32 b[4];
            load_matrix_x4_trans(b, v_row + 16 * step * ROW + 32 * pair);
#pragma unroll
            for (u32 m = 0; m < MATRICES; ++m) {
                mma(c.acc[m][2 * pair], weights[m], {b[0], b[1]});
                mma(c.acc[m][2 * pair + 1], weights[m], {b[2], b[3]});
            }
        }
    }
}

// Turns the block's queries for one of the two spans.
SKC_DEVICE void load_rows(const SkcAttend& p, const Ring& ring, const Tile& tile, bool sinks, u8* to) {
    // Tokens that have rows here: the first and the last with some of their heads only.
    u32 tokens = (tile.skip + tile.rows + GROUP - 1) / GROUP;
    for (u32 i = thread(); i < tokens * (DIM / 2); i += 128) {
        u32 pair = i % (DIM / 2), index = i / (DIM / 2);
        u32 front = index == 0 ? tile.skip : 0;
        u32 at = index * GROUP + front - tile.skip;
        u32 n = GROUP - front < tile.rows - at ? GROUP - front : tile.rows - at;
        u64 token = tile.q.first + tile.query + index;
        // Few at once: sums hold most registers.
        load_query_pair<GROUP < 4 ? GROUP : 4>(p, tile.q, token, block_y(), front, n, pair, sinks,
                                                     query_evicted(ring, tile.q, token), to + at * ROW);
    }
}

// Runs over the keys of one span, with STAGES tiles of them in shared memory: one is read while the others are on their way.
template <u32 MATRICES, u32 KEYS, u32 STAGES>
SKC_DEVICE void add_span(Chunk<MATRICES>& c, const SkcAttend& p, const Ring& ring, const Tile& tile, const Span& span, u64 oldest,
                         u8* queries, u8* tiles) {
    constexpr u32 TILE = KEYS * ROW;
    if (span.n == 0) return;
    auto copy = [&](u32 first, u32 stage) {
        u8* to = tiles + stage * 2 * TILE;
        if (first < span.n) copy_tile<KEYS, 128>(p.layer, span, first, to, to + TILE, thread());
        copy_async_commit();
    };
    block_sync();
    for (u32 i = 0; i + 1 < STAGES; ++i) copy(i * KEYS, i);
    load_rows(p, ring, tile, span.sinks, queries);
    for (u32 row = thread(); row < tile.rows; row += 128) {
        u64 token = token_of(tile, row);
        u64 from = span.sinks ? query_evicted(ring, tile.q, token) : oldest;
        *sight_at(queries, row) = {visible_of(ring, tile.q, token, span.sinks, oldest), bias_of(p.layer, head_of(tile, row), (u32)(token - from))};
    }
    u32 low = warp() * 16 * MATRICES, high = (u32)min_u64(low + 16 * MATRICES, tile.rows);
    // What some and what all of the warp's rows see. Rows beyond the last see nothing.
    Visible some = {0, 0}, all = {0, 0};
    if (low < tile.rows) {
        Visible oldest_row = visible_of(ring, tile.q, token_of(tile, low), span.sinks, oldest);
        Visible newest_row = visible_of(ring, tile.q, token_of(tile, high - 1), span.sinks, oldest);
        some = {oldest_row.from, newest_row.to};
        if (high - low == 16 * MATRICES) all = {newest_row.from, oldest_row.to};
    }
    u32 stage = 0;
    for (u32 first = 0; first < span.n; first += KEYS) {
        copy_async_wait<STAGES - 2>();
        block_sync(); // mutant: chunk_missing_barrier
        // Into the stage that was read in the round before.
        copy(first + (STAGES - 1) * KEYS, (stage + STAGES - 1) % STAGES);
        const u8* k = tiles + stage * 2 * TILE;
        if (first < some.to && first + KEYS > some.from) {
            bool edge = first < all.from || first + KEYS > all.to;
            add_tile<MATRICES, KEYS>(c, queries + low * ROW, k, k + TILE, first, edge);
        }
        stage = (stage + 1) % STAGES;
    }
}

// The lane's dims of one of its rows.
template <u32 DTYPE>
SKC_DEVICE void store_row(u8* out, const float (&acc)[DIM_BLOCKS][4], u32 half, float scale) {
#pragma unroll
    for (u32 b = 0; b < DIM_BLOCKS; ++b) {
        store_two(out, DTYPE, 8 * b + 2 * (lane() % 4), acc[b][2 * half] * scale, acc[b][2 * half + 1] * scale);
    }
}

// All rows of the entry that fall to the block.
template <u32 MATRICES, u32 KEYS, u32 STAGES>
SKC_DEVICE void attend_rows(const SkcAttend& p, const Ring& ring, Tile& tile) {
    constexpr u32 ROWS = 64 * MATRICES;
    static_assert((ROWS + 2 * STAGES * KEYS) * ROW + 64 <= CHUNK_SHARED(SKC_DIM), "queries and stages fit");
    const SkcLayer& l = p.layer;
    u8* queries = shared_memory();
    u8* tiles = queries + ROWS * ROW;
    u64 row0 = (u64)block_z() * ROWS;
    while (row0 < tile.q.m * GROUP) {
        block_sync();
        if (thread() == 0) {
            tile.query = row0 / GROUP;
            tile.skip = (u32)(row0 % GROUP);
            tile.rows = (u32)min_u64(ROWS, tile.q.m * GROUP - row0);
        }
        block_sync();
        u64 last = token_of(tile, tile.rows - 1);
        u64 oldest = ring.n_sink + query_evicted(ring, tile.q, token_of(tile, 0));
        Chunk<MATRICES> c;
#pragma unroll
        for (u32 i = 0; i < MATRICES * DIM_BLOCKS * 4; ++i) c.acc[i / (4 * DIM_BLOCKS)][i / 4 % DIM_BLOCKS][i % 4] = 0.0f;
#pragma unroll
        for (u32 half = 0; half < 2 * MATRICES; ++half) {
            c.row[half].max = minus_infinity();
            c.row[half].sum = 0.0f;
        }
        c.scorer = scorer_of(l);
        // Rows beyond the last are zeros, and see nothing.
        for (u32 i = tile.rows * ROW / 16 + thread(); i < ROWS * ROW / 16; i += 128) ((Quad*)queries)[i] = {0, 0, 0, 0};
#pragma unroll 1
        for (u32 part = 0; part < 2; ++part) {
            Span span = span_of(l, ring, tile.q.seq, block_y(), part == 0, oldest, last);
            add_span<MATRICES, KEYS, STAGES>(c, p, ring, tile, span, oldest, queries, tiles);
        }
#pragma unroll
        for (u32 half = 0; half < 2 * MATRICES; ++half) {
            Row& r = c.row[half];
            r.sum += shuffle_xor(r.sum, 1);
            r.sum += shuffle_xor(r.sum, 2);
            u32 index = warp() * 16 * MATRICES + lane() / 4 + 8 * half;
            if (index >= tile.rows) continue;
            u32 head = head_of(tile, index);
            float scale = 1.0f;
            if (l.sink_logits) {
                // A key with this score and a value of zero.
                float logit = l.sink_logits[head] * SKC_LOG2E;
                float max = max_f(r.max, logit);
                scale = exp2_fast(r.max - max);
                r.sum = r.sum * scale + exp2_fast(logit - max);
                r.max = max;
            }
            scale /= r.sum;
            u64 row = tile.q.row + query_of(tile, index);
            u8* out = row_at(p.out, row, head);
            if (l.out_dtype == SKC_F32) {
                store_row<SKC_F32>(out, c.acc[half / 2], half % 2, scale);
            } else if (l.out_dtype == SKC_F16) {
                store_row<SKC_F16>(out, c.acc[half / 2], half % 2, scale);
            } else {
                store_row<SKC_BF16>(out, c.acc[half / 2], half % 2, scale);
            }
            if (lane() % 4 == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, head) = r.max * SKC_LN2 + log_f(r.sum);
        }
        row0 = tile.query * GROUP + tile.skip + (u64)grid_z() * ROWS;
    }
}

SKC_KERNEL(128, skc_attend_chunk, SkcAttend) {
    begin_kernel();
    Ring ring = ring_of(p.layer);
    // Scratch lies where queries will.
    Queries q = find_queries(p, ring, (u64*)shared_memory(), 4);
    if (!q.live) return;
    Tile& tile = *(Tile*)(shared_memory() + CHUNK_SHARED(SKC_DIM) - sizeof(Tile));
    if (thread() == 0) tile.q = q;
    block_sync();
#if SKC_DIM <= 128
    if (q.m * GROUP > CHUNK_FEW_ROWS && !p.small_tiles) {
        attend_rows<2, CHUNK_MANY_KEYS, CHUNK_MANY_STAGES>(p, ring, tile);
        return;
    }
#endif
    attend_rows<1, CHUNK_FEW_KEYS(SKC_DIM), 2>(p, ring, tile);
}

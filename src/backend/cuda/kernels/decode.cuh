// skc_attend_decode: few queries, many keys. The tokens and heads of a group are the eight columns of one product, keys its
// rows, so that K and V are read once for all of them. Keys are split among the blocks of z and in each among its warps,
// which stream tiles of their own; the last block of an entry's head to finish merges all splits in order.
//
// Grid: entries, KV heads, splits. 32 x DECODE_WARPS threads. Shared: DECODE_SHARED bytes.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4 a
// lane holds of the products rows g and g + 8 of columns 2t and 2t + 1.
#pragma once

#include "tile.cuh"

constexpr u32 WARPS = DECODE_WARPS(SKC_DIM);
constexpr u32 DECODE_THREADS = 32 * WARPS;
constexpr u32 STEPS = DIM / 16;

// A column's softmax so far: the maximum in base 2, the weight of a lane's own keys.
struct alignas(8) Column {
    float max;
    float sum;
};

struct Decode {
    float acc[STEPS][4];  // dims g, g + 8 of each 16, columns 2t, 2t + 1
    Column column[2];
    Visible visible[2];
    Visible all;  // keys that every token sees
    Bias bias[2];
    Scorer scorer;
    u32 q[STEPS][2];
};

// Queries as the right-hand fragments: column g, dims 2t, 2t + 1 and 8 further on.
SKC_DEVICE void load_columns(Decode& d, const u8* queries) {
    const u8* at = queries + lane() / 4 * ROW + lane() % 4 * 4;
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) {
        d.q[s][0] = *(const u32*)(at + 32 * s);
        d.q[s][1] = *(const u32*)(at + 32 * s + 16);
    }
}

// What the lane's two columns see of a span, and how they score it.
SKC_DEVICE void aim(Decode& d, const SkcAttend& p, const Ring& ring, const Queries& q, u32 kv_head, bool sinks, u64 oldest) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        u32 c = 2 * (lane() % 4) + i;
        u32 index = c / GROUP;
        d.visible[i] = {0, 0};
        d.bias[i] = {0.0f, 0};
        if (index >= q.m) continue;
        u64 token = q.first + index;
        u64 evicted = query_evicted(ring, q, token);
        d.visible[i] = visible_of(ring, q, token, sinks, oldest);
        d.bias[i] = bias_of(p.layer, kv_head * GROUP + c % GROUP, (u32)(sinks ? token - evicted : token - oldest));
    }
    d.all = {visible_of(ring, q, q.first + q.m - 1, sinks, oldest).from, visible_of(ring, q, q.first, sinks, oldest).to};
}

// Adds a tile of 16 keys, of which the first is key `first` of its span.
SKC_DEVICE void add_tile(Decode& d, const u8* k, const u8* v, u32 first) {
    u32 g = lane() / 4;
    u32 matrix = lane() / 8, line = lane() % 8;
    float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    // Keys are rows: matrices in the order keys 0-7, 8-15 of dims 0-7, then of dims 8-15.
    const u8* k_row = k + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        u32 a[4];
        load_matrix_x4(a, k_row + 32 * step);
        mma(s, a, d.q[step]);
    }
    bool edge = first < d.all.from || first + DECODE_KEYS > d.all.to;
    float keep[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        Column& c = d.column[i];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 key = first + g + 8 * half;
            float& x = s[2 * half + i];
            x = score_of(d.scorer, d.bias[i], x, key);
            // One comparison for both bounds.
            if (edge && key - d.visible[i].from >= d.visible[i].to - d.visible[i].from) x = minus_infinity();
        }
        float highest = max_f(max_f(c.max, s[i]), s[2 + i]);
        for (u32 mask = 4; mask < 32; mask *= 2) highest = max_f(highest, shuffle_xor(highest, mask));
        float base = base_of(highest);
        keep[i] = exp2_fast(c.max - base);
        s[i] = exp2_fast(s[i] - base);
        s[2 + i] = exp2_fast(s[2 + i] - base);
        c.sum = c.sum * keep[i] + (s[i] + s[2 + i]);
        c.max = highest;
    }
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) d.acc[step][i] *= keep[i % 2];
    }
    // A key that some column must not see may hold anything, and zero times infinity is NaN.
    if (edge && tile_overflows(v, DECODE_KEYS)) {
        for (u32 key = 0; key < DECODE_KEYS; ++key) {
            u32 from = key % 8 * 4 + lane() % 4;
            float w0 = shuffle(key < 8 ? s[0] : s[2], from);
            float w1 = shuffle(key < 8 ? s[1] : s[3], from);
            const u16* row = (const u16*)(v + key * ROW) + g;
#pragma unroll
            for (u32 step = 0; step < STEPS; ++step) {
                float x0 = widen(row[16 * step]), x1 = widen(row[16 * step + 8]);
                if (w0 != 0.0f) {
                    d.acc[step][0] += w0 * x0;
                    d.acc[step][2] += w0 * x1;
                }
                if (w1 != 0.0f) {
                    d.acc[step][1] += w1 * x0;
                    d.acc[step][3] += w1 * x1;
                }
            }
        }
        return;
    }
    // Weights as the right-hand fragment: keys along k, which takes a transposition of each half.
    u32 b[2] = {transpose_matrix(pack(s[0], s[1])), transpose_matrix(pack(s[2], s[3]))};
    // Dims are rows now: values transposed on the way, matrices in the order dims 0-7, 8-15 of keys 0-7, then of keys 8-15.
    const u8* v_row = v + (line + matrix / 2 * 8) * ROW + matrix % 2 * 16;
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        u32 a[4];
        load_matrix_x4_trans(a, v_row + 32 * step);
        mma(d.acc[step], a, b);
    }
}

// Partial results of the warps of a block, or of the splits of a head: for each the sums of eight columns, STRIDE floats
// from one to the next, then their maxima and weights.
template <u32 STRIDE>
struct Parts {
    float* at;

    static constexpr u32 SIZE = DECODE_COLUMNS * (STRIDE + 2);
    SKC_DEVICE float* sums(u32 part, u32 column) const { return at + (u64)part * SIZE + column * STRIDE; }
    SKC_DEVICE Column* column(u32 part, u32 column) const {
        return (Column*)(at + (u64)part * SIZE + DECODE_COLUMNS * STRIDE) + column;
    }
};
// In shared memory four floats more, so that what the lanes of a warp write lies in different banks.
using WarpParts = Parts<DIM + 4>;
using SplitParts = Parts<DIM>;
static_assert(4 * (WARPS * WarpParts::SIZE + 2 * DECODE_COLUMNS) <= DECODE_STAGES(SKC_DIM) * DECODE_STAGE(SKC_DIM), "parts lie where stages were");

// Maximum and weight of a column over `n` parts, in all lanes of the warp that asks: a lane to a part.
template <u32 STRIDE>
SKC_DEVICE Column merge_column(const Parts<STRIDE>& parts, u32 n, u32 column) {
    Column c = {minus_infinity(), 0.0f};
    for (u32 i = lane(); i < n; i += 32) {
        Column part = *parts.column(i, column);
        float max = max_f(c.max, part.max);
        float base = base_of(max);
        c = {max, c.sum * exp2_fast(c.max - base) + part.sum * exp2_fast(part.max - base)};
    }
    float max = c.max;
    for (u32 mask = 16; mask > 0; mask /= 2) max = max_f(max, shuffle_xor(max, mask));
    c.sum *= exp2_fast(c.max - base_of(max));
    for (u32 mask = 16; mask > 0; mask /= 2) c.sum += shuffle_xor(c.sum, mask);
    return {max, c.sum};
}

// Maxima and weights of all columns into `merged`; the whole block must call it.
template <u32 STRIDE>
SKC_DEVICE void merge_columns(const Parts<STRIDE>& parts, u32 n, u32 columns, Column* merged) {
    for (u32 column = warp(); column < columns; column += WARPS) {
        Column c = merge_column(parts, n, column);
        if (lane() == 0) merged[column] = c;
    }
    block_sync();
}

// Sums of four dims of a column over `n` parts, relative to a maximum.
template <u32 STRIDE>
SKC_DEVICE void merge_dims(const Parts<STRIDE>& parts, u32 n, u32 column, u32 dim, float max, float (&x)[4]) {
    float base = base_of(max);
    x[0] = x[1] = x[2] = x[3] = 0.0f;
    // Parts of other blocks are far away: eight loads wait together.
#pragma unroll 8
    for (u32 i = 0; i < n; ++i) {
        Four part = *(const Four*)(parts.sums(i, column) + dim);
        float keep = exp2_fast(parts.column(i, column)->max - base);
        x[0] += part.x * keep;
        x[1] += part.y * keep;
        x[2] += part.z * keep;
        x[3] += part.w * keep;
    }
}

// Merges the parts of all columns and writes rows and lse; the whole block must call it.
template <u32 STRIDE>
SKC_DEVICE void store_columns(const SkcAttend& p, const Queries& q, u32 kv_head, const Parts<STRIDE>& parts, u32 n, Column* merged) {
    const SkcLayer& l = p.layer;
    u32 columns = (u32)q.m * GROUP;
    merge_columns(parts, n, columns, merged);
    for (u32 i = thread(); i < columns * (DIM / 4); i += DECODE_THREADS) {
        u32 column = i / (DIM / 4), dim = i % (DIM / 4) * 4;
        u32 head = kv_head * GROUP + column % GROUP;
        u64 row = q.row + column / GROUP;
        Column c = merged[column];
        float x[4];
        merge_dims(parts, n, column, dim, c.max, x);
        float scale = 1.0f;
        if (l.sink_logits) {
            // A key with this score and a value of zero.
            float logit = l.sink_logits[head] * SKC_LOG2E;
            float max = max_f(c.max, logit);
            scale = exp2_fast(base_of(c.max) - max);
            c = {max, c.sum * scale + exp2_fast(logit - max)};
        }
        scale /= c.sum;
        for (u32 j = 0; j < 4; ++j) x[j] *= scale;
        store_four(row_at(p.out, row, head), l.out_dtype, dim, x);
        if (dim == 0 && p.lse.ptr) *(float*)row_at(p.lse, row, head) = c.max * SKC_LN2 + log_f(c.sum);
    }
}

SKC_KERNEL(DECODE_THREADS, skc_attend_decode, SkcAttend) {
    constexpr u32 STAGES = DECODE_STAGES(SKC_DIM);
    constexpr u32 TILE = DECODE_KEYS * ROW;
    const SkcLayer& l = p.layer;
    // For the window, then for the sinks.
    u8* queries = shared_memory();
    u8* stages = shared_memory() + 2 * DECODE_COLUMNS * ROW;
    u8* scratch = stages + STAGES * DECODE_STAGE(SKC_DIM);
    Ring ring = ring_of(l);
    Queries q = find_queries(p, ring, (u64*)scratch, WARPS);
    if (!q.live) return;
    u32 kv_head = block_y();
    u64 last = q.first + q.m - 1;
    u64 oldest = ring.n_sink + query_evicted(ring, q, q.first);
    Span window = span_of(l, ring, q.seq, kv_head, false, oldest, last);
    Span sinks = span_of(l, ring, q.seq, kv_head, true, oldest, last);
    // Tiles of the sinks come first; the block's share of all.
    u32 sink_tiles = (sinks.n + 15) / 16;
    u32 tiles = sink_tiles + (window.n + 15) / 16;
    u32 share = (tiles + p.n_splits - 1) / p.n_splits;
    u32 begin = block_z() * share, end = (u32)min_u64((u64)begin + share, tiles);
    u32 mine = begin + warp();
    u8* own = stages + warp() * 2 * TILE;

    auto copy = [&](u32 tile, u32 stage) {
        if (tile < end) {
            u8* k = own + stage * DECODE_STAGE(SKC_DIM);
            bool in_sinks = tile < sink_tiles;
            u32 first = (in_sinks ? tile : tile - sink_tiles) * DECODE_KEYS;
            Span span = {window.base, in_sinks ? sinks.first_slot : window.first_slot, in_sinks ? sinks.wrap : window.wrap,
                         in_sinks ? sinks.origin : window.origin, in_sinks ? sinks.n : window.n, in_sinks};
            copy_tile<DECODE_KEYS, 32>(l, span, first, k, k + TILE, lane());
        }
        copy_async_commit();
    };
    // Keys are on their way while queries are turned.
    for (u32 i = 0; i + 1 < STAGES; ++i) copy(mine + i * WARPS, i);
    // Columns beyond the last are zeros, and see nothing.
    u32 columns = (u32)q.m * GROUP;
    for (u32 i = columns * ROW / 16 + thread(); i < DECODE_COLUMNS * ROW / 16; i += DECODE_THREADS) {
        ((Quad*)queries)[i] = ((Quad*)(queries + DECODE_COLUMNS * ROW))[i] = {0, 0, 0, 0};
    }
    for (u32 i = thread(); i < 2 * (u32)q.m * (DIM / 2); i += DECODE_THREADS) {
        u32 pair = i % (DIM / 2), index = i / (DIM / 2) / 2;
        bool for_sinks = i / (DIM / 2) % 2 != 0;
        u64 token = q.first + index;
        u8* to = queries + (for_sinks ? DECODE_COLUMNS : 0) * ROW + index * GROUP * ROW;
        load_query_pair<GROUP>(p, q, token, kv_head, 0, GROUP, pair, for_sinks, query_evicted(ring, q, token), to);
    }
    block_sync();

    Decode d;
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) d.acc[s][i] = 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) d.column[i] = {minus_infinity(), 0.0f};
    d.scorer = scorer_of(l);
    bool in_sinks = mine < sink_tiles;
    load_columns(d, queries + (in_sinks ? DECODE_COLUMNS : 0) * ROW);
    aim(d, p, ring, q, kv_head, in_sinks, oldest);
    u32 stage = 0;
    for (u32 tile = mine; tile < end; tile += WARPS) {
        copy_async_wait<STAGES - 2>();
        warp_sync();
        // Into the stage that was read in the round before.
        copy(tile + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
        if (in_sinks && tile >= sink_tiles) {
            in_sinks = false;
            load_columns(d, queries);
            aim(d, p, ring, q, kv_head, false, oldest);
        }
        const u8* k = own + stage * DECODE_STAGE(SKC_DIM);
        u32 first = (in_sinks ? tile : tile - sink_tiles) * DECODE_KEYS;
        add_tile(d, k, k + TILE, first);
        stage = (stage + 1) % STAGES;
    }
    copy_async_wait<0>();
    block_sync();

    // Warps meet in shared memory, where the stages were.
    WarpParts parts = {(float*)stages};
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        Column c = d.column[i];
        for (u32 mask = 4; mask < 32; mask *= 2) c.sum += shuffle_xor(c.sum, mask);
        u32 column = 2 * (lane() % 4) + i;
        float* sums = parts.sums(warp(), column);
#pragma unroll
        for (u32 s = 0; s < STEPS; ++s) {
            sums[16 * s + lane() / 4] = d.acc[s][i];
            sums[16 * s + lane() / 4 + 8] = d.acc[s][2 + i];
        }
        if (lane() < 4) *parts.column(warp(), column) = c;
    }
    block_sync();
    Column* merged = (Column*)(parts.at + WARPS * WarpParts::SIZE);
    if (p.n_splits == 1) {
        store_columns(p, q, kv_head, parts, WARPS, merged);
        return;
    }
    u64 place = (u64)block_x() * l.n_kv_heads + kv_head;
    SplitParts all = {p.partials + place * p.n_splits * SplitParts::SIZE};
    merge_columns(parts, WARPS, columns, merged);
    for (u32 i = thread(); i < columns * (DIM / 4); i += DECODE_THREADS) {
        u32 column = i / (DIM / 4), dim = i % (DIM / 4) * 4;
        float x[4];
        merge_dims(parts, WARPS, column, dim, merged[column].max, x);
        *(Four*)(all.sums(block_z(), column) + dim) = {x[0], x[1], x[2], x[3]};
    }
    if (thread() < columns) *all.column(block_z(), thread()) = merged[thread()];
    // The barrier puts the block's writes before thread 0's release, and its acquire before their reads: nobody else needs
    // a fence, which would wait for all of the block's traffic.
    block_sync();
    u32* arrived = (u32*)scratch;
    if (thread() == 0) *arrived = atomic_inc(&p.counters[place], p.n_splits - 1);
    block_sync();
    if (*arrived != p.n_splits - 1) return;
    store_columns(p, q, kv_head, all, p.n_splits, merged);
}

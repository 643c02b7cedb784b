// The rows of a chunk: query heads of tokens, which a warp has in one or two blocks of 16.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): a lane with g = lane / 4 and
// t = lane % 4 has rows g and g + 8 of columns 2t and 2t + 1 of a product.
#pragma once

#include "launch_config.cuh"

#if !QUANTISED(SKC_TYPE)
#include "tile_numbers.cuh"
#else
#include "tile_codes.cuh"
#endif

constexpr u32 DIM_BLOCKS = DIM / 8;

// A row is shared by the four lanes with the same g. Of QK^T a lane has keys 2t and 2t + 1 of every 8, of PV dims
// likewise.
struct ChunkLayout {
    static constexpr u32 LANES = 4;
    static constexpr u32 LOW = 1;
    static constexpr u32 HIGH = 4;
    SKC_DEVICE static u32 own() { return lane() % 4; }
    SKC_DEVICE static u32 lane_of(u32 i) { return lane() / 4 * 4 + i; }
    SKC_DEVICE static u32 key(u32 slot, u32 i) { return slot / 2 * 8 + 2 * i + slot % 2; }
    SKC_DEVICE static u32 dim(u32 i) { return chunk_dim(i); }
};

// Mask and bias of a row for one range of keys. Stored in the padding behind the row's query in shared memory, since
// registers are scarce and only tiles at an edge need the mask.
struct alignas(16) RowMask {
    VisibleRange visible;
    AlibiBias bias;
};
static_assert(sizeof(RowMask) == ROW_BYTES - 2 * DIM, "fits into the padding");

SKC_DEVICE RowMask* row_mask(u8* queries, u32 row) { return (RowMask*)(queries + row * ROW_BYTES + 2 * DIM); }

// A lane's rows, 8 apart, in M_BLOCKS blocks of 16.
template <u32 M_BLOCKS>
struct ChunkRows {
    SoftmaxState<2 * DIM_BLOCKS> rows[2 * M_BLOCKS];
    Scorer scorer;
};

// How the four warps of a block divide a query tile of ROWS rows and its keys.
template <u32 ROWS_, u32 STAGES_>
struct ChunkForm {
    static constexpr u32 ROWS = ROWS_;
    static constexpr u32 STAGES = STAGES_;  // of tiles of keys in shared memory
    static constexpr u32 KEYS = CHUNK_KEYS(SKC_DIM);
    static constexpr u32 WARP_ROWS = CHUNK_WARP_ROWS(SKC_TYPE, SKC_DIM, ROWS_);
    static constexpr u32 M_BLOCKS = WARP_ROWS / 16;
    // Warps of a slice share tiles of keys. Slices share the rows and take every SLICES-th tile.
    static constexpr u32 SLICES = CHUNK_SLICES(SKC_TYPE, SKC_DIM, ROWS_);
    static constexpr u32 SLICE_WARPS = 4 / SLICES;
    static constexpr u32 SLICE_THREADS = 32 * SLICE_WARPS;
    // Keys of small tiles may be split among blocks.
    static constexpr bool CAN_SPLIT = ROWS == CHUNK_SMALL_ROWS;
    // Blocks of 16 rows that a warp has when the slices are merged.
    static constexpr u32 MERGED_BLOCKS = M_BLOCKS / SLICES;

    SKC_DEVICE static u32 slice() { return warp() / SLICE_WARPS; }
    // The warp's first row: until slices are merged, and then.
    SKC_DEVICE static u32 first_row() { return warp() % SLICE_WARPS * WARP_ROWS; }
    SKC_DEVICE static u32 merged_row() { return first_row() + slice() * 16 * MERGED_BLOCKS; }
};

// The rows that a block works on, which of the blocks that share their keys it is, and its share of the tiles of keys:
// begin .. end of all segments'. In shared memory: the loops over keys need the registers.
struct QueryTile {
    Queries q;
    u64 query;  // the query that the first row belongs to
    u32 skip;   // heads of it that lie in the tile before
    u32 rows;
    u32 split;
    u32 begin;
    u32 end;
};
static_assert(sizeof(QueryTile) <= CHUNK_SCRATCH, "fits behind the tiles of keys");

// The query, the token and the query head of a row.
SKC_DEVICE u64 query_of(const QueryTile& tile, u32 row) { return tile.query + (tile.skip + row) / GROUP; }
SKC_DEVICE u64 token_of(const QueryTile& tile, u32 row) { return tile.q.first + query_of(tile, row); }
SKC_DEVICE u32 head_of(const QueryTile& tile, u32 row) { return block_y() * GROUP + (tile.skip + row) % GROUP; }

// What the block works on.
struct ChunkBlock {
    const QueryTile& tile;
    WindowTokens tokens;
    u8* queries;  // shared memory: rows of queries, each with its mask
    u8* stages;   // shared memory: tiles of keys
};

// product += A B for 8 columns: a lane's elements are lo[2 * i], lo[2 * i + 1] of its row g, and hi[2 * i],
// hi[2 * i + 1] of its row g + 8.
template <u32 N>
SKC_DEVICE void mma_rows(float (&lo)[N], float (&hi)[N], u32 i, const u32 (&a)[4], const u32 (&b)[2]) {
    float c[4] = {lo[2 * i], lo[2 * i + 1], hi[2 * i], hi[2 * i + 1]};
    mma(c, a, b);
    lo[2 * i] = c[0];
    lo[2 * i + 1] = c[1];
    hi[2 * i] = c[2];
    hi[2 * i + 1] = c[3];
}

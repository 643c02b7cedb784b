// Threads and shared memory of kernels, in bytes; mirrored in geometry.rs.
#pragma once

// Two queries, weights of a block of keys, scratch of block-wide sums.
#define GENERIC_SHARED(head_dim) (8 * (head_dim) + 4 * 128 + 64)
// Scratch of block-wide sums.
#define EDIT_SHARED 64

// A row of a tile: 16 bytes more than its dims, so that the eight rows of a matrix lie in different banks.
#define TILE_ROW(dim) (2 * (dim) + 16)

// ---- Decode: every warp streams tiles of 16 keys of its own.
#define DECODE_WARPS(dim) ((dim) > 128 ? 2 : 4)
#define DECODE_KEYS 16
#define DECODE_COLUMNS 8
// K and V of a tile of every warp.
#define DECODE_STAGE(dim) (DECODE_WARPS(dim) * 2 * DECODE_KEYS * TILE_ROW(dim))
#define DECODE_STAGES(dim) ((dim) > 80 ? 2 : 3)
// Queries for window and sinks, stages, scratch.
#define DECODE_SHARED(dim) (2 * DECODE_COLUMNS * TILE_ROW(dim) + DECODE_STAGES(dim) * DECODE_STAGE(dim) + 64)
// Tokens that a step in one launch may bring: with one head to a KV head four, so that with heads of 128 three blocks fit where
// shared memory is 228 KiB. With heads of 256 two fit, where a decode has three.
#define STEP_TOKENS(group) ((group) > 1 ? DECODE_COLUMNS / (group) : 4)
#define STEP_SHARED(dim, group) (DECODE_SHARED(dim) + 2 * STEP_TOKENS(group) * TILE_ROW(dim))

// ---- Chunk: a block's warps share tiles of keys. A warp has 32 rows where that many are to be done: every key it loads from
// shared memory then serves two products. Few rows, and heads of 256, whose sums alone fill the registers, get 16 a warp.
#define CHUNK_FEW_ROWS 64
#define CHUNK_FEW_KEYS(dim) ((dim) > 128 ? 16 : 64)
#define CHUNK_MANY_ROWS 128
#define CHUNK_MANY_KEYS 32
#define CHUNK_MANY_STAGES 3
// Queries, stages of K and V, scratch: two stages of many keys for few rows take as much as three of few for many.
#define CHUNK_SHARED(dim) (CHUNK_FEW_ROWS * TILE_ROW(dim) + 2 * 2 * CHUNK_FEW_KEYS(dim) * TILE_ROW(dim) + 64)

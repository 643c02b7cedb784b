// Threads and shared memory of the kernels, in bytes. launch_config.rs has the same numbers for the host.
#pragma once

// skc_attend_generic: two queries, the probabilities of 128 keys, scratch for block-wide sums.
#define GENERIC_SHARED(head_dim) (8 * (head_dim) + 4 * 128 + 64)
// skc_edit, skc_fork_copy: scratch for block-wide sums.
#define EDIT_SHARED 64

// ---- The kernels specialised for a shape. `type` is SKC_TYPE: the number of a 16-bit type, or those of the types of K
// and of V as two digits.
#define QUANTISED(type) ((type) >= 10)
#define K_TYPE(type) (QUANTISED(type) ? (type) / 10 : (type))
#define V_TYPE(type) (QUANTISED(type) ? (type) % 10 : (type))

// A row of queries in shared memory. The 16 bytes of padding put the eight rows that one ldmatrix reads into different
// banks.
#define QUERY_ROW_BYTES(dim) (2 * (dim) + 16)
// A row's codes (or numbers) and its scales; `stored` is a storage type. Scales are padded to whole words.
#define ROW_CODES(stored, dim) ((stored) == 5 ? (dim) / 2 : (stored) == 4 ? (dim) : 2 * (dim))
#define ROW_SCALES(stored, dim) ((stored) == 5 ? ((dim) + 63) / 64 * 4 : (stored) == 4 ? 4 : 0)
// From a row's codes to the next row's in a tile: an odd multiple of 16 bytes, which puts eight rows into different
// banks. A tile's scales lie behind its codes.
#define TILE_STRIDE(stored, dim) (((ROW_CODES(stored, dim) + 15) / 16 | 1) * 16)
#define TILE_ROW_BYTES(stored, dim) (TILE_STRIDE(stored, dim) + ROW_SCALES(stored, dim))
// K and V of one token in a tile.
#define TILE_TOKEN_BYTES(type, dim) (TILE_ROW_BYTES(K_TYPE(type), dim) + TILE_ROW_BYTES(V_TYPE(type), dim))

// ---- skc_attend_decode and skc_step_decode. Every warp has tiles of 16 keys of its own, in a pipeline of
// DECODE_STAGES tiles. Query columns are tokens times query heads per KV head.
#define DECODE_WARPS(dim) ((dim) > 128 ? 2 : 4)
#define DECODE_KEYS 16
#define DECODE_COLUMNS 8
// One stage: a tile of K and a tile of V for every warp.
#define DECODE_STAGE_BYTES(type, dim) (DECODE_WARPS(dim) * DECODE_KEYS * TILE_TOKEN_BYTES(type, dim))
// Tiles of codes are small: three of them leave room for as many blocks as two of numbers.
#define DECODE_STAGES(type, dim) (!QUANTISED(type) && (dim) > 80 ? 2 : 3)
// Queries rotated for window keys, queries rotated for sink keys, stages, scratch.
#define DECODE_SHARED(type, dim) \
    (2 * DECODE_COLUMNS * QUERY_ROW_BYTES(dim) + DECODE_STAGES(type, dim) * DECODE_STAGE_BYTES(type, dim) + 64)
// The most new tokens of a step in one launch. Four with one query head per KV head: K and V of eight would leave room
// for two blocks on a multiprocessor with 228 KiB of shared memory instead of three, with heads of 128. (With heads of
// 256 two blocks fit instead of a decode's three.)
#define STEP_TOKENS(group) ((group) > 1 ? DECODE_COLUMNS / (group) : 4)
// A new token's key, or its value, with its scales.
#define NEW_ROW_BYTES(stored, dim) ((TILE_ROW_BYTES(stored, dim) + 15) / 16 * 16)
#define NEW_TOKEN_BYTES(type, dim) (NEW_ROW_BYTES(K_TYPE(type), dim) + NEW_ROW_BYTES(V_TYPE(type), dim))
// A decode's shared memory, and K and V of the new tokens.
#define STEP_SHARED(type, dim, group) (DECODE_SHARED(type, dim) + STEP_TOKENS(group) * NEW_TOKEN_BYTES(type, dim))

// ---- skc_attend_chunk. A warp has CHUNK_WARP_ROWS rows and tiles of CHUNK_KEYS keys: 32 rows use every fragment of K
// and V that is loaded from shared memory twice. With heads of 256 the accumulators of 16 rows fill the registers.
// Query tiles of 128 rows have four warps that share tiles of keys; those of 64 rows, for few rows, have two slices of
// two warps, which share the rows and divide the keys. (With heads of 256, and where codes are widened, four warps have
// 64 rows: slices of quantised types would spill registers.)
#define CHUNK_WARP_ROWS(type, dim, rows) ((dim) > 128 || (QUANTISED(type) && (rows) == CHUNK_SMALL_ROWS) ? 16 : 32)
#define CHUNK_KEYS(dim) ((dim) > 128 ? 16 : 32)
#define CHUNK_SLICES(type, dim, rows) (4 * CHUNK_WARP_ROWS(type, dim, rows) / (rows))
#define CHUNK_SMALL_ROWS 64
#define CHUNK_SMALL_STAGES 2
#define CHUNK_LARGE_ROWS 128
#define CHUNK_LARGE_STAGES 3
// Queries and stages of K and V, of either layout.
#define CHUNK_BYTES(type, dim, rows, stages) \
    ((rows)*QUERY_ROW_BYTES(dim) +       \
     (stages)*CHUNK_SLICES(type, dim, rows) * CHUNK_KEYS(dim) * TILE_TOKEN_BYTES(type, dim))
#define CHUNK_SMALL_BYTES(type, dim) CHUNK_BYTES(type, dim, CHUNK_SMALL_ROWS, CHUNK_SMALL_STAGES)
#define CHUNK_LARGE_BYTES(type, dim) CHUNK_BYTES(type, dim, CHUNK_LARGE_ROWS, CHUNK_LARGE_STAGES)
// What the block works on, and scratch.
#define CHUNK_SCRATCH 80
// What the larger layout needs (heads of 256 have the small one only), and scratch.
#define CHUNK_SHARED(type, dim)                                                                       \
    (((dim) <= 128 && CHUNK_LARGE_BYTES(type, dim) > CHUNK_SMALL_BYTES(type, dim)                     \
          ? CHUNK_LARGE_BYTES(type, dim)                                                              \
          : CHUNK_SMALL_BYTES(type, dim)) +                                                           \
     CHUNK_SCRATCH)
// Floats of a warp's partial result: for each lane two rows' accumulators, and their maxima and sums.
#define CHUNK_PARTIAL(dim) (32 * ((dim) / 2 + 4))

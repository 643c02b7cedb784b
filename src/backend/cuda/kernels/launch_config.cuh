// Threads and shared memory of the kernels, in bytes. launch_config.rs has the same numbers for the host.
#pragma once

// skc_attend_generic: two queries, the probabilities of 128 keys, scratch for block-wide sums.
#define GENERIC_SHARED(head_dim) (8 * (head_dim) + 4 * 128 + 64)
// skc_edit, skc_fork_copy: scratch for block-wide sums.
#define EDIT_SHARED 64

// A row (of a query, of K or of V) in a shared-memory tile. The 16 bytes of padding put the eight rows that one
// ldmatrix reads into different banks.
#define TILE_ROW_BYTES(dim) (2 * (dim) + 16)

// ---- skc_attend_decode and skc_step_decode. Every warp has tiles of 16 keys of its own, in a pipeline of
// DECODE_STAGES tiles. Query columns are tokens times query heads per KV head.
#define DECODE_WARPS(dim) ((dim) > 128 ? 2 : 4)
#define DECODE_KEYS 16
#define DECODE_COLUMNS 8
// One stage: a tile of K and a tile of V for every warp.
#define DECODE_STAGE_BYTES(dim) (DECODE_WARPS(dim) * 2 * DECODE_KEYS * TILE_ROW_BYTES(dim))
#define DECODE_STAGES(dim) ((dim) > 80 ? 2 : 3)
// Queries rotated for window keys, queries rotated for sink keys, stages, scratch.
#define DECODE_SHARED(dim) \
    (2 * DECODE_COLUMNS * TILE_ROW_BYTES(dim) + DECODE_STAGES(dim) * DECODE_STAGE_BYTES(dim) + 64)
// The most new tokens of a step in one launch. Four with one query head per KV head: K and V of eight would leave room
// for two blocks on a multiprocessor with 228 KiB of shared memory instead of three, with heads of 128. (With heads of
// 256 two blocks fit instead of a decode's three.)
#define STEP_TOKENS(group) ((group) > 1 ? DECODE_COLUMNS / (group) : 4)
// A decode's shared memory, and K and V of the new tokens.
#define STEP_SHARED(dim, group) (DECODE_SHARED(dim) + 2 * STEP_TOKENS(group) * TILE_ROW_BYTES(dim))

// ---- skc_attend_chunk. The warps of a block share tiles of keys. Large query tiles have 32 rows for each warp, so
// that every fragment of K and V that is loaded from shared memory is used twice. Small ones have 16: for few rows, and
// for heads of 256, whose accumulators alone fill the registers.
#define CHUNK_SMALL_ROWS 64
#define CHUNK_SMALL_KEYS(dim) ((dim) > 128 ? 16 : 64)
#define CHUNK_LARGE_ROWS 128
#define CHUNK_LARGE_KEYS 32
#define CHUNK_LARGE_STAGES 3
// Queries, stages of K and V, scratch. The two layouts (64 rows with 2 stages of 64 keys; 128 rows with 3 stages of 32
// keys) need the same number of bytes.
#define CHUNK_SHARED(dim) \
    (CHUNK_SMALL_ROWS * TILE_ROW_BYTES(dim) + 2 * 2 * CHUNK_SMALL_KEYS(dim) * TILE_ROW_BYTES(dim) + 64)

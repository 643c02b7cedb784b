//! Threads and shared memory of the kernels, in bytes: the numbers of `kernels/launch_config.cuh`.

use crate::config::{Layer, Shape};

/// Threads of a block, but for a decode with heads of 256 (see [`decode_warps`]).
pub const THREADS: u32 = 128;
/// The most query columns of a decode: tokens x query heads per KV head.
pub const DECODE_COLUMNS: u32 = 8;
/// Keys of a decode's tile.
pub const DECODE_KEYS: u32 = 16;
/// Rows of a chunk's query tile where few rows are computed, and with heads of 256, whose accumulators fill the
/// registers.
pub const CHUNK_SMALL_ROWS: u32 = 64;
/// Rows of a chunk's query tile otherwise.
pub const CHUNK_LARGE_ROWS: u32 = 128;
/// Scratch for block-wide sums.
const SCRATCH: u32 = 64;
/// Shared memory of edits and forks.
pub const EDIT_SHARED: u32 = SCRATCH;

/// Shared memory of an append: cosines and sines of one token, scratch.
pub fn append_shared(layer: &Layer) -> u32 {
    (8 * layer.frequencies.len() as u32).next_multiple_of(16) + SCRATCH
}

/// Shared memory of the attention of any shape: two queries, the probabilities of a block of keys, scratch.
pub fn generic_shared(shape: &Shape) -> u32 {
    8 * shape.head_dim as u32 + 4 * THREADS + SCRATCH
}

// The specialised kernels. `dtype`: a number of `program::TYPES`.

const fn is_quantised(dtype: u32) -> bool {
    dtype >= 10
}

/// Storage types of K and of V, as numbers.
const fn stored_types(dtype: u32) -> [u32; 2] {
    if is_quantised(dtype) { [dtype / 10, dtype % 10] } else { [dtype, dtype] }
}

/// Bytes of a row of queries, with its padding.
const fn query_row_bytes(dim: u32) -> u32 {
    2 * dim + 16
}

/// Bytes of a row of K or V in a tile: codes (or numbers) with padding, and scales.
const fn tile_row_bytes(stored: u32, dim: u32) -> u32 {
    let (codes, scales) = match stored {
        4 => (dim, 4),
        5 => (dim / 2, dim.div_ceil(64) * 4),
        _ => (2 * dim, 0),
    };
    (codes.div_ceil(16) | 1) * 16 + scales
}

/// Bytes of K and V of one token in a tile.
const fn tile_token_bytes(dtype: u32, dim: u32) -> u32 {
    let [k, v] = stored_types(dtype);
    tile_row_bytes(k, dim) + tile_row_bytes(v, dim)
}

/// Warps of a decode's block. Each has tiles of its own.
pub const fn decode_warps(dim: u32) -> u32 {
    if dim > 128 { 2 } else { 4 }
}

/// Shared memory of a decode: queries rotated for window and sink keys, stages of keys and values for every warp,
/// scratch.
pub const fn decode_shared(dtype: u32, dim: u32) -> u32 {
    let stages = if dim > 80 && !is_quantised(dtype) { 2 } else { 3 };
    let stage = decode_warps(dim) * DECODE_KEYS * tile_token_bytes(dtype, dim);
    2 * DECODE_COLUMNS * query_row_bytes(dim) + stages * stage + SCRATCH
}

/// The most new tokens of a step in one launch.
pub const fn step_tokens(group: u32) -> u32 {
    if group > 1 { DECODE_COLUMNS / group } else { 4 }
}

/// Shared memory of a step in one launch: a decode's, and K and V of the new tokens.
pub const fn step_shared(dtype: u32, dim: u32, group: u32) -> u32 {
    let [k, v] = stored_types(dtype);
    let token = tile_row_bytes(k, dim).next_multiple_of(16) + tile_row_bytes(v, dim).next_multiple_of(16);
    decode_shared(dtype, dim) + step_tokens(group) * token
}

/// Keys of a chunk's tile.
pub const fn chunk_keys(dim: u32) -> u32 {
    if dim > 128 { 16 } else { 32 }
}

/// Into how many slices of warps, each with its own tiles of keys, a block with a query tile of 64 rows is divided.
pub const fn chunk_slices(dtype: u32, dim: u32) -> u32 {
    if dim > 128 || is_quantised(dtype) { 1 } else { 2 }
}

/// What a chunk's block works on, and scratch.
const CHUNK_SCRATCH: u32 = 80;

/// Shared memory of a chunk: query rows, stages of keys and values, scratch. Query tiles of 64 rows have two stages,
/// each with a tile for every slice; those of 128 rows three.
pub const fn chunk_shared(dtype: u32, dim: u32) -> u32 {
    let (row, token) = (query_row_bytes(dim), tile_token_bytes(dtype, dim));
    let small = CHUNK_SMALL_ROWS * row + 2 * chunk_slices(dtype, dim) * chunk_keys(dim) * token;
    let large = CHUNK_LARGE_ROWS * row + 3 * chunk_keys(dim) * token;
    CHUNK_SCRATCH + if dim <= 128 && large > small { large } else { small }
}

/// KV splits of a chunk that run as one cluster: blocks that every device with clusters allows.
pub const CLUSTERS: [u32; 3] = [2, 4, 8];

/// Whether a chunk's shared memory has room for a partial result, so that a cluster can merge its own there.
pub const fn cluster_merge_fits(dtype: u32, dim: u32) -> bool {
    4 * chunk_partial_floats(dim as u64) + CHUNK_SCRATCH as u64 <= chunk_shared(dtype, dim) as u64
}

/// Warps of a chunk's block. Each writes and merges the partial results of its own rows.
pub const CHUNK_WARPS: u64 = 4;

/// Floats of a chunk's partial result: accumulators of 64 rows, and for each lane of a warp two maxima and two sums.
pub const fn chunk_partial_floats(dim: u64) -> u64 {
    CHUNK_WARPS * 32 * (dim / 2 + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only heads of 256 with short codes have less shared memory than a partial result takes.
    #[test]
    fn partial_results_fit_into_shared_memory() {
        for (dtype, dim, want) in
            [(3, 64, true), (2, 128, true), (2, 256, true), (55, 64, true), (55, 128, true), (44, 256, false)]
        {
            assert_eq!(cluster_merge_fits(dtype, dim), want, "type {dtype}, heads of {dim}");
        }
    }

    /// `scripts/cuda_variants.py`, which writes the table, has the same formulas.
    #[test]
    fn shared_memory_agrees_with_the_table_of_resources() {
        let table = include_str!("kernels/RESOURCES.md");
        let mut rows = 0;
        for line in table.lines().filter(|l| l.starts_with("| fast.cu |")) {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let number =
                |name: &str| cells[3].split(' ').find_map(|m| m.strip_prefix(name)?.parse::<u32>().ok()).unwrap();
            let (dim, group, dtype) = (number("dim="), number("group="), number("type="));
            let shared = match cells[4] {
                "skc_attend_decode" => decode_shared(dtype, dim),
                "skc_step_decode" => step_shared(dtype, dim, group),
                "skc_attend_chunk" => chunk_shared(dtype, dim),
                other => panic!("{other}"),
            };
            assert_eq!(cells[8], shared.to_string(), "{line}");
            rows += 1;
        }
        assert!(rows > 100, "{rows} rows");
    }
}

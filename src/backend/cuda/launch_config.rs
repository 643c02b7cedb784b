//! Threads and shared memory of kernels, in bytes: the mirror of `kernels/geometry.cuh`.

use crate::config::{Layer, Shape};

/// Threads of every kernel's blocks but those of a decode with heads of 256.
pub const THREADS: u32 = 128;
/// Query columns of a decode: tokens x group.
pub const COLUMNS: u32 = 8;
/// Keys of a decode's tile.
pub const KEYS: u32 = 16;
/// Rows of a chunk's tile where few are to be done, and with heads of 256, whose sums fill the registers.
pub const CHUNK_ROWS: u32 = 64;
/// Rows of a chunk's tile otherwise.
pub const CHUNK_MANY_ROWS: u32 = 128;
/// Scratch of block-wide sums.
const SCRATCH: u32 = 64;
/// Shared memory of edits and forks.
pub const EDIT_SHARED: u32 = SCRATCH;

/// Shared memory of an append: cosines and sines of one token.
pub fn append_shared(layer: &Layer) -> u32 {
    (8 * layer.frequencies.len() as u32).next_multiple_of(16) + SCRATCH
}

/// Shared memory of the attention of any shape: two queries, the weights of a block of keys.
pub fn generic_shared(shape: &Shape) -> u32 {
    8 * shape.head_dim as u32 + 4 * THREADS + SCRATCH
}

/// Bytes of a row of a tile.
const fn tile_row(dim: u32) -> u32 {
    2 * dim + 16
}

/// Warps of a decode's block, each with tiles of its own.
pub const fn decode_warps(dim: u32) -> u32 {
    if dim > 128 { 2 } else { 4 }
}

/// Shared memory of a decode: queries for window and sinks, stages of keys and values for every warp.
pub const fn decode_shared(dim: u32) -> u32 {
    let stages = if dim > 80 { 2 } else { 3 };
    2 * COLUMNS * tile_row(dim) + stages * decode_warps(dim) * 2 * KEYS * tile_row(dim) + SCRATCH
}

/// Tokens that a step in one launch may bring.
pub const fn step_tokens(group: u32) -> u32 {
    if group > 1 { COLUMNS / group } else { 4 }
}

/// Shared memory of a step in one launch: a decode's, K and V of the new tokens.
pub const fn step_shared(dim: u32, group: u32) -> u32 {
    decode_shared(dim) + 2 * step_tokens(group) * tile_row(dim)
}

/// Shared memory of a chunk: 64 queries, two stages of keys and values.
pub const fn chunk_shared(dim: u32) -> u32 {
    let keys = if dim > 128 { 16 } else { 64 };
    (CHUNK_ROWS + 4 * keys) * tile_row(dim) + SCRATCH
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The script that writes the table of resources computes them too, and kernels are launched with them.
    #[test]
    fn shared_memory_is_that_of_the_table() {
        let table = include_str!("kernels/RESOURCES.md");
        let mut rows = 0;
        for line in table.lines().filter(|l| l.starts_with("| fast.cu |")) {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let number =
                |name: &str| cells[3].split(' ').find_map(|m| m.strip_prefix(name)?.parse::<u32>().ok()).unwrap();
            let (dim, group) = (number("dim="), number("group="));
            let shared = match cells[4] {
                "skc_attend_decode" => decode_shared(dim),
                "skc_step_decode" => step_shared(dim, group),
                "skc_attend_chunk" => chunk_shared(dim),
                other => panic!("{other}"),
            };
            assert_eq!(cells[8], shared.to_string(), "{line}");
            rows += 1;
        }
        assert!(rows > 100, "{rows} rows");
    }
}

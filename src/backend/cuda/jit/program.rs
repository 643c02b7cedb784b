//! What NVRTC compiles: the programs, their variants, and the compiler's options. The build script includes this file
//! too: with the feature `cubins` it compiles the same ahead of time.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::nvrtc::Source;

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../kernels/", $name)))),*] };
}

/// Every file that a program may include.
const HEADERS: &[(&str, &str)] = files![
    "append.cuh",
    "attend.cuh",
    "attention_tile.cuh",
    "batch_entry.cuh",
    "chunk.cuh",
    "chunk_cluster.cuh",
    "chunk_codes.cuh",
    "chunk_numbers.cuh",
    "chunk_rows.cuh",
    "chunk_split.cuh",
    "commit.cuh",
    "decode.cuh",
    "decode_block.cuh",
    "decode_codes.cuh",
    "decode_columns.cuh",
    "decode_numbers.cuh",
    "decode_segments.cuh",
    "decode_tile.cuh",
    "decode_window.cuh",
    "dtype.cuh",
    "edit.cuh",
    "error_record.cuh",
    "fork.cuh",
    "hadamard.cuh",
    "launch_config.cuh",
    "move_rows.cuh",
    "new_tokens.cuh",
    "params.cuh",
    "ptx.cuh",
    "quantise.cuh",
    "query.cuh",
    "range_edit.cuh",
    "ranges.cuh",
    "ring.cuh",
    "rope.cuh",
    "segments.cuh",
    "softmax.cuh",
    "split_merge.cuh",
    "stage_batch.cuh",
    "stored_rows.cuh",
    "tile_codes.cuh",
    "tile_numbers.cuh",
    "types.cuh",
    "warp_row.cuh",
];

/// The kernels that run for every configuration: append, attention of any shape, edits.
pub const COMMON: Source = Source { name: "common.cu", text: include_str!("../kernels/common.cu"), headers: HEADERS };
/// Attention specialised for one shape.
pub const FAST: Source = Source { name: "fast.cu", text: include_str!("../kernels/fast.cu"), headers: HEADERS };

/// Head dims that [`FAST`] has kernels for.
pub const DIMS: [u32; 5] = [64, 80, 96, 128, 256];
/// The most query heads per KV head that it has kernels for.
pub const MAX_GROUP: u32 = 8;
/// The first architecture with the instructions that it uses: cp.async, ldmatrix, and mma.m16n8k16 of both 16-bit
/// types.
pub const FAST_ARCH: u32 = 80;
/// Its types by name and number: the 16-bit type of rows, K and V, or the quantised types of K and V as two digits.
pub const TYPES: [(&str, u32); 5] = [("f16", 2), ("bf16", 3), ("q8", 44), ("q8/q4", 45), ("q4", 55)];
/// What a layer may have beside sinks and window, by name and bit: transforms of scores, and room for pinned and
/// evicted ranges.
pub const FEATURES: [(&str, u32); 3] = [("softcap", 1), ("alibi", 2), ("segments", 4)];

/// Lists the variants that are built in, when the library is built.
pub const SHAPES_VARIABLE: &str = "SINKCACHE_CUBIN_SHAPES";

/// What [`FAST`] is compiled for. Its text is what [`SHAPES_VARIABLE`] takes, such as `128x4:bf16+softcap` or
/// `128x4:q8/q4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Dims of K and V: one of [`DIMS`].
    pub dim: u32,
    /// Query heads per KV head.
    pub group: u32,
    /// One of [`TYPES`].
    pub dtype: u32,
    /// Bits of [`FEATURES`].
    pub features: u32,
}

impl Variant {
    /// The macros of `fast.cu`.
    pub fn macros(&self) -> [(&'static str, u32); 4] {
        [("SKC_DIM", self.dim), ("SKC_GROUP", self.group), ("SKC_TYPE", self.dtype), ("SKC_FEATURES", self.features)]
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = TYPES.iter().find(|t| t.1 == self.dtype).map_or("?", |t| t.0);
        write!(f, "{}x{}:{dtype}", self.dim, self.group)?;
        FEATURES.iter().filter(|t| self.features & t.1 != 0).try_for_each(|t| write!(f, "+{}", t.0))
    }
}

/// The compiler's name of an architecture (compute capability times ten). For 9.0 it is sm_90a, whose code may use
/// instructions that no other architecture has.
pub fn arch_name(arch: u32) -> String {
    let suffix = if arch == 90 { "a" } else { "" };
    format!("sm_{arch}{suffix}")
}

/// Options of the compiler.
pub fn options(arch: u32, macros: &[(&str, u32)]) -> Vec<String> {
    let mut options = vec![format!("--gpu-architecture={}", arch_name(arch)), "-std=c++17".to_owned()];
    options.extend(macros.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// Program and options in one line. With the texts and the compiler's version, all that a cubin depends on.
pub fn recipe(source: Source, options: &[String]) -> String {
    format!("{} {}", source.name, options.join(" "))
}

/// Hash of a program and its headers.
pub fn text_hash(source: Source) -> u128 {
    hash(&(source.text, source.headers))
}

/// 128 bits of `SipHash` over `parts`: two runs that begin differently.
pub fn hash<T: Hash>(parts: &T) -> u128 {
    let run = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        parts.hash(&mut hasher);
        hasher.finish()
    };
    u128::from(run(1)) << 64 | u128::from(run(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header that is not listed could not be included by a program.
    #[test]
    fn every_header_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/backend/cuda/kernels");
        let mut there: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".cuh"))
            .collect();
        there.sort();
        let listed: Vec<_> = HEADERS.iter().map(|h| h.0).collect();
        assert_eq!(listed, there);
    }
}

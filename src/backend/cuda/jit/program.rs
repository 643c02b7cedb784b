//! What NVRTC is given: the programs, what they are specialised for, options. Shared with the build script, which compiles
//! some of it ahead of time (feature `cubins`): nothing of this may be said twice.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::nvrtc::Source;

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../kernels/", $name)))),*] };
}

/// Every file a program may include.
const HEADERS: &[(&str, &str)] = files![
    "append.cuh",
    "attend.cuh",
    "attention_tile.cuh",
    "batch_entry.cuh",
    "chunk.cuh",
    "commit.cuh",
    "decode.cuh",
    "decode_tile.cuh",
    "dtype.cuh",
    "edit.cuh",
    "fork.cuh",
    "geometry.cuh",
    "new_tokens.cuh",
    "params.cuh",
    "phase.cuh",
    "ptx.cuh",
    "query.cuh",
    "ring.cuh",
    "split_merge.cuh",
    "stage_batch.cuh",
];

/// What runs for every configuration: append, attention of any shape, edits.
pub const COMMON: Source = Source { name: "common.cu", text: include_str!("../kernels/common.cu"), headers: HEADERS };
/// Attention specialised for one shape.
pub const FAST: Source = Source { name: "fast.cu", text: include_str!("../kernels/fast.cu"), headers: HEADERS };

/// Head dims that [`FAST`] has kernels for.
pub const DIMS: [u32; 5] = [64, 80, 96, 128, 256];
/// The most query heads per KV head that it has kernels for.
pub const MOST_GROUP: u32 = 8;
/// The first architecture with its instructions: cp.async, ldmatrix and mma.m16n8k16 of both half types.
pub const FAST_ARCH: u32 = 80;
/// Half types by name and number.
pub const TYPES: [(&str, u32); 2] = [("f16", 2), ("bf16", 3)];
/// Transforms of scores by name and bit.
pub const TRANSFORMS: [(&str, u32); 2] = [("softcap", 1), ("alibi", 2)];

/// Names, when the library is built, the variants that are built in.
pub const SHAPES_VARIABLE: &str = "SINKCACHE_CUBIN_SHAPES";

/// What [`FAST`] is compiled for. As text it is what [`SHAPES_VARIABLE`] takes, such as `128x4:bf16+softcap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// One of [`DIMS`], of K and V.
    pub dim: u32,
    /// Query heads per KV head.
    pub group: u32,
    /// One of [`TYPES`].
    pub dtype: u32,
    /// Bits of [`TRANSFORMS`].
    pub transform: u32,
}

impl Variant {
    /// The macros that `fast.cu` asks for.
    pub fn macros(&self) -> [(&'static str, u32); 4] {
        [("SKC_DIM", self.dim), ("SKC_GROUP", self.group), ("SKC_TYPE", self.dtype), ("SKC_TRANSFORM", self.transform)]
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = TYPES.iter().find(|t| t.1 == self.dtype).map_or("?", |t| t.0);
        write!(f, "{}x{}:{dtype}", self.dim, self.group)?;
        TRANSFORMS.iter().filter(|t| self.transform & t.1 != 0).try_for_each(|t| write!(f, "+{}", t.0))
    }
}

/// An architecture (compute capability times ten) as the compiler calls it. Code for 9.0 may use what only that
/// architecture has.
pub fn arch_name(arch: u32) -> String {
    let suffix = if arch == 90 { "a" } else { "" };
    format!("sm_{arch}{suffix}")
}

/// Options of a compilation.
pub fn options(arch: u32, macros: &[(&str, u32)]) -> Vec<String> {
    let mut options = vec![format!("--gpu-architecture={}", arch_name(arch)), "-std=c++17".to_owned()];
    options.extend(macros.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// Program and options in one line: what a cubin was made from, but for the texts and the compiler.
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
    use crate::config::DType;

    /// A header that is left out here would be missing in every program that includes it.
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

    #[test]
    fn types_have_the_numbers_of_the_abi() {
        assert_eq!(TYPES, [("f16", DType::F16 as u32), ("bf16", DType::Bf16 as u32)]);
    }
}

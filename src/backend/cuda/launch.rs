//! Which kernel runs for which shape, and how many blocks of it.

use std::ffi::CStr;

use super::driver::{Current, Kernel, Module};
use super::jit::load;
use super::program::{COMMON, DIMS, FAST, FAST_ARCH, MOST_GROUP, Variant};
use crate::config::{DType, Layer, Shape};
use crate::status::Result;

/// Threads of every kernel's blocks but those of a decode with heads of 256.
const THREADS: u32 = 128;
/// Query columns of a decode: tokens x group.
pub const COLUMNS: u32 = 8;
/// Largest y and z of a grid.
const MOST: u64 = 65_535;

/// The kernels that run for every configuration.
#[derive(Debug)]
pub struct Common {
    module: Module,
    pub append: Kernel,
    pub attend: Kernel,
    pub edit: Kernel,
    pub fork: Kernel,
    pub stage: Kernel,
}

impl Common {
    pub fn load(current: &Current<'_>, arch: u32, disk: bool) -> Result<Self> {
        let module = load(current, COMMON, arch, &[], disk)?;
        let kernel = |name: &'static CStr| module.kernel(name, THREADS, 48 * 1024);
        let kernels = (|| {
            Ok((
                kernel(c"skc_append")?,
                kernel(c"skc_attend_generic")?,
                kernel(c"skc_edit")?,
                kernel(c"skc_fork_copy")?,
                kernel(c"skc_stage")?,
            ))
        })();
        match kernels {
            Ok((append, attend, edit, fork, stage)) => Ok(Self { module, append, attend, edit, fork, stage }),
            Err(error) => {
                module.unload(current);
                Err(error)
            }
        }
    }

    pub fn unload(self, current: &Current<'_>) {
        self.module.unload(current);
    }
}

/// What the fast kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    pub dim: u32,
    pub group: u32,
    pub dtype: DType,
    /// Bit 0: softcap, bit 1: `ALiBi`.
    pub transform: u32,
}

impl Special {
    /// The specialisation of a layer; `None` where only the kernels for every shape will do.
    pub fn of(shape: &Shape, layer: &Layer, arch: u32, shared: u32) -> Option<Self> {
        let fits = shape.head_dim == shape.head_dim_v
            && DIMS.contains(&(shape.head_dim as u32))
            && shape.group <= MOST_GROUP as usize
            && shape.kv_dtype != DType::F32
            && shape.in_dtype == shape.kv_dtype
            && shape.n_kv_heads as u64 <= MOST
            // Slots are counted in 32 bits there.
            && layer.ring.slots() < 1 << 31
            && arch >= FAST_ARCH
            && decode_shared(shape.head_dim as u32).max(chunk_shared(shape.head_dim as u32)) <= shared;
        fits.then(|| Self {
            dim: shape.head_dim as u32,
            group: shape.group as u32,
            dtype: shape.kv_dtype,
            transform: u32::from(layer.softcap > 0.0) | u32::from(!layer.alibi_slopes.is_empty()) << 1,
        })
    }

    /// As the compiler is told.
    pub fn variant(&self) -> Variant {
        Variant { dim: self.dim, group: self.group, dtype: self.dtype as u32, transform: self.transform }
    }
}

/// The kernels of one specialisation.
#[derive(Debug)]
pub struct Fast {
    pub special: Special,
    module: Module,
    pub decode: Kernel,
    pub chunk: Kernel,
}

impl Fast {
    pub fn load(current: &Current<'_>, arch: u32, special: Special, disk: bool) -> Result<Self> {
        let module = load(current, FAST, arch, &special.variant().macros(), disk)?;
        let decode = module.kernel(c"skc_attend_decode", decode_threads(special.dim), decode_shared(special.dim));
        match (decode, module.kernel(c"skc_attend_chunk", THREADS, chunk_shared(special.dim))) {
            (Ok(decode), Ok(chunk)) => Ok(Self { special, module, decode, chunk }),
            (Err(error), _) | (_, Err(error)) => {
                module.unload(current);
                Err(error)
            }
        }
    }

    pub fn unload(self, current: &Current<'_>) {
        self.module.unload(current);
    }
}

/// Which attention kernel a job gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Any shape.
    Generic,
    /// Few queries: the keys are split among blocks.
    Decode { n_splits: u32 },
    /// Many queries: tiles of 64 rows.
    Chunk,
}

/// The kernel for `n_entries` sequences of up to `max_tokens` queries. `aligned`: rows of q and out at multiples of 16
/// bytes.
pub fn choose(
    special: Option<Special>,
    shape: &Shape,
    layer: &Layer,
    n_entries: u32,
    max_tokens: u32,
    aligned: bool,
    multiprocessors: u32,
) -> Attention {
    let Some(special) = special.filter(|_| aligned) else {
        return Attention::Generic;
    };
    if u64::from(max_tokens) * u64::from(special.group) > u64::from(COLUMNS) {
        return Attention::Chunk;
    }
    // Two blocks for every multiprocessor, none with fewer keys than its warps take at once.
    let blocks = u64::from(n_entries) * shape.n_kv_heads as u64;
    let wanted = (2 * u64::from(multiprocessors)).div_ceil(blocks.max(1));
    let keys = layer.ring.n_sink + layer.ring.window;
    let most = keys.div_ceil(64).min(MOST);
    Attention::Decode { n_splits: wanted.min(most).max(1) as u32 }
}

/// Blocks of a launch: entries in x, up to `y` and `z` in the others, whose kernels loop where that is not enough.
pub fn grid(n_entries: u32, y: u64, z: u64) -> [u32; 3] {
    [n_entries, y.clamp(1, MOST) as u32, z.clamp(1, MOST) as u32]
}

/// Blocks over the tokens of an append: each does every head of its tokens, so that angles are computed once.
pub fn append_grid(n_entries: u32, max_tokens: u32) -> [u32; 3] {
    grid(n_entries, u64::from(max_tokens).min(256), 1)
}

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

/// Warps of a decode's block.
const fn decode_warps(dim: u32) -> u32 {
    if dim > 128 { 2 } else { 4 }
}

/// Threads of a decode's block.
pub const fn decode_threads(dim: u32) -> u32 {
    32 * decode_warps(dim)
}

/// Shared memory of a decode: queries for window and sinks, stages of 16 keys and values for every warp.
pub const fn decode_shared(dim: u32) -> u32 {
    let stages = if dim > 80 { 2 } else { 3 };
    2 * COLUMNS * tile_row(dim) + stages * decode_warps(dim) * 2 * 16 * tile_row(dim) + SCRATCH
}

/// Shared memory of a chunk: 64 queries, two stages of keys and values.
pub const fn chunk_shared(dim: u32) -> u32 {
    let keys = if dim > 128 { 16 } else { 64 };
    (64 + 4 * keys) * tile_row(dim) + SCRATCH
}

//! Attention of many rows: tiles of queries over blocks of keys, as in FlashAttention.
//!
//! One loop serves all element types that products are computed in. [`ChunkKernel`] is what differs: `f32.rs` for every instruction
//! set, `amx.rs` (bf16 tiles) and `fp16.rs` (AVX-512 FP16).

#[cfg(target_arch = "x86_64")]
mod amx;
mod f32;
#[cfg(target_arch = "x86_64")]
mod fp16;

use super::kv_layout::{KeyRange, SLOT_ALIGN, padded_dim};
use super::kv_store::Slots;
use super::query_tile::QueryTile;
use super::scratch::{KEY_BLOCK, SCORE_STRIDE, Scratch};
use super::simd::gemm::PvArgs;
use super::simd::softmax::{ColumnRange, SoftmaxArgs, visible_union};
use super::simd::{Kernels, pv_rows};
use super::visibility::Block;
use crate::config::Shape;
use crate::cpu_features::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu_features::fp16_available;

/// A tile of loaded queries, and the keys and values that it attends to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkTile<'a> {
    pub tile: &'a QueryTile<'a>,
    pub slots: &'a Slots<'a>,
    pub kernels: &'a Kernels,
}

/// One block of keys, as a kernel packs it.
#[derive(Clone, Copy, Debug)]
struct KeyBlock {
    /// K and V as they are stored.
    k: *const u8,
    v: *const u8,
    /// Stored columns, and those that any row may see.
    keys: KeyRange,
    /// Whether every row of the tile sees all keys of the block.
    all_visible: bool,
}

/// Some rows of a tile and the columns of a block that any of them sees: what is computed together.
#[derive(Debug)]
struct Subtile<'a> {
    rows: QueryTile<'a>,
    /// Index of the first row in the tile.
    first: usize,
    /// First column, a multiple of [`SLOT_ALIGN`], and columns.
    from: usize,
    n: usize,
    sinks: bool,
}

/// The products of one element type.
trait ChunkKernel {
    /// Rows of a subtile.
    const ROWS: usize;
    /// Blocks and subtiles end at a multiple of so many columns.
    const COLUMN_ALIGN: usize;
    /// K and V of a block in the form that the products take.
    type Packed;
    /// What `pv` needs from `softmax` beside the rescale factors in scratch.
    type Softmax;

    /// Packs a block. `None`, and nothing is changed but packed data, where the element type cannot hold its numbers.
    fn pack(&self, chunk: &ChunkTile<'_>, block: &KeyBlock, scratch: &mut Scratch<'_>) -> Option<Self::Packed>;

    /// QK^T of a subtile, unscaled, into scratch's `scores`.
    fn qk(&self, chunk: &ChunkTile<'_>, packed: &Self::Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>);

    /// Scores to probabilities; updates row maxima, row sums and rescale factors.
    fn softmax(
        &self,
        chunk: &ChunkTile<'_>,
        packed: &Self::Packed,
        sub: &Subtile<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Self::Softmax;

    /// [`Self::qk`] and [`Self::softmax`], which a kernel may overlap.
    fn qk_softmax(
        &self,
        chunk: &ChunkTile<'_>,
        packed: &Self::Packed,
        sub: &Subtile<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Self::Softmax {
        self.qk(chunk, packed, sub, scratch);
        self.softmax(chunk, packed, sub, scratch)
    }

    /// Rescales the accumulators and adds PV.
    fn pv(
        &self,
        chunk: &ChunkTile<'_>,
        packed: &Self::Packed,
        softmax: Self::Softmax,
        sub: &Subtile<'_>,
        scratch: &mut Scratch<'_>,
    );
}

/// Attention of a loaded tile, with the fastest products that the instruction set has for the cache's shape.
pub(super) fn attend(isa: Isa, chunk: &ChunkTile<'_>, scratch: &mut Scratch<'_>) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Amx if amx::fits(chunk.tile.call.shape) => {
            return attend_tile(&amx::Amx::new(chunk.tile, scratch), chunk, scratch);
        }
        Isa::Avx512 if fp16::fits(chunk.tile.call.shape) && fp16_available() => {
            return attend_tile(&fp16::Fp16::new(chunk.tile, scratch), chunk, scratch);
        }
        _ => {}
    }
    let _ = isa;
    attend_tile(&f32::F32, chunk, scratch);
}

/// The instruction set whose kernels compute chunks of a shape, where the cache's is `isa`.
pub(super) fn isa_for_chunks(shape: &Shape, isa: Isa) -> Isa {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && !amx::fits(shape) {
        return Isa::Avx512;
    }
    let _ = shape;
    isa
}

fn attend_tile<K: ChunkKernel>(kernel: &K, chunk: &ChunkTile<'_>, scratch: &mut Scratch<'_>) {
    for block in chunk.tile.blocks(KEY_BLOCK as u64) {
        if !add_block(kernel, chunk, &block, scratch) {
            // Rare: numbers that a narrow type cannot hold.
            add_block(&f32::F32, chunk, &block, scratch);
        }
    }
}

/// Adds one block to the softmax of every row that sees some of it. False, and nothing is changed, if the kernel cannot pack it.
fn add_block<K: ChunkKernel>(kernel: &K, chunk: &ChunkTile<'_>, block: &Block, scratch: &mut Scratch<'_>) -> bool {
    let tile = chunk.tile;
    let n = block.hi.next_multiple_of(K::COLUMN_ALIGN);
    let (k, v) = chunk.slots.read(tile.head, block.slot, n as u64);
    let keys = KeyRange { from: block.lo, to: block.hi, n };
    let key_block = KeyBlock { k, v, keys, all_visible: tile.all_visible(block) };
    let Some(packed) = kernel.pack(chunk, &key_block, scratch) else { return false };
    for first in (0..tile.rows).step_by(K::ROWS) {
        let rows = tile.part(first, K::ROWS);
        rows.visible_columns(block, &scratch.ranges[first..first + rows.rows], &mut scratch.visible);
        let Some((from, to)) = narrow_columns(&mut scratch.visible[..rows.rows], K::COLUMN_ALIGN) else { continue };
        let sub = Subtile { rows, first, from, n: to - from, sinks: block.sinks };
        let softmax = kernel.qk_softmax(chunk, &packed, &sub, scratch);
        kernel.pv(chunk, &packed, softmax, &sub, scratch);
    }
    true
}

/// The columns that any row sees, from a multiple of [`SLOT_ALIGN`] to one of `end`. Each row's range counts from the first of them
/// afterwards.
fn narrow_columns(visible: &mut [ColumnRange], end: usize) -> Option<(usize, usize)> {
    let (from, to) = visible_union(visible)?;
    let (from, to) = (from - from % SLOT_ALIGN as usize, to.next_multiple_of(end));
    for v in visible.iter_mut() {
        (v.from, v.to) = if v.from < v.to { (v.from - from, v.to - from) } else { (0, 0) };
    }
    Some((from, to))
}

impl Subtile<'_> {
    /// The softmax of the subtile's scores in scratch.
    fn softmax_args(&self, scratch: &mut Scratch<'_>) -> SoftmaxArgs {
        let layer = self.rows.call.layer;
        SoftmaxArgs {
            scores: scratch.scores.as_mut_ptr(),
            stride: SCORE_STRIDE,
            n: self.n,
            rows: self.rows.rows,
            visible: scratch.visible.as_ptr(),
            scale: layer.scale,
            softcap: layer.softcap,
            max: scratch.max[self.first..].as_mut_ptr(),
            sum: scratch.sum[self.first..].as_mut_ptr(),
            alpha: scratch.alpha.as_mut_ptr(),
        }
    }

    /// PV of f32 probabilities in scratch's `scores`; `v` is the subtile's first column.
    fn pv_args(&self, v: *const u8, scratch: &mut Scratch<'_>) -> PvArgs {
        let dim = padded_dim(self.rows.call.shape.head_dim_v);
        PvArgs {
            probs: scratch.scores.as_ptr(),
            stride: SCORE_STRIDE,
            rows: self.rows.rows,
            v,
            dim,
            from: 0,
            to: self.n,
            acc: scratch.acc[self.first * dim..].as_mut_ptr(),
            alpha: scratch.alpha.as_ptr(),
            prefetch_offset: 0,
        }
    }

    /// PV over values as they are stored, each row only over what it sees: for blocks with an infinity that some rows must not see.
    ///
    /// # Safety
    /// `v` holds the block's stored values; the kernels' instruction set is available.
    unsafe fn pv_separate(&self, chunk: &ChunkTile<'_>, v: *const u8, scratch: &mut Scratch<'_>) {
        let shape = self.rows.call.shape;
        // SAFETY: the subtile's columns are among the block's.
        unsafe {
            let v = v.add(self.from * padded_dim(shape.head_dim_v) * shape.kv_dtype.size());
            pv_rows(&self.pv_args(v, scratch), &scratch.visible[..self.rows.rows], chunk.kernels);
        }
    }
}

//! The loop over blocks of keys and rows of a tile, and what an element type must provide for it.

use crate::backend::cpu::kv_layout::{KeyRange, SLOT_ALIGN, padded_dim};
use crate::backend::cpu::kv_store::Slots;
use crate::backend::cpu::query_tile::QueryTile;
use crate::backend::cpu::scratch::{KEY_BLOCK, SCORE_STRIDE, ScoreColumns, Scratch};
use crate::backend::cpu::segments::{Piece, SegmentQuery};
use crate::backend::cpu::simd::gemm::PvArgs;
use crate::backend::cpu::simd::softmax::{ColumnRange, SoftmaxArgs, visible_union};
use crate::backend::cpu::simd::{Kernels, pv_rows};
use crate::backend::cpu::visibility::Block;

/// A tile of loaded queries, and the keys and values that it attends to.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct ChunkTile<'a> {
    pub tile: &'a QueryTile<'a>,
    pub slots: &'a Slots<'a>,
    pub kernels: &'a Kernels,
}

/// One block of keys, as a kernel packs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyBlock {
    /// K and V as they are stored.
    pub k: *const u8,
    pub v: *const u8,
    /// Stored columns, and those that any row may see.
    pub keys: KeyRange,
    /// Whether every row of the tile sees all keys of the block.
    pub all_visible: bool,
}

/// Some rows of a tile and the columns of a block that any of them sees: what is computed together.
#[derive(Debug)]
pub(super) struct Subtile<'a> {
    pub rows: QueryTile<'a>,
    /// Index of the first row in the tile.
    pub first: usize,
    /// First column, a multiple of the kernel's `COLUMN_ALIGN`, and columns.
    pub from: usize,
    pub n: usize,
    /// Columns of scratch's `scores` before those of the first column.
    pub scores_at: usize,
    pub query: SegmentQuery,
}

/// QK^T, softmax and PV of a chunk in one arithmetic: f32, bf16 tiles or fp16.
pub(super) trait ChunkKernel {
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

    /// Converts `rows` turned queries for products.
    fn pack_turned(&self, chunk: &ChunkTile<'_>, rows: usize, scratch: &mut Scratch<'_>);

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

/// Attention of a loaded tile. Blocks that `kernel` cannot pack go to `fallback`, which can pack all.
pub(super) fn attend_tile<K: ChunkKernel, F: ChunkKernel>(
    kernel: &K,
    fallback: &F,
    chunk: &ChunkTile<'_>,
    scratch: &mut Scratch<'_>,
) {
    for block in chunk.tile.blocks(KEY_BLOCK as u64) {
        if !add_block(kernel, chunk, &block, scratch) {
            // Rare: numbers that a narrow type cannot hold.
            add_block(fallback, chunk, &block, scratch);
        }
    }
}

/// Adds one block to the softmax of every row that sees some of it. False, and nothing is changed, if the kernel cannot
/// pack it.
fn add_block<K: ChunkKernel>(kernel: &K, chunk: &ChunkTile<'_>, block: &Block, scratch: &mut Scratch<'_>) -> bool {
    let tile = chunk.tile;
    let n = block.hi.next_multiple_of(K::COLUMN_ALIGN);
    let (k, v) = chunk.slots.read(tile.head, block.slot, n as u64);
    let keys = KeyRange { from: block.lo, to: block.hi, n };
    let key_block = KeyBlock { k, v, keys, all_visible: tile.all_visible(block) };
    let Some(packed) = kernel.pack(chunk, &key_block, scratch) else { return false };
    for first in (0..tile.rows).step_by(K::ROWS) {
        let rows = tile.part(first, K::ROWS);
        rows.visible_columns(block, &scratch.ranges[first..first + rows.rows], scratch.visible);
        let Some((from, to)) = narrow_columns(&mut scratch.visible[..rows.rows], K::COLUMN_ALIGN) else { continue };
        let is_seen = |p: &Piece| p.from < to && from < p.to;
        let (mut n_pieces, mut query) = (0, SegmentQuery::Window);
        tile.for_each_piece(block, |piece| {
            if is_seen(&piece) {
                (n_pieces, query) = (n_pieces + 1, piece.query);
            }
        });
        let sub = Subtile { rows, first, from, n: to - from, scores_at: 0, query };
        let softmax = if n_pieces == 1 {
            turn(kernel, chunk, &sub, scratch);
            kernel.qk_softmax(chunk, &packed, &sub, scratch)
        } else {
            tile.for_each_piece(block, |piece| {
                if is_seen(&piece) {
                    qk_piece(kernel, chunk, &packed, &sub, piece, scratch);
                }
            });
            kernel.softmax(chunk, &packed, &sub, scratch)
        };
        kernel.pv(chunk, &packed, softmax, &sub, scratch);
    }
    true
}

/// Turns and converts the queries of a subtile, where its segment has queries of its own.
fn turn<K: ChunkKernel>(kernel: &K, chunk: &ChunkTile<'_>, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
    if let SegmentQuery::Turned(turn) = &sub.query {
        let rows = sub.rows.rows;
        chunk.tile.turn(turn, (sub.first, rows), 0, chunk.kernels, scratch);
        kernel.pack_turned(chunk, rows, scratch);
    }
}

/// QK^T of the columns of a subtile that belong to a piece.
fn qk_piece<K: ChunkKernel>(
    kernel: &K,
    chunk: &ChunkTile<'_>,
    packed: &K::Packed,
    whole: &Subtile<'_>,
    piece: Piece,
    scratch: &mut Scratch<'_>,
) {
    let (first, end) = (piece.from.max(whole.from), piece.to.min(whole.from + whole.n));
    let from = first / K::COLUMN_ALIGN * K::COLUMN_ALIGN;
    let scores_at = from - whole.from;
    let n = (end - from).next_multiple_of(K::COLUMN_ALIGN);
    let sub = Subtile { rows: whole.rows.clone(), first: whole.first, from, n, scores_at, query: piece.query };
    // The columns before the piece are those of another.
    let before = ScoreColumns { stride: SCORE_STRIDE, rows: whole.rows.rows, first: scores_at, n: first - from };
    scratch.keep_scores(&before);
    turn(kernel, chunk, &sub, scratch);
    kernel.qk(chunk, packed, &sub, scratch);
    scratch.restore_scores(&before);
}

/// The union of the rows' visible columns, widened to a multiple of [`SLOT_ALIGN`] at its start and of `align` at its
/// end. Each row's range becomes relative to its start.
fn narrow_columns(visible: &mut [ColumnRange], align: usize) -> Option<(usize, usize)> {
    let (from, to) = visible_union(visible)?;
    let (from, to) = (from - from % SLOT_ALIGN as usize, to.next_multiple_of(align));
    for v in visible.iter_mut() {
        // mutant: columns_counted_from_block
        (v.from, v.to) = if v.from < v.to { (v.from - from, v.to - from) } else { (0, 0) };
    }
    Some((from, to))
}

impl Subtile<'_> {
    /// The softmax of the subtile's scores in scratch.
    pub fn softmax_args(&self, scratch: &mut Scratch<'_>) -> SoftmaxArgs {
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
    pub fn pv_args(&self, v: *const u8, scratch: &mut Scratch<'_>) -> PvArgs {
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

    /// PV over values as they are stored, each row only over what it sees: for blocks with an infinity that some rows
    /// must not see.
    ///
    /// # Safety
    /// `v` holds the block's stored values; the kernels' instruction set is available.
    pub unsafe fn pv_separate(&self, chunk: &ChunkTile<'_>, v: *const u8, scratch: &mut Scratch<'_>) {
        let shape = self.rows.call.shape;
        // SAFETY: the subtile's columns are among the block's.
        unsafe {
            let v = v.add(self.from * shape.v_type.row_bytes(padded_dim(shape.head_dim_v)));
            pv_rows(&self.pv_args(v, scratch), &scratch.visible[..self.rows.rows], chunk.kernels);
        }
    }
}

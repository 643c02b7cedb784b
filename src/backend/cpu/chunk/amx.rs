//! Chunks with products of bf16 tiles, by AMX.
//!
//! Stored bf16 is multiplied as it is; queries and probabilities are rounded to bf16, as plain attention in bf16 does.
//! Quantised keys and values are rounded to bf16, block by block: their own rounding was coarser.
//! f16 values are split exactly into a high and a low bf16. A product is computed as hi*hi + hi*lo + lo*hi; the dropped
//! lo*lo term is below f32 rounding.

use super::tile_loop::{ChunkKernel, ChunkTile, KeyBlock, Subtile};
use crate::backend::cpu::kv_layout::{SLOT_ALIGN, padded_dim};
use crate::backend::cpu::query_tile::QueryTile;
use crate::backend::cpu::scratch::{KEY_BLOCK, SCORE_STRIDE, SUBTILE_ROWS, Scratch, TILE_ROWS};
use crate::backend::cpu::segments::SegmentQuery;
use crate::backend::cpu::simd::amx::fused_softmax::qk_softmax;
use crate::backend::cpu::simd::amx::gemm::{self, DEPTH, SplitMatrix, SplitMut, TileConfig};
use crate::backend::cpu::simd::amx::pack;
use crate::backend::cpu::simd::amx::softmax::softmax_bf16;
use crate::backend::cpu::simd::codes::{CodesQ4, CodesQ8};
use crate::config::{Shape, StorageType};

const _: () = assert!(SLOT_ALIGN as usize == DEPTH && KEY_BLOCK.is_multiple_of(DEPTH));
// Maxima, sums and products are read and written for whole tiles of rows, however many rows are left.
const _: () = assert!(TILE_ROWS.is_multiple_of(gemm::ROWS) && SUBTILE_ROWS >= gemm::ROWS);

/// Whether a cache's shape fits the tiles.
pub(super) fn fits(shape: &Shape) -> bool {
    let types = [shape.k_type, shape.v_type];
    // Beside quantised keys, plain attention does not round probabilities to bf16; quantised values hide it.
    let one_term = match shape.k_type {
        StorageType::Bf16 => types[1] == StorageType::Bf16 || types[1].is_quantised(),
        StorageType::Q8 | StorageType::Q4 => types[1].is_quantised(),
        StorageType::F32 | StorageType::F16 => false,
    };
    (types == [StorageType::F16; 2] || one_term)
        && shape.head_dim.is_multiple_of(DEPTH)
        && shape.head_dim_v.is_multiple_of(DEPTH)
}

/// A field of scratch as one matrix of `n` bf16, or as two behind one another.
fn split(field: &mut [f32], n: usize, two: bool) -> SplitMut {
    assert!(field.len() * 2 >= n * (1 + usize::from(two)), "{} elements for {n}", field.len());
    let high = field.as_mut_ptr().cast::<u16>();
    SplitMut { high, low: if two { high.wrapping_add(n) } else { std::ptr::null_mut() } }
}

/// The chunk kernel by AMX, with the thread's tiles configured while it lives.
#[derive(Debug)]
pub(super) struct Amx {
    /// Rows of packed queries: the tile's, padded to whole AMX tiles.
    q_rows: usize,
    /// Whether numbers are split in two: stored f16.
    two: bool,
    /// Whether scores need neither softcap nor ALiBi.
    plain_scores: bool,
    _tiles: TileConfig,
}

/// A block of keys and values, in the cache's own memory or in scratch.
#[derive(Debug)]
pub(super) struct Packed {
    k: SplitMatrix,
    v: SplitMatrix,
    /// Values as they are stored.
    stored_v: *const u8,
    /// Whether each row must read only what it sees: a value is not finite, and 0 times infinity is NaN.
    separate: bool,
}

impl Amx {
    /// Converts the tile's queries and configures the tiles.
    ///
    /// # Safety
    /// AMX must be available: the methods rely on it.
    pub unsafe fn new(tile: &QueryTile<'_>, scratch: &mut Scratch<'_>) -> Self {
        let (shape, layer) = (tile.call.shape, tile.call.layer);
        let (two, q_rows) = (shape.k_type == StorageType::F16, tile.rows.next_multiple_of(gemm::ROWS));
        let n = tile.rows * shape.head_dim;
        for (q, packed) in [(&scratch.q, &mut scratch.q_packed), (&scratch.q_sink, &mut scratch.q_sink_packed)] {
            assert!(q.len() >= n);
            let packed = split(packed, q_rows * shape.head_dim, two);
            // SAFETY: the instruction set is available, by the caller; `n` is a multiple of 32, since dims are. Rows of
            // padding keep what they hold: their results are not used.
            unsafe { pack::split_f32(q.as_ptr(), n, packed) };
        }
        Self {
            q_rows,
            two,
            plain_scores: layer.softcap == 0.0 && layer.alibi_slopes.is_empty(),
            // SAFETY: AMX is available, by the caller.
            _tiles: unsafe { TileConfig::new() },
        }
    }

    /// The keys of a block in bf16: where they are stored, or rounded, in `room`.
    fn bf16_keys(&self, shape: &Shape, block: &KeyBlock, room: &mut [f32]) -> *const u16 {
        let (dim, n) = (shape.head_dim, block.keys.n);
        let to = split(room, n * dim, false).high;
        // SAFETY: the instruction set is available; `Slots::read` has checked the slots, which nobody writes while
        // queries run; `split` has checked the room.
        unsafe {
            match shape.k_type {
                StorageType::Q8 => pack::round_keys::<CodesQ8>(block.k, dim, n, to),
                StorageType::Q4 => pack::round_keys::<CodesQ4>(block.k, dim, n, to),
                StorageType::F32 | StorageType::F16 | StorageType::Bf16 => return block.k.cast(),
            }
        }
        to
    }

    /// Where the probabilities of a subtile go.
    fn probs(&self, scratch: &mut Scratch<'_>) -> SplitMut {
        split(scratch.probs, gemm::ROWS * SCORE_STRIDE, self.two)
    }

    /// Packed queries and keys of a subtile.
    fn operands(&self, packed: &Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) -> (SplitMatrix, SplitMatrix) {
        let dim = sub.rows.call.shape.head_dim;
        let k = packed.k.offset(sub.from * dim);
        let q = match sub.query {
            SegmentQuery::Window => &mut *scratch.q_packed,
            SegmentQuery::Sinks => &mut *scratch.q_sink_packed,
            SegmentQuery::Turned(_) => {
                return (split(scratch.q_turned_packed, gemm::ROWS * dim, self.two).as_matrix(), k);
            }
        };
        (split(q, self.q_rows * dim, self.two).as_matrix().offset(sub.first * dim), k)
    }
}

impl ChunkKernel for Amx {
    const ROWS: usize = gemm::ROWS;
    const COLUMN_ALIGN: usize = DEPTH;
    type Packed = Packed;
    type Softmax = ();

    /// `None` for f16 with an infinity or a NaN among visible keys or values, which cannot be split.
    fn pack(&self, chunk: &ChunkTile<'_>, block: &KeyBlock, scratch: &mut Scratch<'_>) -> Option<Packed> {
        let shape = chunk.tile.call.shape;
        let (dim, dim_v, keys) = (shape.head_dim, padded_dim(shape.head_dim_v), block.keys);
        let (k, v) = (block.k.cast::<u16>(), block.v.cast::<u16>());
        if self.two {
            let to_k = split(scratch.k, keys.n * dim, true);
            let to_v = split(scratch.v, keys.n * dim_v, true);
            // SAFETY: the instruction set is available; `Slots::read` has checked the slots, which nobody writes while
            // queries run; `split` has checked scratch.
            let finite = unsafe { pack::split_keys(k, dim, keys, to_k) & pack::split_values(v, dim_v, keys, to_v) };
            return finite.then(|| Packed {
                k: to_k.as_matrix(),
                v: to_v.as_matrix(),
                stored_v: block.v,
                separate: false,
            });
        }
        let whole = SplitMatrix { high: self.bf16_keys(shape, block, scratch.k), low: std::ptr::null() };
        if shape.v_type.is_quantised() {
            let to_v = split(scratch.v, keys.n * dim_v, false);
            // SAFETY: as above.
            let finite = unsafe {
                if shape.v_type == StorageType::Q8 {
                    pack::round_values::<CodesQ8>(block.v, dim_v, keys, to_v.high)
                } else {
                    pack::round_values::<CodesQ4>(block.v, dim_v, keys, to_v.high)
                }
            };
            let separate = !block.all_visible && !finite;
            return Some(Packed { k: whole, v: to_v.as_matrix(), stored_v: block.v, separate });
        }
        // Where every key of whole tiles is visible to every row, or all values are finite and probabilities of 0 mask
        // the rest, values are multiplied where they lie.
        // mutant: amx_stale_values
        let in_place = block.all_visible && (keys.from, keys.to) == (0, keys.n)
            // SAFETY: as above.
            || unsafe { pack::all_finite(v, keys.n * dim_v) }; // mutant: amx_stale_infinity
        if in_place {
            let v = SplitMatrix { high: v, low: std::ptr::null() };
            return Some(Packed { k: whole, v, stored_v: block.v, separate: false });
        }
        let copy = split(scratch.v, keys.n * dim_v, false);
        // SAFETY: as above.
        let finite = unsafe { pack::copy_values(v, dim_v, keys, copy.high) };
        let separate = !block.all_visible && !finite; // mutant: amx_infinity_reaches_masked_rows
        Some(Packed { k: whole, v: copy.as_matrix(), stored_v: block.v, separate })
    }

    fn pack_turned(&self, chunk: &ChunkTile<'_>, rows: usize, scratch: &mut Scratch<'_>) {
        let dim = chunk.tile.call.shape.head_dim;
        assert!(rows <= gemm::ROWS && scratch.q_turned.len() >= rows * dim, "{rows} rows of {dim} dims");
        let packed = split(scratch.q_turned_packed, gemm::ROWS * dim, self.two);
        // SAFETY: the instruction set is available; dims are multiples of 32. Rows of padding keep what they hold.
        unsafe { pack::split_f32(scratch.q_turned.as_ptr(), rows * dim, packed) };
    }

    fn qk(&self, _: &ChunkTile<'_>, packed: &Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        let (q, k) = self.operands(packed, sub, scratch);
        let dim = sub.rows.call.shape.head_dim;
        // SAFETY: tiles are configured; 32 rows of queries and scores lie in scratch, the subtile's keys in the block.
        unsafe { gemm::qk(q, k, dim, sub.n, scratch.scores[sub.scores_at..].as_mut_ptr(), SCORE_STRIDE) };
    }

    fn softmax(&self, chunk: &ChunkTile<'_>, packed: &Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        let probs = self.probs(scratch);
        let args = sub.softmax_args(scratch);
        // SAFETY: the instruction set is available; scratch holds 32 rows of scores and probabilities.
        unsafe {
            if self.plain_scores && !packed.separate {
                return softmax_bf16(&args, probs);
            }
            (chunk.kernels.softmax)(&args);
            if !packed.separate {
                for r in 0..sub.rows.rows {
                    let row = scratch.scores[r * SCORE_STRIDE..].as_ptr();
                    pack::split_f32(row, sub.n, probs.offset(r * SCORE_STRIDE));
                }
            }
        }
    }

    fn qk_softmax(&self, chunk: &ChunkTile<'_>, packed: &Packed, sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        if self.plain_scores && !packed.separate {
            let (q, k) = self.operands(packed, sub, scratch);
            let probs = self.probs(scratch);
            let args = sub.softmax_args(scratch);
            // SAFETY: as in `qk` and `softmax`.
            if unsafe { qk_softmax(q, k, sub.rows.call.shape.head_dim, &args, probs) } {
                return;
            }
        }
        self.qk(chunk, packed, sub, scratch);
        self.softmax(chunk, packed, sub, scratch);
    }

    fn pv(&self, chunk: &ChunkTile<'_>, packed: &Packed, (): (), sub: &Subtile<'_>, scratch: &mut Scratch<'_>) {
        let dim_v = padded_dim(sub.rows.call.shape.head_dim_v);
        // SAFETY: tiles are configured; 32 rows of probabilities and accumulators lie in scratch, the subtile's values
        // in the block.
        unsafe {
            if packed.separate {
                return sub.pv_separate(chunk, packed.stored_v, scratch);
            }
            let acc = scratch.acc[sub.first * dim_v..].as_mut_ptr();
            for (r, &alpha) in scratch.alpha[..sub.rows.rows].iter().enumerate().filter(|(_, alpha)| **alpha != 1.0) {
                gemm::rescale(acc.add(r * dim_v), dim_v, alpha);
            }
            let v = packed.v.offset(sub.from * dim_v);
            gemm::pv(self.probs(scratch).as_matrix(), SCORE_STRIDE, v, dim_v, sub.n, acc);
        }
    }
}

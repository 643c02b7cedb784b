//! Working memory of the kernels: one part per thread, had at create.

use super::kv_layout::{KEY_GROUP, padded_dim};
use super::simd::softmax::ColumnRange;
use super::visibility::VisibleRange;
use crate::config::Shape;
use crate::error::Result;
use crate::memory::{ALIGN, Buffer, Memory};

/// Keys of a block of a chunk's tile.
pub(super) const KEY_BLOCK: usize = 256;
/// From a row of a block's scores to the next: rows do not fall into the same sets of a cache.
pub(super) const SCORE_STRIDE: usize = KEY_BLOCK + 32;
/// Keys of a span of a decode: its softmax is computed by itself and merged in order.
pub(super) const SPLIT_KEYS: usize = 512;
/// Most rows (tokens times heads of a group) of a chunk's tile: keys and values are packed once for them.
pub(super) const TILE_ROWS: usize = 256;
/// Most rows of a tile that are scored together, a multiple of the six that kernels take at once.
pub(super) const SUBTILE_ROWS: usize = 48;
/// Up to this many rows an entry is a decode.
pub(super) const DECODE_ROWS: usize = 20;
/// Tokens whose angles are kept at a time.
pub(super) const ROPE_SLAB: u64 = 512;

/// Rows the scores of a decode have room for.
pub(super) fn decode_rows(shape: &Shape) -> usize {
    shape.group.clamp(DECODE_ROWS, TILE_ROWS)
}

/// Working memory of one part. Rows are padded to 16 elements; sizes are those of [`sizes`].
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "fields of AMX"))]
pub(super) struct Scratch<'a> {
    /// `[slab][rope_dim / 2]` cosines and sines for window and sink queries; the first two serve append too.
    pub cos: &'a mut [f32],
    pub sin: &'a mut [f32],
    pub cos_sink: &'a mut [f32],
    pub sin_sink: &'a mut [f32],
    /// `[TILE_ROWS][head_dim]` queries for the window and for the sinks.
    pub q: &'a mut [f32],
    pub q_sink: &'a mut [f32],
    /// The same in bfloat16: `[2][TILE_ROWS][head_dim]`, what the first rounds off in the second. Or as halves, each twice.
    pub q_packed: &'a mut [f32],
    pub q_sink_packed: &'a mut [f32],
    /// `[TILE_ROWS][head_dim_v]` weighted sums.
    pub acc: &'a mut [f32],
    /// `[decode_rows][head_dim_v]` those of one span.
    pub part: &'a mut [f32],
    /// `[TILE_ROWS]` running maximum and denominator, and those of one span (or, of halves, what queries were divided by).
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub partial_max: &'a mut [f32],
    pub partial_sum: &'a mut [f32],
    /// `[TILE_ROWS]` what earlier sums are worth now.
    pub alpha: &'a mut [f32],
    /// `[decode_rows][SPLIT_KEYS]` or `[SUBTILE_ROWS][SCORE_STRIDE]` scores, then weights.
    pub scores: &'a mut [f32],
    /// `[2][SUBTILE_ROWS][SCORE_STRIDE]` weights in bfloat16, or as halves, each twice.
    pub probs: &'a mut [f32],
    /// `[KEY_BLOCK][head_dim]`, `[KEY_BLOCK][head_dim_v]` keys and values as f32, or as pairs of bfloat16.
    pub k: &'a mut [f32],
    pub v: &'a mut [f32],
    /// `[head_dim]`, `[head_dim_v]` a row as it comes, and rotated.
    pub row: &'a mut [f32],
    pub rotated: &'a mut [f32],
    pub row_v: &'a mut [f32],
    /// What each row of the tile sees, and what of a block.
    pub ranges: [VisibleRange; TILE_ROWS],
    pub visible: [ColumnRange; TILE_ROWS],
}

const FIELDS: usize = 22;

/// Sizes in f32 elements of the fields of [`Scratch`], in order.
fn sizes(shape: &Shape) -> [usize; FIELDS] {
    let slab = shape.max_chunk.min(ROPE_SLAB) as usize;
    let (dim, dim_v) = (shape.head_dim, padded_dim(shape.head_dim_v));
    let (trig, q, rows) = (slab * dim / 2, TILE_ROWS * dim, decode_rows(shape));
    // What AMX alone needs takes no memory on other architectures.
    let (q_packed, probs) = if cfg!(target_arch = "x86_64") { (q, SUBTILE_ROWS * SCORE_STRIDE) } else { (0, 0) };
    [
        trig,
        trig,
        trig,
        trig,
        q,
        q,
        q_packed,
        q_packed,
        TILE_ROWS * dim_v,
        rows * dim_v,
        TILE_ROWS,
        TILE_ROWS,
        TILE_ROWS,
        TILE_ROWS,
        TILE_ROWS,
        (rows * SPLIT_KEYS).max(SUBTILE_ROWS * SCORE_STRIDE),
        probs,
        KEY_BLOCK * dim,
        KEY_BLOCK * dim_v,
        dim,
        dim,
        dim_v,
    ]
    .map(|n| n.next_multiple_of(KEY_GROUP))
}

/// The parts of all threads.
#[derive(Debug)]
pub(super) struct ScratchPool {
    buffer: Buffer,
    n: u32,
}

impl ScratchPool {
    /// Bytes for `n` parts. At most 512 dims and 1,024 threads: far from overflow.
    pub fn bytes(shape: &Shape, n: u32) -> usize {
        (sizes(shape).iter().sum::<usize>() * size_of::<f32>()).next_multiple_of(ALIGN) * n as usize
    }

    pub fn new(shape: &Shape, n: u32, memory: Memory) -> Result<Self> {
        let bytes = Self::bytes(shape, n);
        let buffer = Buffer::zeroed(memory, bytes, "scratch")?;
        Ok(Self { buffer, n })
    }

    /// Part `ith`.
    ///
    /// # Safety
    /// Nobody else may hold the same part.
    pub unsafe fn part(&self, shape: &Shape, ith: u32) -> Scratch<'_> {
        assert!(ith < self.n, "part {ith} of {}", self.n);
        let sizes = sizes(shape);
        let mut at = self.buffer.as_ptr().wrapping_add(Self::bytes(shape, ith)).cast::<f32>();
        let fields = sizes.map(|n| {
            let field = at;
            at = at.wrapping_add(n);
            // SAFETY: within the buffer by its size, initialised, disjoint, and the caller's alone.
            unsafe { std::slice::from_raw_parts_mut(field, n) }
        });
        let [
            cos,
            sin,
            cos_sink,
            sin_sink,
            q,
            q_sink,
            q_packed,
            q_sink_packed,
            acc,
            part,
            max,
            sum,
            partial_max,
            partial_sum,
            alpha,
            scores,
            probs,
            k,
            v,
            row,
            rotated,
            row_v,
        ] = fields;
        Scratch {
            cos,
            sin,
            cos_sink,
            sin_sink,
            q,
            q_sink,
            q_packed,
            q_sink_packed,
            acc,
            part,
            max,
            sum,
            partial_max,
            partial_sum,
            alpha,
            scores,
            probs,
            k,
            v,
            row,
            rotated,
            row_v,
            ranges: [VisibleRange::default(); TILE_ROWS],
            visible: [ColumnRange::default(); TILE_ROWS],
        }
    }
}

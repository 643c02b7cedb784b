//! Working memory of the kernels: one part per thread, allocated at creation.

use super::kv_layout::{KEY_GROUP, SLOT_ALIGN, padded_dim};
use super::simd::softmax::ColumnRange;
use super::turn_cache::{TURNS, TurnCache};
use super::visibility::VisibleRange;
use crate::config::Shape;
use crate::error::Result;
use crate::memory::{ALIGN, Buffer, Memory};

/// Keys of a block of a chunk.
pub(super) const KEY_BLOCK: usize = 256;
/// From a row of a block's scores to the next. More than a block, so that rows do not fall into the same cache sets.
pub(super) const SCORE_STRIDE: usize = KEY_BLOCK + 32;
/// Keys of a KV split of a decode. Its softmax is a partial result; partial results are merged in order.
pub(super) const SPLIT_KEYS: usize = 512;
/// Most rows (tokens times query heads of a KV head) of a tile of a chunk: keys and values are packed once for them.
pub(super) const TILE_ROWS: usize = 256;
/// Most rows of a tile that are computed together, a multiple of the six rows of the kernels' register tiles.
pub(super) const SUBTILE_ROWS: usize = 48;
/// Up to this many rows, an entry is a decode.
pub(super) const DECODE_ROWS: usize = 20;
/// Tokens whose angles are kept at a time.
pub(super) const ROPE_SLAB: u64 = 512;

/// Rows that a decode's scores have room for.
pub(super) fn decode_rows(shape: &Shape) -> usize {
    shape.group.clamp(DECODE_ROWS, TILE_ROWS)
}

/// What the sizes of the fields of [`Scratch`] follow from.
struct Sizes {
    /// Angles of a slab.
    angles: usize,
    dim: usize,
    dim_v: usize,
    /// Rows of a decode.
    decode_rows: usize,
    /// Rows whose queries are turned together, in whole tiles of AMX; 0 where no layer has room for edits.
    turned_rows: usize,
    /// Rows whose queries are kept without the Hadamard turn, too: those that may be turned otherwise.
    kept_rows: usize,
    /// 1 on x86-64, else 0: fields that only its kernels use take no memory elsewhere.
    x86_64: usize,
    /// Rows of packed queries: of chunks on x86-64, of decodes in integers on AArch64.
    packed_rows: usize,
    /// Of those that are turned.
    packed_turned_rows: usize,
}

impl Sizes {
    fn new(shape: &Shape) -> Self {
        let x86_64 = usize::from(cfg!(target_arch = "x86_64"));
        let integers = usize::from(cfg!(target_arch = "aarch64") && shape.k_type.is_quantised());
        let decode_rows = decode_rows(shape);
        let turned_rows = if shape.edits { decode_rows.max(SUBTILE_ROWS).next_multiple_of(32) } else { 0 };
        Self {
            angles: shape.max_chunk.min(ROPE_SLAB) as usize * shape.head_dim / 2,
            dim: shape.head_dim,
            dim_v: padded_dim(shape.head_dim_v),
            decode_rows,
            turned_rows,
            kept_rows: if shape.edits && shape.k_type.is_quantised() { TILE_ROWS } else { 0 },
            x86_64,
            packed_rows: x86_64 * TILE_ROWS + integers * decode_rows,
            packed_turned_rows: (x86_64 + integers) * turned_rows,
        }
    }
}

/// Declares [`Scratch`] with the size of each field in f32 elements, of [`Sizes`] `$s`.
macro_rules! scratch {
    ($s:ident; $($(#[$doc:meta])* $name:ident: $size:expr,)*) => {
        /// Working memory of one thread. Fields are padded to 16 elements.
        #[derive(Debug)]
        #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "fields of x86-64 kernels"))]
        pub(super) struct Scratch<'a> {
            $($(#[$doc])* pub $name: &'a mut [f32],)*
            /// `[TILE_ROWS]` what each row of the tile sees.
            pub ranges: &'a mut [VisibleRange],
            /// `[TILE_ROWS]` the columns of the current block that each row sees.
            pub visible: &'a mut [ColumnRange],
            /// Whose angles are in `turn_angles`: those of the call's layer.
            pub turns: TurnCache,
        }

        const FIELDS: usize = [$(stringify!($name)),*].len();

        /// Sizes of the fields in f32 elements, in order.
        fn sizes(shape: &Shape) -> [usize; FIELDS] {
            let $s = Sizes::new(shape);
            [$($size),*].map(|n: usize| n.next_multiple_of(KEY_GROUP))
        }

        impl<'a> Scratch<'a> {
            /// From a slice for each field of f32, in order, and what rows see.
            fn from_fields(
                [$($name),*]: [&'a mut [f32]; FIELDS],
                ranges: &'a mut [VisibleRange],
                visible: &'a mut [ColumnRange],
            ) -> Self {
                Self { $($name,)* ranges, visible, turns: TurnCache::new() }
            }
        }
    };
}

scratch! { s;
    /// `[slab][rope_dim / 2]` cosines and sines for window keys. Appends use them too.
    cos: s.angles,
    sin: s.angles,
    /// `[slab][rope_dim / 2]` cosines and sines for sink keys.
    cos_sink: s.angles,
    sin_sink: s.angles,
    /// `[TILE_ROWS][head_dim]` queries, rotated for window keys and for sink keys.
    q: TILE_ROWS * s.dim,
    q_sink: TILE_ROWS * s.dim,
    /// The same as a kernel multiplies them: `[2][TILE_ROWS][head_dim]` bf16, `[TILE_ROWS][head_dim]` pairs of fp16, or
    /// `[packed_rows][head_dim]` pairs of bytes.
    q_packed: s.packed_rows * s.dim,
    q_sink_packed: s.packed_rows * s.dim,
    /// `[turned_rows][head_dim]` queries of another segment; the same as a kernel multiplies them; `[turned_rows]` the
    /// scales of those in fp16.
    q_turned: s.turned_rows * s.dim,
    q_turned_packed: s.packed_turned_rows * s.dim,
    turned_scale: s.x86_64 * s.turned_rows,
    /// `[TILE_ROWS][head_dim]` queries for window keys and for sink keys, before their Hadamard turn.
    q_kept: s.kept_rows * s.dim,
    q_sink_kept: s.kept_rows * s.dim,
    /// `[TURNS][2][rope_dim / 2]` cosines and sines of turns of queries.
    turn_angles: s.turned_rows.min(1) * TURNS * s.dim,
    /// `[rows][columns]` scores of another segment in the same group of columns.
    kept: s.turned_rows.min(1) * (s.decode_rows * KEY_GROUP).max(SUBTILE_ROWS * SLOT_ALIGN as usize),
    /// `[TILE_ROWS][head_dim_v]` accumulated PV.
    acc: TILE_ROWS * s.dim_v,
    /// `[TILE_ROWS]` running maximum and sum.
    max: TILE_ROWS,
    sum: TILE_ROWS,
    /// `[decode_rows][head_dim_v]` PV of one KV split.
    partial_acc: s.decode_rows * s.dim_v,
    /// `[TILE_ROWS]` maximum and sum of one KV split. Chunks in fp16 keep the scales of their queries here.
    partial_max: TILE_ROWS,
    partial_sum: TILE_ROWS,
    /// `[TILE_ROWS]` rescale factors.
    alpha: TILE_ROWS,
    /// `[decode_rows][SPLIT_KEYS]` or `[SUBTILE_ROWS][SCORE_STRIDE]` scores, then probabilities.
    scores: (s.decode_rows * SPLIT_KEYS).max(SUBTILE_ROWS * SCORE_STRIDE),
    /// `[2][SUBTILE_ROWS][SCORE_STRIDE]` probabilities in bf16, or `[SUBTILE_ROWS][SCORE_STRIDE]` as pairs of fp16.
    probs: s.x86_64 * SUBTILE_ROWS * SCORE_STRIDE,
    /// `[KEY_BLOCK][head_dim]` keys and `[KEY_BLOCK][head_dim_v]` values of a block, packed.
    k: KEY_BLOCK * s.dim,
    v: KEY_BLOCK * s.dim_v,
    /// `[head_dim]` a row as f32, and rotated; `[head_dim_v]` a row of values as f32.
    row: s.dim,
    rotated: s.dim,
    row_v: s.dim_v,
}

/// Scores of some rows in some columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScoreColumns {
    /// From one row of scores to the next.
    pub stride: usize,
    pub rows: usize,
    /// The first column, and their number.
    pub first: usize,
    pub n: usize,
}

impl ScoreColumns {
    fn row(&self, row: usize) -> std::ops::Range<usize> {
        let first = row * self.stride + self.first;
        first..first + self.n
    }
}

impl Scratch<'_> {
    /// Keeps scores that a kernel will write over, since it writes whole groups of columns.
    pub fn keep_scores(&mut self, columns: &ScoreColumns) {
        for r in 0..if columns.n > 0 { columns.rows } else { 0 } {
            self.kept[r * columns.n..(r + 1) * columns.n].copy_from_slice(&self.scores[columns.row(r)]);
        }
    }

    /// Puts back what [`Self::keep_scores`] has kept.
    pub fn restore_scores(&mut self, columns: &ScoreColumns) {
        // mutant: segment_overwrites_its_neighbour
        for r in 0..if columns.n > 0 { columns.rows } else { 0 } {
            self.scores[columns.row(r)].copy_from_slice(&self.kept[r * columns.n..(r + 1) * columns.n]);
        }
    }
}

/// The working memory of all threads.
#[derive(Debug)]
pub(super) struct ScratchPool {
    buffer: Buffer,
    n: u32,
}

impl ScratchPool {
    /// Bytes for `n` threads. At most 512 dims and 1,024 threads: far from overflow.
    pub fn bytes(shape: &Shape, n: u32) -> usize {
        let rows = TILE_ROWS * (size_of::<VisibleRange>() + size_of::<ColumnRange>());
        (sizes(shape).iter().sum::<usize>() * size_of::<f32>() + rows).next_multiple_of(ALIGN) * n as usize
    }

    pub fn new(shape: &Shape, n: u32, memory: Memory) -> Result<Self> {
        let bytes = Self::bytes(shape, n);
        let buffer = Buffer::new(memory, bytes, "scratch")?;
        Ok(Self { buffer, n })
    }

    /// The memory of thread `ith`.
    ///
    /// # Safety
    /// Nobody else may hold the memory of the same thread.
    pub unsafe fn part(&self, shape: &Shape, ith: u32) -> Scratch<'_> {
        assert!(ith < self.n, "part {ith} of {}", self.n);
        let mut at = self.buffer.as_ptr().wrapping_add(Self::bytes(shape, ith)).cast::<f32>();
        let fields = sizes(shape).map(|n| {
            let field = at;
            at = at.wrapping_add(n);
            // SAFETY: `bytes` counts all fields, so each lies within the buffer; the buffer is initialised, fields do
            // not overlap, and nobody else holds this thread's part.
            unsafe { std::slice::from_raw_parts_mut(field, n) }
        });
        let ranges = at.cast::<VisibleRange>();
        let visible = ranges.wrapping_add(TILE_ROWS).cast::<ColumnRange>();
        // SAFETY: as above. Both types are made of numbers, for which all bits are valid; sizes of fields are multiples
        // of their alignment.
        unsafe {
            Scratch::from_fields(
                fields,
                std::slice::from_raw_parts_mut(ranges, TILE_ROWS),
                std::slice::from_raw_parts_mut(visible, TILE_ROWS),
            )
        }
    }
}

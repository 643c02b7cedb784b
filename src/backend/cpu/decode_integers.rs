//! The products of a decode over quantised keys or values in integers. A row that cannot be rounded to integers is left
//! to f32: its query, a score or a scale of a value that it sees is not finite, or its magnitude is extreme.

use std::ops::Range;

use super::kv_layout::{CODE_BLOCK, CodeLayout, KEY_GROUP, padded_dim};
use super::query_tile::QueryTile;
use super::scratch::{SPLIT_KEYS, Scratch};
use super::simd::gemm::PvArgs;
use super::simd::integer::pv::PvArgs as CodePvArgs;
use super::simd::integer::qk::{QkArgs as CodeQkArgs, ValueScales};
use super::simd::integer::query;
use super::simd::integer::rounding::COLUMNS;
use super::simd::integer::weights::{ResultArgs, WeighArgs, row_bytes};
use super::simd::integer::{KeyProducts, ValueProducts};
use super::simd::softmax::ColumnRange;
use super::turned_queries::PieceQueries;

/// Distance of the software prefetch. A longer one would drive scores and weights out of L1.
const PREFETCH_BYTES: usize = 8192;
/// Rows that are multiplied together.
const ROWS: usize = 4;

const _: () = assert!(SPLIT_KEYS <= COLUMNS);

/// K and V of one KV split.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredSplit<'a> {
    pub tile: &'a QueryTile<'a>,
    pub k: *const u8,
    pub v: *const u8,
    /// Columns: slots up to the last visible one, in whole key groups.
    pub n: usize,
    /// The keys of the split that is computed next, if known.
    pub next: Option<*const u8>,
}

/// Blocks from those that are read to those that are prefetched.
fn blocks_ahead(layout: CodeLayout) -> usize {
    PREFETCH_BYTES.div_ceil(layout.block_bytes())
}

impl StoredSplit<'_> {
    /// QK^T of rounded queries and whole key groups into scratch's `scores`. The split's last keys prefetch its first
    /// values.
    ///
    /// # Safety
    /// The instruction set of `keys` is available; K and V hold the split's slots, which nobody writes.
    pub unsafe fn qk(
        &self,
        keys: &KeyProducts,
        layout: CodeLayout,
        piece: &Range<usize>,
        queries: &PieceQueries,
        scratch: &mut Scratch<'_>,
    ) {
        let (shape, blocks) = (self.tile.call.shape, self.n.div_ceil(CODE_BLOCK));
        let values = CodeLayout::new(shape.v_type, padded_dim(shape.head_dim_v));
        let value_scales = ValueScales {
            v: self.v,
            blocks: if values.is_some() { blocks } else { 0 },
            block_bytes: values.map_or(0, CodeLayout::block_bytes),
            bytes: values.map_or(0, |v| v.scales * size_of::<u16>() * CODE_BLOCK),
        };
        let queries = queries.rounded(layout.dim, scratch);
        assert!(
            size_of_val(queries) >= self.tile.rows * query::row_bytes(layout.dim),
            "{} rows of {} dims",
            self.tile.rows,
            layout.dim
        );
        let groups = |first: usize, end: usize, prefetch_offset: isize| CodeQkArgs {
            queries: queries.as_ptr().cast(),
            rows: self.tile.rows,
            k: self.k,
            dim: layout.dim,
            first,
            groups: end - first,
            scores: scratch.scores.as_ptr().cast_mut(),
            stride: SPLIT_KEYS,
            prefetch_offset,
            value_scales,
        };
        let (ahead, bytes) = (blocks_ahead(layout), layout.block_bytes());
        let last = blocks.saturating_sub(ahead);
        let tail = self.k.wrapping_add(last * bytes);
        let (first, end) = (piece.start / KEY_GROUP, piece.end / KEY_GROUP);
        let last = (last * CODE_BLOCK / KEY_GROUP).clamp(first, end);
        assert!(scratch.scores.len() >= self.tile.rows * SPLIT_KEYS && self.n <= SPLIT_KEYS, "{} columns", self.n);
        // SAFETY: the caller's contract; scratch has room for the rows and columns by the assertion.
        unsafe {
            (keys.qk)(&groups(first, last, (ahead * bytes) as isize));
            (keys.qk)(&groups(last, end, byte_distance(tail, self.v)));
        }
    }

    /// PV into scratch's `partial_acc`, which is zero, as is `alpha`: columns `from..to`, those that any row sees.
    ///
    /// # Safety
    /// As [`Self::qk`], of `values` and of the f32 kernel `pv`.
    pub unsafe fn pv(&self, values: &ValueProducts, pv: unsafe fn(&PvArgs), all: &PvArgs, scratch: &mut Scratch<'_>) {
        let layout = CodeLayout::new(self.tile.call.shape.v_type, all.dim).expect("values that have codes");
        let dim = layout.dim;
        let (from, to) = (all.from / CODE_BLOCK, all.to.div_ceil(CODE_BLOCK));
        // Chunks pack values into this field.
        let weight_bytes = row_bytes(layout.scales);
        let n_products = layout.scales * COLUMNS;
        let room = ROWS * (weight_bytes + 2 * dim * size_of::<i32>()) + n_products * size_of::<f32>();
        assert!(size_of_val(scratch.v) >= room && to * CODE_BLOCK <= COLUMNS, "{} dims, blocks up to {to}", dim);
        let products = scratch.v.as_mut_ptr();
        let sums = products.wrapping_add(n_products).cast::<i32>();
        let weights = sums.wrapping_add(ROWS * 2 * dim).cast::<u8>();
        let mut row = 0;
        while row < all.rows {
            // The rows of this round.
            let mut rows = [0; ROWS];
            let mut n = 0;
            while row < all.rows && n < ROWS {
                // SAFETY: the caller's contract; scratch has room by the assertion.
                let rounded = unsafe {
                    (values.weigh)(&WeighArgs {
                        probs: all.probs.add(row * all.stride),
                        n: self.n,
                        v: self.v,
                        dim,
                        from,
                        to,
                        products,
                        weights: weights.add(n * weight_bytes),
                        sums: sums.add(n * 2 * dim),
                    })
                };
                if rounded {
                    rows[n] = row;
                    n += 1;
                } else {
                    let ColumnRange { from, to, .. } = scratch.visible[row];
                    // SAFETY: one row of `all`, over the columns that it sees.
                    unsafe {
                        pv(&PvArgs {
                            probs: all.probs.add(row * all.stride),
                            rows: 1,
                            from,
                            to,
                            acc: all.acc.add(row * dim),
                            alpha: all.alpha.add(row),
                            ..*all
                        });
                    }
                }
                row += 1;
            }
            let (ahead, bytes) = (blocks_ahead(layout), layout.block_bytes());
            let last = to.saturating_sub(ahead).max(from);
            let blocks = |from: usize, to: usize, prefetch_offset: isize| CodePvArgs {
                weights,
                rows: n,
                v: self.v,
                dim,
                from,
                to,
                sums,
                prefetch_offset,
            };
            let tail = self.v.wrapping_add(last * bytes);
            // SAFETY: as above; rows, weights and sums are those of this round.
            unsafe {
                (values.pv)(&blocks(from, last, (ahead * bytes) as isize));
                (values.pv)(&blocks(last, to, self.next.map_or(0, |next| byte_distance(tail, next))));
                for (i, &row) in rows[..n].iter().enumerate() {
                    (values.results)(&ResultArgs {
                        weights: weights.add(i * weight_bytes),
                        sums: sums.add(i * 2 * dim),
                        dim,
                        results: all.acc.add(row * dim),
                    });
                }
            }
        }
    }
}

/// Bytes from one address to another, which may belong to different allocations: for prefetches only.
pub(super) fn byte_distance(from: *const u8, to: *const u8) -> isize {
    (to.addr() as isize).wrapping_sub(from.addr() as isize)
}

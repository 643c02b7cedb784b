//! The queries of a tile as integers, for keys that are stored as codes.

use super::query_tile::QueryTile;
use super::scratch::{Scratch, TILE_ROWS};
use super::simd::integer::KeyProducts;
use super::simd::integer::query::{self, RoundedRows};

/// Rows of a tile.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowSet([u64; TILE_ROWS / 64]);

impl RowSet {
    fn insert(&mut self, row: usize) {
        self.0[row / 64] |= 1 << (row % 64);
    }

    /// The rows, in order.
    pub fn rows(mut self) -> impl Iterator<Item = usize> {
        std::iter::from_fn(move || {
            let at = self.0.iter().position(|&word| word != 0)?;
            let bit = self.0[at].trailing_zeros() as usize;
            self.0[at] &= self.0[at] - 1;
            Some(at * 64 + bit)
        })
    }
}

/// Rounds the loaded queries of a tile, for window keys and for sink keys. Returns the rows that must stay f32: what
/// one row holds does not change how the others are computed.
pub(super) fn round_queries(tile: &QueryTile<'_>, keys: &KeyProducts, scratch: &mut Scratch<'_>) -> RowSet {
    let dim = tile.call.shape.head_dim;
    let mut left = RowSet::default();
    let both = [(&*scratch.q, &mut *scratch.q_packed), (&*scratch.q_sink, &mut *scratch.q_sink_packed)];
    for (q, rounded) in both {
        round_rows(&mut left, q, (tile.rows, dim), keys, rounded);
    }
    left
}

/// Rounds the turned queries of a tile, from row `first` of scratch's `q_turned` on.
pub(super) fn round_turned(
    tile: &QueryTile<'_>,
    first: usize,
    keys: &KeyProducts,
    scratch: &mut Scratch<'_>,
) -> RowSet {
    let mut left = RowSet::default();
    let (rows, dim) = (tile.rows, tile.call.shape.head_dim);
    let (q, rounded) = (&scratch.q_turned[first * dim..], &mut scratch.q_turned_packed[first * dim..]);
    round_rows(&mut left, q, (rows, dim), keys, rounded);
    left
}

/// Rounds rows of queries; adds those to `left` that must stay f32.
fn round_rows(left: &mut RowSet, q: &[f32], (rows, dim): (usize, usize), keys: &KeyProducts, rounded: &mut [f32]) {
    assert!(size_of_val(rounded) >= rows * query::row_bytes(dim), "{rows} rows of {dim} dims");
    let to = RoundedRows { rows, bytes: rounded.as_mut_ptr().cast() };
    for (r, q) in q.chunks_exact(dim).take(rows).enumerate() {
        // SAFETY: the kernels' instruction set is available; the rows have room by the assertion.
        if !unsafe { (keys.round_query)(q, r, to) } {
            left.insert(r); // mutant: a_query_of_nan_rounded
        }
    }
}

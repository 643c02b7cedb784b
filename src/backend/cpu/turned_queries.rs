//! The queries of a decode that are turned for segments. Those of the next few segments are turned together, so that
//! the processor need not wait for one before it begins another; a segment that goes on in the next KV split keeps its
//! own.

use super::query_tile::QueryTile;
use super::rounded_queries::{RowSet, round_turned};
use super::scratch::Scratch;
use super::segments::{Piece, SegmentQuery, Turn};
use super::simd::Kernels;
use super::visibility::Block;

/// The most segments whose queries are turned together.
const TOGETHER: usize = 8;

/// The queries that a piece meets.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceQueries {
    query: SegmentQuery,
    /// The first of those that are turned, in rows of scratch's `q_turned`.
    first: usize,
    /// Where queries are rounded to integers too: the rows that are left to f32.
    pub left_f32: Option<RowSet>,
}

impl PieceQueries {
    /// `[rows][dim]` f32.
    pub fn rows<'a>(&self, dim: usize, scratch: &'a Scratch<'_>) -> &'a [f32] {
        match self.query {
            SegmentQuery::Window => scratch.q,
            SegmentQuery::Sinks => scratch.q_sink,
            SegmentQuery::Turned(_) => &scratch.q_turned[self.first * dim..],
        }
    }

    /// The same, rounded to integers.
    pub fn rounded<'a>(&self, dim: usize, scratch: &'a Scratch<'_>) -> &'a [f32] {
        match self.query {
            SegmentQuery::Window => scratch.q_packed,
            SegmentQuery::Sinks => scratch.q_sink_packed,
            SegmentQuery::Turned(_) => &scratch.q_turned_packed[self.first * dim..],
        }
    }
}

/// The turned queries of a tile.
#[derive(Debug)]
pub(super) struct TurnedQueries<'a> {
    tile: &'a QueryTile<'a>,
    kernels: &'a Kernels,
    /// Whether all KV splits are computed here, one after the other: then queries are turned for later splits too.
    all_splits: bool,
    /// Those of the window and of the sinks that are left to f32.
    left_f32: Option<RowSet>,
    /// The turns whose queries are in scratch, one behind the other, and their rows that are left to f32.
    turns: [Turn; TOGETHER],
    left: [Option<RowSet>; TOGETHER],
    n: usize,
}

impl<'a> TurnedQueries<'a> {
    /// Of a loaded tile.
    pub fn new(tile: &'a QueryTile<'a>, kernels: &'a Kernels, left_f32: Option<RowSet>, all_splits: bool) -> Self {
        let none = Turn { ring_end: 0, behind: 0, before: 0 };
        Self { tile, kernels, all_splits, left_f32, turns: [none; TOGETHER], left: [None; TOGETHER], n: 0 }
    }

    /// Queries of the window or of the sinks.
    pub fn unturned(&self, query: SegmentQuery) -> PieceQueries {
        PieceQueries { query, first: 0, left_f32: self.left_f32 }
    }

    /// The queries that a piece of a block meets. Those of an earlier piece may be gone.
    pub fn of_piece(&mut self, block: &Block, piece: &Piece, scratch: &mut Scratch<'_>) -> PieceQueries {
        let SegmentQuery::Turned(turn) = piece.query else { return self.unturned(piece.query) };
        let known = self.turns[..self.n].iter().position(|&t| t == turn); // mutant: turned_query_of_another_segment
        let place = known.unwrap_or_else(|| {
            self.turn_next(block, piece, scratch);
            0
        });
        PieceQueries { query: piece.query, first: place * self.tile.rows, left_f32: self.left[place] }
    }

    /// Turns the queries of a piece's segment, and of those behind it.
    fn turn_next(&mut self, block: &Block, piece: &Piece, scratch: &mut Scratch<'_>) {
        let (tile, rows) = (self.tile, self.tile.rows);
        let room = scratch.q_turned.len() / (rows * tile.call.shape.head_dim);
        let most = room.min(TOGETHER);
        self.n = 0;
        for query in tile.queries_from(block, piece, self.all_splits) {
            let SegmentQuery::Turned(turn) = query else { continue };
            if self.n == most {
                break;
            }
            if self.n == 0 || self.turns[self.n - 1] != turn {
                self.turns[self.n] = turn;
                self.n += 1;
            }
        }
        debug_assert_eq!(piece.query, SegmentQuery::Turned(self.turns[0]), "another segment");
        for (place, turn) in self.turns[..self.n].iter().enumerate() {
            tile.turn(turn, (0, rows), place * rows, self.kernels, scratch);
        }
        if let Some(keys) = &self.kernels.key_products {
            for (place, left) in self.left[..self.n].iter_mut().enumerate() {
                *left = Some(round_turned(tile, place * rows, keys, scratch));
            }
        }
    }
}

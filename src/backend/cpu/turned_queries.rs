//! The queries of a decode that are turned for segments. Those of several pieces are turned together, so that the
//! processor need not wait for one before it begins another; a segment that goes on in the next KV split keeps its own.

use super::query_tile::QueryTile;
use super::rounded_queries::{RowSet, round_turned};
use super::scratch::Scratch;
use super::segments::{Piece, SegmentQuery, Turn};
use super::simd::Kernels;

/// The most pieces whose queries are turned together.
const TOGETHER: usize = 4;

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

/// Pieces whose queries are turned together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    pieces: [Piece; TOGETHER],
    n: usize,
}

impl Pieces {
    pub fn new() -> Self {
        Self { pieces: [Piece { from: 0, to: 0, query: SegmentQuery::Window }; TOGETHER], n: 0 }
    }

    pub fn push(&mut self, piece: Piece) {
        self.pieces[self.n] = piece;
        self.n += 1;
    }

    /// The pieces, which are taken out.
    pub fn take(&mut self) -> impl Iterator<Item = Piece> + Clone + use<> {
        let n = std::mem::take(&mut self.n);
        self.pieces.into_iter().take(n)
    }

    pub fn len(&self) -> usize {
        self.n
    }
}

/// The turned queries of a tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct TurnedQueries<'a> {
    tile: &'a QueryTile<'a>,
    kernels: &'a Kernels,
    /// Those of the window and of the sinks that are left to f32.
    left_f32: Option<RowSet>,
    /// Turns that scratch has room for.
    room: usize,
    /// The last turn, if there was one, its place and its rows that are left to f32.
    last: Option<Turn>,
    place: usize,
    last_left: Option<RowSet>,
}

impl<'a> TurnedQueries<'a> {
    /// Of a loaded tile.
    pub fn new(tile: &'a QueryTile<'a>, kernels: &'a Kernels, left_f32: Option<RowSet>, scratch: &Scratch<'_>) -> Self {
        let room = scratch.q_turned.len() / (tile.rows * tile.call.shape.head_dim).max(1);
        Self { tile, kernels, left_f32, room, last: None, place: 0, last_left: None }
    }

    /// Queries of the window or of the sinks.
    pub fn unturned(&self, query: SegmentQuery) -> PieceQueries {
        PieceQueries { query, first: 0, left_f32: self.left_f32 }
    }

    /// How many pieces may be turned together: beside the last one before them.
    pub fn at_a_time(&self) -> usize {
        self.room.saturating_sub(1).clamp(1, TOGETHER)
    }

    /// Turns the queries of some pieces, at most [`Self::at_a_time`].
    pub fn turn(
        &mut self,
        pieces: impl Iterator<Item = Piece> + Clone,
        scratch: &mut Scratch<'_>,
    ) -> [PieceQueries; TOGETHER] {
        let rows = self.tile.rows;
        let mut all = [self.unturned(SegmentQuery::Window); TOGETHER];
        let mut new = [false; TOGETHER];
        for ((piece, of_piece), new) in pieces.zip(&mut all).zip(&mut new) {
            of_piece.query = piece.query;
            let SegmentQuery::Turned(turn) = piece.query else { continue };
            *new = self.last != Some(turn); // mutant: turned_query_of_another_segment
            if *new {
                self.place = (self.place + 1) % self.room;
                self.last = Some(turn);
                self.tile.turn(&turn, (0, rows), self.place * rows, self.kernels, scratch);
            }
            of_piece.first = self.place * rows;
        }
        let Some(keys) = &self.kernels.key_products else { return all };
        for (of_piece, new) in all.iter_mut().zip(new) {
            if new {
                self.last_left = Some(round_turned(self.tile, of_piece.first, keys, scratch));
            }
            if let SegmentQuery::Turned(_) = of_piece.query {
                of_piece.left_f32 = self.last_left;
            }
        }
        all
    }
}

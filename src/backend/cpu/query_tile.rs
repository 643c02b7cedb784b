//! Rows of queries that are computed together: the tokens of an entry times the query heads of one KV head.

use std::ops::Range;

use super::element::{as_f32, store_scaled};
use super::kv_layout::padded_dim;
use super::rope_cache::{EntryTokens, RopeCache};
use super::scratch::Scratch;
use super::segments::{Piece, Segment, SegmentQuery, Turn, fixed_segments, ring_segments};
use super::simd::Kernels;
use super::simd::prefetch::prefetch;
use super::simd::softmax::{ColumnRange, score_unit};
use super::visibility::{Block, VisibleRange, blocks};
use crate::backend::{AttendRows, LayerCall};
use crate::batch::Entry;
use crate::config::PositionMode;

/// Rows of one entry and KV head.
#[derive(Clone, Debug)]
pub(super) struct QueryTile<'a> {
    pub call: &'a LayerCall<'a>,
    pub io: &'a AttendRows,
    pub entry: &'a Entry,
    /// Tokens of the entry that are attended together.
    pub tokens: Range<u64>,
    pub head: usize,
    /// The first row, counted from the first of `tokens`, and the number of rows.
    pub first_row: u64,
    pub rows: usize,
}

impl QueryTile<'_> {
    /// Entry-relative token of a row.
    pub fn token(&self, row: usize) -> u64 {
        self.tokens.start + (self.first_row + row as u64) / self.call.shape.group as u64
    }

    /// Query head of a row.
    pub fn q_head(&self, row: usize) -> usize {
        let group = self.call.shape.group;
        self.head * group + ((self.first_row + row as u64) % group as u64) as usize
    }

    /// The unit of a row's running maximum.
    pub fn score_unit(&self, row: usize) -> f32 {
        let layer = self.call.layer;
        let slope = if layer.alibi_slopes.is_empty() { 0.0 } else { layer.alibi_slopes[self.q_head(row)] };
        score_unit(layer.scale, layer.softcap, slope)
    }

    /// What a row's visible range follows from.
    pub fn visible_range(&self, row: usize) -> VisibleRange {
        let index = self.entry.first + self.token(row);
        let evicted = self.call.layer.ring.evicted(index + 1, self.entry.floor);
        VisibleRange { index, evicted, pinned: self.entry.n_pinned.into() }
    }

    /// At most `rows` rows of the tile, from `first` on.
    pub fn part(&self, first: usize, rows: usize) -> Self {
        let first_row = self.first_row + first as u64; // mutant: part_of_another_tile
        Self { first_row, rows: (self.rows - first).min(rows), tokens: self.tokens.clone(), ..*self }
    }

    /// Whether every row sees all keys of a block.
    pub fn all_visible(&self, block: &Block) -> bool {
        // Neither end of the visible range moves back from one row to the next.
        let ring = &self.call.layer.ring;
        let [first, last] = [0, self.rows - 1].map(|r| block.columns(ring, self.visible_range(r)));
        last.start == block.lo && first.end == block.hi
    }

    /// The slots of sinks and pinned tokens, and the ring indices of window tokens, that any row sees.
    fn keys(&self) -> [Range<u64>; 2] {
        let (ring, first, last) = (&self.call.layer.ring, self.visible_range(0), self.visible_range(self.rows - 1));
        [last.keys(ring, true), first.keys(ring, false).start..last.index + 1]
    }

    /// All blocks of keys that any row sees.
    pub fn blocks(&self, size: u64) -> impl Iterator<Item = Block> + use<'_> {
        let ring = &self.call.layer.ring;
        let [mut rest, window] = self.keys();
        let (mut fixed, mut window) = (true, Some(window));
        let mut places = 0..0;
        // One state for all levels: iterators inside one another would take kilobytes of stack.
        std::iter::from_fn(move || {
            while places.is_empty() {
                if rest.is_empty() {
                    (fixed, rest) = (false, window.take()?);
                    continue;
                }
                // The ALiBi bias of a block is one line: with edits it has one segment.
                let segment = self.divides_blocks().then(|| self.first_segment(fixed, rest.clone())).flatten();
                places = segment.map_or(rest.clone(), |s| s.from..s.end);
                rest.start = places.end;
            }
            let block = blocks(ring, fixed, places.clone(), size).next()?;
            places.start = block.places().end;
            Some(block)
        })
    }

    fn divides_blocks(&self) -> bool {
        self.entry.n_ranges > 0 && !self.call.layer.alibi_slopes.is_empty()
    }

    /// The first segment of some places of keys.
    fn first_segment(&self, fixed: bool, places: Range<u64>) -> Option<Segment> {
        let ranges = self.call.ranges_of(self.entry);
        if fixed {
            fixed_segments(&self.call.layer.ring, ranges, places).next()
        } else {
            ring_segments(ranges, places).next()
        }
    }

    /// The queries that all columns of a block meet: without RoPE or edits these are known.
    pub fn only_query(&self, block: &Block) -> Option<SegmentQuery> {
        let only = self.entry.n_ranges == 0 || self.call.layer.frequencies.is_empty();
        only.then_some(if block.fixed { SegmentQuery::Sinks } else { SegmentQuery::Window })
    }

    /// Calls `visit` with the columns of a block by the queries that they meet, in order. Neighbours that meet the same
    /// queries are one piece.
    pub fn for_each_piece(&self, block: &Block, mut visit: impl FnMut(Piece)) {
        if let Some(query) = self.only_query(block) {
            return visit(Piece { from: block.lo, to: block.hi, query });
        }
        let mut last: Option<Piece> = None;
        let mut add = |s: Segment| {
            let column = |place: u64| block.lo + (place - block.first) as usize;
            let piece = Piece { from: column(s.from), to: column(s.end), query: s.query };
            match &mut last {
                Some(last) if last.query == piece.query => last.to = piece.to,
                _ => last.replace(piece).into_iter().for_each(&mut visit),
            }
        };
        let ranges = self.call.ranges_of(self.entry);
        if block.fixed {
            fixed_segments(&self.call.layer.ring, ranges, block.places()).for_each(&mut add);
        } else {
            ring_segments(ranges, block.places()).for_each(&mut add);
        }
        last.into_iter().for_each(visit);
    }

    /// The queries that a piece's segment meets, and those of the segments behind it: of the block's, or of all.
    pub fn queries_from(
        &self,
        block: &Block,
        piece: &Piece,
        all: bool,
    ) -> impl Iterator<Item = SegmentQuery> + use<'_> {
        let (ring, ranges) = (&self.call.layer.ring, self.call.ranges_of(self.entry));
        let (first, places) = (block.place(piece.from), block.places());
        let [fixed, window] = if all { self.keys() } else { [places.clone(), places] };
        let [fixed, window] = match (block.fixed, all) {
            (true, true) => [first..fixed.end, window],
            (true, false) => [first..fixed.end, 0..0],
            (false, _) => [0..0, first..window.end],
        };
        fixed_segments(ring, ranges, fixed).chain(ring_segments(ranges, window)).map(|s| s.query)
    }

    /// The columns of a block that each row sees, into `visible`.
    pub fn visible_columns(&self, block: &Block, ranges: &[VisibleRange], visible: &mut [ColumnRange]) {
        let layer = self.call.layer;
        let biased = !layer.alibi_slopes.is_empty();
        let segment = biased.then(|| self.first_segment(block.fixed, block.places())).flatten();
        for (r, (visible_range, visible)) in ranges.iter().zip(visible).enumerate() {
            let columns = block.columns(&layer.ring, *visible_range);
            *visible = ColumnRange { from: columns.start, to: columns.end, ..ColumnRange::default() };
            if let Some(segment) = segment.filter(|_| !columns.is_empty()) {
                visible.slope = layer.alibi_slopes[self.q_head(r)];
                visible.distance = segment.distance(&layer.ring, *visible_range, block.place(columns.end - 1)) as f32;
            }
        }
    }

    /// Loads and rotates the queries, and resets maxima, sums and accumulators.
    pub fn load(&self, kernels: &Kernels, angles: &mut RopeCache, scratch: &mut Scratch<'_>) {
        let (layer, shape) = (self.call.layer, self.call.shape);
        let (dim, half) = (shape.head_dim, layer.frequencies.len());
        let tokens = EntryTokens { call: self.call, entry: self.entry, tokens: &self.tokens };
        for r in 0..self.rows {
            let (token, head) = (self.token(r), self.q_head(r));
            let trig = angles.of_query(&tokens, token, kernels, scratch) * half;
            let trig = trig..trig + half;
            if r + 2 * shape.group < self.rows {
                // The next token's row lies far away, beyond the hardware's prefetchers.
                let next = self.io.q.at(self.entry.row + self.token(r + 2 * shape.group), head);
                prefetch::<false>(next, dim * shape.in_dtype.size());
            }
            // SAFETY: the caller's rows, resolved for this batch and these dims.
            let x = unsafe { as_f32(shape.in_dtype, self.io.q.at(self.entry.row + token, head), dim, scratch.row) };
            let q = &mut scratch.q[r * dim..(r + 1) * dim];
            let q_sink = &mut scratch.q_sink[r * dim..(r + 1) * dim];
            // SAFETY: the kernels' instruction set is available.
            unsafe {
                let (cos, sin) = (&scratch.cos_sink[trig.clone()], &scratch.sin_sink[trig.clone()]);
                (kernels.rotate)(layer.rope_style, cos, sin, x, q_sink);
                if layer.position_mode == PositionMode::Rope {
                    (kernels.rotate)(layer.rope_style, &scratch.cos[trig.clone()], &scratch.sin[trig], x, q);
                } else {
                    q.copy_from_slice(x);
                }
                if shape.k_type.is_quantised() {
                    if self.entry.n_ranges > 0 {
                        scratch.q_kept[r * dim..(r + 1) * dim].copy_from_slice(q);
                        scratch.q_sink_kept[r * dim..(r + 1) * dim].copy_from_slice(q_sink);
                    }
                    // As the keys.
                    (kernels.hadamard)(q); // mutant: window_query_not_turned
                    (kernels.hadamard)(q_sink); // mutant: sink_query_not_turned
                }
            }
            scratch.ranges[r] = self.visible_range(r);
            // A learned sink logit acts as a key with this score and a value of zero.
            (scratch.max[r], scratch.sum[r]) = match layer.sink_logits.get(head) {
                // A quotient beyond f32 is that of the largest score there can be.
                // mutant: learned_sink_scaled
                Some(&logit) => ((logit / self.score_unit(r)).clamp(f32::MIN, f32::MAX), 1.0),
                None => (f32::NEG_INFINITY, 0.0),
            };
        }
        scratch.acc[..self.rows * padded_dim(shape.head_dim_v)].fill(0.0);
    }

    /// Turns the queries of `rows` rows from `first` on, into scratch's `q_turned` from row `to` on.
    pub fn turn(
        &self,
        turn: &Turn,
        (first, rows): (usize, usize),
        to: usize,
        kernels: &Kernels,
        scratch: &mut Scratch<'_>,
    ) {
        let (layer, shape) = (self.call.layer, self.call.shape);
        let (dim, half) = (shape.head_dim, layer.frequencies.len());
        for (r, to) in (first..first + rows).zip(to..) {
            let passed = turn.has_passed(&layer.ring, scratch.ranges[r]); // mutant: passed_pin_as_new
            // On from the sinks' queries, or back from the window's.
            let positions = if passed { turn.before } else { 0_u64.wrapping_sub(turn.behind) };
            let at = scratch.turns.place(positions);
            let (cos, sin) = scratch.turn_angles[2 * half * at.index..2 * half * (at.index + 1)].split_at_mut(half);
            if at.is_new {
                // SAFETY: the kernels' instruction set is available.
                unsafe { (kernels.angles)(&layer.frequencies, positions, 1.0, cos, sin) };
            }
            let (window, sinks) = if shape.k_type.is_quantised() {
                (&*scratch.q_kept, &*scratch.q_sink_kept)
            } else {
                (&*scratch.q, &*scratch.q_sink)
            };
            let q = &if passed { sinks } else { window }[r * dim..(r + 1) * dim];
            let turned = &mut scratch.q_turned[to * dim..(to + 1) * dim];
            // SAFETY: the kernels' instruction set is available.
            unsafe {
                (kernels.rotate)(layer.rope_style, cos, sin, q, turned);
                if shape.k_type.is_quantised() {
                    // As the keys.
                    (kernels.hadamard)(turned); // mutant: turned_query_without_hadamard
                }
            }
        }
    }

    /// Divides by the row sums and writes results and lse.
    pub fn finish(&self, kernels: &Kernels, scratch: &mut Scratch<'_>) {
        let shape = self.call.shape;
        let dim_v = padded_dim(shape.head_dim_v);
        for r in 0..self.rows {
            let (row, head) = (self.entry.row + self.token(r), self.q_head(r));
            if r + 4 * shape.group < self.rows {
                // Rows of one head lie far apart, beyond the hardware's prefetchers.
                let next = self.io.out.at(self.entry.row + self.token(r + 4 * shape.group), head);
                prefetch::<true>(next, shape.head_dim_v * shape.out_dtype.size());
            }
            let acc = &mut scratch.acc[r * dim_v..][..shape.head_dim_v];
            let scale = scratch.sum[r].recip();
            // SAFETY: the rows are resolved for this batch and do not overlap; each row belongs to one worker.
            unsafe {
                store_scaled(shape.out_dtype, acc, scale, self.io.out.at(row, head), kernels);
                if let Some(lse) = self.io.lse {
                    let max = f64::from(scratch.max[r]) * f64::from(self.score_unit(r));
                    let value = max + f64::from(scratch.sum[r]).ln();
                    lse.at(row, head).cast::<f32>().write(value as f32);
                }
            }
        }
    }
}

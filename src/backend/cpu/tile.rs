//! Rows of queries that are computed together: tokens times heads of one KV head's group, and what each of them sees.

use std::ops::Range;

use super::element::{save, view};
use super::scratch::{SLAB, Scratch};
use super::simd::Kernels;
use super::simd::kernels::Seen;
use super::simd::prefetch;
use super::store::{PAD, padded_dim, physical};
use crate::backend::{AttendRows, Job};
use crate::batch::Entry;
use crate::config::PositionMode;
use crate::ring::Ring;

/// Rows of one entry and KV head.
#[derive(Clone, Debug)]
pub(super) struct Tile<'a> {
    pub job: &'a Job<'a>,
    pub io: &'a AttendRows,
    pub entry: &'a Entry,
    /// Tokens of the entry whose keys have been appended with them.
    pub tokens: Range<u64>,
    pub head: usize,
    /// The first row, counted over `tokens`, and how many.
    pub first_row: u64,
    pub rows: usize,
}

/// What a row sees.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sight {
    /// Index in the sequence.
    pub index: u64,
    /// E(p + 1).
    pub evicted: u64,
}

impl Sight {
    /// Which keys of sinks or window the row sees.
    pub fn keys(self, ring: &Ring, sinks: bool) -> Range<u64> {
        let end = self.index + 1;
        if sinks { 0..end.min(ring.n_sink) } else { ring.n_sink + self.evicted..end }
    }

    /// Distance in cache positions of a key that it sees.
    pub fn distance(self, sinks: bool, key: u64) -> u64 {
        // On the axis of cache positions the row is at p - E, and so is a window key; a sink is where it was.
        if sinks { self.index - self.evicted - key } else { self.index - key }
    }
}

/// Visible keys in consecutive physical slots: columns `lo..hi` of those from `slot` on hold tokens from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub sinks: bool,
    pub first: u64,
    /// A multiple of [`PAD`].
    pub slot: u64,
    pub lo: usize,
    pub hi: usize,
}

impl Block {
    /// Columns that a row sees; empty if it sees none.
    pub fn columns(&self, ring: &Ring, sight: Sight) -> Range<usize> {
        let keys = sight.keys(ring, self.sinks);
        let end = self.first + (self.hi - self.lo) as u64;
        let column = |key: u64| self.lo + (key.clamp(self.first, end) - self.first) as usize;
        // A window that is empty may begin beyond its end.
        column(keys.start)..column(keys.end.max(keys.start))
    }

    /// Token in a column.
    pub fn token(&self, column: usize) -> u64 {
        self.first + (column - self.lo) as u64
    }
}

/// The blocks of tokens `from..to`, cut where physical slots, counted from the beginning of their region, reach a multiple
/// of `size`: where a block begins depends on nothing but the tokens.
pub(super) fn blocks(ring: &Ring, keys: Range<u64>, size: u64) -> impl Iterator<Item = Block> + use<'_> {
    let sinks = keys.start < ring.n_sink;
    ring.runs(keys.start, keys.end).flat_map(move |run| {
        let (begin, region) = physical(ring, run.slot);
        let mut at = 0;
        std::iter::from_fn(move || {
            let offset = begin - region + at;
            let n = (run.n - at).min(size - offset % size);
            let block = (n > 0).then(|| {
                let lo = offset % PAD;
                Block {
                    sinks,
                    first: run.first + at,
                    slot: region + offset - lo,
                    lo: lo as usize,
                    hi: (lo + n) as usize,
                }
            });
            at += n;
            block
        })
    })
}

impl Tile<'_> {
    /// Entry-relative token of a row.
    pub fn token(&self, row: usize) -> u64 {
        self.tokens.start + (self.first_row + row as u64) / self.job.shape.group as u64
    }

    /// Query head of a row.
    pub fn q_head(&self, row: usize) -> usize {
        let group = self.job.shape.group;
        self.head * group + ((self.first_row + row as u64) % group as u64) as usize
    }

    pub fn sight(&self, row: usize) -> Sight {
        let index = self.entry.first + self.token(row);
        Sight { index, evicted: self.job.layer.ring.evicted(index + 1, self.entry.floor) }
    }

    /// At most `rows` of its rows, from `first` on.
    pub fn part(&self, first: usize, rows: usize) -> Self {
        let first_row = self.first_row + first as u64;
        Self { first_row, rows: (self.rows - first).min(rows), tokens: self.tokens.clone(), ..*self }
    }

    /// Whether every row sees all keys of a block.
    pub fn sees_all(&self, block: &Block) -> bool {
        // What a row sees neither begins nor ends before what the row before it sees.
        let ring = &self.job.layer.ring;
        let [first, last] = [0, self.rows - 1].map(|r| block.columns(ring, self.sight(r)));
        last.start == block.lo && first.end == block.hi
    }

    /// The sinks and the window tokens that any row sees.
    pub fn keys(&self) -> [Range<u64>; 2] {
        let (ring, first, last) = (&self.job.layer.ring, self.sight(0), self.sight(self.rows - 1));
        [last.keys(ring, true), first.keys(ring, false).start..last.index + 1]
    }

    /// All blocks of keys that any row sees.
    pub fn blocks(&self, size: u64) -> impl Iterator<Item = Block> + use<'_> {
        let [sinks, window] = self.keys();
        let ring = &self.job.layer.ring;
        blocks(ring, sinks, size).chain(blocks(ring, window, size))
    }

    /// What its rows see of a block, into `seen`, as many as `sights`.
    pub fn look(&self, block: &Block, sights: &[Sight], seen: &mut [Seen]) {
        let layer = self.job.layer;
        for (r, (sight, seen)) in sights.iter().zip(seen).enumerate() {
            let columns = block.columns(&layer.ring, *sight);
            *seen = Seen { from: columns.start, to: columns.end, ..Seen::default() };
            if !layer.alibi_slopes.is_empty() && !columns.is_empty() {
                seen.slope = layer.alibi_slopes[self.q_head(r)];
                seen.distance = sight.distance(block.sinks, block.token(columns.end - 1)) as f32;
            }
        }
    }

    /// Reads and rotates the queries, and empties their softmax.
    pub fn load(&self, kernels: &Kernels, angles: &mut Angles, scratch: &mut Scratch<'_>) {
        let (layer, shape) = (self.job.layer, self.job.shape);
        let (dim, half) = (shape.head_dim, layer.frequencies.len());
        for r in 0..self.rows {
            let (token, head) = (self.token(r), self.q_head(r));
            let trig = angles.of(self, kernels, token, scratch) * half;
            let trig = trig..trig + half;
            if r + 2 * shape.group < self.rows {
                // The next token's row lies far away: nothing but a hint brings it in time.
                let next = self.io.q.at(self.entry.row + self.token(r + 2 * shape.group), head);
                prefetch::<false>(next, dim * shape.in_dtype.size());
            }
            // SAFETY: the caller's rows, resolved for this batch and these dims.
            let x = unsafe { view(shape.in_dtype, self.io.q.at(self.entry.row + token, head), dim, scratch.row) };
            let q = &mut scratch.q[r * dim..(r + 1) * dim];
            let q_sink = &mut scratch.q_sink[r * dim..(r + 1) * dim];
            // SAFETY: the kernels' rung is available.
            unsafe {
                let (cos, sin) = (&scratch.cos_sink[trig.clone()], &scratch.sin_sink[trig.clone()]);
                (kernels.rotate)(layer.rope_style, cos, sin, x, q_sink);
                if layer.position_mode == PositionMode::Rope {
                    (kernels.rotate)(layer.rope_style, &scratch.cos[trig.clone()], &scratch.sin[trig], x, q);
                } else {
                    q.copy_from_slice(x);
                }
            }
            scratch.sights[r] = self.sight(r);
            // A learned sink is a key with this score and a value of zero.
            (scratch.max[r], scratch.sum[r]) = match layer.sink_logits.get(head) {
                Some(&logit) => (logit, 1.0),
                None => (f32::NEG_INFINITY, 0.0),
            };
        }
        scratch.acc[..self.rows * padded_dim(shape.head_dim_v)].fill(0.0);
    }

    /// Divides by the denominators and writes the rows.
    pub fn finish(&self, kernels: &Kernels, scratch: &mut Scratch<'_>) {
        let shape = self.job.shape;
        let dim_v = padded_dim(shape.head_dim_v);
        for r in 0..self.rows {
            let (row, head) = (self.entry.row + self.token(r), self.q_head(r));
            if r + 4 * shape.group < self.rows {
                // Of tokens to come: a row is one head's, and the next token's lies far away.
                let next = self.io.out.at(self.entry.row + self.token(r + 4 * shape.group), head);
                prefetch::<true>(next, shape.head_dim_v * shape.out_dtype.size());
            }
            let acc = &mut scratch.acc[r * dim_v..][..shape.head_dim_v];
            let scale = scratch.sum[r].recip();
            // SAFETY: the caller's rows, resolved for this batch; nobody else computes this row, and rows do not overlap.
            unsafe {
                save(shape.out_dtype, acc, scale, self.io.out.at(row, head), kernels);
                if let Some(lse) = self.io.lse {
                    let value = f64::from(scratch.max[r]) + f64::from(scratch.sum[r]).ln();
                    lse.at(row, head).cast::<f32>().write(value as f32);
                }
            }
        }
    }
}

/// Which tokens the angles in scratch belong to: they are the tokens', not the heads'.
#[derive(Clone, Debug, Default)]
pub(super) struct Angles {
    /// Sequence and entry-relative tokens; for keys alone, or for queries too.
    held: Option<(usize, Range<u64>, bool)>,
}

impl Angles {
    /// Row of the angles of a token for its queries; computes those of its slab, as far as the tile's tokens go.
    fn of(&mut self, tile: &Tile<'_>, kernels: &Kernels, token: u64, scratch: &mut Scratch<'_>) -> usize {
        let (entry, layer) = (tile.entry, tile.job.layer);
        self.row(tile.job, entry, &tile.tokens, token, true, |index, at| {
            let (cos, sin) = (&mut scratch.cos[at.clone()], &mut scratch.sin[at.clone()]);
            let (cos_sink, sin_sink) = (&mut scratch.cos_sink[at.clone()], &mut scratch.sin_sink[at]);
            let evicted = layer.ring.evicted(index + 1, entry.floor);
            let position = entry.start.wrapping_add(index);
            // SAFETY: the kernels' rung is available.
            unsafe {
                if layer.position_mode == PositionMode::Rope {
                    (kernels.angles)(&layer.frequencies, position, layer.mscale, cos, sin);
                    let turned = position.wrapping_sub(evicted);
                    (kernels.angles)(&layer.frequencies, turned, layer.mscale, cos_sink, sin_sink);
                } else {
                    // The host has rotated and scaled: turn back by E, purely.
                    (kernels.angles)(&layer.frequencies, 0_u64.wrapping_sub(evicted), 1.0, cos_sink, sin_sink);
                }
            }
        })
    }

    /// Row of the angles of a token for its key.
    pub fn of_key(
        &mut self,
        job: &Job<'_>,
        entry: &Entry,
        (tokens, token): (&Range<u64>, u64),
        kernels: &Kernels,
        scratch: &mut Scratch<'_>,
    ) -> usize {
        let layer = job.layer;
        self.row(job, entry, tokens, token, false, |index, at| {
            let (cos, sin) = (&mut scratch.cos[at.clone()], &mut scratch.sin[at]);
            // SAFETY: the kernels' rung is available.
            unsafe {
                (kernels.angles)(&layer.frequencies, entry.start.wrapping_add(index), layer.mscale, cos, sin);
            }
        })
    }

    fn row(
        &mut self,
        job: &Job<'_>,
        entry: &Entry,
        tokens: &Range<u64>,
        token: u64,
        queries: bool,
        mut fill: impl FnMut(u64, Range<usize>),
    ) -> usize {
        let half = job.layer.frequencies.len();
        if half == 0 {
            return 0;
        }
        if let Some((seq, held, _)) =
            self.held.as_ref().filter(|h| h.0 == entry.seq && h.1.contains(&token) && (h.2 || !queries))
        {
            debug_assert_eq!(*seq, entry.seq);
            return (token - held.start) as usize;
        }
        // No more tokens than scratch has room for, which is no less than a chunk or a slab.
        let slab = SLAB.min(job.shape.max_chunk);
        let start = tokens.start + (token - tokens.start) / slab * slab;
        let held = start..tokens.end.min(start + slab);
        for (i, t) in held.clone().enumerate() {
            fill(entry.first + t, i * half..(i + 1) * half);
        }
        self.held = Some((entry.seq, held, queries));
        (token - start) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every token is in one column of one block, in order, in its own physical slot; blocks keep to their size.
        #[test]
        fn blocks_hold_each_token_once(n_sink in 0u32..70, window in 1u32..300, chunk in 1u32..70,
                                       from in 0u64..900, n in 1u64..300, size in prop::sample::select(vec![32_u64, 128])) {
            let ring = Ring::new(n_sink, window, chunk, 0);
            let from = if from < ring.n_sink { from } else { from.max(ring.n_sink) };
            let to = if from < ring.n_sink { ring.n_sink.min(from + n) } else { from + n.min(ring.ring_slots) };
            let mut next = from;
            for b in blocks(&ring, from..to, size) {
                prop_assert!(b.hi > b.lo && b.hi as u64 <= size && b.slot.is_multiple_of(PAD));
                prop_assert_eq!(b.first, next);
                for c in b.lo..b.hi {
                    prop_assert_eq!(b.slot + c as u64, physical(&ring, ring.slot(b.token(c))).0);
                }
                next += (b.hi - b.lo) as u64;
            }
            prop_assert_eq!(next, to);
        }
    }
}

//! How a call is divided into units of work, and among threads.

use std::ops::Range;

use super::query_tile::QueryTile;
use super::scratch::{DECODE_ROWS, SPLIT_KEYS, TILE_ROWS};
use crate::backend::LayerCall;
use crate::batch::Entry;
use crate::config::Shape;

/// How an entry's queries are computed. It depends on their number and the cache's settings only, so that neither
/// threads nor other sequences change a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttendPath {
    /// All rows of a head at once.
    Decode,
    /// This many tiles for each head.
    Tiles(u64),
    /// No tokens in this range.
    Nothing,
}

impl AttendPath {
    pub fn new(shape: &Shape, tokens: &Range<u64>) -> Self {
        let n = tokens.end - tokens.start;
        let rows = n * shape.group as u64;
        if n == 0 {
            Self::Nothing
        } else if rows <= DECODE_ROWS as u64 || (n == 1 && rows <= TILE_ROWS as u64) {
            Self::Decode
        } else {
            Self::Tiles(rows.div_ceil(TILE_ROWS as u64))
        }
    }

    /// Units of work for each head.
    pub fn units(self) -> u64 {
        match self {
            Self::Decode => 1,
            Self::Tiles(n) => n,
            Self::Nothing => 0,
        }
    }
}

/// All rows of an entry's head.
pub(super) fn all_rows<'a>(
    call: &'a LayerCall<'a>,
    entry: &'a Entry,
    tokens: &Range<u64>,
    head: usize,
) -> Option<QueryTile<'a>> {
    let io = call.attend.as_ref()?;
    let rows = (tokens.end - tokens.start) as usize * call.shape.group;
    Some(QueryTile { call, io, entry, tokens: tokens.clone(), head, first_row: 0, rows })
}

/// KV splits of a decode of one head.
pub(super) fn split_count(call: &LayerCall<'_>, entry: &Entry, tokens: &Range<u64>) -> u64 {
    all_rows(call, entry, tokens, 0).map_or(0, |tile| tile.blocks(SPLIT_KEYS as u64).count() as u64)
}

/// One pass over all entries. A step makes several passes of at most `max_chunk` tokens: the next pass overwrites slots
/// that the queries of this one read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkRange {
    at: u64,
    step: u64,
}

impl ChunkRange {
    pub fn all(call: &LayerCall<'_>) -> impl Iterator<Item = Self> + use<> {
        let longest = call.entries.iter().map(|e| e.n).max().unwrap_or(0);
        let step = if call.append.is_some() && call.attend.is_some() { call.shape.max_chunk } else { longest };
        let mut at = 0;
        std::iter::from_fn(move || {
            let range = (at < longest).then_some(Self { at, step });
            at += step;
            range
        })
    }

    pub fn tokens(self, entry: &Entry) -> Range<u64> {
        self.at.min(entry.n)..entry.n.min(self.at + self.step)
    }
}

/// The KV heads of each entry that part `ith` of `nth` works on: an even share of (token, head) pairs, whole heads
/// only.
pub(super) fn share(
    entries: &[Entry],
    n_kv_heads: usize,
    ith: u32,
    nth: u32,
) -> impl Iterator<Item = (&Entry, Range<usize>)> {
    let heads = n_kv_heads as u128;
    let total = entries.iter().map(|e| u128::from(e.n)).sum::<u128>() * heads;
    let bound = |i: u32| total * u128::from(i) / u128::from(nth);
    let (from, to) = (bound(ith), bound(ith + 1));
    let mut before = 0_u128;
    entries.iter().filter_map(move |e| {
        let n = u128::from(e.n);
        // A head goes to the part that holds its first (token, head) pair.
        let first_at = |at: u128| at.saturating_sub(before).div_ceil(n).min(heads) as usize;
        let range = first_at(from)..first_at(to);
        before += n * heads;
        (!range.is_empty()).then_some((e, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_head_of_every_entry_is_shared_out_once(counts in prop::collection::vec(1u64..1000, 0..6),
                                                         heads in 1usize..9, nth in 1u32..12) {
            let entry = |(seq, &n)| Entry { seq, row: 0, n, first: 0, start: 0, floor: 0, n_ranges: 0, n_pinned: 0 };
            let entries: Vec<_> = counts.iter().enumerate().map(entry).collect();
            let mut taken = vec![vec![0; heads]; entries.len()];
            for ith in 0..nth {
                for (e, range) in share(&entries, heads, ith, nth) {
                    range.for_each(|h| taken[e.seq][h] += 1);
                }
            }
            prop_assert!(taken.iter().flatten().all(|&n| n == 1));
        }
    }
}

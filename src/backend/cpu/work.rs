//! One worker: a thread with its scratch, doing units of a job.

use std::ops::Range;

use super::decode::{self, Part};
use super::element::Stored;
use super::scratch::{FEW_ROWS, SPAN, Scratch, TILE};
use super::simd::{Kernels, Rung};
use super::spans::Spans;
use super::store::{Slots, Store, padded_dim};
use super::tile::{Angles, Tile};
use super::{append, chunk};
#[cfg(target_arch = "x86_64")]
use super::{halves, simd::fp16, tiles};
use crate::backend::Job;
use crate::batch::Entry;
use crate::config::Shape;

/// How an entry's queries are computed: it depends on nothing but their number and the cache's settings, so that neither
/// threads nor other sequences change a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// All rows of a head at once.
    Decode,
    /// This many tiles for each head.
    Tiles(u64),
    /// No tokens in this round.
    Nothing,
}

impl Kind {
    pub fn new(shape: &Shape, tokens: &Range<u64>) -> Self {
        let n = tokens.end - tokens.start;
        let rows = n * shape.group as u64;
        if n == 0 {
            Self::Nothing
        } else if rows <= FEW_ROWS as u64 || (n == 1 && rows <= TILE as u64) {
            Self::Decode
        } else {
            Self::Tiles(rows.div_ceil(TILE as u64))
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

/// Computes a tile in the types that the rung has instructions for; false, and nothing done, where that is f32.
#[cfg(target_arch = "x86_64")]
fn by_narrow_products(
    rung: Rung,
    tile: &Tile<'_>,
    slots: &Slots<'_>,
    kernels: &Kernels,
    scratch: &mut Scratch<'_>,
) -> bool {
    let shape = tile.job.shape;
    match rung {
        Rung::Amx if tiles::fits(shape) => tiles::tile(tile, slots, kernels, scratch),
        Rung::Avx512 if halves::fits(shape) && fp16::available() => {
            halves::tile(tile, slots, kernels, scratch);
        }
        _ => return false,
    }
    true
}

#[cfg(not(target_arch = "x86_64"))]
fn by_narrow_products(_: Rung, _: &Tile<'_>, _: &Slots<'_>, _: &Kernels, _: &mut Scratch<'_>) -> bool {
    false
}

/// The rung whose kernels compute chunks of a shape, where the cache's is `rung`.
pub(super) fn rung_of_chunks(shape: &Shape, rung: Rung) -> Rung {
    #[cfg(target_arch = "x86_64")]
    if rung == Rung::Amx && !tiles::fits(shape) {
        return Rung::Avx512;
    }
    let _ = shape;
    rung
}

/// All rows of an entry's head.
fn all_rows<'a>(job: &'a Job<'a>, entry: &'a Entry, tokens: &Range<u64>, head: usize) -> Option<Tile<'a>> {
    let io = job.attend.as_ref()?;
    let rows = (tokens.end - tokens.start) as usize * job.shape.group;
    Some(Tile { job, io, entry, tokens: tokens.clone(), head, first_row: 0, rows })
}

/// Spans of a decode of one head.
pub(super) fn span_count(job: &Job<'_>, entry: &Entry, tokens: &Range<u64>) -> u64 {
    all_rows(job, entry, tokens, 0).map_or(0, |tile| tile.blocks(SPAN as u64).count() as u64)
}

/// A thread at work.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    job: &'a Job<'a>,
    store: &'a Store,
    kernels: &'a Kernels,
    rung: Rung,
    scratch: Scratch<'a>,
    angles: Angles,
    /// Entry of the last unit, and units before it.
    at: usize,
    before: u64,
}

impl<'a> Worker<'a> {
    pub fn new(job: &'a Job<'a>, store: &'a Store, kernels: &'a Kernels, rung: Rung, scratch: Scratch<'a>) -> Self {
        Self { job, store, kernels, rung, scratch, angles: Angles::default(), at: 0, before: 0 }
    }

    /// Entry of a unit, and units before it; units come in rising order.
    pub fn entry_of(&mut self, unit: u64, units: impl Fn(&Entry) -> u64) -> (&'a Entry, u64) {
        loop {
            let entry = &self.job.entries[self.at];
            let n = units(entry);
            if unit < self.before + n {
                return (entry, self.before);
            }
            self.before += n;
            self.at += 1;
        }
    }

    /// Index of the entry that [`Self::entry_of`] found.
    pub fn entry_index(&self) -> usize {
        self.at
    }

    /// Stores an entry's tokens for some KV heads.
    pub fn append<T: Stored>(&mut self, entry: &Entry, tokens: &Range<u64>, heads: &Range<usize>) {
        if let Some(io) = &self.job.append {
            let slots = self.store.slots(self.job.layer_index, entry.seq);
            let place = append::Place { job: self.job, io, slots, entry };
            append::append::<T>(&place, tokens, heads, self.kernels, &mut self.angles, &mut self.scratch);
        }
    }

    /// Computes unit `unit` of an entry's head.
    pub fn attend(&mut self, entry: &Entry, tokens: &Range<u64>, head: usize, unit: u64) {
        let Some(mut tile) = all_rows(self.job, entry, tokens, head) else { return };
        let slots = self.store.slots(self.job.layer_index, entry.seq);
        let (kernels, scratch) = (self.kernels, &mut self.scratch);
        let dim = padded_dim(self.job.shape.head_dim_v);
        match Kind::new(self.job.shape, tokens) {
            Kind::Nothing => return,
            Kind::Decode => {
                tile.load(kernels, &mut self.angles, scratch);
                let mut blocks = tile.blocks(SPAN as u64).peekable();
                while let Some(block) = blocks.next() {
                    decode::span(&tile, &slots, (&block, blocks.peek()), kernels, scratch);
                    let (mut state, part) = parts(scratch);
                    decode::merge(tile.rows, dim, &mut state, &part);
                }
            }
            Kind::Tiles(_) => {
                tile = tile.part(unit as usize * TILE, TILE);
                tile.load(kernels, &mut self.angles, scratch);
                if !by_narrow_products(self.rung, &tile, &slots, kernels, scratch) {
                    chunk::tile(&tile, &slots, kernels, scratch, |_, _| false);
                }
            }
        }
        tile.finish(kernels, scratch);
    }

    /// Computes span `span` of an entry's head; the last of its spans to be done merges them all.
    pub fn attend_span(
        &mut self,
        entry: &Entry,
        tokens: &Range<u64>,
        head: usize,
        span: u64,
        spans: &Spans,
        unit: usize,
    ) {
        let Some(tile) = all_rows(self.job, entry, tokens, head) else { return };
        let slots = self.store.slots(self.job.layer_index, entry.seq);
        let (kernels, scratch) = (self.kernels, &mut self.scratch);
        tile.load(kernels, &mut self.angles, scratch);
        let Some(block) = tile.blocks(SPAN as u64).nth(span as usize) else { return };
        decode::span(&tile, &slots, (&block, None), kernels, scratch);
        let dim = padded_dim(self.job.shape.head_dim_v);
        let (mut state, part) = parts(scratch);
        // SAFETY: this span is this worker's alone; it is in range by `Spans::fits`.
        unsafe { spans.put(unit, span, tile.rows, dim, &part) };
        if spans.arrive(unit) {
            for span in 0..tile.blocks(SPAN as u64).count() as u64 {
                // SAFETY: all spans have arrived.
                let part = unsafe { spans.part(unit, span, tile.rows, dim) };
                decode::merge(tile.rows, dim, &mut state, &part);
            }
            tile.finish(kernels, scratch);
        }
    }
}

/// The softmax so far, and that of the last span.
fn parts<'a>(scratch: &'a mut Scratch<'_>) -> (Part<'a>, Part<'a>) {
    (
        Part { max: scratch.max, sum: scratch.sum, acc: scratch.acc },
        Part { max: scratch.part_max, sum: scratch.part_sum, acc: scratch.part },
    )
}

//! One worker: a thread with its scratch, doing units of a job.

use std::ops::Range;

use super::chunk::by_narrow_products;
use super::decode;
use super::element::Stored;
use super::kv_layout::padded_dim;
use super::kv_store::Store;
use super::rope_cache::Angles;
use super::schedule::Kind;
use super::schedule::all_rows;
use super::scratch::{SPAN, Scratch, TILE};
use super::simd::Kernels;
use super::split_kv::Part;
use super::split_kv::Spans;
use super::{append, chunk, split_kv};
use crate::backend::LayerCall;
use crate::batch::Entry;
use crate::cpu_features::Isa;

/// A thread at work.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    job: &'a LayerCall<'a>,
    store: &'a Store,
    kernels: &'a Kernels,
    isa: Isa,
    scratch: Scratch<'a>,
    angles: Angles,
    /// Entry of the last unit, and units before it.
    at: usize,
    before: u64,
}

impl<'a> Worker<'a> {
    pub fn new(job: &'a LayerCall<'a>, store: &'a Store, kernels: &'a Kernels, isa: Isa, scratch: Scratch<'a>) -> Self {
        Self { job, store, kernels, isa, scratch, angles: Angles::default(), at: 0, before: 0 }
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
                    split_kv::merge(tile.rows, dim, &mut state, &part);
                }
            }
            Kind::Tiles(_) => {
                tile = tile.part(unit as usize * TILE, TILE);
                tile.load(kernels, &mut self.angles, scratch);
                if !by_narrow_products(self.isa, &tile, &slots, kernels, scratch) {
                    chunk::f32::tile(&tile, &slots, kernels, scratch, |_, _| false);
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
                split_kv::merge(tile.rows, dim, &mut state, &part);
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

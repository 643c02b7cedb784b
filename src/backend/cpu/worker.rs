//! A worker: one thread with its scratch, which computes units of a call.

use std::ops::Range;

use super::append::{self, AppendTarget};
use super::chunk::{self, ChunkTile};
use super::decode::KvSplit;
use super::kv_layout::padded_dim;
use super::kv_store::KvStore;
use super::rope_cache::RopeCache;
use super::rounded_queries::round_queries;
use super::schedule::{AttendPath, all_rows};
use super::scratch::{SPLIT_KEYS, Scratch, TILE_ROWS};
use super::simd::Kernels;
use super::split_kv::{Partial, SplitPartials, merge};
use super::turned_queries::TurnedQueries;
use crate::backend::LayerCall;
use crate::batch::Entry;
use crate::cpu_features::Isa;

/// A thread at work on one call.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    call: &'a LayerCall<'a>,
    store: &'a KvStore,
    kernels: &'a Kernels,
    isa: Isa,
    scratch: Scratch<'a>,
    angles: RopeCache,
    /// Entry of the last unit, and the number of units of the entries before it.
    at: usize,
    before: u64,
}

impl<'a> Worker<'a> {
    pub fn new(
        call: &'a LayerCall<'a>,
        store: &'a KvStore,
        kernels: &'a Kernels,
        isa: Isa,
        scratch: Scratch<'a>,
    ) -> Self {
        Self { call, store, kernels, isa, scratch, angles: RopeCache::default(), at: 0, before: 0 }
    }

    /// The entry of a unit, and the number of units of the entries before it. Units must come in rising order.
    pub fn entry_of(&mut self, unit: u64, units: impl Fn(&Entry) -> u64) -> (&'a Entry, u64) {
        loop {
            let entry = &self.call.entries[self.at];
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
    pub fn append(&mut self, entry: &Entry, tokens: &Range<u64>, heads: &Range<usize>) {
        if let Some(io) = &self.call.append {
            let slots = self.store.slots(self.call.layer_index, entry.seq);
            let target = AppendTarget { call: self.call, io, slots, entry, tokens, kernels: self.kernels };
            append::append(&target, heads, &mut self.angles, &mut self.scratch);
        }
    }

    /// Computes unit `unit` of an entry's head.
    pub fn attend(&mut self, entry: &Entry, tokens: &Range<u64>, head: usize, unit: u64) {
        let Some(mut tile) = all_rows(self.call, entry, tokens, head) else { return };
        let slots = self.store.slots(self.call.layer_index, entry.seq);
        let (kernels, scratch) = (self.kernels, &mut self.scratch);
        match AttendPath::new(self.call.shape, tokens) {
            AttendPath::Nothing => return,
            AttendPath::Decode => {
                tile.load(kernels, &mut self.angles, scratch);
                let left_f32 = kernels.key_products.map(|keys| round_queries(&tile, &keys, scratch));
                let mut turned = TurnedQueries::new(&tile, kernels, left_f32, true);
                let mut blocks = tile.blocks(SPLIT_KEYS as u64).peekable();
                while let Some(block) = blocks.next() {
                    let next = blocks.peek();
                    let split = KvSplit { tile: &tile, slots: &slots, kernels, block: &block, next };
                    split.attend(&mut turned, scratch);
                    let (mut total, partial) = partials(scratch);
                    merge(&tile, &mut total, &partial);
                }
            }
            AttendPath::Tiles(_) => {
                tile = tile.part(unit as usize * TILE_ROWS, TILE_ROWS);
                tile.load(kernels, &mut self.angles, scratch);
                chunk::attend(self.isa, &ChunkTile { tile: &tile, slots: &slots, kernels }, scratch);
            }
        }
        tile.finish(kernels, scratch);
    }

    /// Computes one KV split of an entry's head. The thread that finishes the last split of a head merges all of them.
    pub fn attend_split(&mut self, entry: &Entry, tokens: &Range<u64>, unit: &SplitUnit, partials: &SplitPartials) {
        let SplitUnit { head, split, index } = *unit;
        let Some(tile) = all_rows(self.call, entry, tokens, head) else { return };
        let slots = self.store.slots(self.call.layer_index, entry.seq);
        let (kernels, scratch) = (self.kernels, &mut self.scratch);
        tile.load(kernels, &mut self.angles, scratch);
        let left_f32 = kernels.key_products.map(|keys| round_queries(&tile, &keys, scratch));
        let Some(block) = tile.blocks(SPLIT_KEYS as u64).nth(split as usize) else { return };
        let mut turned = TurnedQueries::new(&tile, kernels, left_f32, false);
        KvSplit { tile: &tile, slots: &slots, kernels, block: &block, next: None }.attend(&mut turned, scratch);
        let dim = padded_dim(self.call.shape.head_dim_v);
        let (mut total, partial) = self::partials(scratch);
        // SAFETY: each split is given to one thread; `SplitPartials::begin` has checked that it is in range.
        unsafe { partials.put(index, split, tile.rows, dim, &partial) };
        if partials.arrive(index) {
            for split in 0..tile.blocks(SPLIT_KEYS as u64).count() as u64 {
                // SAFETY: all splits of the head have arrived: nobody writes them any more.
                let partial = unsafe { partials.get(index, split, tile.rows, dim) };
                merge(&tile, &mut total, &partial);
            }
            tile.finish(kernels, scratch);
        }
    }
}

/// One KV split of one head.
#[derive(Clone, Copy, Debug)]
pub(super) struct SplitUnit {
    pub head: usize,
    pub split: u64,
    /// Index of the entry's head in [`SplitPartials`].
    pub index: usize,
}

/// The running result and that of the last split.
fn partials<'a>(scratch: &'a mut Scratch<'_>) -> (Partial<'a>, Partial<'a>) {
    (
        Partial { max: scratch.max, sum: scratch.sum, acc: scratch.acc },
        Partial { max: scratch.partial_max, sum: scratch.partial_sum, acc: scratch.partial_acc },
    )
}

//! The CPU backend: portable kernels over host memory.

mod append;
mod attend;
mod element;
mod rope;
mod scratch;
mod store;

use std::ops::Range;

use half::{bf16, f16};

use self::element::Stored;
use self::scratch::ScratchPool;
use self::store::Store;
use super::{Backend, Job};
use crate::batch::Entry;
use crate::config::{DType, Layer, Shape};
use crate::memory::Memory;
use crate::status::{Error, Result, Status};

/// K and V of all layers in host memory.
#[derive(Debug)]
pub(crate) struct Cpu {
    store: Store,
    scratch: ScratchPool,
}

impl Cpu {
    /// Bytes of K, V and scratch.
    pub fn bytes<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer>,
        n_seqs: u32,
        n_threads: u32,
    ) -> Result<u64> {
        let kv = Store::bytes(shape, layers, n_seqs)?;
        kv.checked_add(ScratchPool::bytes(shape, n_threads) as u64)
            .ok_or_else(|| Error::new(Status::OutOfMemory, "K, V and scratch exceed 2^64 bytes"))
    }

    /// Allocates everything the cache will ever use.
    pub fn new<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer> + Clone,
        n_seqs: u32,
        n_threads: u32,
        memory: Memory,
    ) -> Result<Self> {
        let scratch = ScratchPool::new(shape, n_threads, memory)?;
        Ok(Self { store: Store::new(shape, layers, n_seqs, memory)?, scratch })
    }

    fn run_typed<T: Stored>(&self, job: &Job<'_>, ith: u32, nth: u32) {
        let shape = job.shape;
        // SAFETY: the trait's contract: one `ith` runs only once at a time.
        let mut scratch = unsafe { self.scratch.part(shape, ith) };
        for (entry, heads) in share(job.entries, shape.n_kv_heads, ith, nth) {
            let rows = self.store.rows::<T>(job.layer_index, entry.seq);
            let step = if job.append.is_some() && job.attend.is_some() { shape.max_chunk } else { entry.n };
            let mut at = 0;
            // One head's chunk is stored and attended before its next chunk may overwrite what the queries still see.
            while at < entry.n {
                let tokens = at..entry.n.min(at + step);
                at = tokens.end;
                if let Some(io) = &job.append {
                    append::append(job, io, &rows, entry, tokens.clone(), heads.clone(), &mut scratch);
                }
                if let Some(io) = &job.attend {
                    attend::attend(job, io, &rows, entry, tokens, heads.clone(), &mut scratch);
                }
            }
        }
    }
}

impl Backend for Cpu {
    fn run(&self, job: &Job<'_>, ith: u32, nth: u32) {
        match job.shape.kv_dtype {
            DType::F32 => self.run_typed::<f32>(job, ith, nth),
            DType::F16 => self.run_typed::<f16>(job, ith, nth),
            DType::Bf16 => self.run_typed::<bf16>(job, ith, nth),
        }
    }

    fn copy_sequence(&self, layer: usize, src: usize, dst: usize, slots: u64) {
        self.store.copy_sequence(layer, src, dst, slots);
    }
}

/// The KV heads of each entry that part `ith` of `nth` works on: an even share of (token, head) pairs, whole heads only.
fn share(entries: &[Entry], n_kv_heads: usize, ith: u32, nth: u32) -> impl Iterator<Item = (&Entry, Range<usize>)> {
    let heads = n_kv_heads as u128;
    let total = entries.iter().map(|e| u128::from(e.n)).sum::<u128>() * heads;
    let bound = |i: u32| total * u128::from(i) / u128::from(nth);
    let (from, to) = (bound(ith), bound(ith + 1));
    let mut before = 0_u128;
    entries.iter().filter_map(move |e| {
        let n = u128::from(e.n);
        // A head belongs to the part in which its first pair lies.
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
            let entries: Vec<_> =
                counts.iter().enumerate().map(|(seq, &n)| Entry { seq, row: 0, n, first: 0, start: 0, floor: 0 }).collect();
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

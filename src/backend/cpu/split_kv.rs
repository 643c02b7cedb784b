//! KV splits of a decode: partial results, their merge, and the memory that threads exchange them in (allocated at
//! creation, only with several threads).

use std::sync::atomic::{AtomicU32, Ordering};

use super::kv_layout::{max_splits, padded_dim};
use super::query_tile::QueryTile;
use super::scratch::{SPLIT_KEYS, decode_rows};
use crate::backend::LayerCall;
use crate::batch::Entry;
use crate::config::{Layer, Shape};
use crate::error::Result;
use crate::memory::{Buffer, Memory, with_room};

/// A partial result: attention over some of the keys.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    /// `[rows]`.
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[rows][head_dim_v]`, padded.
    pub acc: &'a mut [f32],
}

/// Memory for the partial results of all splits of a few heads.
#[derive(Debug)]
pub(super) struct SplitPartials {
    buffer: Buffer,
    /// Splits of each unit (an entry's head) that have not arrived yet.
    left: Vec<AtomicU32>,
    splits: u64,
    /// f32 elements of one partial result.
    size: usize,
}

/// Units whose splits may go to different threads: fewer than four for each thread.
fn units(shape: &Shape, n_seqs: u32, n_threads: u32) -> u64 {
    if n_threads == 1 { 0 } else { (4 * u64::from(n_threads)).min(u64::from(n_seqs) * shape.n_kv_heads as u64) }
}

fn most_splits<'a>(layers: impl Iterator<Item = &'a Layer>) -> u64 {
    layers.map(|l| max_splits(l, SPLIT_KEYS as u64)).max().unwrap_or(0)
}

/// f32 elements of a partial result: maxima, sums, accumulators.
fn size(shape: &Shape) -> usize {
    decode_rows(shape) * (2 + padded_dim(shape.head_dim_v))
}

impl SplitPartials {
    /// Bytes; `None` on overflow.
    pub fn bytes<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer>,
        n_seqs: u32,
        n_threads: u32,
    ) -> Option<u64> {
        let units = units(shape, n_seqs, n_threads);
        let split = (size(shape) * size_of::<f32>()) as u64;
        (split * units).checked_mul(most_splits(layers))?.checked_add(units * size_of::<AtomicU32>() as u64)
    }

    pub fn new<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer>,
        n_seqs: u32,
        n_threads: u32,
        memory: Memory,
    ) -> Result<Self> {
        let (n, splits, size) = (units(shape, n_seqs, n_threads), most_splits(layers), size(shape));
        let mut left = with_room(n as usize, "KV split counters")?;
        left.resize_with(n as usize, AtomicU32::default);
        // At most 4,096 units. A size that overflows saturates, and its allocation fails.
        let bytes = (n * size as u64 * size_of::<f32>() as u64).saturating_mul(splits);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(Self { buffer: Buffer::new(memory, bytes, "KV splits")?, left, splits, size })
    }

    /// Whether all heads of a call can be divided into splits for different threads.
    pub fn fits(&self, call: &LayerCall<'_>, decodes: impl Fn(&Entry) -> bool) -> bool {
        call.entries.len() * call.shape.n_kv_heads <= self.left.len() && call.entries.iter().all(decodes)
    }

    /// Prepares for `count` splits of each head of each entry; returns their total.
    pub fn begin(&self, call: &LayerCall<'_>, count: impl Fn(&Entry) -> u64) -> u64 {
        let heads = call.shape.n_kv_heads;
        let mut total = 0;
        for (entry, left) in call.entries.iter().zip(self.left.chunks(heads)) {
            let n = count(entry);
            assert!(n <= self.splits, "{n} KV splits, room for {}", self.splits);
            left.iter().for_each(|l| l.store(n as u32, Ordering::Relaxed));
            total += n * heads as u64;
        }
        total
    }

    fn at(&self, unit: usize, split: u64) -> *mut f32 {
        assert!(unit < self.left.len() && split < self.splits, "split {split} of unit {unit}");
        self.buffer.as_ptr().cast::<f32>().wrapping_add((unit * self.splits as usize + split as usize) * self.size)
    }

    /// Stores a partial result.
    ///
    /// # Safety
    /// Nobody else may access this split at the same time.
    pub unsafe fn put(&self, unit: usize, split: u64, rows: usize, dim: usize, partial: &Partial<'_>) {
        // SAFETY: this thread alone has the split, by the caller.
        let to = unsafe { self.get(unit, split, rows, dim) };
        to.max.copy_from_slice(&partial.max[..rows]);
        to.sum.copy_from_slice(&partial.sum[..rows]);
        to.acc.copy_from_slice(&partial.acc[..rows * dim]);
    }

    /// A stored partial result.
    ///
    /// # Safety
    /// As [`Self::put`].
    pub unsafe fn get(&self, unit: usize, split: u64, rows: usize, dim: usize) -> Partial<'_> {
        assert!(rows * (2 + dim) <= self.size, "{rows} rows of {dim} dims");
        let at = self.at(unit, split);
        // SAFETY: `at` and the assertion keep the three slices within the initialised buffer; they do not overlap, and
        // this thread alone has the split, by the caller.
        unsafe {
            Partial {
                max: std::slice::from_raw_parts_mut(at, rows),
                sum: std::slice::from_raw_parts_mut(at.add(rows), rows),
                acc: std::slice::from_raw_parts_mut(at.add(2 * rows), rows * dim),
            }
        }
    }

    /// Counts a stored split of a unit; true for the last one.
    pub fn arrive(&self, unit: usize) -> bool {
        // Acquire: the thread that merges sees what all others have stored.
        self.left[unit].fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Adds a partial result of a tile's rows to the running result `total`.
pub(super) fn merge(tile: &QueryTile<'_>, total: &mut Partial<'_>, partial: &Partial<'_>) {
    let dim = padded_dim(tile.call.shape.head_dim_v);
    for r in 0..tile.rows {
        let (max, partial_max) = (total.max[r], partial.max[r]);
        let new = max.max(partial_max);
        // All scores are minus infinity: there is no maximum to subtract. A NaN must propagate.
        if partial_max == f32::NEG_INFINITY && partial.sum[r] == 0.0 {
            continue;
        }
        let unit = tile.score_unit(r); // mutant: merge_of_raw_maxima
        let (alpha, beta) = (((max - new) * unit).exp(), ((partial_max - new) * unit).exp());
        total.max[r] = new;
        total.sum[r] = total.sum[r] * alpha + partial.sum[r] * beta;
        let acc = &mut total.acc[r * dim..(r + 1) * dim];
        // mutant: split_merged_without_rescale
        acc.iter_mut().zip(&partial.acc[r * dim..]).for_each(|(a, p)| *a = *a * alpha + p * beta);
    }
}

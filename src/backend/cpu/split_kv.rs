//! Where spans of a head wait for each other when threads share it: had at create, and only with threads.

use std::sync::atomic::{AtomicU32, Ordering};

use super::kv_layout::{most_spans, padded_dim};
use super::scratch::{SPAN, decode_rows};
use crate::backend::LayerCall;
use crate::batch::Entry;
use crate::config::{Layer, Shape};
use crate::error::Result;
use crate::memory::{Buffer, Memory, with_room};

/// The softmax of one span.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// `[rows]`.
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[rows][head_dim_v]`, padded.
    pub acc: &'a mut [f32],
}

/// Partial results of all spans of a few heads.
#[derive(Debug)]
pub(super) struct Spans {
    buffer: Buffer,
    /// Spans still to come of each unit (an entry's head).
    left: Vec<AtomicU32>,
    spans: u64,
    /// f32 elements of one span.
    size: usize,
}

/// Units that may share threads: fewer than four for each thread.
fn units(shape: &Shape, n_seqs: u32, n_threads: u32) -> u64 {
    if n_threads == 1 { 0 } else { (4 * u64::from(n_threads)).min(u64::from(n_seqs) * shape.n_kv_heads as u64) }
}

fn most<'a>(layers: impl Iterator<Item = &'a Layer>) -> u64 {
    layers.map(|l| most_spans(&l.ring, SPAN as u64)).max().unwrap_or(0)
}

/// Elements of one span: maxima, sums, weighted values.
fn size(shape: &Shape) -> usize {
    decode_rows(shape) * (2 + padded_dim(shape.head_dim_v))
}

impl Spans {
    /// Bytes; `None` on overflow.
    pub fn bytes<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer>,
        n_seqs: u32,
        n_threads: u32,
    ) -> Option<u64> {
        let units = units(shape, n_seqs, n_threads);
        let span = (size(shape) * size_of::<f32>()) as u64;
        (span * units).checked_mul(most(layers))?.checked_add(units * size_of::<AtomicU32>() as u64)
    }

    pub fn new<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer>,
        n_seqs: u32,
        n_threads: u32,
        memory: Memory,
    ) -> Result<Self> {
        let (n, spans, size) = (units(shape, n_seqs, n_threads), most(layers), size(shape));
        let mut left = with_room(n as usize, "span counters")?;
        left.resize_with(n as usize, AtomicU32::default);
        // At most 4,096 units: a product that overflows is a size that cannot be had.
        let bytes = (n * size as u64 * size_of::<f32>() as u64).saturating_mul(spans);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(Self { buffer: Buffer::zeroed(memory, bytes, "spans")?, left, spans, size })
    }

    /// Whether all units of a job can share threads.
    pub fn fits(&self, job: &LayerCall<'_>, decodes: impl Fn(&Entry) -> bool) -> bool {
        job.entries.len() * job.shape.n_kv_heads <= self.left.len() && job.entries.iter().all(decodes)
    }

    /// Expects `count` spans of each head of each entry; returns how many there are in all.
    pub fn begin(&self, job: &LayerCall<'_>, count: impl Fn(&Entry) -> u64) -> u64 {
        let heads = job.shape.n_kv_heads;
        let mut total = 0;
        for (entry, left) in job.entries.iter().zip(self.left.chunks(heads)) {
            let n = count(entry);
            assert!(n <= self.spans, "{n} spans, room for {}", self.spans);
            left.iter().for_each(|l| l.store(n as u32, Ordering::Relaxed));
            total += n * heads as u64;
        }
        total
    }

    fn at(&self, unit: usize, span: u64) -> *mut f32 {
        assert!(unit < self.left.len() && span < self.spans, "span {span} of unit {unit}");
        self.buffer.as_ptr().cast::<f32>().wrapping_add((unit * self.spans as usize + span as usize) * self.size)
    }

    /// Keeps the softmax of one span.
    ///
    /// # Safety
    /// Nobody else may have this span meanwhile.
    pub unsafe fn put(&self, unit: usize, span: u64, rows: usize, dim: usize, part: &Part<'_>) {
        // SAFETY: the caller's contract.
        let mine = unsafe { self.part(unit, span, rows, dim) };
        mine.max.copy_from_slice(&part.max[..rows]);
        mine.sum.copy_from_slice(&part.sum[..rows]);
        mine.acc.copy_from_slice(&part.acc[..rows * dim]);
    }

    /// The softmax of one span.
    ///
    /// # Safety
    /// As [`Self::put`].
    pub unsafe fn part(&self, unit: usize, span: u64, rows: usize, dim: usize) -> Part<'_> {
        assert!(rows * (2 + dim) <= self.size, "{rows} rows of {dim} dims");
        let at = self.at(unit, span);
        // SAFETY: within the buffer by the checks, initialised, disjoint; the caller's contract.
        unsafe {
            Part {
                max: std::slice::from_raw_parts_mut(at, rows),
                sum: std::slice::from_raw_parts_mut(at.add(rows), rows),
                acc: std::slice::from_raw_parts_mut(at.add(2 * rows), rows * dim),
            }
        }
    }

    /// One more span of a unit is kept; true for the last.
    pub fn arrive(&self, unit: usize) -> bool {
        // Acquire: the last one sees what all others have kept.
        self.left[unit].fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Adds the softmax of a span to that of the spans before it.
pub(super) fn merge(rows: usize, dim: usize, state: &mut Part<'_>, part: &Part<'_>) {
    for r in 0..rows {
        let (max, part_max) = (state.max[r], part.max[r]);
        let new = max.max(part_max);
        // Nothing with a weight, and no maximum to subtract. A NaN must show.
        if part_max == f32::NEG_INFINITY && part.sum[r] == 0.0 {
            continue;
        }
        let (keep, take) = ((max - new).exp(), (part_max - new).exp());
        state.max[r] = new;
        state.sum[r] = state.sum[r] * keep + part.sum[r] * take;
        let acc = &mut state.acc[r * dim..(r + 1) * dim];
        acc.iter_mut().zip(&part.acc[r * dim..]).for_each(|(a, p)| *a = *a * keep + p * take);
    }
}

//! What lies where in a cache's device memory. Two blocks: K and V, and everything else.

use super::device_memory::ALIGN;
use super::params::SkcStore;
use crate::config::{Layer, Shape};
use crate::error::{Error, Result, Status};
use crate::ring::Seq;

/// Query columns of a split decode times the floats of one: accumulators, maximum, sum.
fn partial_floats(shape: &Shape) -> u64 {
    u64::from(super::launch_config::COLUMNS) * (shape.head_dim_v as u64 + 2)
}

/// Byte offsets in the block of K and V: of K and of V of each layer, and its length.
pub fn kv<'a>(shape: &Shape, layers: impl Iterator<Item = &'a Layer>, n_seqs: u32) -> Result<(Vec<[u64; 2]>, u64)> {
    let mut at = 0_u64;
    let mut offsets = Vec::new();
    for layer in layers {
        let slots = u128::from(layer.ring.slots()) * u128::from(n_seqs) * shape.n_kv_heads as u128;
        let mut pair = [0; 2];
        for (offset, dim) in pair.iter_mut().zip([shape.head_dim, shape.head_dim_v]) {
            *offset = at;
            // At most 2^34 slots x 2^24 sequences x 2^16 heads x 2^11 bytes: within 128 bits.
            let bytes = slots * (dim * shape.kv_dtype.size()) as u128;
            at = u64::try_from(bytes)
                .ok()
                .and_then(|b| at.checked_add(b)?.checked_next_multiple_of(ALIGN as u64))
                .filter(|&end| i64::try_from(end).is_ok())
                .ok_or_else(|| {
                    Error::new(Status::OutOfMemory, "K and V of this configuration exceed the address space")
                })?;
        }
        if offsets.try_reserve(1).is_err() {
            return Err(Error::new(Status::OutOfMemory, "layer offsets could not be allocated"));
        }
        offsets.push(pair);
    }
    Ok((offsets, at))
}

/// Byte offsets in the block of everything else.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    /// `[n_layers][n_seqs]` counters. All that must be zero comes first.
    pub seqs: u64,
    /// `[n_seqs]` u64.
    pub starts: u64,
    /// `[n_seqs]` u32.
    pub arrivals: u64,
    /// u32 per (entry, KV head) of a split decode.
    pub counters: u64,
    /// `[n_layers][4]` u64.
    pub rings: u64,
    /// `[n_layers]` `SkcStore`.
    pub stores: u64,
    /// Arrays of a host batch too long for a launch: ids, tokens (i32), positions (u64).
    pub stage_ids: u64,
    pub stage_tokens: u64,
    pub stage_positions: u64,
    /// Per layer: frequencies (u64), slopes and logits (f32).
    pub tables: Vec<[u64; 3]>,
    pub partials: u64,
    pub bytes: u64,
}

/// Entries of a host batch: a few of padding beside every sequence.
pub fn max_entries(n_seqs: u32) -> u32 {
    n_seqs.saturating_mul(2).max(1024)
}

/// Most (entry, KV head, split) triples of a split decode.
pub fn max_partials(multiprocessors: u32) -> u64 {
    4 * u64::from(multiprocessors.max(1))
}

impl Rest {
    /// For a device of `multiprocessors`; an estimate of them does for a footprint.
    pub fn new<'a>(
        shape: &Shape,
        layers: impl ExactSizeIterator<Item = &'a Layer>,
        n_seqs: u32,
        multiprocessors: u32,
    ) -> Self {
        // At most 2^16 layers x 2^24 sequences x 32 bytes and 2^16 layers x 2^17 numbers: far from overflow.
        let mut at = 0;
        let mut take = |n: u64, size: usize| {
            let offset = at;
            at = (at + n * size as u64).next_multiple_of(ALIGN as u64);
            offset
        };
        let (n_layers, n_seqs_64, staged) = (layers.len() as u64, u64::from(n_seqs), max_entries(n_seqs).into());
        let seqs = take(n_layers * n_seqs_64, size_of::<Seq>());
        let starts = take(n_seqs_64, 8);
        let arrivals = take(n_seqs_64, 4);
        let counters = take(max_partials(multiprocessors), 4);
        let rings = take(n_layers * 4, 8);
        let stores = take(n_layers, size_of::<SkcStore>());
        let stage_ids = take(staged, 4);
        let stage_tokens = take(staged, 4);
        let stage_positions = take(staged, 8);
        let tables = layers
            .map(|layer| {
                [
                    take(layer.frequencies.len() as u64, 8),
                    take(layer.alibi_slopes.len() as u64, 4),
                    take(layer.sink_logits.len() as u64, 4),
                ]
            })
            .collect();
        let partials = take(max_partials(multiprocessors) * partial_floats(shape), 4);
        Self {
            seqs,
            starts,
            arrivals,
            counters,
            rings,
            stores,
            stage_ids,
            stage_tokens,
            stage_positions,
            tables,
            partials,
            bytes: at,
        }
    }
}

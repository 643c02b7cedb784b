//! The layout of a cache's device memory. It has two buffers: K and V, and everything else.

use super::device_memory::ALIGN;
use super::launch_config::{CHUNK_WARPS, DECODE_COLUMNS, chunk_partial_floats};
use super::params::{SkcErrorLog, SkcRing, SkcStore};
use crate::config::{Layer, Shape, StorageType};
use crate::error::{Error, Result, Status};
use crate::memory::with_room;
use crate::ranges::EditedRange;
use crate::ring::Seq;

/// Floats of a decode's partial result: for each query column the accumulator, the maximum and the sum.
fn partial_floats(shape: &Shape) -> u64 {
    u64::from(DECODE_COLUMNS) * (shape.head_dim_v as u64 + 2)
}

/// Where K, or V, of one layer lies: codes (or numbers) and scales of `[n_seqs][n_kv_heads]` heads, in each a row for
/// every slot. `kernels/stored_rows.cuh` computes the same addresses.
///
/// In memory, codes are in canonical order. Scales are padded to whole words, so that they can be copied to shared
/// memory without waiting.
#[derive(Clone, Copy, Debug)]
pub struct StoreLayout {
    pub store_type: StorageType,
    pub dim: usize,
    /// Byte offsets in the buffer.
    pub codes: u64,
    pub scales: u64,
    /// Bytes of one head.
    pub head_codes: u64,
    pub head_scales: u64,
}

/// Rows of K or of V that the layout has room for.
#[derive(Clone, Copy)]
struct StoredRows {
    heads: u128,
    slots: u128,
}

impl StoreLayout {
    /// Lays out K or V of a layer from offset `at` on; `at` becomes what lies behind it. `None` on overflow.
    fn take(store_type: StorageType, dim: usize, rows: StoredRows, at: &mut u64) -> Option<Self> {
        // At most 2^34 slots x 2^11 bytes, 2^24 sequences x 2^16 heads: within 128 bits.
        let mut region = |row_bytes: usize| {
            let head = (rows.slots * row_bytes as u128).next_multiple_of(HEAD_ALIGN);
            let (offset, end) = (*at, u64::try_from(rows.heads * head).ok()?);
            *at = offset
                .checked_add(end)?
                .checked_next_multiple_of(ALIGN as u64)
                .filter(|&end| i64::try_from(end).is_ok())?;
            Some((offset, u64::try_from(head).ok()?))
        };
        let (codes, head_codes) = region(store_type.code_bytes(dim))?;
        let (scales, head_scales) = region(row_scales(store_type, dim))?;
        Some(Self { store_type, dim, codes, scales, head_codes, head_scales })
    }

    /// As kernels get it; `base`: the buffer's address.
    pub fn store(&self, base: u64) -> SkcStore {
        SkcStore {
            codes: base + self.codes,
            scales: base + self.scales,
            head_codes: self.head_codes,
            head_scales: self.head_scales,
            // At most 2^11 bytes.
            row_codes: self.store_type.code_bytes(self.dim) as u32,
            row_scales: row_scales(self.store_type, self.dim) as u32,
            store_type: self.store_type as u32,
            dim: self.dim as u32,
        }
    }
}

/// Addresses of a row's codes (or numbers) and scales.
#[derive(Clone, Copy, Debug)]
pub struct RowAddresses {
    pub codes: u64,
    pub scales: u64,
}

impl SkcStore {
    /// The row in a slot of a head, counted over all sequences: as `stored_row` of `kernels/stored_rows.cuh`. Those of
    /// the slots that follow lie `row_codes` and `row_scales` bytes further on.
    pub fn row_at(&self, head: u64, slot: u64) -> RowAddresses {
        // Within the buffer of K and V, whose size was checked.
        RowAddresses {
            codes: self.codes + head * self.head_codes + slot * u64::from(self.row_codes),
            scales: self.scales + head * self.head_scales + slot * u64::from(self.row_scales),
        }
    }
}

/// Alignment of a head's codes and scales.
const HEAD_ALIGN: u128 = 16;

/// Bytes of a row's scales: bf16, padded to whole words.
fn row_scales(store_type: StorageType, dim: usize) -> usize {
    (2 * store_type.scales(dim)).next_multiple_of(4)
}

/// The buffer of K and V.
#[derive(Debug)]
pub struct KvLayout {
    /// K and V of each layer.
    pub layers: Vec<[StoreLayout; 2]>,
    pub bytes: u64,
}

impl KvLayout {
    pub fn new<'a>(shape: &Shape, layers: impl ExactSizeIterator<Item = &'a Layer>, n_seqs: u32) -> Result<Self> {
        let mut at = 0_u64;
        let mut laid_out = with_room(layers.len(), "layer offsets")?;
        for layer in layers {
            let heads = u128::from(n_seqs) * shape.n_kv_heads as u128;
            let rows = StoredRows { heads, slots: layer.ring.slots().into() };
            let mut take = |store_type, dim| {
                StoreLayout::take(store_type, dim, rows, &mut at).ok_or_else(|| {
                    Error::new(Status::OutOfMemory, "K and V of this configuration exceed the address space")
                })
            };
            laid_out.push([take(shape.k_type, shape.head_dim)?, take(shape.v_type, shape.head_dim_v)?]);
        }
        Ok(Self { layers: laid_out, bytes: at })
    }
}

/// Byte offsets of one layer's tables.
#[derive(Clone, Copy, Debug)]
pub struct TableOffsets {
    /// `[n_seqs][max_segments]` `EditedRange`: pinned and evicted ranges.
    pub ranges: u64,
    /// u64.
    pub frequencies: u64,
    /// f32.
    pub alibi_slopes: u64,
    /// f32.
    pub sink_logits: u64,
}

/// Byte offsets in the buffer of everything but K and V.
#[derive(Clone, Debug, Default)]
pub struct AuxLayout {
    /// `[n_layers][n_seqs]` counters.
    pub seqs: u64,
    /// `[n_seqs]` u64.
    pub starts: u64,
    /// `[n_seqs]` u32.
    pub append_arrivals: u64,
    /// u32 per (entry, KV head) of a decode's KV split; per block and warp of a chunk's, of which those of a query
    /// tile's first block count.
    pub split_arrivals: u64,
    /// One `SkcErrorLog`.
    pub errors: u64,
    /// `[n_layers]` `SkcRing`.
    pub rings: u64,
    /// `[n_layers][2]` `SkcStore`: K and V.
    pub stores: u64,
    /// Arrays of a host batch that is too long for kernel parameters: ids and tokens (i32), positions (u64).
    pub stage_ids: u64,
    pub stage_tokens: u64,
    pub stage_positions: u64,
    /// For each layer.
    pub tables: Vec<TableOffsets>,
    /// Partial results of a KV split.
    pub partials: u64,
    pub bytes: u64,
}

/// The most entries of a host batch: every sequence, and as many of padding.
pub fn max_entries(n_seqs: u32) -> u32 {
    n_seqs.saturating_mul(2).max(1024)
}

/// The most partial results of a decode's launch: (entry, KV head, split) triples.
pub fn max_partials(multiprocessors: u32) -> u64 {
    4 * u64::from(multiprocessors.max(1))
}

/// The most partial results of a chunk's launch: (entry, KV head, query tile, split) quadruples. As many blocks are
/// resident at a time; those of more query tiles fill the device without a KV split.
pub fn max_chunk_partials(multiprocessors: u32) -> u64 {
    2 * u64::from(multiprocessors.max(1))
}

/// What KV splits need: partial results, and counters of splits that have arrived. Launches of a cache follow each
/// other, so decodes and chunks share both.
#[derive(Clone, Copy, Debug)]
pub struct SplitScratch {
    floats: u64,
    arrivals: u64,
}

impl SplitScratch {
    /// `specialised`: whether some layer has kernels that split keys.
    pub fn new(shape: &Shape, multiprocessors: u32, specialised: bool) -> Self {
        let decode = max_partials(multiprocessors);
        let chunk = match specialised && shape.max_chunk * shape.group as u64 > DECODE_COLUMNS.into() {
            true => max_chunk_partials(multiprocessors),
            false => 0,
        };
        let floats = (decode * partial_floats(shape)).max(chunk * chunk_partial_floats(shape.head_dim_v as u64));
        Self { floats, arrivals: decode.max(chunk * CHUNK_WARPS) }
    }
}

impl AuxLayout {
    pub fn new<'a>(layers: impl ExactSizeIterator<Item = &'a Layer>, n_seqs: u32, scratch: SplitScratch) -> Self {
        // At most 2^16 layers x 2^24 sequences x (56 bytes + 2^10 ranges of 32 bytes): no overflow.
        let mut at = 0;
        let mut take = |n: u64, size: usize| {
            let offset = at;
            at = (at + n * size as u64).next_multiple_of(ALIGN as u64);
            offset
        };
        let n_layers = layers.len() as u64;
        let staged = max_entries(n_seqs).into();
        let seqs = take(n_layers * u64::from(n_seqs), size_of::<Seq>());
        let starts = take(n_seqs.into(), 8);
        let append_arrivals = take(n_seqs.into(), 4);
        let split_arrivals = take(scratch.arrivals, 4);
        let errors = take(1, size_of::<SkcErrorLog>());
        let rings = take(n_layers, size_of::<SkcRing>());
        let stores = take(2 * n_layers, size_of::<SkcStore>());
        let stage_ids = take(staged, 4);
        let stage_tokens = take(staged, 4);
        let stage_positions = take(staged, 8);
        let tables = layers
            .map(|layer| TableOffsets {
                ranges: take(u64::from(n_seqs) * layer.ring.max_segments, size_of::<EditedRange>()),
                frequencies: take(layer.frequencies.len() as u64, 8),
                alibi_slopes: take(layer.alibi_slopes.len() as u64, 4),
                sink_logits: take(layer.sink_logits.len() as u64, 4),
            })
            .collect();
        let partials = take(scratch.floats, 4);
        Self {
            seqs,
            starts,
            append_arrivals,
            split_arrivals,
            errors,
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

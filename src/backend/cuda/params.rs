//! Kernel parameters, passed by value: the structs of `kernels/params.cuh`, where the fields are explained.

use crate::config::{Layer, Shape};
use crate::ranges::EditedRange;
use crate::ring::{Ring, Seq};
use crate::tensor::Strided;

/// Entries of a batch that fit into the kernel parameters.
pub const INLINE_ENTRIES: usize = 64;

/// A device address.
pub type Address = u64;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcBatch {
    pub seq_ids: Address,
    pub n_tokens: Address,
    pub n_rows: u64,
    pub n_entries: u32,
    pub n_seqs: u32,
    pub max_tokens: u32,
    pub chunk_begin: u32,
    pub chunk_len: u32,
    pub all: u32,
    pub inline_ids: [i32; INLINE_ENTRIES],
    pub inline_tokens: [i32; INLINE_ENTRIES],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SkcRows {
    pub ptr: Address,
    pub token_stride: i64,
    pub head_stride: i64,
}

impl From<Strided> for SkcRows {
    fn from(s: Strided) -> Self {
        let (ptr, token_stride, head_stride) = s.raw();
        Self { ptr: ptr as Address, token_stride: token_stride as i64, head_stride: head_stride as i64 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SkcStore {
    pub codes: Address,
    pub scales: Address,
    pub head_codes: u64,
    pub head_scales: u64,
    pub row_codes: u32,
    pub row_scales: u32,
    pub store_type: u32,
    pub dim: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SkcLayer {
    pub k: SkcStore,
    pub v: SkcStore,
    pub seqs: Address,
    pub ranges: Address,
    pub starts: Address,
    pub frequencies: Address,
    pub alibi_slopes: Address,
    pub sink_logits: Address,
    pub errors: Address,
    pub append_arrivals: Address,
    pub n_sink: u64,
    pub window: u64,
    pub ring_slots: u64,
    pub max_rewind: u64,
    pub max_pinned: u64,
    pub max_segments: u64,
    pub layer: u32,
    pub max_chunk: u32,
    pub n_kv_heads: u32,
    pub group: u32,
    pub in_dtype: u32,
    pub out_dtype: u32,
    pub position_mode: u32,
    pub rope_style: u32,
    pub rope_pairs: u32,
    pub mscale: f32,
    pub scale: f32,
    pub softcap: f32,
}

impl SkcLayer {
    /// The settings of a layer; addresses are left 0.
    pub fn new(index: usize, layer: &Layer, shape: &Shape) -> Self {
        let ring = &layer.ring;
        Self {
            n_sink: ring.n_sink,
            window: ring.window,
            ring_slots: ring.ring_slots,
            max_rewind: ring.max_rewind,
            max_pinned: ring.max_pinned,
            max_segments: ring.max_segments,
            // The limits of `config` keep all of these below 2^32.
            layer: index as u32,
            max_chunk: shape.max_chunk as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            group: shape.group as u32,
            in_dtype: shape.in_dtype as u32,
            out_dtype: shape.out_dtype as u32,
            position_mode: layer.position_mode as u32,
            rope_style: layer.rope_style as u32,
            rope_pairs: layer.frequencies.len() as u32,
            mscale: layer.mscale,
            scale: layer.scale,
            softcap: layer.softcap,
            ..Self::default()
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcAppend {
    pub layer: SkcLayer,
    pub batch: SkcBatch,
    pub k: SkcRows,
    pub v: SkcRows,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcAttend {
    pub layer: SkcLayer,
    pub batch: SkcBatch,
    pub q: SkcRows,
    pub out: SkcRows,
    pub lse: SkcRows,
    pub partials: Address,
    pub split_arrivals: Address,
    pub n_splits: u32,
    pub small_tiles: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcStep {
    pub attend: SkcAttend,
    pub k: SkcRows,
    pub v: SkcRows,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcEdit {
    pub seqs: Address,
    pub starts: Address,
    pub rings: Address,
    pub errors: Address,
    pub positions: Address,
    pub n_layers: u32,
    pub call: u32,
    pub batch: SkcBatch,
    pub inline_positions: [u64; INLINE_ENTRIES],
    pub can_pin: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcRing {
    pub n_sink: u64,
    pub window: u64,
    pub ring_slots: u64,
    pub max_rewind: u64,
    pub max_pinned: u64,
    pub max_segments: u64,
    pub ranges: Address,
}

impl SkcRing {
    /// A layer's ring; `ranges`: where its lists of ranges are, or 0.
    pub fn new(ring: &Ring, ranges: Address) -> Self {
        let Ring { n_sink, window, ring_slots, max_rewind, max_pinned, max_segments } = *ring;
        Self { n_sink, window, ring_slots, max_rewind, max_pinned, max_segments, ranges }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcRowEdit {
    pub edit: SkcEdit,
    pub stores: Address,
    pub n_kv_heads: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkcStage {
    pub seq_ids: Address,
    pub n_tokens: Address,
    pub positions: Address,
    pub first: u32,
    pub n: u32,
    pub ids: [i32; INLINE_ENTRIES],
    pub tokens: [i32; INLINE_ENTRIES],
    pub values: [u64; INLINE_ENTRIES],
}

/// The record of invalid entries, in mapped host memory. `n_taken` alone is the host's to write.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SkcErrorPage {
    pub begun: u32,
    pub n_skipped: u32,
    pub first: u32,
    pub status: i32,
    pub layer: u32,
    pub entry: u32,
    pub seq: i32,
    pub call: u32,
    pub value_low: u32,
    pub value_high: u32,
    pub ended: u32,
    pub unused: [u32; 21],
    pub n_taken: u32,
    pub unused_too: [u32; 31],
}

/// What the device knows of it, in its own memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SkcErrorLog {
    pub lock: u32,
    pub n_writes: u32,
    pub n_skipped: u32,
    pub first: u32,
    pub page: Address,
}

// `params.cuh` asserts the same numbers.
const _: () = {
    assert!(size_of::<Seq>() == 56 && size_of::<SkcErrorPage>() == 256 && size_of::<SkcErrorLog>() == 24);
    assert!(size_of::<SkcBatch>() == 560 && size_of::<SkcRows>() == 24 && size_of::<SkcLayer>() == 256);
    assert!(size_of::<SkcAppend>() == 864 && size_of::<SkcAttend>() == 912 && size_of::<SkcStep>() == 960);
    assert!(size_of::<SkcEdit>() == 1128 && size_of::<SkcStore>() == 48 && size_of::<SkcRowEdit>() == 1144);
    assert!(size_of::<SkcStage>() == 1056 && size_of::<EditedRange>() == 32 && size_of::<SkcRing>() == 56);
};

//! How slots of K and V are laid out: key groups, alignment, addresses.

use crate::ring::Ring;

/// Slots whose keys are stored together, dims outermost.
pub(super) const KEY_GROUP: usize = 16;
/// Sinks and ring each begin and end at a multiple of so many slots.
pub(super) const SLOT_ALIGN: u64 = 32;

/// Dims of a stored row of V: padded to whole vectors.
pub(super) fn padded_dim(dim: usize) -> usize {
    dim.next_multiple_of(KEY_GROUP)
}

/// Physical slots of a layer's sinks, padded: where its ring begins.
pub(super) fn ring_begin(ring: &Ring) -> u64 {
    ring.n_sink.next_multiple_of(SLOT_ALIGN)
}

/// Physical slots of one sequence in one layer.
pub(super) fn physical_slots(ring: &Ring) -> u64 {
    // Sinks and ring slots are sums of at most two u32 each: far from overflow.
    ring_begin(ring) + ring.ring_slots.next_multiple_of(SLOT_ALIGN)
}

/// The padded slot in memory of a slot of the ring's numbering, and where its region (sinks or ring) begins.
pub(super) fn physical(ring: &Ring, slot: u64) -> (u64, u64) {
    if slot < ring.n_sink { (slot, 0) } else { (ring_begin(ring) + slot - ring.n_sink, ring_begin(ring)) }
}

/// Most KV splits of `size` physical slots that the visible range of one query can touch.
pub(super) fn max_splits(ring: &Ring, size: u64) -> u64 {
    // The ring's run may break in two where it wraps.
    ring_begin(ring).div_ceil(size) + ring.ring_slots.div_ceil(size) + 1
}

/// Offset of dim `d` of `key`'s pair of tokens in the interleaved layout of bf16 values, in 32-bit pairs. Keys count
/// from a slot that is a multiple of 32.
#[inline(always)]
pub(super) fn bf16_pair_index(dim: usize, key: usize, d: usize) -> usize {
    key / 32 * (16 * dim) + d / 16 * 256 + key % 32 / 2 * 16 + d % 16
}

/// The keys of a block: `n` stored columns, of which `from..to` may be visible. What lies in the others is unspecified
/// and must not reach a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyRange {
    pub from: usize,
    pub to: usize,
    pub n: usize,
}

impl KeyRange {
    /// Whether a column may be visible.
    #[inline(always)]
    pub fn contains(self, column: usize) -> bool {
        (self.from..self.to).contains(&column)
    }
}

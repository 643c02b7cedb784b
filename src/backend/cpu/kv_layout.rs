//! How slots of K and V are laid out: key groups, alignment, addresses.

use crate::config::{Layer, StorageType};
use crate::ring::Ring;

/// Slots whose keys are stored together, dims outermost.
pub(super) const KEY_GROUP: usize = 16;
/// The slots of sinks and pinned tokens, and those of the ring, each begin and end at a multiple of so many slots.
pub(super) const SLOT_ALIGN: u64 = 32;
/// Slots of a block of quantised rows.
pub(super) const CODE_BLOCK: usize = SLOT_ALIGN as usize;

/// Dims of a stored row of V: padded to whole vectors.
pub(super) fn padded_dim(dim: usize) -> usize {
    dim.next_multiple_of(KEY_GROUP)
}

/// Physical slots of a layer's sinks and pinned tokens, padded: where its ring begins.
pub(super) fn ring_begin(ring: &Ring) -> u64 {
    ring.fixed_slots().next_multiple_of(SLOT_ALIGN)
}

/// Physical slots of one sequence in one layer.
pub(super) fn physical_slots(ring: &Ring) -> u64 {
    // Sinks and ring slots are sums of at most two u32 each: far from overflow.
    ring_begin(ring) + ring.ring_slots.next_multiple_of(SLOT_ALIGN)
}

/// The padded slot in memory of a slot of the ring's numbering, and where its region (sinks and pinned tokens, or ring)
/// begins.
pub(super) fn physical(ring: &Ring, slot: u64) -> (u64, u64) {
    let fixed = ring.fixed_slots();
    if slot < fixed { (slot, 0) } else { (ring_begin(ring) + slot - fixed, ring_begin(ring)) }
}

/// Most KV splits of `size` physical slots that the visible range of one query can touch.
pub(super) fn max_splits(layer: &Layer, size: u64) -> u64 {
    let ring = &layer.ring;
    // With ALiBi each segment begins a split: pinned runs, and the window before each range.
    let segments = if layer.alibi_slopes.is_empty() { 0 } else { 2 * ring.max_segments };
    // The ring's run may break in two where it wraps.
    ring_begin(ring).div_ceil(size) + ring.ring_slots.div_ceil(size) + 1 + segments
}

/// Offset of dim `d` of `key`'s pair of tokens in the interleaved layout of bf16 values, in 32-bit pairs. Keys count
/// from a slot that is a multiple of 32.
#[inline(always)]
pub(super) fn bf16_pair_index(dim: usize, key: usize, d: usize) -> usize {
    key / 32 * (16 * dim) + d / 16 * 256 + key % 32 / 2 * 16 + d % 16
}

/// Where the scales and the codes of quantised rows lie. Each [`CODE_BLOCK`] slots are a block, a multiple of 64 bytes:
/// the scales of its slots, `[scales of a row][slot]`, then their codes in words of 32 bits.
///
/// A word holds four codes of q8 or eight of q4: of consecutive dims of one key, or of one dim of consecutive values.
/// So words of the same dims of 16 keys, or of 16 dims of the same values, are one vector. Keys lie in groups of
/// [`KEY_GROUP`] slots as `[word][slot]`; values in groups of as many slots as a word has codes, as `[dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeLayout {
    /// Dims of a row, a multiple of 8; of values, padded.
    pub dim: usize,
    /// Codes in a word.
    pub per_word: usize,
    /// Scales of a row.
    pub scales: usize,
}

impl CodeLayout {
    /// Of rows of `dim` dims; `None` for types that have no codes.
    pub fn new(storage: StorageType, dim: usize) -> Option<Self> {
        let per_word = match storage {
            StorageType::Q8 => 4,
            StorageType::Q4 => 8,
            StorageType::F32 | StorageType::F16 | StorageType::Bf16 => return None,
        };
        Some(Self { dim, per_word, scales: storage.scales(dim) })
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        CODE_BLOCK * (2 * self.scales + 4 * self.dim / self.per_word)
    }

    /// Offset of a slot's scale in its block, in scales.
    pub const fn scale(self, slot: usize, scale: usize) -> usize {
        scale * CODE_BLOCK + slot
    }

    /// Offset of a key's word in its block, in words.
    pub const fn key_word(self, slot: usize, word: usize) -> usize {
        let words = self.dim / self.per_word;
        self.first_word() + (slot / KEY_GROUP * words + word) * KEY_GROUP + slot % KEY_GROUP
    }

    /// Offset of the word of a dim of a value in its block, in words.
    pub const fn value_word(self, slot: usize, dim: usize) -> usize {
        self.first_word() + slot / self.per_word * self.dim + dim
    }

    const fn first_word(self) -> usize {
        CODE_BLOCK * self.scales / 2
    }

    /// The lowest bit of a code in its word: codes `i` and `i + 4` of q4 are the halves of byte `i`.
    pub const fn shift(self, code: usize) -> usize {
        if self.per_word == 8 { code % 4 * 8 + code / 4 * 4 } else { code * 8 }
    }
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

//! Stored rows in canonical order, which snapshots have: the numbers of a row one after the other, little-endian. In
//! memory they are in key groups and interleaved pairs.

use super::kv_layout::{KEY_GROUP, SLOT_ALIGN, bf16_pair_index, physical};
use super::kv_store::KvStore;
use crate::backend::SlotRun;
use crate::config::{DType, Which};

/// A run of slots, and where the numbers of its rows are.
struct HeadRows {
    /// The head's first byte.
    base: *mut u8,
    which: Which,
    dtype: DType,
    /// Numbers between the rows of two slots, where rows are stored one after the other.
    padded: usize,
    /// The first slot.
    first: usize,
    row_bytes: usize,
}

impl HeadRows {
    /// The first byte of number `d` of a slot.
    #[inline(always)]
    fn at(&self, slot: usize, d: usize) -> *mut u8 {
        let (group, lane) = (slot - slot % KEY_GROUP, slot % KEY_GROUP);
        let (tile, in_tile) = (slot - slot % SLOT_ALIGN as usize, slot % SLOT_ALIGN as usize);
        let index = match (self.which, self.dtype) {
            (_, DType::F32) | (Which::V, DType::F16) => slot * self.padded + d,
            (Which::K, DType::F16) => group * self.padded + d * KEY_GROUP + lane, // mutant: saved_key_of_another_lane
            (Which::K, DType::Bf16) => group * self.padded + d / 2 * (2 * KEY_GROUP) + 2 * lane + d % 2,
            (Which::V, DType::Bf16) => tile * self.padded + 2 * bf16_pair_index(self.padded, in_tile, d) + in_tile % 2,
        };
        self.base.wrapping_add(index * self.dtype.size())
    }

    /// Calls `copy` with the first byte of every number of a slot's row, of `N` bytes, and its place in the row.
    #[inline(always)]
    fn for_each<const N: usize>(&self, slot: usize, mut copy: impl FnMut(*mut [u8; N], usize)) {
        for d in 0..self.row_bytes / N {
            copy(self.at(slot, d).cast(), N * d);
        }
    }
}

impl KvStore {
    /// Reads the rows of a run of slots, one after the other.
    pub fn read_rows(&self, run: &SlotRun<'_>, out: &mut [u8]) {
        let head = self.head_rows(run);
        for (slot, row) in (head.first..).zip(out.chunks_exact_mut(head.row_bytes)) {
            // SAFETY: the slots of a run are of the head, and its numbers initialised and of the size that `dtype`
            // says; the call has the cache alone.
            unsafe {
                match head.dtype {
                    DType::F32 => head.for_each::<4>(slot, |p, i| row[i..i + 4].copy_from_slice(&*p)),
                    _ => head.for_each::<2>(slot, |p, i| row[i..i + 2].copy_from_slice(&*p)),
                }
            }
        }
    }

    /// Writes the rows of a run of slots, as [`Self::read_rows`] reads them.
    pub fn write_rows(&self, run: &SlotRun<'_>, rows: &[u8]) {
        let head = self.head_rows(run);
        for (slot, row) in (head.first..).zip(rows.chunks_exact(head.row_bytes)) {
            // SAFETY: as in `read_rows`; a number may be any bits.
            unsafe {
                match head.dtype {
                    DType::F32 => head.for_each::<4>(slot, |p, i| (*p).copy_from_slice(&row[i..i + 4])),
                    _ => head.for_each::<2>(slot, |p, i| (*p).copy_from_slice(&row[i..i + 2])),
                }
            }
        }
    }

    fn head_rows(&self, run: &SlotRun<'_>) -> HeadRows {
        let SlotRun { shape, layer, settings, seq, which, head, slot, n } = *run;
        let first = physical(&settings.ring, slot).0 as usize;
        let (base, slot_bytes) = self.head(layer, seq, which, head, first + n as usize);
        let dtype = shape.kv_element();
        HeadRows { base, which, dtype, padded: slot_bytes / dtype.size(), first, row_bytes: run.row_bytes() }
    }
}

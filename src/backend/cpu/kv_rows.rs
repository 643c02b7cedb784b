//! Stored rows in canonical order, which snapshots have: the numbers or codes of a row one after the other,
//! little-endian, then its scales. In memory they are in key groups, interleaved pairs and blocks.

use super::code_store::CodeBlock;
use super::kv_layout::{CodeLayout, KEY_GROUP, SLOT_ALIGN, bf16_pair_index, physical};
use super::kv_store::{KvStore, RowLayout};
use crate::backend::SlotRun;
use crate::config::{DType, MAX_HEAD_DIM, Q4_GROUP, StorageType, Which};

/// A run of slots of a head.
struct HeadRows {
    /// The head's first byte.
    base: *mut u8,
    which: Which,
    layout: RowLayout,
    /// The first slot.
    first: usize,
    /// Dims of a row, without padding.
    dim: usize,
    row_bytes: usize,
}

impl HeadRows {
    /// The first byte of number `d` of a slot, of a type without codes.
    #[inline(always)]
    fn at(&self, dtype: DType, slot: usize, d: usize) -> *mut u8 {
        let padded = self.layout.dim;
        let (group, lane) = (slot - slot % KEY_GROUP, slot % KEY_GROUP);
        let (tile, in_tile) = (slot - slot % SLOT_ALIGN as usize, slot % SLOT_ALIGN as usize);
        let index = match (self.which, dtype) {
            (_, DType::F32) | (Which::V, DType::F16) => slot * padded + d,
            (Which::K, DType::F16) => group * padded + d * KEY_GROUP + lane, // mutant: saved_key_of_another_lane
            (Which::K, DType::Bf16) => group * padded + d / 2 * (2 * KEY_GROUP) + 2 * lane + d % 2,
            (Which::V, DType::Bf16) => tile * padded + 2 * bf16_pair_index(padded, in_tile, d) + in_tile % 2,
        };
        self.base.wrapping_add(index * dtype.size())
    }

    /// Calls `copy` with the first byte of every number of a slot's row, of `N` bytes, and its place in the row.
    #[inline(always)]
    fn for_each<const N: usize>(&self, dtype: DType, slot: usize, mut copy: impl FnMut(*mut [u8; N], usize)) {
        for d in 0..self.row_bytes / N {
            copy(self.at(dtype, slot, d).cast(), N * d);
        }
    }

    /// The block of a slot of quantised rows, and its slot there.
    fn block(&self, layout: CodeLayout, slot: usize) -> (CodeBlock, usize) {
        let in_block = slot % SLOT_ALIGN as usize;
        let block = self.base.wrapping_add((slot - in_block) * self.layout.slot_bytes);
        (CodeBlock { layout, block }, in_block)
    }
}

/// The codes and scales of a row as [`CodeBlock`] has them.
struct Codes {
    codes: [u8; MAX_HEAD_DIM as usize],
    scales: [u16; MAX_HEAD_DIM as usize / Q4_GROUP],
}

impl Codes {
    fn new() -> Self {
        Self { codes: [0; _], scales: [0; _] }
    }

    /// Writes `dim` codes and the scales to a row in canonical order.
    fn pack(&self, storage: StorageType, dim: usize, row: &mut [u8]) {
        let (codes, scales) = row.split_at_mut(storage.code_bytes(dim));
        if storage == StorageType::Q4 {
            for (to, pair) in codes.iter_mut().zip(self.codes.as_chunks::<2>().0) {
                // From code + 8 to two's complement.
                *to = (pair[0] ^ 8) | (pair[1] ^ 8) << 4; // mutant: saved_codes_swapped
            }
        } else {
            codes.copy_from_slice(&self.codes[..dim]);
        }
        for (to, scale) in scales.as_chunks_mut::<2>().0.iter_mut().zip(self.scales) {
            *to = scale.to_le_bytes();
        }
    }

    /// Reads what [`Self::pack`] writes.
    fn unpack(&mut self, storage: StorageType, dim: usize, row: &[u8]) {
        let (codes, scales) = row.split_at(storage.code_bytes(dim));
        if storage == StorageType::Q4 {
            for (pair, &from) in self.codes.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = [from & 0xF ^ 8, from >> 4 ^ 8];
            }
        } else {
            self.codes[..dim].copy_from_slice(codes);
        }
        for (scale, &from) in self.scales.iter_mut().zip(scales.as_chunks::<2>().0) {
            *scale = u16::from_le_bytes(from);
        }
    }
}

impl KvStore {
    /// Reads the rows of a run of slots, one after the other.
    pub fn read_rows(&self, run: &SlotRun<'_>, out: &mut [u8]) {
        let head = self.head_rows(run);
        let RowLayout { storage, dim: padded, .. } = head.layout;
        let rows = (head.first..).zip(out.chunks_exact_mut(head.row_bytes));
        if let Some(layout) = CodeLayout::new(storage, padded) {
            let mut buf = Codes::new();
            for (slot, row) in rows {
                let (block, slot) = head.block(layout, slot);
                let (codes, scales) = (&mut buf.codes[..head.dim], &mut buf.scales[..layout.scales]);
                // SAFETY: the slots of a run are of the head, whose blocks are of `layout`; the call has the cache
                // alone.
                unsafe {
                    match head.which {
                        Which::K => block.read_key(slot, codes, scales),
                        Which::V => block.read_value(slot, codes, scales),
                    }
                }
                buf.pack(storage, head.dim, row);
            }
            return;
        }
        let dtype = storage.element().unwrap_or(DType::F32);
        for (slot, row) in rows {
            // SAFETY: the slots of a run are of the head, and its numbers initialised and of the size that `dtype`
            // says; the call has the cache alone.
            unsafe {
                match dtype {
                    DType::F32 => head.for_each::<4>(dtype, slot, |p, i| row[i..i + 4].copy_from_slice(&*p)),
                    _ => head.for_each::<2>(dtype, slot, |p, i| row[i..i + 2].copy_from_slice(&*p)),
                }
            }
        }
    }

    /// Writes the rows of a run of slots, as [`Self::read_rows`] reads them.
    pub fn write_rows(&self, run: &SlotRun<'_>, rows: &[u8]) {
        let head = self.head_rows(run);
        let RowLayout { storage, dim: padded, .. } = head.layout;
        let rows = (head.first..).zip(rows.chunks_exact(head.row_bytes));
        if let Some(layout) = CodeLayout::new(storage, padded) {
            let mut buf = Codes::new();
            for (slot, row) in rows {
                buf.unpack(storage, head.dim, row);
                let (block, slot) = head.block(layout, slot);
                let (codes, scales) = (&buf.codes[..head.dim], &buf.scales[..layout.scales]);
                // SAFETY: as in `read_rows`.
                unsafe {
                    match head.which {
                        Which::K => block.write_key(slot, codes, scales),
                        Which::V => block.write_value(slot, codes, scales),
                    }
                }
            }
            return;
        }
        let dtype = storage.element().unwrap_or(DType::F32);
        for (slot, row) in rows {
            // SAFETY: as in `read_rows`; a number may be any bits.
            unsafe {
                match dtype {
                    DType::F32 => head.for_each::<4>(dtype, slot, |p, i| (*p).copy_from_slice(&row[i..i + 4])),
                    _ => head.for_each::<2>(dtype, slot, |p, i| (*p).copy_from_slice(&row[i..i + 2])),
                }
            }
        }
    }

    fn head_rows(&self, run: &SlotRun<'_>) -> HeadRows {
        let SlotRun { shape, layer, settings, seq, which, head, slot, n } = *run;
        let first = physical(&settings.ring, slot).0 as usize;
        let (base, layout) = self.head(layer, seq, which, head, first + n as usize);
        let dim = match which {
            Which::K => shape.head_dim,
            Which::V => shape.head_dim_v,
        };
        HeadRows { base, which, layout, first, dim, row_bytes: run.row_bytes() }
    }
}

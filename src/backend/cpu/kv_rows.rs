//! Stored rows in canonical order, which snapshots have: the numbers or codes of a row one after the other,
//! little-endian, then its scales. In memory they are in key groups, interleaved pairs and blocks.

use super::code_store::CodeBlock;
use super::kv_layout::{CodeLayout, KEY_GROUP, SLOT_ALIGN, bf16_pair_index, physical};
use super::kv_store::{KvStore, RowLayout};
use crate::backend::SlotRun;
use crate::config::{DType, MAX_HEAD_DIM, Q4_GROUP, StorageType, Which};

/// The rows of K or V of one head.
pub(super) struct HeadRows {
    /// The head's first byte.
    pub base: *mut u8,
    pub which: Which,
    pub layout: RowLayout,
    /// Physical slots.
    end: usize,
    /// Dims of a row that are read and written.
    dim: usize,
    pub row_bytes: usize,
}

/// How the numbers of one row lie in memory, in pieces of some numbers.
#[derive(Clone, Copy)]
struct Pieces {
    /// Bytes of a piece: all of the row, one number, or a pair of 16-bit numbers.
    bytes: usize,
    /// Bytes from one piece to the next, within a block.
    stride: usize,
    /// Pieces of a block, and bytes from one block to the next.
    per_block: usize,
    block: usize,
}

impl HeadRows {
    /// The first byte of a slot's row of a type without codes, and its pieces.
    fn row(&self, dtype: DType, slot: usize) -> (*mut u8, Pieces) {
        let (group, lane) = (slot - slot % KEY_GROUP, slot % KEY_GROUP);
        let (tile, in_tile) = (slot - slot % SLOT_ALIGN as usize, slot % SLOT_ALIGN as usize);
        let (padded, slot_bytes, all) = (self.layout.dim, self.layout.slot_bytes, self.row_bytes);
        let in_line = |bytes, stride| Pieces { bytes, stride, per_block: usize::MAX, block: 0 };
        let (at, pieces) = match (self.which, dtype) {
            (_, DType::F32) | (Which::V, DType::F16) => (slot * slot_bytes, in_line(all, all)),
            // mutant: saved_key_of_another_lane
            (Which::K, DType::F16) => (group * slot_bytes + 2 * lane, in_line(2, 2 * KEY_GROUP)),
            (Which::K, DType::Bf16) => (group * slot_bytes + 4 * lane, in_line(4, 4 * KEY_GROUP)),
            (Which::V, DType::Bf16) => {
                let first = 4 * bf16_pair_index(padded, in_tile, 0) + 2 * (in_tile % 2);
                let block = 4 * bf16_pair_index(padded, 0, KEY_GROUP);
                (tile * slot_bytes + first, Pieces { bytes: 2, stride: 4, per_block: KEY_GROUP, block })
            }
        };
        (self.base.wrapping_add(at), pieces)
    }

    /// Calls `copy` with the first byte of every piece of a slot's row and its place in the row. All have `N` bytes, or
    /// with `N` = 0 there is one, the whole row.
    #[inline(always)]
    fn for_each<const N: usize>(&self, first: *mut u8, pieces: Pieces, mut copy: impl FnMut(*mut u8, usize)) {
        if N == 0 {
            return copy(first, 0);
        }
        let n = self.row_bytes / N;
        let per_block = pieces.per_block.min(n);
        for (block, from) in (0..n).step_by(per_block).enumerate() {
            let at = first.wrapping_add(block * pieces.block);
            for i in 0..per_block.min(n - from) {
                copy(at.wrapping_add(i * pieces.stride), N * (from + i));
            }
        }
    }

    /// Copies the row of a slot to `row`, or from there.
    ///
    /// # Safety
    /// The slot is of the head, whose numbers are of `dtype`; the caller has the cache alone. `row` is writable for a
    /// row's bytes, or with `TO_SLOT` readable.
    unsafe fn copy_row<const TO_SLOT: bool>(&self, dtype: DType, slot: usize, row: *mut u8) {
        let (first, pieces) = self.row(dtype, slot);
        // A constant length is unrolled.
        macro_rules! copy {
            ($n:literal, $bytes:expr) => {
                self.for_each::<$n>(first, pieces, |p, i| {
                    let row = row.wrapping_add(i);
                    let (from, to) = if TO_SLOT { (row, p) } else { (p, row) };
                    // SAFETY: a piece of the slot's row, and its place in `row`.
                    unsafe { std::ptr::copy_nonoverlapping(from, to, $bytes) };
                })
            };
        }
        match pieces.bytes {
            2 => copy!(2, 2),
            4 if pieces.stride > 4 => copy!(4, 4),
            _ => copy!(0, self.row_bytes),
        }
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

impl HeadRows {
    /// Reads the rows of the slots from `slot` on, one after the other.
    pub fn read(&self, slot: usize, out: &mut [u8]) {
        let RowLayout { storage, dim: padded, .. } = self.layout;
        let rows = (slot..).zip(out.chunks_exact_mut(self.row_bytes));
        if let Some(layout) = CodeLayout::new(storage, padded) {
            let mut buf = Codes::new();
            for (slot, row) in rows {
                assert!(slot < self.end, "slot {slot} of {}", self.end);
                let (block, slot) = CodeBlock::of(self.base, layout, slot);
                let (codes, scales) = (&mut buf.codes[..self.dim], &mut buf.scales[..layout.scales]);
                // SAFETY: the slot is of the head, whose blocks are of `layout`; the call has the cache alone.
                unsafe {
                    match self.which {
                        Which::K => block.read_key(slot, codes, scales),
                        Which::V => block.read_value(slot, codes, scales),
                    }
                }
                buf.pack(storage, self.dim, row);
            }
            return;
        }
        let dtype = storage.element().unwrap_or(DType::F32);
        for (slot, row) in rows {
            assert!(slot < self.end, "slot {slot} of {}", self.end);
            // SAFETY: the slot is of the head, and its numbers initialised and of `dtype`; the call has the cache
            // alone. `row` has a row's bytes.
            unsafe { self.copy_row::<false>(dtype, slot, row.as_mut_ptr()) };
        }
    }

    /// Writes what [`Self::read`] reads.
    pub fn write(&self, slot: usize, rows: &[u8]) {
        let RowLayout { storage, dim: padded, .. } = self.layout;
        let rows = (slot..).zip(rows.chunks_exact(self.row_bytes));
        if let Some(layout) = CodeLayout::new(storage, padded) {
            let mut buf = Codes::new();
            for (slot, row) in rows {
                assert!(slot < self.end, "slot {slot} of {}", self.end);
                buf.unpack(storage, self.dim, row);
                let (block, slot) = CodeBlock::of(self.base, layout, slot);
                let (codes, scales) = (&buf.codes[..self.dim], &buf.scales[..layout.scales]);
                // SAFETY: as in `read`.
                unsafe {
                    match self.which {
                        Which::K => block.write_key(slot, codes, scales),
                        Which::V => block.write_value(slot, codes, scales),
                    }
                }
            }
            return;
        }
        let dtype = storage.element().unwrap_or(DType::F32);
        for (slot, row) in rows {
            assert!(slot < self.end, "slot {slot} of {}", self.end);
            // SAFETY: as in `read`; a number may be any bits, and `row` is only read.
            unsafe { self.copy_row::<true>(dtype, slot, row.as_ptr().cast_mut()) };
        }
    }
}

impl KvStore {
    /// Reads the rows of a run of slots, one after the other.
    pub fn read_rows(&self, run: &SlotRun<'_>, out: &mut [u8]) {
        let (head, first) = self.rows_of(run);
        head.read(first, out);
    }

    /// Writes the rows of a run of slots, as [`Self::read_rows`] reads them.
    pub fn write_rows(&self, run: &SlotRun<'_>, rows: &[u8]) {
        let (head, first) = self.rows_of(run);
        head.write(first, rows);
    }

    /// The rows of K or V of one head below physical slot `end`.
    pub fn head_rows(&self, layer: usize, seq: usize, which: Which, head: usize, end: usize) -> HeadRows {
        let (base, layout) = self.head(layer, seq, which, head, end);
        let dim = layout.dim;
        HeadRows { base, which, layout, end, dim, row_bytes: layout.storage.row_bytes(dim) }
    }

    /// The rows of a run's head, without padding, and the physical slot of the run's first.
    fn rows_of(&self, run: &SlotRun<'_>) -> (HeadRows, usize) {
        let SlotRun { shape, layer, settings, seq, which, head, slot, n } = *run;
        let first = physical(&settings.ring, slot).0 as usize;
        let rows = self.head_rows(layer, seq, which, head, first + n as usize);
        let dim = match which {
            Which::K => shape.head_dim,
            Which::V => shape.head_dim_v,
        };
        (HeadRows { dim, row_bytes: run.row_bytes(), ..rows }, first)
    }
}

//! Moves of stored rows within a sequence: what pins and evicted ranges do to slots. Rows are moved as they are stored;
//! nothing is rotated or rounded anew.
//!
//! Groups of slots are stored together (`kv_layout.rs`), so that a move by whole groups copies memory. By any other
//! number each line of a group is put together from two: the numbers of 16 slots, or words that hold several slots.

use super::kv_layout::{CODE_BLOCK, CodeLayout, KEY_GROUP, SLOT_ALIGN, physical};
use super::kv_rows::HeadRows;
use super::kv_store::KvStore;
use crate::backend::RowMove;
use crate::config::{StorageType, Which};
use crate::ring::Ring;

/// Bytes of rows that are moved at a time by way of the stack. A row is at most 2 KiB.
const STACK_BYTES: usize = 4096;
/// Slots whose rows of any type are one piece of memory.
const BLOCK: usize = SLOT_ALIGN as usize;

/// A move within one head, in physical slots.
#[derive(Clone, Copy, Debug)]
struct HeadMove {
    from: usize,
    to: usize,
    n: usize,
}

impl KvStore {
    /// Moves the rows of `rows.n` slots of every head. The slots may overlap.
    pub fn move_rows(&self, layer: usize, ring: &Ring, seq: usize, rows: RowMove) {
        let [from, to] = [rows.from, rows.to].map(|slot| physical(ring, slot).0 as usize);
        let part = HeadMove { from, to, n: rows.n as usize };
        if from == to || part.n == 0 {
            return;
        }
        for which in [Which::K, Which::V] {
            for head in 0..self.n_kv_heads() {
                move_head(&self.head_rows(layer, seq, which, head, from.max(to) + part.n), part);
            }
        }
    }
}

fn move_head(rows: &HeadRows, part: HeadMove) {
    let distance = part.to.abs_diff(part.from);
    let groups = groups_of(rows);
    let piece = match groups {
        // Rows one after the other.
        [None, _] => 1,
        // Keys of numbers: groups one after the other.
        [Some(g), None] if distance.is_multiple_of(KEY_GROUP) && g.slots == KEY_GROUP => KEY_GROUP,
        _ if distance.is_multiple_of(BLOCK) => BLOCK,
        [Some(g), _] => {
            let slots = if groups[1].is_some() { KEY_GROUP } else { g.slots };
            return move_between(rows, part, slots, |first, n| {
                groups.iter().flatten().for_each(|g| g.move_slots(rows.base, first, n, part));
            });
        }
    };
    move_between(rows, part, piece, |first, n| {
        let bytes = rows.layout.slot_bytes;
        let [from, to] = [first - part.to + part.from, first].map(|slot| rows.base.wrapping_add(slot * bytes));
        // SAFETY: whole pieces of the head; the call has the cache alone.
        unsafe { std::ptr::copy(from, to, n * bytes) };
    });
}

/// Calls `whole` with the destinations that are whole pieces of so many slots, and moves the rest by rows, in an order
/// in which nothing is overwritten that is still to be moved.
fn move_between(rows: &HeadRows, part: HeadMove, piece: usize, whole: impl Fn(usize, usize)) {
    let HeadMove { from, to, n } = part;
    let first = to.next_multiple_of(piece).min(to + n);
    let last = ((to + n) / piece * piece).max(first);
    let by_rows = |begin: usize, end: usize| {
        move_by_rows(rows, HeadMove { from: from + (begin - to), to: begin, n: end - begin });
    };
    // Upwards the last rows go first: what they overwrite has been moved.
    if from < to {
        by_rows(last, to + n);
        whole(first, last - first);
        by_rows(to, first);
    } else {
        by_rows(to, first);
        whole(first, last - first);
        by_rows(last, to + n);
    }
}

/// Moves rows of any type, some at a time.
fn move_by_rows(rows: &HeadRows, HeadMove { from, to, n }: HeadMove) {
    let mut buffer = [0; STACK_BYTES];
    let most = STACK_BYTES / rows.row_bytes;
    for done in (0..n).step_by(most) {
        let n_now = most.min(n - done);
        let at = if from < to { n - done - n_now } else { done }; // mutant: rows_moved_oldest_first
        let buffer = &mut buffer[..n_now * rows.row_bytes];
        rows.read(from + at, buffer);
        rows.write(to + at, buffer);
    }
}

/// What a line of a group holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Numbers of 16 bits, or words of 32, of 16 slots.
    Halves,
    Words,
    /// 16 words, each with a part of 2, 4 or 8 slots.
    Pairs,
    Bytes,
    Nibbles,
}

/// Groups of slots in memory, each with lines of the same form.
#[derive(Clone, Copy, Debug)]
struct Groups {
    line: Line,
    slots: usize,
    /// Groups of a block, bytes of it, and where its first group is.
    per_block: usize,
    block_bytes: usize,
    offset: usize,
    group_bytes: usize,
    lines: usize,
    line_stride: usize,
}

/// How the rows of a head lie in groups; twice for codes and their scales. None where rows lie one after the other.
fn groups_of(rows: &HeadRows) -> [Option<Groups>; 2] {
    let (storage, dim, slot_bytes) = (rows.layout.storage, rows.layout.dim, rows.layout.slot_bytes);
    let keys = |line, lines| Groups {
        line,
        slots: KEY_GROUP,
        per_block: 1,
        block_bytes: KEY_GROUP * slot_bytes,
        offset: 0,
        group_bytes: 0,
        lines,
        line_stride: KEY_GROUP * slot_bytes / lines,
    };
    if let Some(codes) = CodeLayout::new(storage, dim) {
        let offset = 2 * CODE_BLOCK * codes.scales;
        let scales = Groups {
            line: Line::Halves,
            slots: KEY_GROUP,
            per_block: 2,
            block_bytes: codes.block_bytes(),
            offset: 0,
            group_bytes: 2 * KEY_GROUP,
            lines: codes.scales,
            line_stride: 2 * CODE_BLOCK,
        };
        let words = dim / codes.per_word;
        let of_codes = match rows.which {
            Which::K => {
                Groups { line: Line::Words, offset, group_bytes: 64 * words, lines: words, line_stride: 64, ..scales }
            }
            Which::V => Groups {
                line: if codes.per_word == 4 { Line::Bytes } else { Line::Nibbles },
                slots: codes.per_word,
                per_block: CODE_BLOCK / codes.per_word,
                offset,
                group_bytes: 4 * dim,
                lines: dim / 16,
                line_stride: 64,
                ..scales
            },
        };
        return [Some(of_codes), Some(scales)];
    }
    match (rows.which, storage) {
        (Which::K, StorageType::F16) => [Some(keys(Line::Halves, dim)), None],
        (Which::K, StorageType::Bf16) => [Some(keys(Line::Words, dim / 2)), None],
        (Which::V, StorageType::Bf16) => {
            let pairs = Groups {
                line: Line::Pairs,
                slots: 2,
                per_block: BLOCK / 2,
                block_bytes: BLOCK * slot_bytes,
                offset: 0,
                group_bytes: 64,
                lines: dim / 16,
                line_stride: 1024,
            };
            [Some(pairs), None]
        }
        _ => [None, None],
    }
}

impl Groups {
    fn group(&self, base: *mut u8, group: usize) -> *mut u8 {
        let (block, at) = (group / self.per_block, group % self.per_block);
        base.wrapping_add(block * self.block_bytes + self.offset + at * self.group_bytes)
    }

    /// Moves rows to the `n` slots from `first` on, whole groups.
    fn move_slots(&self, base: *mut u8, first: usize, n: usize, part: HeadMove) {
        let (first_group, n_groups) = (first / self.slots, n / self.slots);
        for i in 0..n_groups {
            let i = if part.from < part.to { n_groups - 1 - i } else { i };
            let to = first_group + i;
            let source = to * self.slots - part.to + part.from;
            let (group, shift) = (source / self.slots, source % self.slots);
            let lo = self.group(base, group);
            // Without a shift the next group may be none of the head's.
            let hi = if shift == 0 { lo } else { self.group(base, group + 1) };
            // SAFETY: the groups hold slots that are moved, so that they are the head's; the call has the cache alone.
            unsafe { self.move_lines(lo, hi, shift, self.group(base, to)) };
        }
    }

    /// Puts each line of `to` together from slots `shift..` of the line of `lo` and the first ones of that of `hi`.
    ///
    /// # Safety
    /// All three are groups; `to` may be one of the others.
    unsafe fn move_lines(&self, lo: *const u8, hi: *const u8, shift: usize, to: *mut u8) {
        macro_rules! by_lane {
            ($type:ty, $($n:literal)*) => {
                match shift {
                    $($n => self.lanes::<$type, $n>(lo, hi, to),)*
                    _ => unreachable!("a shift of {shift} in a group of 16"),
                }
            };
        }
        // SAFETY: the caller's contract.
        unsafe {
            match self.line {
                Line::Halves => by_lane!(u16, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
                Line::Words => by_lane!(u32, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
                _ if shift == 0 => self.words(lo, hi, to, |lo, _| lo),
                Line::Pairs => self.pairs(lo, hi, to),
                Line::Bytes => self.words(lo, hi, to, |lo, hi| lo >> (8 * shift) | hi << (32 - 8 * shift)),
                Line::Nibbles => self.words(lo, hi, to, |lo, hi| {
                    let wide = |x: u32| u64::from(x & 0x0F0F_0F0F) | u64::from(x >> 4 & 0x0F0F_0F0F) << 32;
                    let codes = wide(lo) >> (8 * shift) | wide(hi) << (64 - 8 * shift);
                    (codes as u32) | ((codes >> 32) as u32) << 4
                }),
            }
        }
    }

    /// Lines of 16 numbers, one of each slot.
    ///
    /// # Safety
    /// As [`Self::move_lines`].
    unsafe fn lanes<T: Copy, const SHIFT: usize>(&self, lo: *const u8, hi: *const u8, to: *mut u8) {
        let own_first = to.cast_const() == hi;
        for i in 0..self.lines {
            let at = i * self.line_stride;
            // SAFETY: lines of the three groups, aligned to their numbers. What comes from the destination's own line
            // is moved first.
            unsafe {
                let [lo, hi] = [lo, hi].map(|line| line.add(at).cast::<T>());
                let to = to.add(at).cast::<T>();
                // Two copies of known lengths: a line put together on the stack would be read before it is there.
                if own_first {
                    hi.copy_to(to.add(16 - SHIFT), SHIFT);
                    lo.add(SHIFT).copy_to(to, 16 - SHIFT);
                } else {
                    lo.add(SHIFT).copy_to(to, 16 - SHIFT);
                    hi.copy_to(to.add(16 - SHIFT), SHIFT);
                }
            }
        }
    }

    /// Lines of 16 words, each with the second slot of `lo` and the first of `hi`.
    ///
    /// # Safety
    /// As [`Self::move_lines`].
    unsafe fn pairs(&self, lo: *const u8, hi: *const u8, to: *mut u8) {
        for i in 0..self.lines {
            let at = i * self.line_stride;
            // SAFETY: as in `lanes`; both lines are read before one is written.
            unsafe {
                let [lo, hi] = [lo, hi].map(|line| line.add(at).cast::<[u64; 8]>().read());
                let mut line = [0; 8];
                for (to, (lo, hi)) in line.iter_mut().zip(lo.iter().zip(&hi)) {
                    *to = lo >> 16 & 0xFFFF_0000_FFFF | (hi & 0xFFFF_0000_FFFF) << 16;
                }
                to.add(at).cast::<[u64; 8]>().write(line);
            }
        }
    }

    /// Lines of 16 words, each of which holds all slots of the group.
    ///
    /// # Safety
    /// As [`Self::move_lines`].
    unsafe fn words(&self, lo: *const u8, hi: *const u8, to: *mut u8, join: impl Fn(u32, u32) -> u32) {
        for i in 0..self.lines {
            let at = i * self.line_stride;
            // SAFETY: as in `lanes`.
            unsafe {
                let (lo, hi) = (lo.add(at).cast::<[u32; 16]>().read(), hi.add(at).cast::<[u32; 16]>().read());
                to.add(at).cast::<[u32; 16]>().write(std::array::from_fn(|i| join(lo[i], hi[i])));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CacheConfig, LayerConfig};
    use crate::memory::Memory;
    use proptest::prelude::*;
    use proptest::sample::select;

    proptest! {
        /// Every row is in its new slot as it was, and no other slot has changed.
        #[test]
        fn moved_rows_are_the_same(dims in select(vec![(8, 16), (40, 24), (64, 80), (512, 264)]),
                                   storage in select(StorageType::ALL.to_vec()),
                                   from in 0_usize..150, to in 0_usize..150, n in 0_usize..150, seed: u64) {
            let layers = vec![LayerConfig { n_sink: 0, window: 288, ..LayerConfig::default() }];
            let config = CacheConfig {
                n_q_heads: 1, n_kv_heads: 1, head_dim: dims.0, head_dim_v: dims.1, kv_dtype: storage, max_chunk: 32,
                layers,
                ..CacheConfig::default()
            };
            let (shape, layers) = config.validate().unwrap();
            let store = KvStore::new(&shape, layers.iter(), 1, Memory::PROCESS).unwrap();
            let mut state = seed | 1;
            for byte in store.contents() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
            let all = |which| {
                let rows = store.head_rows(0, 0, which, 0, 320);
                let mut bytes = vec![0; 320 * rows.row_bytes];
                rows.read(0, &mut bytes);
                (bytes, rows.row_bytes)
            };
            let before = [Which::K, Which::V].map(all);
            store.move_rows(0, &layers[0].ring, 0, RowMove { from: from as u64, to: to as u64, n: n as u64 });
            for (which, (mut want, row)) in [Which::K, Which::V].into_iter().zip(before) {
                want.copy_within(from * row..(from + n) * row, to * row);
                prop_assert!(all(which).0 == want, "{which:?}");
            }
        }
    }
}

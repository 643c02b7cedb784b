//! Quantised rows in the cache's memory: a token's codes and scales written and read.

use super::kv_layout::{CODE_BLOCK, CodeLayout};

/// A block of quantised keys or values.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodeBlock {
    pub layout: CodeLayout,
    pub block: *mut u8,
}

impl CodeBlock {
    /// The block of a slot of the head that begins at `base`, and its slot there.
    pub fn of(base: *mut u8, layout: CodeLayout, slot: usize) -> (Self, usize) {
        (Self { layout, block: base.wrapping_add(slot / CODE_BLOCK * layout.block_bytes()) }, slot % CODE_BLOCK)
    }

    fn check(&self, slot: usize, codes: usize, scales: usize) {
        let CodeLayout { dim, scales: n, .. } = self.layout;
        assert!(slot < CODE_BLOCK && codes <= dim && scales <= n, "slot {slot}: {codes} codes, {scales} scales");
    }

    /// # Safety
    /// The block belongs to the caller alone.
    unsafe fn write_scales(&self, slot: usize, scales: &[u16]) {
        for (i, &scale) in scales.iter().enumerate() {
            // SAFETY: within the block, by `check`; the caller alone has it.
            unsafe { self.block.cast::<u16>().add(self.layout.scale(slot, i)).write(scale) };
        }
    }

    /// Stores a key: one byte for each code, of q4 the code plus 8.
    ///
    /// # Safety
    /// The block is one of `layout`, and belongs to the caller alone.
    pub unsafe fn write_key(&self, slot: usize, codes: &[u8], scales: &[u16]) {
        self.check(slot, codes.len(), scales.len());
        let to = self.block.cast::<u32>();
        // SAFETY: within the block, by `check`; the caller alone has it.
        unsafe {
            self.write_scales(slot, scales);
            if self.layout.per_word == 4 {
                for (word, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                    to.add(self.layout.key_word(slot, word)).write(u32::from_le_bytes(*codes));
                }
            } else {
                for (word, codes) in codes.as_chunks::<8>().0.iter().enumerate() {
                    let bytes = std::array::from_fn(|i| codes[i] | codes[i + 4] << 4);
                    to.add(self.layout.key_word(slot, word)).write(u32::from_le_bytes(bytes));
                }
            }
        }
    }

    /// Stores a value, in the form of [`Self::write_key`]. Its words hold codes of other slots too.
    ///
    /// # Safety
    /// As [`Self::write_key`].
    pub unsafe fn write_value(&self, slot: usize, codes: &[u8], scales: &[u16]) {
        self.check(slot, codes.len(), scales.len());
        let shift = self.layout.shift(slot % self.layout.per_word);
        let other = !(self.mask() << shift);
        // SAFETY: within the block, by `check`; the caller alone has it.
        unsafe {
            self.write_scales(slot, scales);
            let to = self.block.cast::<u32>().add(self.layout.value_word(slot, 0));
            for (dim, &code) in codes.iter().enumerate() {
                let to = to.add(dim);
                to.write(to.read() & other | u32::from(code) << shift); // mutant: code_of_another_slot
            }
        }
    }

    /// A code in the low bits of a word.
    fn mask(&self) -> u32 {
        if self.layout.per_word == 4 { 0xFF } else { 0xF }
    }

    /// Reads a key in the form of [`Self::write_key`].
    ///
    /// # Safety
    /// The block is one of `layout`, and nobody writes it.
    pub unsafe fn read_key(&self, slot: usize, codes: &mut [u8], scales: &mut [u16]) {
        self.check(slot, codes.len(), scales.len());
        let from = self.block.cast::<u32>();
        // SAFETY: within the block, by `check`; nobody writes it.
        unsafe {
            self.read_scales(slot, scales);
            if self.layout.per_word == 4 {
                for (word, codes) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *codes = from.add(self.layout.key_word(slot, word)).read().to_le_bytes();
                }
            } else {
                for (word, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let word = from.add(self.layout.key_word(slot, word)).read();
                    let halves = [word & 0x0F0F_0F0F, word >> 4 & 0x0F0F_0F0F];
                    *codes = (u64::from(halves[0]) | u64::from(halves[1]) << 32).to_le_bytes();
                }
            }
        }
    }

    /// Reads a value in the form of [`Self::write_key`].
    ///
    /// # Safety
    /// As [`Self::read_key`].
    pub unsafe fn read_value(&self, slot: usize, codes: &mut [u8], scales: &mut [u16]) {
        self.check(slot, codes.len(), scales.len());
        let shift = self.layout.shift(slot % self.layout.per_word);
        // SAFETY: within the block, by `check`; nobody writes it.
        unsafe {
            self.read_scales(slot, scales);
            for (dim, code) in codes.iter_mut().enumerate() {
                let word = self.block.cast::<u32>().add(self.layout.value_word(slot, dim)).read();
                *code = (word >> shift & self.mask()) as u8;
            }
        }
    }

    /// # Safety
    /// Nobody writes the block.
    unsafe fn read_scales(&self, slot: usize, scales: &mut [u16]) {
        for (i, scale) in scales.iter_mut().enumerate() {
            // SAFETY: within the block, by `check`; nobody writes it.
            *scale = unsafe { self.block.cast::<u16>().add(self.layout.scale(slot, i)).read() };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::StorageType;

    proptest! {
        /// Every slot of a block keeps what was written last, whatever is written beside it.
        #[test]
        fn slots_keep_their_codes(q4: bool, eighths in 1_usize..12, values: bool,
                                  writes in prop::collection::vec((0_usize..32, any::<u64>()), 1..90)) {
            let dim = if values { (8 * eighths).next_multiple_of(16) } else { 8 * eighths };
            let storage = if q4 { StorageType::Q4 } else { StorageType::Q8 };
            let layout = CodeLayout::new(storage, dim).unwrap();
            prop_assert_eq!(layout.block_bytes(), 32 * storage.row_bytes(dim));
            prop_assert!(layout.block_bytes().is_multiple_of(64));
            let mut memory = vec![0xA5A5_A5A5_u32; layout.block_bytes() / 4];
            let block = CodeBlock { layout, block: memory.as_mut_ptr().cast() };
            let row = |seed: u64| -> (Vec<u8>, Vec<u16>) {
                let draw = |i: usize| (seed.wrapping_mul(2 * i as u64 + 1) >> 33) as u16;
                let mask = if q4 { 0xF } else { 0xFF };
                let codes = (0..dim).map(|i| (draw(i) & mask) as u8).collect();
                (codes, (0..layout.scales).map(|i| draw(i + dim)).collect())
            };
            for &(slot, seed) in &writes {
                let (codes, scales) = row(seed);
                // SAFETY: the test's own memory has the size of a block.
                unsafe {
                    if values {
                        block.write_value(slot, &codes, &scales);
                    } else {
                        block.write_key(slot, &codes, &scales);
                    }
                }
            }
            let last = |slot: usize| writes.iter().rev().find(|w| w.0 == slot);
            for (slot, &(_, seed)) in (0..32).filter_map(|slot| Some((slot, last(slot)?))) {
                let (mut codes, mut scales) = (vec![0; dim], vec![0; layout.scales]);
                // SAFETY: as above.
                unsafe {
                    if values {
                        block.read_value(slot, &mut codes, &mut scales);
                    } else {
                        block.read_key(slot, &mut codes, &mut scales);
                    }
                }
                prop_assert_eq!((codes, scales), row(seed), "slot {}", slot);
            }
        }
    }
}

//! Probabilities times scales, and their rounding to 16 bits: what an instruction set may have its own way for.

use crate::backend::cpu::kv_layout::SLOT_ALIGN;

/// Slots of a block.
pub(crate) const BLOCK: usize = SLOT_ALIGN as usize;
/// The most columns of a row: sums of their products are exact in f32.
pub(crate) const COLUMNS: usize = 512;
/// 1.5 x 2^23: added to a small number, it leaves the nearest integer in the lowest bits. With half of the low byte's
/// range, the second byte is the high term, and the first is the low one but for its highest bit.
pub(crate) const ROUND: f32 = 12_582_912.0 + 128.0;

/// One group of dims of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// Probabilities of the row; 0 for columns that it does not see.
    pub probs: *const f32,
    /// Columns that have a probability, a multiple of 16.
    pub n: usize,
    /// Blocks that are multiplied.
    pub from: usize,
    pub to: usize,
    /// The scales of a group in block 0, and bytes from block to block.
    pub scales: *const u8,
    pub block_bytes: usize,
    /// `[COLUMNS]` products, in the order that the instruction set likes.
    pub products: *mut f32,
}

/// The products of some blocks, to be rounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    pub products: *const f32,
    pub from: usize,
    pub to: usize,
    /// Integers per unit.
    pub inverse: f32,
    /// `[term][COLUMNS]` bytes.
    pub weights: *mut u8,
}

/// Products of probabilities and scales; 0 where the probability is 0, whatever the scale. Returns the largest
/// magnitude as bits: as integers, NaN is above infinity, which is above every number.
///
/// # Safety
/// As [`Factors`].
#[inline(always)]
pub(crate) unsafe fn multiply(a: &Factors) -> u32 {
    let mut most = 0;
    for block in a.from..a.to {
        // SAFETY: scales and products of the arguments.
        let (scales, products) = unsafe {
            (
                &*a.scales.add(block * a.block_bytes).cast::<[u16; BLOCK]>(),
                &mut *a.products.add(block * BLOCK).cast::<[f32; BLOCK]>(),
            )
        };
        let n = a.n.saturating_sub(block * BLOCK).min(BLOCK);
        // SAFETY: the first `n` columns of the block have a probability.
        let probs = unsafe { std::slice::from_raw_parts(a.probs.add(block * BLOCK), n) };
        for ((x, &p), &scale) in products.iter_mut().zip(probs).zip(scales) {
            let product = p * f32::from_bits(u32::from(scale) << 16);
            *x = if p == 0.0 { 0.0 } else { product }; // mutant: scale_of_masked_column
            most = most.max(x.to_bits() & !(1 << 31));
        }
        products[n..].fill(0.0);
    }
    most
}

/// Rounds products to weights. Returns the sums of their terms.
///
/// # Safety
/// As [`Rounding`].
#[inline(always)]
pub(crate) unsafe fn round(a: &Rounding) -> [i32; 2] {
    let columns = a.from * BLOCK..a.to * BLOCK;
    // SAFETY: products and weights of the arguments.
    let (products, high, low) = unsafe {
        (
            std::slice::from_raw_parts(a.products.add(columns.start), columns.len()),
            std::slice::from_raw_parts_mut(a.weights.add(columns.start), columns.len()),
            std::slice::from_raw_parts_mut(a.weights.add(COLUMNS + columns.start), columns.len()),
        )
    };
    let mut sums = [0; 2];
    for ((high, low), x) in high.iter_mut().zip(low).zip(products) {
        let rounded = x.mul_add(a.inverse, ROUND).to_bits();
        *high = (rounded >> 8) as u8;
        *low = rounded as u8 ^ 0x80;
        sums[0] += i32::from(high.cast_signed());
        sums[1] += i32::from(low.cast_signed());
    }
    sums
}

//! Queries as integers.
//!
//! A row is rounded to integers relative to its largest magnitude: to 16 bits for keys in q8, whose own rounding is not
//! much coarser than that of a query in 8 bits; to 8 bits for keys in q4, whose rounding is thirteen times as coarse.

use crate::backend::cpu::simd::codes::Codes;

/// Bytes of a row: a unit (f32), the corrections of its sums (i32), and the bytes of its terms from `4 * dim / 2` on.
pub(crate) const fn row_bytes(dim: usize) -> usize {
    4 * dim
}

/// Where the bytes of a row's terms begin, `[term][dim]`, the high term first.
pub(super) const fn terms(dim: usize) -> usize {
    2 * dim
}

/// Where a row's corrections begin: what is added to the sum of each group of dims and term, `[group][term]`.
pub(super) const CORRECTIONS: usize = 4;

/// 1.5 x 2^23: added to a small number, it leaves the nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// The largest integers of one and of two terms. Of two, the high one is rounded, so that the low one is signed too.
pub(super) const LIMITS: [f32; 2] = [127.0, 32_639.0];
/// Magnitudes outside these bounds are left to f32: a unit or its inverse might not be a normal number.
pub(super) const MAGNITUDES: std::ops::Range<f32> = 1e-30..1e30;

/// Rounds one row. False, and nothing useful written, if a number is not finite or all are very large or very small.
///
/// # Safety
/// `to` must be writable for [`row_bytes`], aligned to 4; `bias` is that of the codes.
#[inline(always)]
pub(super) unsafe fn round_row<C: Codes>(q: &[f32], bias: i32, to: *mut u8) -> bool {
    let dim = q.len();
    // As integers: NaN is above infinity, which is above every number.
    let most = f32::from_bits(q.iter().fold(0, |most, x| most.max(x.to_bits() & !(1 << 31))));
    if most != 0.0 && !MAGNITUDES.contains(&most) {
        return false;
    }
    let limit = LIMITS[C::QUERY_TERMS - 1];
    let inverse = if most == 0.0 { 0.0 } else { limit / most };
    // SAFETY: terms, corrections (at most one for each 16 dims, or two) and unit fit the row, by the sizes of its
    // parts; the caller owns it.
    unsafe {
        to.cast::<f32>().write(most / limit);
        let bytes = std::slice::from_raw_parts_mut(to.add(terms(dim)), C::QUERY_TERMS * dim);
        let (high, low) = bytes.split_at_mut(dim);
        if C::QUERY_TERMS == 2 {
            for ((high, low), &x) in high.iter_mut().zip(&mut *low).zip(q) {
                let rounded = (x * inverse + (ROUND + 128.0)).to_bits();
                *high = (rounded >> 8) as u8;
                *low = rounded as u8 ^ 0x80;
            }
        } else {
            for (byte, &x) in high.iter_mut().zip(q) {
                *byte = (x * inverse + ROUND).to_bits() as u8;
            }
        }
        let corrections = to.add(CORRECTIONS).cast::<i32>();
        for (term, bytes) in [high, low].into_iter().enumerate().take(C::QUERY_TERMS) {
            for (group, bytes) in bytes.chunks(C::SCALE_DIMS.min(dim)).enumerate() {
                let sum: i32 = bytes.iter().map(|&x| i32::from(x.cast_signed())).sum();
                corrections.add(group * C::QUERY_TERMS + term).write(-bias * sum); // mutant: bias_of_codes_left_in
            }
        }
    }
    true
}

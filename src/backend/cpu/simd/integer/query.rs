//! Queries as integers.
//!
//! A row is rounded to integers of 16 bits relative to its largest magnitude. 8 bits would be as coarse as q8 itself,
//! and show wherever keys are nearer to their codes than their type's rounding.

use crate::backend::cpu::simd::codes::Codes;
use crate::config::MAX_HEAD_DIM;

/// Bytes of each of the rows that are multiplied together.
pub(crate) const fn row_bytes(dim: usize) -> usize {
    4 * dim
}

/// Where the parts of rounded queries are, in bytes. All rows of a word, the bytes of four dims, lie together: kernels
/// need one address for all rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundedQueries {
    pub rows: usize,
    pub dim: usize,
    pub terms: usize,
}

impl RoundedQueries {
    /// `[dim / 4][row][term][4]` bytes, the high term first.
    #[inline(always)]
    pub fn word(self, dim: usize, row: usize, term: usize) -> usize {
        (dim / 4 * self.rows + row) * self.terms * 4 + term * 4
    }

    /// `[row]` f32: what an integer stands for.
    #[inline(always)]
    pub fn unit(self, row: usize) -> usize {
        self.rows * self.dim * self.terms + row * 4
    }

    /// `[group of dims][row][term]` i32: what is added to sums of products with codes as they are multiplied.
    #[inline(always)]
    pub fn correction(self, group: usize, row: usize, term: usize) -> usize {
        self.unit(self.rows) + (group * self.rows + row) * self.terms * 4 + term * 4
    }
}

/// 1.5 x 2^23: added to a small number, it leaves the nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// The largest integers of one and of two terms. Of two, the high one is rounded, so that the low one is signed too.
pub(super) const LIMITS: [f32; 2] = [127.0, 32_639.0];
/// Magnitudes outside these bounds are left to f32: a unit or its inverse might not be a normal number.
pub(super) const MAGNITUDES: std::ops::Range<f32> = 1e-30..1e30;

/// The most that the largest magnitudes of two Hadamard blocks of a row may differ by: 16 bits less 4 leave as many as
/// f16 has.
const MOST_BETWEEN_BLOCKS: f32 = 16.0;

/// Where rows of rounded queries go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundedRows {
    pub rows: usize,
    pub bytes: *mut u8,
}

/// Rounds one row. False, and nothing useful written, if a number is not finite or all are very large or very small.
///
/// # Safety
/// `to` must be writable for all rows, each of [`row_bytes`], and aligned to 4; `bias` is what is added to codes.
#[inline(always)]
pub(super) unsafe fn round_row<C: Codes>(q: &[f32], bias: i32, row: usize, to: RoundedRows) -> bool {
    // As integers: NaN is above infinity, which is above every number.
    let most = f32::from_bits(q.iter().fold(0, |most, x| most.max(x.to_bits() & !(1 << 31))));
    if most != 0.0 && !MAGNITUDES.contains(&most) {
        return false;
    }
    // The Hadamard turn spreads a large channel over its block only. Beside it, another block would keep fewer bits
    // than f16 has, and keys may make up for it.
    let block = 1 << q.len().trailing_zeros();
    let of_block = |q: &[f32]| f32::from_bits(q.iter().fold(0, |most, x| most.max(x.to_bits() & !(1 << 31))));
    // mutant: small_block_of_query_rounded
    if q.len() > block && q.chunks_exact(block).any(|q| (1e-30..most / MOST_BETWEEN_BLOCKS).contains(&of_block(q))) {
        return false;
    }
    let limit = LIMITS[C::QUERY_TERMS - 1];
    let inverse = if most == 0.0 { 0.0 } else { limit / most };
    let parts = RoundedQueries { rows: to.rows, dim: q.len(), terms: C::QUERY_TERMS };
    let mut bytes = [[0_u8; MAX_HEAD_DIM as usize]; 2];
    let [high, low] = bytes.each_mut().map(|bytes| &mut bytes[..q.len()]);
    for ((high, low), &x) in high.iter_mut().zip(low).zip(q) {
        if C::QUERY_TERMS == 2 {
            let rounded = (x * inverse + (ROUND + 128.0)).to_bits();
            *high = (rounded >> 8) as u8;
            *low = rounded as u8 ^ 0x80;
        } else {
            *high = (x * inverse + ROUND).to_bits() as u8;
        }
    }
    // SAFETY: all parts (two bytes for a dim; a unit and at most two corrections, or one for each 32 dims) fit the
    // rows, which are the caller's.
    unsafe {
        to.bytes.add(parts.unit(row)).cast::<f32>().write(most / limit);
        for (term, bytes) in bytes.iter().enumerate().take(C::QUERY_TERMS) {
            for (i, word) in bytes[..q.len()].as_chunks::<4>().0.iter().enumerate() {
                to.bytes.add(parts.word(4 * i, row, term)).cast::<[u8; 4]>().write(*word);
            }
            for (group, bytes) in bytes[..q.len()].chunks(C::SCALE_DIMS.min(q.len())).enumerate() {
                let sum: i32 = bytes.iter().map(|&x| i32::from(x.cast_signed())).sum();
                // mutant: bias_of_codes_left_in
                to.bytes.add(parts.correction(group, row, term)).cast::<i32>().write(-bias * sum);
            }
        }
    }
    true
}

//! Queries as integers.
//!
//! A row is rounded to integers of 16 bits relative to its largest magnitude. 8 bits would be as coarse as q8 itself,
//! and show wherever keys are nearer to their codes than their type's rounding.

use super::rounding::{LIMIT, MAGNITUDES, ROUND, TERMS};
use crate::backend::cpu::simd::codes::Codes;
use crate::backend::cpu::simd::quantise::largest;
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
}

impl RoundedQueries {
    /// `[dim / 4][row][term][4]` bytes, the high term first.
    #[inline(always)]
    pub fn word(self, dim: usize, row: usize, term: usize) -> usize {
        (dim / 4 * self.rows + row) * TERMS * 4 + term * 4
    }

    /// `[row]` f32: what an integer stands for.
    #[inline(always)]
    pub fn unit(self, row: usize) -> usize {
        self.rows * self.dim * TERMS + row * 4
    }

    /// `[group of dims][row][term]` i32: what is added to sums of products with codes as they are multiplied.
    #[inline(always)]
    pub fn correction(self, group: usize, row: usize, term: usize) -> usize {
        self.unit(self.rows) + (group * self.rows + row) * TERMS * 4 + term * 4
    }
}

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
    let most = f32::from_bits(largest(q));
    if most != 0.0 && !MAGNITUDES.contains(&most) {
        return false;
    }
    // The Hadamard turn spreads a large channel over its block only. Beside it, another block would keep fewer bits
    // than f16 has, and keys may make up for it.
    let block = 1 << q.len().trailing_zeros();
    let small = MAGNITUDES.start..most / MOST_BETWEEN_BLOCKS;
    // mutant: small_block_of_query_rounded
    if q.len() > block && q.chunks_exact(block).any(|q| small.contains(&f32::from_bits(largest(q)))) {
        return false;
    }
    let inverse = if most == 0.0 { 0.0 } else { LIMIT / most };
    let parts = RoundedQueries { rows: to.rows, dim: q.len() };
    let mut bytes = [[0_u8; MAX_HEAD_DIM as usize]; TERMS];
    let [high, low] = bytes.each_mut().map(|bytes| &mut bytes[..q.len()]);
    for ((high, low), &x) in high.iter_mut().zip(low).zip(q) {
        let rounded = (x * inverse + ROUND).to_bits();
        *high = (rounded >> 8) as u8;
        *low = rounded as u8 ^ 0x80;
    }
    // SAFETY: all parts (two bytes for a dim; a unit and two corrections, in q4 two for each 32 dims) fit the rows,
    // which are the caller's.
    unsafe {
        to.bytes.add(parts.unit(row)).cast::<f32>().write(most / LIMIT);
        for (term, bytes) in bytes.iter().enumerate() {
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

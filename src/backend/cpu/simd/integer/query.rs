//! Queries as integers.
//!
//! A row is rounded to integers of 16 bits relative to its largest magnitude. 8 bits would be as coarse as q8 itself,
//! and show wherever keys are nearer to their codes than their type's rounding.

use super::rounding::{LIMIT, MAGNITUDES, QueryRounding, TERMS};
use super::vector::{SimdInt, bias};
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
/// The instruction set of `I` is available. `to` must be writable for all rows, each of [`row_bytes`], and aligned to
/// 8.
#[inline(always)]
pub(super) unsafe fn round_row<I: SimdInt, C: Codes>(q: &[f32], row: usize, to: RoundedRows) -> bool {
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
    let mut words = [[0; 8]; MAX_HEAD_DIM as usize / 4];
    let group = C::SCALE_DIMS.min(q.len());
    // SAFETY: the instruction set is available, by the caller.
    let sums = unsafe { I::round_query(&mut QueryRounding { q, inverse, group, words: &mut words }) };
    // SAFETY: all parts (two bytes for a dim; a unit and two corrections, in q4 two for each 32 dims) fit the rows,
    // which are the caller's.
    unsafe {
        to.bytes.add(parts.unit(row)).cast::<f32>().write(most / LIMIT);
        for (i, word) in words[..q.len() / 4].iter().enumerate() {
            // Volatile: the compiler would make a scatter of stores a stride apart, and it takes twice as long.
            to.bytes.add(parts.word(4 * i, row, 0)).cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
        }
        for (group, sums) in sums.iter().enumerate().take(q.len().div_ceil(group)) {
            // mutant: bias_of_codes_left_in
            let correction = sums.map(|sum| -bias::<I, C>() * sum);
            to.bytes.add(parts.correction(group, row, 0)).cast::<[i32; TERMS]>().write(correction);
        }
    }
    true
}

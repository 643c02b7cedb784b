//! Weights of values as integers: probabilities times the scales of values, rounded to 16 bits relative to the largest
//! magnitude of a row and group of dims.

use super::rounding::{Factors, GROUP_BYTES, LIMIT, MAGNITUDES, MOST_GROUPS, Rounding};
use super::vector::{SimdInt, bias};
use crate::backend::cpu::simd::codes::{Codes, layout};

/// Bytes of a row for so many groups of dims: weights, then a unit (f32) for each group.
pub(crate) const fn row_bytes(groups: usize) -> usize {
    (groups * (GROUP_BYTES + size_of::<f32>())).next_multiple_of(64)
}

/// Where the weights of a group, term and four columns are.
#[inline(always)]
pub(super) const fn weight(group: usize, term: usize, column: usize) -> usize {
    group * GROUP_BYTES + column * 2 + term * 4
}

/// Where the unit of a group is.
#[inline(always)]
const fn unit(groups: usize, group: usize) -> usize {
    groups * GROUP_BYTES + group * size_of::<f32>()
}

/// Weights of a row: `probs[c] * scale[c]` for each group of dims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeighArgs {
    /// Probabilities of the row; 0 for columns that it does not see.
    pub probs: *const f32,
    /// Columns that have a probability, a multiple of 16.
    pub n: usize,
    /// The first block of values, and padded dims of a row.
    pub v: *const u8,
    pub dim: usize,
    /// Blocks that have weights.
    pub from: usize,
    pub to: usize,
    /// `[groups of dims][COLUMNS]` f32 to work with.
    pub products: *mut f32,
    /// The row's weights, [`weights::row_bytes`].
    pub weights: *mut u8,
    /// `[2][dim]` the row's sums.
    pub sums: *mut i32,
}

/// Results of one row from its sums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResultArgs {
    pub weights: *const u8,
    pub sums: *const i32,
    pub dim: usize,
    /// `[dim]` f32.
    pub results: *mut f32,
}

/// Rounds the weights of a row's values in some blocks, and begins the sums of its results. False, and nothing useful
/// written, if a weight is not finite or all of a group are very large or very small.
///
/// # Safety
/// As [`SimdInt`] and [`WeighArgs`].
#[inline(always)]
pub(super) unsafe fn weigh<I: SimdInt, C: Codes>(a: &WeighArgs) -> bool {
    let (layout, group_dims) = (layout::<C>(a.dim), C::SCALE_DIMS.min(a.dim));
    let groups = layout.scales;
    // SAFETY: the instruction set is available; rows, blocks and columns are the arguments', by the caller.
    unsafe {
        let most = I::multiply(&Factors {
            probs: a.probs,
            n: a.n,
            from: a.from,
            to: a.to,
            scales: a.v,
            block_bytes: layout.block_bytes(),
            groups,
            products: a.products,
        });
        let mut inverse = [0.0; MOST_GROUPS];
        for (group, (inverse, most)) in inverse.iter_mut().zip(most).enumerate().take(groups) {
            let most = f32::from_bits(most);
            if most != 0.0 {
                if !MAGNITUDES.contains(&most) {
                    return false;
                }
                *inverse = LIMIT / most;
            }
            a.weights.add(unit(groups, group)).cast::<f32>().write(most / LIMIT);
        }
        let sums =
            I::round(&Rounding { products: a.products, from: a.from, to: a.to, groups, inverse, weights: a.weights });
        for (group, sums) in sums.into_iter().enumerate().take(groups) {
            let dims = group * group_dims..a.dim.min((group + 1) * group_dims);
            for (term, sum) in sums.into_iter().enumerate() {
                let results = a.sums.add(term * a.dim + dims.start);
                std::slice::from_raw_parts_mut(results, dims.len()).fill(-bias::<I, C>() * sum);
            }
        }
    }
    true
}

/// The results of a row from its sums.
///
/// # Safety
/// As [`ResultArgs`].
#[inline(always)]
pub(super) unsafe fn results<C: Codes>(a: &ResultArgs) {
    let (dim, groups) = (a.dim, layout::<C>(a.dim).scales);
    let group_dims = C::SCALE_DIMS.min(dim);
    for group in 0..groups {
        let dims = group * group_dims..dim.min((group + 1) * group_dims);
        // SAFETY: parts of a row of the arguments.
        unsafe {
            let unit = a.weights.add(unit(groups, group)).cast::<f32>().read();
            let sums = |term: usize| std::slice::from_raw_parts(a.sums.add(term * dim + dims.start), dims.len()).iter();
            let to = std::slice::from_raw_parts_mut(a.results.add(dims.start), dims.len());
            for ((to, &high), &low) in to.iter_mut().zip(sums(0)).zip(sums(1)) {
                *to = (high as f32 * 256.0 + low as f32) * unit;
            }
        }
    }
}

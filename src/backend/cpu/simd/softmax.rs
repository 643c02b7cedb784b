//! Softmax of rows of scores against a block of keys: scores become probabilities.

use std::f32::consts::LOG2_E;

use super::unroll::{unrolled, unrolled_by_4};
use super::vector::{SimdF32, tanh};

/// Rows of scores, to become probabilities relative to each row's running maximum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoftmaxArgs {
    /// `[rows][stride]` f32.
    pub scores: *mut f32,
    pub stride: usize,
    /// Columns, a multiple of 16, at most `stride`.
    pub n: usize,
    pub rows: usize,
    /// `[rows]` visible columns.
    pub visible: *const ColumnRange,
    pub scale: f32,
    /// 0 = none.
    pub softcap: f32,
    /// `[rows]` f32: running maximum (in the unit of [`score_unit`]), running sum, and, written, the rescale factor of
    /// what was accumulated before.
    pub max: *mut f32,
    pub sum: *mut f32,
    pub alpha: *mut f32,
}

/// What a row's running maximum times this is, as a score. The scale of scores with neither softcap nor bias is applied
/// to their distance from the maximum: the largest is exactly 0 away, however large the scores, and a product that is
/// rounded once in the maximum and not at all in a fused multiply-add cannot leave a rest.
pub(crate) fn score_unit(scale: f32, softcap: f32, slope: f32) -> f32 {
    if softcap == 0.0 && slope == 0.0 { scale } else { 1.0 }
}

impl SoftmaxArgs {
    /// What makes an exponent of 2 of a row's distances from its maximum.
    pub fn exponent_factor(&self, visible: &ColumnRange) -> f32 {
        // Finite: infinity times a distance of 0 would be NaN.
        (score_unit(self.scale, self.softcap, visible.slope) * LOG2_E).min(f32::MAX)
    }

    /// Whether a row's scores need a transform before their maximum.
    fn transforms(&self, visible: &ColumnRange) -> bool {
        self.softcap != 0.0 || visible.slope != 0.0
    }
}

/// The columns of a block that a row sees, and their ALiBi bias.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ColumnRange {
    /// Probabilities outside `from..to` become 0.
    pub from: usize,
    pub to: usize,
    /// Bias per token of distance; 0 = none.
    pub slope: f32,
    /// Distance of column `to - 1`.
    pub distance: f32,
}

/// The columns that any of some rows sees, or `None`.
pub(crate) fn visible_union(visible: &[ColumnRange]) -> Option<(usize, usize)> {
    let some = visible.iter().filter(|v| v.from < v.to);
    let (from, to) = some.fold((usize::MAX, 0), |(from, to), v| (from.min(v.from), to.max(v.to)));
    (from < to).then_some((from, to))
}

/// Scores to probabilities. First the maxima of all rows, then the probabilities: rows stay independent of one another.
///
/// # Safety
/// As [`SimdF32`] and [`SoftmaxArgs`].
#[inline(always)]
pub(crate) unsafe fn softmax<V: SimdF32, const PRECISE: bool>(a: &SoftmaxArgs) {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        for r in 0..a.rows {
            update_row_max::<V>(a, r);
        }
        for r in 0..a.rows {
            row_probs::<V, PRECISE>(a, r);
        }
    }
}

/// Transforms and masks a row; updates its running maximum and computes its rescale factor, which is -1 for a row that
/// has seen only minus infinity so far. Returns the maximum of the block, in the unit of the running maximum.
#[inline(always)]
pub(super) unsafe fn update_row_max<V: SimdF32>(a: &SoftmaxArgs, r: usize) -> f32 {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let (row, visible) = (a.scores.add(r * a.stride), *a.visible.add(r));
        let (first, end) = (visible.from / V::N, visible.to.div_ceil(V::N));
        let at = |i: usize| row.add(i * V::N);
        if a.transforms(&visible) {
            for i in first..end {
                transformed(a, &visible, i * V::N, V::load(at(i))).store(at(i));
            }
        }
        let lowest = V::splat(f32::NEG_INFINITY);
        // The first and the last vector may hold masked columns.
        if first < end {
            mask_vector::<V>(row, &visible, first, lowest);
            mask_vector::<V>(row, &visible, end - 1, lowest); // mutant: masked_score_counts
        }
        let mut row_maxima = [lowest; 4];
        unrolled_by_4!(i in first, end, v, row_maxima[v] = V::load(at(i)).max(row_maxima[v]));
        let row_max = row_maxima[0].max(row_maxima[1]).max(row_maxima[2].max(row_maxima[3])).reduce_max();
        let max = &mut *a.max.add(r);
        let new = row_max.max(*max);
        let alpha = a.alpha.add(r);
        if *max == new {
            *alpha = 1.0;
            // All scores so far are minus infinity: there is no maximum to subtract. A NaN must propagate.
            // mutant: masked_row_is_nan
            if new == f32::NEG_INFINITY && (visible.from..visible.to).all(|c| *row.add(c) == f32::NEG_INFINITY) {
                *alpha = -1.0;
            }
        } else {
            *alpha = V::splat((*max - new) * a.exponent_factor(&visible)).exp2::<true>().first();
        }
        *max = new;
        row_max
    }
}

/// Computes the probabilities of a row and adds them to its sum.
#[inline(always)]
unsafe fn row_probs<V: SimdF32, const PRECISE: bool>(a: &SoftmaxArgs, r: usize) {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let (row, visible) = (a.scores.add(r * a.stride), *a.visible.add(r));
        let (first, mut end) = (visible.from / V::N, visible.to.div_ceil(V::N));
        let at = |i: usize| row.add(i * V::N);
        let zero = V::splat(0.0);
        let alpha = &mut *a.alpha.add(r);
        if *alpha < 0.0 {
            *alpha = 1.0;
            end = first;
        }
        // The maximum is subtracted before the product is rounded: the exponent of the largest score is exactly 0.
        let (factor, minus_max) = (V::splat(a.exponent_factor(&visible)), V::splat(-*a.max.add(r)));
        let mut totals = [zero; 4];
        unrolled_by_4!(i in first, end, v, {
            // mutant: maximum_subtracted_late
            let p = V::load(at(i)).add(minus_max).mul(factor).exp2::<PRECISE>();
            p.store(at(i));
            totals[v] = totals[v].add(p);
        });
        // `exp2` of minus infinity is 2^-126, not 0: too small to have changed the sum, but masked columns must be 0.
        if first < end && (visible.from % V::N != 0 || visible.to % V::N != 0) {
            mask_vector::<V>(row, &visible, first, zero);
            mask_vector::<V>(row, &visible, end - 1, zero);
        }
        for i in 0..first {
            zero.store(at(i));
        }
        for i in end..a.n / V::N {
            zero.store(at(i));
        }
        let sum = a.sum.add(r);
        *sum = *sum * *alpha + totals[0].add(totals[1]).add(totals[2].add(totals[3])).reduce_add();
    }
}

/// Replaces the masked columns of vector `i` by `other`.
#[inline(always)]
unsafe fn mask_vector<V: SimdF32>(row: *mut f32, visible: &ColumnRange, i: usize, other: V) {
    let lane = |key: usize| key as isize - (i * V::N) as isize;
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let p = row.add(i * V::N);
        V::load(p).in_range(lane(visible.from), lane(visible.to), other).store(p);
    }
}

/// Scale, softcap and bias of the scores of the columns from `key` on.
#[inline(always)]
unsafe fn transformed<V: SimdF32>(a: &SoftmaxArgs, visible: &ColumnRange, key: usize, s: V) -> V {
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let mut s = s.mul(V::splat(a.scale));
        // mutant: bias_before_softcap
        if a.softcap > 0.0 {
            s = tanh(s.div(V::splat(a.softcap))).mul(V::splat(a.softcap));
        }
        if visible.slope != 0.0 {
            let distance = V::splat(visible.distance + (visible.to as f32 - 1.0 - key as f32)).sub(V::iota());
            s = distance.fma(V::splat(-visible.slope), s);
        }
        s
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::backend::cpu::simd::amx::gemm::{ROWS, SplitMut};
    use crate::backend::cpu::simd::amx::softmax::softmax_bf16;
    use crate::backend::cpu::simd::fp16::softmax::softmax_fp16;
    use crate::backend::cpu::simd::x86_64::avx512::Avx512;
    use crate::cpu_features::Isa;

    const N: usize = 96;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Way {
        Plain,
        /// bf16 probabilities.
        Bf16,
        /// High and low bf16.
        SplitBf16,
        Fp16,
    }

    /// Results of one implementation.
    struct Left {
        max: [f32; ROWS],
        sum: [f32; ROWS],
        alpha: [f32; ROWS],
        probs: Vec<f32>,
    }

    fn run(scores: &[f32], visible: &[ColumnRange], softcap: f32, before: (f32, f32), way: Way) -> Left {
        let mut scores = scores.to_vec();
        let mut left = Left { max: [before.0; ROWS], sum: [before.1; ROWS], alpha: [0.0; ROWS], probs: vec![] };
        let (mut high, mut low) = (vec![0xFFFF_u16; ROWS * N], vec![0xFFFF_u16; ROWS * N]);
        let (mut pairs, mut row_maxima) = (vec![u32::MAX; ROWS * N], [0.0; ROWS]);
        let args = SoftmaxArgs {
            scores: scores.as_mut_ptr(),
            stride: N,
            n: N,
            rows: visible.len(),
            visible: visible.as_ptr(),
            scale: 0.7,
            softcap,
            max: left.max.as_mut_ptr(),
            sum: left.sum.as_mut_ptr(),
            alpha: left.alpha.as_mut_ptr(),
        };
        // SAFETY: arrays of 32 rows of `N` columns, where the instructions are.
        unsafe {
            match way {
                Way::Plain => softmax::<Avx512, true>(&args),
                Way::Bf16 => softmax_bf16(&args, SplitMut { high: high.as_mut_ptr(), low: std::ptr::null_mut() }),
                Way::SplitBf16 => softmax_bf16(&args, SplitMut { high: high.as_mut_ptr(), low: low.as_mut_ptr() }),
                Way::Fp16 => softmax_fp16(&args, pairs.as_mut_ptr(), &mut row_maxima),
            }
        }
        let number = |x: u16| bf16::from_bits(x).to_f32();
        left.probs = match way {
            Way::Plain => scores,
            Way::Bf16 => high.iter().map(|&x| number(x)).collect(),
            Way::SplitBf16 => high.iter().zip(&low).map(|(&h, &l)| number(h) + number(l)).collect(),
            Way::Fp16 => {
                let weight = |(i, &pair): (usize, &u32)| {
                    assert!(i / N >= visible.len() || pair >> 16 == pair & 0xFFFF, "{pair:x}");
                    f16::from_bits(pair as u16).to_f32() * row_maxima[i / N]
                };
                pairs.iter().enumerate().map(weight).collect()
            }
        };
        left
    }

    /// All implementations agree up to rounding: numbers of rows, ranges of every kind, scores of minus infinity and
    /// NaN.
    #[test]
    fn weights_are_those_of_the_plain_way() {
        let ways = [(Way::Bf16, Isa::Amx), (Way::SplitBf16, Isa::Amx), (Way::Fp16, Isa::Avx512)];
        let ways = ways.map(|(way, isa)| (way, isa.available()));
        if !ways.iter().any(|way| way.1) {
            return;
        }
        let mut state = 1_u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for round in 0..600 {
            let rows = [1, 15, 16, 17, 31, 32][draw(6) as usize];
            let whole = round % 4 == 0;
            // Softcap and slopes are not implemented for AMX.
            let transformed = round % 3 == 0;
            let softcap = if transformed { [0.0, 5.0][draw(2) as usize] } else { 0.0 };
            let mut visible = vec![ColumnRange::default(); rows];
            let mut scores = vec![0.0; ROWS * N];
            scores.fill_with(|| draw(4096) as f32 / 256.0 - 8.0);
            for (r, visible) in visible.iter_mut().enumerate() {
                (visible.from, visible.to) = match draw(4) {
                    _ if whole => (0, N),
                    0 => (0, 0),
                    1 => (0, N),
                    _ => {
                        let from = draw(N as u64) as usize;
                        (from, from + draw((N - from) as u64 + 1) as usize)
                    }
                };
                if transformed && draw(2) == 0 {
                    (visible.slope, visible.distance) = (0.125, draw(9) as f32);
                }
                let row = &mut scores[r * N..][..N];
                match draw(8) {
                    0 => row.fill(f32::NEG_INFINITY),
                    1 => row[draw(N as u64) as usize] = f32::NAN,
                    2 => row.fill(f32::NAN),
                    _ => row[draw(N as u64) as usize] = f32::NEG_INFINITY,
                }
            }
            // With the third maximum, far above all scores, fp16 probabilities would underflow.
            let before = [(f32::NEG_INFINITY, 0.0), (3.0, 2.5), (40.0, 2.5)][draw(3) as usize];
            let want = run(&scores, &visible, softcap, before, Way::Plain);
            for (way, _) in ways.iter().filter(|way| way.1 && (way.0 == Way::Fp16 || !transformed)) {
                let got = run(&scores, &visible, softcap, before, *way);
                let near =
                    |a: f32, b: f32, bound: f32| a == b || (a - b).abs() <= bound * b.abs() || a.is_nan() && b.is_nan();
                let (bound, rounds_off) = match way {
                    Way::SplitBf16 => (2e-5, 3e-5),
                    Way::Fp16 => (2.2e-4, 6e-4),
                    _ => (2.2e-4, 4.1e-3),
                };
                for (r, visible) in visible.iter().enumerate() {
                    let what = format!("round {round}, {way:?}, row {r} of {rows}: {visible:?}");
                    assert!(near(got.max[r], want.max[r], 1e-6), "{what}: max {} not {}", got.max[r], want.max[r]);
                    assert!(
                        near(got.alpha[r], want.alpha[r], 1e-5),
                        "{what}: keep {} not {}",
                        got.alpha[r],
                        want.alpha[r]
                    );
                    assert!(near(got.sum[r], want.sum[r], bound), "{what}: sum {} not {}", got.sum[r], want.sum[r]);
                    let row_max = want.probs[r * N..][..N].iter().fold(0.0, |row_max: f32, x| row_max.max(*x));
                    for c in 0..N {
                        // Where the only score is NaN, masked fp16 probabilities are NaN too.
                        if *way == Way::Fp16 && want.sum[r].is_nan() && !(visible.from..visible.to).contains(&c) {
                            continue;
                        }
                        let (got, want) = (got.probs[r * N + c], want.probs[r * N + c]);
                        // Negligible probabilities may be 0: fp16 underflows.
                        let tiny = got.abs() <= 1e-37 && want.abs() <= 1e-37;
                        let small = *way == Way::Fp16 && (got - want).abs() <= 4e-8 * row_max;
                        assert!(tiny || small || near(got, want, rounds_off), "{what}, column {c}: {got} not {want}");
                    }
                }
            }
        }
    }
}

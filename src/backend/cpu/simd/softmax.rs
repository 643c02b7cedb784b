//! From scores to weights: the softmax of rows against a block of keys.

use std::f32::consts::LOG2_E;

use super::unroll::{by_fours, each};
use super::vector::{Lanes, tanh};

/// Rows of scores, to become weights relative to each row's largest score so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    /// `[rows][stride]` f32.
    pub scores: *mut f32,
    pub stride: usize,
    /// Columns, a multiple of 16, at most `stride`.
    pub n: usize,
    pub rows: usize,
    /// `[rows]` what each sees.
    pub seen: *const Seen,
    pub scale: f32,
    /// 0 = none.
    pub softcap: f32,
    /// `[rows]` f32: largest score so far, sum of weights so far, and, written, what earlier sums are worth now.
    pub max: *mut f32,
    pub sum: *mut f32,
    pub keep: *mut f32,
}

/// What a row sees of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Columns; all other weights become 0.
    pub from: usize,
    pub to: usize,
    /// Bias per token of distance; 0 = none.
    pub slope: f32,
    /// Distance of column `to - 1`.
    pub distance: f32,
}

/// Scores to weights. First the maxima of all rows, then the weights: no row waits for another one's sums.
///
/// # Safety
/// As [`Lanes`] and [`Weights`].
#[inline(always)]
pub(crate) unsafe fn weigh<V: Lanes, const PRECISE: bool>(a: &Weights) {
    // SAFETY: the caller's contract.
    unsafe {
        for r in 0..a.rows {
            top_of_row::<V>(a, r);
        }
        for r in 0..a.rows {
            weigh_row::<V, PRECISE>(a, r);
        }
    }
}

/// Transforms and masks a row; finds its maximum, and what earlier weights are worth beside it. A row without any weight so far
/// is marked by a `keep` of -1. Returns the row's own maximum, which is yet to be scaled if there was nothing to transform.
#[inline(always)]
pub(super) unsafe fn top_of_row<V: Lanes>(a: &Weights, r: usize) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let (row, seen) = (a.scores.add(r * a.stride), *a.seen.add(r));
        let (first, end) = (seen.from / V::N, seen.to.div_ceil(V::N));
        let at = |i: usize| row.add(i * V::N);
        // Without a transform the scale goes into the exponent.
        let plain = a.softcap == 0.0 && seen.slope == 0.0;
        if !plain {
            for i in first..end {
                transformed(a, &seen, i * V::N, V::load(at(i))).store(at(i));
            }
        }
        let lowest = V::splat(f32::NEG_INFINITY);
        // The vectors at the edges hold keys that the row does not see.
        if first < end {
            edge::<V>(row, &seen, first, lowest);
            edge::<V>(row, &seen, end - 1, lowest);
        }
        let mut tops = [lowest; 4];
        by_fours!(i in first, end, v, tops[v] = V::load(at(i)).max(tops[v]));
        let top = tops[0].max(tops[1]).max(tops[2].max(tops[3])).reduce_max();
        let max = &mut *a.max.add(r);
        let new = (if plain { top * a.scale } else { top }).max(*max);
        let keep = a.keep.add(r);
        if *max == new {
            *keep = 1.0;
            // Nothing but weights of zero so far, and no maximum to subtract. A NaN among them must show.
            if new == f32::NEG_INFINITY && (seen.from..seen.to).all(|c| *row.add(c) == f32::NEG_INFINITY) {
                *keep = -1.0;
            }
        } else {
            *keep = V::splat((*max - new) * LOG2_E).exp2::<true>().first();
        }
        *max = new;
        top
    }
}

/// Turns a row into weights and adds up their sum.
#[inline(always)]
unsafe fn weigh_row<V: Lanes, const PRECISE: bool>(a: &Weights, r: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let (row, seen) = (a.scores.add(r * a.stride), *a.seen.add(r));
        let (first, mut end) = (seen.from / V::N, seen.to.div_ceil(V::N));
        let at = |i: usize| row.add(i * V::N);
        let zero = V::splat(0.0);
        let keep = &mut *a.keep.add(r);
        if *keep < 0.0 {
            *keep = 1.0;
            end = first;
        }
        let plain = a.softcap == 0.0 && seen.slope == 0.0;
        let scale = if plain { a.scale } else { 1.0 };
        let (factor, offset) = (V::splat(scale * LOG2_E), V::splat(-*a.max.add(r) * LOG2_E));
        let mut totals = [zero; 4];
        by_fours!(i in first, end, v, {
            let p = V::load(at(i)).fma(factor, offset).exp2::<PRECISE>();
            p.store(at(i));
            totals[v] = totals[v].add(p);
        });
        // What `exp2` leaves of minus infinity is not quite nothing; too little to have counted in the sum.
        if first < end && (seen.from % V::N != 0 || seen.to % V::N != 0) {
            edge::<V>(row, &seen, first, zero);
            edge::<V>(row, &seen, end - 1, zero);
        }
        for i in 0..first {
            zero.store(at(i));
        }
        for i in end..a.n / V::N {
            zero.store(at(i));
        }
        let sum = a.sum.add(r);
        *sum = *sum * *keep + totals[0].add(totals[1]).add(totals[2].add(totals[3])).reduce_add();
    }
}

/// Puts `other` where the row does not see the keys of vector `i`.
#[inline(always)]
unsafe fn edge<V: Lanes>(row: *mut f32, seen: &Seen, i: usize, other: V) {
    let lane = |key: usize| key as isize - (i * V::N) as isize;
    // SAFETY: the caller's contract.
    unsafe {
        let p = row.add(i * V::N);
        V::load(p).in_range(lane(seen.from), lane(seen.to), other).store(p);
    }
}

/// Scale, softcap and bias of the scores of the keys from `key` on.
#[inline(always)]
unsafe fn transformed<V: Lanes>(a: &Weights, seen: &Seen, key: usize, s: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let mut s = s.mul(V::splat(a.scale));
        if a.softcap > 0.0 {
            s = tanh(s.div(V::splat(a.softcap))).mul(V::splat(a.softcap));
        }
        if seen.slope != 0.0 {
            let distance = V::splat(seen.distance + (seen.to as f32 - 1.0 - key as f32)).sub(V::iota());
            s = distance.fma(V::splat(-seen.slope), s);
        }
        s
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::backend::cpu::simd::amx::gemm::ROWS;
    use crate::backend::cpu::simd::amx::softmax::weigh_tiles;
    use crate::backend::cpu::simd::fp16::softmax::weigh_halves;
    use crate::backend::cpu::simd::x86_64::avx512::Avx512;
    use crate::cpu_features::Isa;

    const N: usize = 96;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Way {
        Plain,
        /// In bfloat16.
        Tiles,
        /// In two of them.
        TwoTiles,
        Halves,
    }

    /// What each way leaves: maxima, sums, keeps, weights.
    struct Left {
        max: [f32; ROWS],
        sum: [f32; ROWS],
        keep: [f32; ROWS],
        weights: Vec<f32>,
    }

    fn run(scores: &[f32], seen: &[Seen], softcap: f32, before: (f32, f32), way: Way) -> Left {
        let mut scores = scores.to_vec();
        let mut left = Left { max: [before.0; ROWS], sum: [before.1; ROWS], keep: [0.0; ROWS], weights: vec![] };
        let (mut high, mut low) = (vec![0xFFFF_u16; ROWS * N], vec![0xFFFF_u16; ROWS * N]);
        let (mut pairs, mut tops) = (vec![u32::MAX; ROWS * N], [0.0; ROWS]);
        let softmax = Weights {
            scores: scores.as_mut_ptr(),
            stride: N,
            n: N,
            rows: seen.len(),
            seen: seen.as_ptr(),
            scale: 0.7,
            softcap,
            max: left.max.as_mut_ptr(),
            sum: left.sum.as_mut_ptr(),
            keep: left.keep.as_mut_ptr(),
        };
        // SAFETY: arrays of 32 rows of `N` columns, where the instructions are.
        unsafe {
            match way {
                Way::Plain => weigh::<Avx512, true>(&softmax),
                Way::Tiles => weigh_tiles(&softmax, high.as_mut_ptr(), std::ptr::null_mut()),
                Way::TwoTiles => weigh_tiles(&softmax, high.as_mut_ptr(), low.as_mut_ptr()),
                Way::Halves => weigh_halves(&softmax, pairs.as_mut_ptr(), &mut tops),
            }
        }
        let number = |x: u16| bf16::from_bits(x).to_f32();
        left.weights = match way {
            Way::Plain => scores,
            Way::Tiles => high.iter().map(|&x| number(x)).collect(),
            Way::TwoTiles => high.iter().zip(&low).map(|(&h, &l)| number(h) + number(l)).collect(),
            Way::Halves => {
                let weight = |(i, &pair): (usize, &u32)| {
                    assert!(i / N >= seen.len() || pair >> 16 == pair & 0xFFFF, "{pair:x}");
                    f16::from_bits(pair as u16).to_f32() * tops[i / N]
                };
                pairs.iter().enumerate().map(weight).collect()
            }
        };
        left
    }

    /// Numbers of rows, ranges of every kind, scores of minus infinity and NaN: the same as the plain way, but for rounding.
    #[test]
    fn weights_are_those_of_the_plain_way() {
        let ways = [(Way::Tiles, Isa::Amx), (Way::TwoTiles, Isa::Amx), (Way::Halves, Isa::Avx512)];
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
            // Softcap and slopes are not for tiles.
            let transformed = round % 3 == 0;
            let softcap = if transformed { [0.0, 5.0][draw(2) as usize] } else { 0.0 };
            let mut seen = vec![Seen::default(); rows];
            let mut scores = vec![0.0; ROWS * N];
            scores.fill_with(|| draw(4096) as f32 / 256.0 - 8.0);
            for (r, seen) in seen.iter_mut().enumerate() {
                (seen.from, seen.to) = match draw(4) {
                    _ if whole => (0, N),
                    0 => (0, 0),
                    1 => (0, N),
                    _ => {
                        let from = draw(N as u64) as usize;
                        (from, from + draw((N - from) as u64 + 1) as usize)
                    }
                };
                if transformed && draw(2) == 0 {
                    (seen.slope, seen.distance) = (0.125, draw(9) as f32);
                }
                let row = &mut scores[r * N..][..N];
                match draw(8) {
                    0 => row.fill(f32::NEG_INFINITY),
                    1 => row[draw(N as u64) as usize] = f32::NAN,
                    2 => row.fill(f32::NAN),
                    _ => row[draw(N as u64) as usize] = f32::NEG_INFINITY,
                }
            }
            // The third is so far above all scores that halves of its weights would be nothing.
            let before = [(f32::NEG_INFINITY, 0.0), (3.0, 2.5), (40.0, 2.5)][draw(3) as usize];
            let want = run(&scores, &seen, softcap, before, Way::Plain);
            for (way, _) in ways.iter().filter(|way| way.1 && (way.0 == Way::Halves || !transformed)) {
                let got = run(&scores, &seen, softcap, before, *way);
                let near =
                    |a: f32, b: f32, bound: f32| a == b || (a - b).abs() <= bound * b.abs() || a.is_nan() && b.is_nan();
                let (bound, rounds_off) = match way {
                    Way::TwoTiles => (2e-5, 3e-5),
                    Way::Halves => (2.2e-4, 6e-4),
                    _ => (2.2e-4, 4.1e-3),
                };
                for (r, seen) in seen.iter().enumerate() {
                    let what = format!("round {round}, {way:?}, row {r} of {rows}: {seen:?}");
                    assert!(near(got.max[r], want.max[r], 1e-6), "{what}: max {} not {}", got.max[r], want.max[r]);
                    assert!(near(got.keep[r], want.keep[r], 1e-5), "{what}: keep {} not {}", got.keep[r], want.keep[r]);
                    assert!(near(got.sum[r], want.sum[r], bound), "{what}: sum {} not {}", got.sum[r], want.sum[r]);
                    let top = want.weights[r * N..][..N].iter().fold(0.0, |top: f32, x| top.max(*x));
                    for c in 0..N {
                        // Beside a NaN that is all there is, halves of what is not seen are NaN too.
                        if *way == Way::Halves && want.sum[r].is_nan() && !(seen.from..seen.to).contains(&c) {
                            continue;
                        }
                        let (got, want) = (got.weights[r * N + c], want.weights[r * N + c]);
                        // Weights that count for nothing may be nothing, and halves have an end.
                        let tiny = got.abs() <= 1e-37 && want.abs() <= 1e-37;
                        let small = *way == Way::Halves && (got - want).abs() <= 4e-8 * top;
                        assert!(tiny || small || near(got, want, rounds_off), "{what}, column {c}: {got} not {want}");
                    }
                }
            }
        }
    }
}

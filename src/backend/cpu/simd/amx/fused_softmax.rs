//! QK^T and softmax overlapped, on AMX: while tiles multiply a strip of 32 keys, vectors compute the softmax of the
//! strip before.
//!
//! Exponents use the running maximum of earlier blocks, so that no strip waits for the end of its row, and scores need
//! two strips of memory, which stay in L1. A row's first block, and a block whose scores exceed that maximum by too
//! much, take two passes (`softmax.rs`).

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::gemm::{DEPTH, ROWS, SplitMatrix, SplitMut, accumulate, split_products, store_acc, zero_acc};
use super::softmax::{Probs32, add_to_sums, sums_of_rows};
use crate::backend::cpu::kv_layout::KEY_GROUP;
use crate::backend::cpu::simd::prefetch::prefetch;
use crate::backend::cpu::simd::softmax::{ColumnRange, SoftmaxArgs};
use crate::backend::cpu::simd::x86_64::avx512::visible;

/// Keys of a strip.
const STRIP: usize = 2 * KEY_GROUP;
/// The sum of a row's probabilities in a block may be up to this: 1 for each of 256 keys, and 2^4 more. It is far from
/// overflow, and relative precision is that below 1.
const HEADROOM: f32 = 4096.0;

/// QK^T and softmax of all rows and `a.n` keys into `probs`. Row maxima stay, rescale factors become 1. False, with row
/// sums unchanged, where a row has no maximum yet or a score exceeds it by too much.
///
/// # Safety
/// As [`super::gemm::qk`] and [`super::softmax::softmax_bf16`]; `a.scores` has room for 2 x 32 x 32 scores, aligned to
/// 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn qk_softmax(q: SplitMatrix, k: SplitMatrix, dim: usize, a: &SoftmaxArgs, probs: SplitMut) -> bool {
    // SAFETY: AMX is available and configured, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let visible = std::slice::from_raw_parts(a.visible, a.rows);
        let max = std::slice::from_raw_parts(a.max, a.rows);
        if max.contains(&f32::NEG_INFINITY) {
            return false;
        }
        let whole = visible.iter().all(|s| (s.from, s.to) == (0, a.n));
        match (whole, probs.low.is_null()) {
            (true, true) => fused::<true, false>(q, k, dim, a, probs),
            (true, false) => fused::<true, true>(q, k, dim, a, probs),
            (false, true) => fused::<false, false>(q, k, dim, a, probs),
            (false, false) => fused::<false, true>(q, k, dim, a, probs),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn fused<const WHOLE: bool, const TWO: bool>(
    q: SplitMatrix,
    k: SplitMatrix,
    dim: usize,
    a: &SoftmaxArgs,
    probs: SplitMut,
) -> bool {
    // SAFETY: `a.visible` holds `a.rows` ranges.
    let visible = unsafe { std::slice::from_raw_parts(a.visible, a.rows) };
    let mut softmax = Softmax {
        factor: _mm512_set1_ps(a.exponent_factor(&ColumnRange::default())),
        minus_max: [0.0; ROWS],
        totals: [_mm512_setzero_ps(); ROWS],
        visible,
        stride: a.stride,
    };
    for (r, minus_max) in softmax.minus_max.iter_mut().enumerate().take(a.rows) {
        // SAFETY: `a.max` holds `a.rows` maxima.
        *minus_max = -unsafe { *a.max.add(r) };
    }
    let strip = |key: usize| a.scores.wrapping_add(key / STRIP % 2 * (ROWS * STRIP));
    // The rows of the last strip that are computed after each step of the current one.
    let steps = dim / DEPTH * split_products(q, k).count();
    let rows = |step: usize| (step * ROWS / steps).min(a.rows)..((step + 1) * ROWS / steps).min(a.rows);
    // SAFETY: AMX is available and configured, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        for key in (0..a.n).step_by(STRIP) {
            zero_acc!();
            let mut step = 0;
            for (q, k) in split_products(q, k) {
                let k = k.add(key * dim);
                for d in (0..dim).step_by(DEPTH) {
                    let (a, b) = (q.add(d), k.add(d * KEY_GROUP));
                    // The keys of the next strip.
                    for group in [2, 3] {
                        prefetch::<false>(b.wrapping_add(group * KEY_GROUP * dim).cast(), 2 * DEPTH * KEY_GROUP);
                    }
                    accumulate!(a, 2 * dim, a.add(16 * dim), b, b.add(KEY_GROUP * dim), 64_usize);
                    if key > 0 {
                        softmax.add_rows::<WHOLE, TWO>(strip(key - STRIP), rows(step), key - STRIP, probs);
                    }
                    step += 1;
                }
            }
            store_acc!(strip(key), strip(key).add(16 * STRIP), 4 * STRIP);
        }
        softmax.add_rows::<WHOLE, TWO>(strip(a.n - STRIP), 0..a.rows, a.n - STRIP, probs);
        let totals = sums_of_rows(&softmax.totals);
        // A NaN is not above it, and shows in the sum.
        // mutant: fused_softmax_without_limit
        let above = |total| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(total, _mm512_set1_ps(HEADROOM));
        if totals.into_iter().any(|total| above(total) != 0) {
            return false;
        }
        std::slice::from_raw_parts_mut(a.alpha, a.rows).fill(1.0);
        add_to_sums(a, totals);
    }
    true
}

/// State of the softmax of one block.
struct Softmax<'a> {
    /// The exponent of a probability is (score + minus_max of the row) * factor: exactly 0 where the score is the
    /// running maximum, however large both are.
    factor: __m512,
    minus_max: [f32; ROWS],
    /// Sums of each row's probabilities, lane by lane.
    totals: [__m512; ROWS],
    /// Visible columns of each row.
    visible: &'a [ColumnRange],
    stride: usize,
}

impl Softmax<'_> {
    /// Computes the probabilities of some rows of a strip; `key` is its first column.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add_rows<const WHOLE: bool, const TWO: bool>(
        &mut self,
        strip: *const f32,
        rows: Range<usize>,
        key: usize,
        probs: SplitMut,
    ) {
        for r in rows {
            // SAFETY: AMX is available and configured, and all addresses are rows and columns of the arguments, by the
            // caller.
            unsafe {
                let minus_max = _mm512_set1_ps(self.minus_max[r]);
                let exponent = |c: usize| {
                    // mutant: fused_maximum_subtracted_late
                    _mm512_mul_ps(_mm512_add_ps(_mm512_load_ps(strip.add(r * STRIP + c)), minus_max), self.factor)
                };
                let mut p = Probs32::<TWO>::exp2(exponent(0), exponent(16));
                if !WHOLE {
                    let columns = (self.visible[r].from, self.visible[r].to);
                    let [one, two] = [key, key + KEY_GROUP].map(|at| visible(columns, at));
                    p.mask(one, two); // mutant: fused_softmax_unmasked
                }
                self.totals[r] = p.add_to(self.totals[r]);
                p.store(probs.offset(r * self.stride + key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backend::cpu::simd::amx::gemm::TileConfig;
    use crate::cpu_features::Isa;

    const DIM: usize = 64;
    const KEYS: usize = 96;
    const STRIDE: usize = 128;

    #[repr(align(64))]
    struct Strips([f32; 2 * ROWS * STRIP]);

    /// Queries and keys as the tiles take them, each number as its high and its low half.
    struct Case {
        q: Vec<f32>,
        k: Vec<f32>,
        visible: Vec<ColumnRange>,
        max: [f32; ROWS],
    }

    struct Done {
        did: bool,
        sum: [f32; ROWS],
        probs: Vec<f32>,
    }

    const BEFORE: f32 = 1.5;

    fn halved(x: f32) -> (u16, u16) {
        let high = bf16::from_bits((x.to_bits() >> 16) as u16);
        (high.to_bits(), bf16::from_f32(x - high.to_f32()).to_bits())
    }

    impl Case {
        /// With numbers that one bf16 holds, or the sum of two.
        fn new(rows: usize, two: bool, mut draw: impl FnMut() -> f32) -> Self {
            let mut number = || {
                let x = draw();
                if two { x } else { bf16::from_f32(x).to_f32() }
            };
            let (q, k) = ((0..ROWS * DIM).map(|_| number()).collect(), (0..KEYS * DIM).map(|_| number()).collect());
            Self {
                q,
                k,
                visible: vec![ColumnRange { from: 0, to: KEYS, ..ColumnRange::default() }; rows],
                max: [0.0; ROWS],
            }
        }

        fn exponent(&self, r: usize, c: usize) -> f64 {
            let row = |x: &[f32], i: usize| x[i * DIM..][..DIM].iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let score: f64 = row(&self.q, r).iter().zip(row(&self.k, c)).map(|(q, k)| q * k).sum();
            (score - f64::from(self.max[r])) * 0.25
        }

        fn run(&self, two: bool) -> Done {
            let mut max = self.max;
            let (mut sum, mut alpha) = ([BEFORE; ROWS], [0.0; ROWS]);
            let mut strips = Box::new(Strips([f32::NAN; 2 * ROWS * STRIP]));
            let (mut high, mut low) = (vec![0xFFFF_u16; ROWS * STRIDE], vec![0xFFFF_u16; ROWS * STRIDE]);
            let (q, q_low): (Vec<_>, Vec<_>) = self.q.iter().map(|&x| halved(x)).unzip();
            let (mut k, mut k_low) = (vec![0; KEYS * DIM], vec![0; KEYS * DIM]);
            for (i, &x) in self.k.iter().enumerate() {
                let (key, d) = (i / DIM, i % DIM);
                let at = key / KEY_GROUP * KEY_GROUP * DIM + d / 2 * 2 * KEY_GROUP + key % KEY_GROUP * 2 + d % 2;
                (k[at], k_low[at]) = halved(x);
            }
            let a = SoftmaxArgs {
                scores: strips.0.as_mut_ptr(),
                stride: STRIDE,
                n: KEYS,
                rows: self.visible.len(),
                visible: self.visible.as_ptr(),
                scale: 0.25,
                softcap: 0.0,
                max: max.as_mut_ptr(),
                sum: sum.as_mut_ptr(),
                alpha: alpha.as_mut_ptr(),
            };
            let lower = |x: &[u16]| if two { x.as_ptr() } else { std::ptr::null() };
            let (q, k) = (
                SplitMatrix { high: q.as_ptr(), low: lower(&q_low) },
                SplitMatrix { high: k.as_ptr(), low: lower(&k_low) },
            );
            let low_probs = if two { low.as_mut_ptr() } else { std::ptr::null_mut() };
            // SAFETY: AMX is there; arrays of 32 rows.
            let did = unsafe {
                let _tiles = TileConfig::new();
                qk_softmax(q, k, DIM, &a, SplitMut { high: high.as_mut_ptr(), low: low_probs })
            };
            assert_eq!(max, self.max, "maxima are left alone");
            let number = |x: u16| bf16::from_bits(x).to_f32();
            let weight = |(&h, &l): (&u16, &u16)| number(h) + if two { number(l) } else { 0.0 };
            Done { did, sum, probs: high.iter().zip(&low).map(weight).collect() }
        }
    }

    fn draws() -> impl FnMut() -> f32 {
        let mut state = 7_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f32 / (1_u64 << 30) as f32 - 1.0
        }
    }

    /// Every number of rows, masked keys, maxima above and below the scores.
    #[test]
    fn probabilities_and_sums_match_the_definition() {
        if !Isa::Amx.available() {
            return;
        }
        let mut draw = draws();
        for round in 0..60 {
            let (two, rows) = (round % 2 == 1, [1, 15, 16, 17, 31, 32][round % 6]);
            let mut case = Case::new(rows, two, &mut draw);
            case.max.fill_with(|| draw() * 12.0);
            for visible in case.visible.iter_mut().filter(|_| round % 3 > 0) {
                let (a, b) = (draw().abs() * KEYS as f32, draw().abs() * KEYS as f32);
                (visible.from, visible.to) = (a.min(b) as usize, a.max(b) as usize);
            }
            let done = case.run(two);
            assert!(done.did, "round {round}");
            for (r, visible) in case.visible.iter().enumerate() {
                let mut want = f64::from(BEFORE);
                for c in 0..KEYS {
                    let got = f64::from(done.probs[r * STRIDE + c]);
                    let weight = if (visible.from..visible.to).contains(&c) { case.exponent(r, c).exp() } else { 0.0 };
                    want += weight;
                    let bound = if two { 4e-5 } else { 4.1e-3 } * weight;
                    assert!((got - weight).abs() <= bound, "round {round}, row {r}, key {c}: {got}, not {weight}");
                }
                let bound = if two { 2e-5 } else { 2e-4 } * want;
                let got = f64::from(done.sum[r]);
                assert!((got - want).abs() <= bound, "round {round}, row {r}: sum {got}, not {want}");
            }
        }
    }

    /// However large the scores: a key whose score is the running maximum has a probability of exactly 1.
    #[test]
    fn the_running_maximum_has_probability_one() {
        if !Isa::Amx.available() {
            return;
        }
        let mut draw = draws();
        for (two, size) in [false, true].into_iter().flat_map(|two| [0, 20, 45, 90].map(|e| (two, 2_f32.powi(e)))) {
            // Small integers: sums are exact.
            let mut case = Case::new(32, two, || (draw() * 4.0).round());
            case.q.iter_mut().for_each(|q| *q *= size);
            let score = |r: usize, c: usize| case.exponent(r, c) / 0.25;
            let scores: Vec<f64> = (0..ROWS * KEYS).map(|i| score(i / KEYS, i % KEYS)).collect();
            for (max, scores) in case.max.iter_mut().zip(scores.chunks(KEYS)) {
                *max = scores.iter().fold(f64::NEG_INFINITY, |max, s| max.max(*s)) as f32;
            }
            let done = case.run(two);
            assert!(done.did, "{size}");
            for (i, score) in scores.iter().enumerate() {
                let (r, c) = (i / KEYS, i % KEYS);
                let is_one = done.probs[r * STRIDE + c] == 1.0;
                assert_eq!(is_one, *score == f64::from(case.max[r]), "{size}, row {r}, key {c}: {score}");
            }
        }
    }

    /// Sums stay unchanged where it declines: a row without a maximum, a score far above. Rows of padding do not count.
    #[test]
    fn a_declined_block_changes_no_sum() {
        if !Isa::Amx.available() {
            return;
        }
        let mut draw = draws();
        for two in [false, true] {
            let fresh = |draw: &mut dyn FnMut() -> f32| Case::new(20, two, draw);
            let mut case = fresh(&mut draw);
            case.max[19] = f32::NEG_INFINITY;
            let done = case.run(two);
            assert!(!done.did && done.sum == [BEFORE; ROWS]);
            case.max[19] = 0.0;
            case.max[20] = f32::NEG_INFINITY;
            case.max[21] = -200.0;
            assert!(case.run(two).did);
            case.max[3] = -200.0;
            let done = case.run(two);
            assert!(!done.did && done.sum == [BEFORE; ROWS]);
            // The same score where its row does not see it.
            case.visible[3].to = 0;
            assert!(case.run(two).did);
            let mut case = fresh(&mut draw);
            case.k[40 * DIM] = f32::NAN;
            let done = case.run(two);
            assert!(done.did && done.sum[..20].iter().all(|s| s.is_nan()), "a NaN must show");
        }
    }
}

//! Decodes over quantised keys and values in integers: codes are multiplied as they are stored, by queries and weights
//! that are rounded to integers.

pub(crate) mod pv;
pub(crate) mod qk;
pub(crate) mod query;
pub(crate) mod rounding;
pub(crate) mod vector;
pub(crate) mod weights;

use self::pv::PvArgs;
use self::qk::QkArgs;
use self::query::RoundedRows;
use self::weights::{ResultArgs, WeighArgs};
use crate::config::StorageType;

/// Products of queries and codes of keys.
///
/// # Safety
/// As [`super::Kernels`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyProducts {
    /// Rounds a query: its dims, its row, where the rows go. False if it must stay f32.
    pub round_query: unsafe fn(&[f32], usize, RoundedRows) -> bool,
    pub qk: unsafe fn(&QkArgs),
}

/// Products of weights and codes of values.
///
/// # Safety
/// As [`super::Kernels`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueProducts {
    /// Rounds the weights of a row and begins its sums. False if they must stay f32.
    pub weigh: unsafe fn(&WeighArgs) -> bool,
    pub pv: unsafe fn(&PvArgs),
    pub results: unsafe fn(&ResultArgs),
}

/// Compiles the kernels for one instruction set.
macro_rules! integer_kernels {
    ($name:ident, $vector:ty, $(#[$features:meta])?) => {
        pub(crate) mod $name {
            use super::*;

            macro_rules! typed {
                ($k:ident, $c:ty) => {
                    mod $k {
                        use super::*;

                        $(#[$features])?
                        unsafe fn round_query(q: &[f32], row: usize, to: RoundedRows) -> bool {
                            // SAFETY: the instruction set and the arguments, by the contract of `KeyProducts`.
                            unsafe { query::round_row::<$vector, $c>(q, row, to) }
                        }

                        $(#[$features])?
                        unsafe fn qk(a: &QkArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `KeyProducts`.
                            unsafe { crate::backend::cpu::simd::integer::qk::qk::<$vector, $c>(a) }
                        }

                        $(#[$features])?
                        unsafe fn weigh(a: &WeighArgs) -> bool {
                            // SAFETY: the instruction set and the arguments, by the contract of `ValueProducts`.
                            unsafe { weights::weigh::<$vector, $c>(a) }
                        }

                        $(#[$features])?
                        unsafe fn pv(a: &PvArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `ValueProducts`.
                            unsafe { crate::backend::cpu::simd::integer::pv::pv::<$vector, $c>(a) }
                        }

                        $(#[$features])?
                        unsafe fn results(a: &ResultArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `ValueProducts`.
                            unsafe { weights::results::<$c>(a) }
                        }

                        pub const KEYS: KeyProducts = KeyProducts { round_query, qk };
                        pub const VALUES: ValueProducts = ValueProducts { weigh, pv, results };
                    }
                };
            }
            typed!(q8, crate::backend::cpu::simd::codes::CodesQ8);
            typed!(q4, crate::backend::cpu::simd::codes::CodesQ4);

            /// For keys of a type; `None` if it has no codes.
            pub(crate) fn keys(storage: StorageType) -> Option<KeyProducts> {
                match storage {
                    StorageType::Q8 => Some(q8::KEYS),
                    StorageType::Q4 => Some(q4::KEYS),
                    StorageType::F32 | StorageType::F16 | StorageType::Bf16 => None,
                }
            }

            /// For values of a type; `None` if it has no codes.
            pub(crate) fn values(storage: StorageType) -> Option<ValueProducts> {
                match storage {
                    StorageType::Q8 => Some(q8::VALUES),
                    StorageType::Q4 => Some(q4::VALUES),
                    StorageType::F32 | StorageType::F16 | StorageType::Bf16 => None,
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
integer_kernels!(
    avx512_vnni,
    crate::backend::cpu::simd::x86_64::vnni::Avx512Vnni,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
);

#[cfg(target_arch = "x86_64")]
integer_kernels!(
    avx_vnni,
    crate::backend::cpu::simd::x86_64::avx_vnni::AvxVnni,
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
);

#[cfg(target_arch = "aarch64")]
integer_kernels!(
    neon_dotprod,
    crate::backend::cpu::simd::aarch64::dotprod::NeonDot,
    #[target_feature(enable = "neon,dotprod")]
);

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::query::{RoundedRows, row_bytes as query_bytes};
    use super::rounding::{COLUMNS, LIMIT};
    use super::*;
    use crate::backend::cpu::kv_layout::{CODE_BLOCK, CodeLayout, KEY_GROUP, padded_dim};
    use crate::backend::cpu::simd::{Kernels, gemm};
    use crate::cpu_features::Isa;

    type Cases = (KeyProducts, ValueProducts, Kernels, CodeLayout);

    /// `None` where the processor has no products of bytes in the registers of that instruction set.
    fn products(isa: Isa, storage: StorageType, dim: usize) -> Option<Cases> {
        let kernels = isa.available().then(|| Kernels::new(isa, storage, storage))?;
        Some((kernels.key_products?, kernels.value_products?, kernels, CodeLayout::new(storage, dim)?))
    }

    /// Those that may have products of bytes.
    const WITH_PRODUCTS: &[Isa] = if cfg!(target_arch = "x86_64") { &[Isa::Avx2, Isa::Avx512] } else { &[Isa::Neon] };

    fn instruction_sets() -> impl Strategy<Value = Isa> {
        select(WITH_PRODUCTS)
    }

    fn types() -> impl Strategy<Value = StorageType> {
        select(vec![StorageType::Q8, StorageType::Q4])
    }

    /// Numbers of a seed.
    #[derive(Debug)]
    struct Draw(u64);

    impl Draw {
        fn bits(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 32) as u32
        }

        fn number(&mut self) -> f32 {
            self.bits() as f32 / 2_f32.powi(31) - 1.0
        }
    }

    /// Blocks with any codes, and scales between 2^-8 and 2^-4 of both signs.
    fn blocks(draw: &mut Draw, layout: CodeLayout, n: usize) -> Vec<u32> {
        let mut words: Vec<u32> = (0..n * layout.block_bytes() / 4).map(|_| draw.bits()).collect();
        for block in words.chunks_mut(layout.block_bytes() / 4) {
            for pair in &mut block[..layout.scales * CODE_BLOCK / 2] {
                let sign = if layout.per_word == 8 { *pair & 0x8000_8000 } else { 0 };
                *pair = *pair & 0x01FF_01FF | 0x3B80_3B80 | sign;
            }
        }
        words
    }

    /// Sets the scales of a slot.
    fn set_scales(words: &mut [u32], layout: CodeLayout, slot: usize, bits: u16) {
        let block = slot / CODE_BLOCK * layout.block_bytes() / 2;
        for scale in 0..layout.scales {
            let at = block + layout.scale(slot % CODE_BLOCK, scale);
            let (word, shift) = (at / 2, at % 2 * 16);
            words[word] = words[word] & !(0xFFFF << shift) | u32::from(bits) << shift;
        }
    }

    proptest! {
        /// Scores are those of f32 queries, but for the rounding of each dim by half a unit; with any number of rows
        /// and groups. A key whose scale is NaN has a score of NaN, and no other key has.
        #[test]
        fn rounded_queries_give_the_scores_of_queries(
            isa in instruction_sets(), storage in types(),
            dim in select(vec![8_usize, 16, 24, 40, 64, 96, 128, 256]), rows in 1_usize..10,
            groups in (0_usize..5, 1_usize..7), ahead in any::<bool>(), seed in any::<u64>()
        ) {
            let Some((keys, _, kernels, layout)) = products(isa, storage, dim) else { return Ok(()) };
            let (mut draw, columns) = (Draw(seed), (groups.0 + groups.1) * KEY_GROUP);
            let mut k = blocks(&mut draw, layout, columns.div_ceil(CODE_BLOCK));
            let bad = draw.bits() as usize % columns;
            set_scales(&mut k, layout, bad, 0x7FC0);
            let q: Vec<f32> = (0..rows * dim).map(|_| draw.number()).collect();
            let mut queries = vec![0_u64; rows * query_bytes(dim) / 8];
            let to = RoundedRows { rows, bytes: queries.as_mut_ptr().cast() };
            for (r, q) in q.chunks(dim).enumerate() {
                // SAFETY: the instruction set is available; the rows have room.
                let rounded = unsafe { (keys.round_query)(q, r, to) };
                prop_assert!(rounded);
            }
            let (mut got, mut want) = (vec![7.0; rows * COLUMNS], vec![7.0; rows * COLUMNS]);
            let value_scales = qk::ValueScales { v: k.as_ptr().cast(), blocks: 3, block_bytes: 64, bytes: 128 };
            // SAFETY: as above; keys and scores of the arguments.
            unsafe {
                (keys.qk)(&QkArgs {
                    queries: queries.as_ptr().cast(),
                    rows,
                    k: k.as_ptr().cast(),
                    dim,
                    first: groups.0,
                    groups: groups.1,
                    scores: got.as_mut_ptr(),
                    stride: COLUMNS,
                    prefetch_offset: if ahead { 4096 } else { 0 },
                    value_scales,
                });
                (kernels.qk.unwrap())(&gemm::QkArgs {
                    q: q.as_ptr(),
                    q_stride: dim,
                    rows,
                    k: k.as_ptr().cast(),
                    dim,
                    first: groups.0,
                    groups: groups.1,
                    scores: want.as_mut_ptr(),
                    stride: COLUMNS,
                    prefetch_offset: 0,
                });
            }
            let most = if storage == StorageType::Q8 { 127.0 } else { 8.0 };
            // The largest scale is below 2^-3.
            let bound = dim as f32 * most * 0.125 * (0.51 / LIMIT + 1e-6);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let same = got.is_nan() && want.is_nan() || (got - want).abs() <= bound;
                prop_assert!(same, "row {}, column {}: {got} instead of {want}", i / COLUMNS, i % COLUMNS);
            }
        }

        /// Results are those of f32 weights, but for the rounding of each by half a unit. Columns that a row does not
        /// see change nothing, whatever their scales; a column that it sees with a scale of NaN is left to f32.
        #[test]
        fn rounded_weights_give_the_results_of_weights(
            isa in instruction_sets(), storage in types(),
            dim in select(vec![8_usize, 24, 40, 64, 80, 128, 256]), rows in 1_usize..5,
            n in 1_usize..33, split in 0_usize..17, seed in any::<u64>()
        ) {
            let dim = padded_dim(dim);
            let Some((_, values, kernels, layout)) = products(isa, storage, dim) else { return Ok(()) };
            let (mut draw, n) = (Draw(seed), n * KEY_GROUP);
            let (from, to) = (draw.bits() as usize % n, n - draw.bits() as usize % 16);
            let (from, to) = (from.min(to - 1), to);
            let end = n.div_ceil(CODE_BLOCK);
            let mut v = blocks(&mut draw, layout, end);
            (0..from).chain(to..end * CODE_BLOCK).for_each(|slot| set_scales(&mut v, layout, slot, 0x7FC0));
            let mut probs = vec![f32::NAN; rows * COLUMNS];
            for row in probs.chunks_mut(COLUMNS) {
                row[..n].fill(0.0);
                row[from..to].fill_with(|| draw.number().powi(8));
                // A row of nothing but tiny weights would stay f32.
                row[from] = 1.0;
            }
            let weight_bytes = weights::row_bytes(layout.scales);
            let mut room = vec![0_u32; rows * weight_bytes / 4];
            let mut sums = vec![-1_i32; rows * 2 * dim];
            let mut product_room = vec![0_f32; layout.scales * COLUMNS];
            let (weights, row_sums, products) = (room.as_mut_ptr(), sums.as_mut_ptr(), product_room.as_mut_ptr());
            let args = |row: usize, v: &[u32]| WeighArgs {
                probs: probs[row * COLUMNS..].as_ptr(),
                n,
                v: v.as_ptr().cast(),
                dim,
                from: from / CODE_BLOCK,
                to: to.div_ceil(CODE_BLOCK),
                products,
                weights: weights.cast::<u8>().wrapping_add(row * weight_bytes),
                sums: row_sums.wrapping_add(row * 2 * dim),
            };
            // SAFETY: the instruction set is available; values, weights and sums of the arguments.
            let rounded = (0..rows).filter(|&row| unsafe { (values.weigh)(&args(row, &v)) }).count();
            prop_assert_eq!(rounded, rows);
            let (mut got, mut want) = (vec![7.0; rows * dim], vec![0.0; rows * dim]);
            let split = (from / CODE_BLOCK).max(split.min(to.div_ceil(CODE_BLOCK)));
            for (from, to) in [(from / CODE_BLOCK, split), (split, to.div_ceil(CODE_BLOCK))] {
                let prefetch_offset = 64;
                let (weights, v, sums) = (weights.cast(), v.as_ptr().cast(), row_sums);
                // SAFETY: as above.
                unsafe { (values.pv)(&PvArgs { weights, rows, v, dim, from, to, sums, prefetch_offset }) };
            }
            for row in 0..rows {
                let weights = weights.cast::<u8>().wrapping_add(row * weight_bytes);
                let (sums, results) = (row_sums.wrapping_add(row * 2 * dim), got[row * dim..].as_mut_ptr());
                // SAFETY: as above.
                unsafe { (values.results)(&ResultArgs { weights, sums, dim, results }) };
            }
            let no_alpha = vec![0.0; rows];
            // SAFETY: as above.
            unsafe {
                (kernels.pv)(&gemm::PvArgs {
                    probs: probs.as_ptr(),
                    stride: COLUMNS,
                    rows,
                    v: v.as_ptr().cast(),
                    dim,
                    from,
                    to,
                    acc: want.as_mut_ptr(),
                    alpha: no_alpha.as_ptr(),
                    prefetch_offset: 0,
                });
            }
            let most = if storage == StorageType::Q8 { 128.0 } else { 8.0 };
            let bound = (to - from) as f32 * most * 0.125 * (0.51 / LIMIT + 1e-6);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                prop_assert!((got - want).abs() <= bound, "row {}, dim {}: {got} not {want}", i / dim, i % dim);
            }
            set_scales(&mut v, layout, from, 0x7FC0);
            // SAFETY: as above.
            let rounded = (0..rows).filter(|&row| unsafe { (values.weigh)(&args(row, &v)) }).count();
            prop_assert_eq!(rounded, 0);
        }
    }

    /// Queries that integers cannot stand for are refused; zeros are not.
    #[test]
    fn odd_queries_stay_f32() {
        for (&isa, storage) in WITH_PRODUCTS.iter().flat_map(|isa| [StorageType::Q8, StorageType::Q4].map(|s| (isa, s)))
        {
            let Some((keys, ..)) = products(isa, storage, 64) else { continue };
            let mut bytes = vec![0_u64; query_bytes(64) / 8];
            let to = RoundedRows { rows: 1, bytes: bytes.as_mut_ptr().cast() };
            let rounds = |odd: f32| {
                let mut q = [0.0; 64];
                q[9] = odd;
                // SAFETY: the instruction set is available; the row has room.
                unsafe { (keys.round_query)(&q, 0, to) }
            };
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, -1e-38, f32::from_bits(1)] {
                assert!(!rounds(odd), "{storage:?}: {odd}");
            }
            assert!([0.0, -0.0, 1.0, -1e9, 1e-9].into_iter().all(rounds), "{storage:?}");
        }
    }

    /// AVX-512 rounds in its own way.
    #[cfg(target_arch = "x86_64")]
    mod avx512 {
        use proptest::prelude::*;

        use super::*;
        use crate::backend::cpu::simd::integer::rounding::{
            Factors, GROUP_BYTES, MOST_GROUPS, QueryRounding, Rounding, TERMS,
        };
        use crate::backend::cpu::simd::integer::vector::SimdInt;
        use crate::backend::cpu::simd::x86_64::vnni::Avx512Vnni;
        use crate::config::MAX_HEAD_DIM;
        use crate::cpu_features::vnni_available;

        proptest! {
            /// It gives the weights' bytes and sums of the plain way.
            #[test]
            fn weights_are_rounded_alike(groups in 1_usize..17, n in 1_usize..33, seed in any::<u64>()) {
                if !(Isa::Avx512.available() && vnni_available()) {
                    return Ok(());
                }
                let (mut draw, n) = (Draw(seed), n * KEY_GROUP);
                let probs: Vec<f32> = (0..n).map(|_| draw.number().max(0.0)).collect();
                let block_bytes = groups * 2 * CODE_BLOCK + 64;
                let words = COLUMNS / CODE_BLOCK * block_bytes / 4;
                let scales: Vec<u8> = (0..words).flat_map(|_| (draw.bits() & 0xBFFF_BFFF).to_le_bytes()).collect();
                let results = [false, true].map(|own| {
                    let mut products = vec![0.0; groups * COLUMNS];
                    let mut bytes = vec![0_u8; groups * GROUP_BYTES];
                    let factors = Factors {
                        probs: probs.as_ptr(),
                        n,
                        from: 0,
                        to: n.div_ceil(CODE_BLOCK),
                        scales: scales.as_ptr(),
                        block_bytes,
                        groups,
                        products: products.as_mut_ptr(),
                    };
                    let multiply = if own { Avx512Vnni::multiply } else { rounding::multiply };
                    // SAFETY: the instruction set is available; scales, probabilities and products of the arguments.
                    let most = unsafe { multiply(&factors) };
                    let mut inverse = [0.0; MOST_GROUPS];
                    for (inverse, most) in inverse.iter_mut().zip(most).take(groups) {
                        // A power of two: with one rounding or two, the integers are the same.
                        let most = f32::from_bits(most & 0x7F80_0000);
                        *inverse = if most > 0.0 { 8192.0 / most } else { 0.0 };
                    }
                    let rounding = Rounding {
                        products: products.as_ptr(),
                        from: 0,
                        to: n.div_ceil(CODE_BLOCK),
                        groups,
                        inverse,
                        weights: bytes.as_mut_ptr(),
                    };
                    // SAFETY: as above.
                    let sums = unsafe { if own { Avx512Vnni::round(&rounding) } else { rounding::round(&rounding) } };
                    (most, sums, bytes)
                });
                let [own, plain] = results;
                prop_assert_eq!(own, plain);
            }

            /// It gives the queries of the plain way.
            #[test]
            fn queries_are_rounded_alike(
                dim in (1_usize..33).prop_map(|n| 16 * n), q4 in any::<bool>(), seed in any::<u64>()
            ) {
                if !vnni_available() {
                    return Ok(());
                }
                let mut draw = Draw(seed);
                let q: Vec<f32> = (0..dim).map(|_| draw.number()).collect();
                let most = q.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                let group = if q4 { 32.min(dim) } else { dim };
                let round = |round: &dyn Fn(&mut QueryRounding<'_>) -> [[i32; TERMS]; MOST_GROUPS]| {
                    let mut words = [[0; 8]; MAX_HEAD_DIM as usize / 4];
                    let sums = round(&mut QueryRounding { q: &q, inverse: LIMIT / most, group, words: &mut words });
                    (sums, words[..dim / 4].to_vec())
                };
                // SAFETY: the instruction set is available.
                let got = round(&|a| unsafe { Avx512Vnni::round_query(a) });
                prop_assert_eq!(got, round(&rounding::round_query));
            }
        }
    }
}

//! AVX512_VNNI: sums of four products of bytes in a lane.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use crate::backend::cpu::kv_layout::CODE_BLOCK;
use crate::backend::cpu::simd::integer::rounding::{
    COLUMNS, Factors, GROUP_BYTES, MOST_GROUPS, QueryRounding, ROUND, Rounding, TERMS,
};
use crate::backend::cpu::simd::integer::vector::SimdInt;

/// Sixteen i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(__m512i);

// The contract of the trait is the contract of each `unsafe` below.
#[expect(clippy::undocumented_unsafe_blocks, reason = "the processor has the instructions, by the trait's contract")]
impl SimdInt for Avx512Vnni {
    type F = Avx512;
    const TILE: [usize; 3] = [8, 4, 2];
    const Q8_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        Self(unsafe { _mm512_set1_epi32(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        Self(unsafe { _mm512_loadu_si512(p.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut i32) {
        unsafe { _mm512_storeu_si512(p.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(unsafe { _mm512_add_epi32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn halves(self) -> [Self; 2] {
        unsafe {
            let low = _mm512_set1_epi8(15);
            [Self(_mm512_and_si512(self.0, low)), Self(_mm512_and_si512(_mm512_srli_epi16::<4>(self.0), low))]
        }
    }

    #[inline(always)]
    unsafe fn bytes(self) -> Self {
        // The instruction takes unsigned codes.
        Self(unsafe { _mm512_xor_si512(self.0, _mm512_set1_epi8(i8::MIN)) })
    }

    #[inline(always)]
    unsafe fn dot(self, codes: Self, signed: Self) -> Self {
        Self(unsafe { _mm512_dpbusd_epi32(self.0, codes.0, signed.0) })
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> Avx512 {
        Avx512(unsafe { _mm512_cvtepi32_ps(self.0) })
    }

    #[inline(always)]
    unsafe fn multiply(a: &Factors) -> [u32; MOST_GROUPS] {
        // Known numbers of groups keep what belongs to each in registers: q8, and q4 with 64 and 128 dims.
        unsafe {
            match a.groups {
                1 => multiply::<1>(a, 1),
                2 => multiply::<2>(a, 2),
                4 => multiply::<4>(a, 4),
                n => multiply::<MOST_GROUPS>(a, n),
            }
        }
    }

    #[inline(always)]
    unsafe fn round(a: &Rounding) -> [[i32; 2]; MOST_GROUPS] {
        unsafe {
            match a.groups {
                1 => round::<1>(a, 1),
                2 => round::<2>(a, 2),
                4 => round::<4>(a, 4),
                n => round::<MOST_GROUPS>(a, n),
            }
        }
    }

    #[inline(always)]
    unsafe fn round_query(a: &mut QueryRounding<'_>) -> [[i32; TERMS]; MOST_GROUPS] {
        unsafe { round_query(a) }
    }
}

/// Products of a block in the order of its scales' words: columns 0, 2, 4 ... 30, then 1, 3, 5 ... 31. At most `G`
/// groups, `groups` of them.
///
/// # Safety
/// As [`Factors`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn multiply<const G: usize>(a: &Factors, groups: usize) -> [u32; MOST_GROUPS] {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    let high_half = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let zero = _mm512_setzero_ps();
    let mut most = [_mm512_setzero_si512(); G];
    for block in a.from..a.to {
        // SAFETY: scales, probabilities and products of the arguments.
        unsafe {
            let probs = a.probs.add(block * CODE_BLOCK);
            let first = _mm512_loadu_ps(probs);
            let second = if (block + 1) * CODE_BLOCK <= a.n { _mm512_loadu_ps(probs.add(16)) } else { zero };
            let p = [even, odd].map(|order| _mm512_permutex2var_ps(first, order, second));
            let seen = p.map(|p| _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(p, zero)); // mutant: scale_of_masked_column
            let scales = a.scales.add(block * a.block_bytes).cast::<[u16; CODE_BLOCK]>();
            for (group, most) in most.iter_mut().enumerate().take(groups) {
                let pairs = _mm512_loadu_si512(scales.add(group).cast());
                let scales = [_mm512_slli_epi32::<16>(pairs), _mm512_and_si512(pairs, high_half)];
                let products = a.products.add(group * COLUMNS + block * CODE_BLOCK);
                for i in 0..2 {
                    let x = _mm512_maskz_mul_ps(seen[i], p[i], _mm512_castsi512_ps(scales[i]));
                    *most = _mm512_max_epu32(*most, _mm512_and_si512(_mm512_castps_si512(x), magnitude));
                    _mm512_storeu_ps(products.add(i * 16), x);
                }
            }
        }
    }
    let mut bits = [0; MOST_GROUPS];
    bits.iter_mut().zip(most).take(groups).for_each(|(bits, most)| *bits = _mm512_reduce_max_epu32(most));
    bits
}

/// Rounds what [`multiply`] has left.
///
/// # Safety
/// As [`Rounding`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn round<const G: usize>(a: &Rounding, groups: usize) -> [[i32; 2]; MOST_GROUPS] {
    // High bytes of four columns, then their low ones.
    let bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14));
    let low_sign = _mm512_set1_epi64(0x8080_8080_u64.cast_signed() << 32);
    let magic = _mm512_set1_ps(ROUND);
    let mut sums = [_mm512_setzero_si512(); G];
    for column in (a.from * CODE_BLOCK..a.to * CODE_BLOCK).step_by(CODE_BLOCK) {
        for (group, sum) in sums.iter_mut().enumerate().take(groups) {
            // SAFETY: products and weights of the arguments.
            unsafe {
                let (products, inverse) = (a.products.add(group * COLUMNS + column), _mm512_set1_ps(a.inverse[group]));
                let [even, odd] = [0, 16]
                    .map(|at| _mm512_castps_si512(_mm512_fmadd_ps(_mm512_loadu_ps(products.add(at)), inverse, magic)));
                let words = _mm512_mask_blend_epi16(0xAAAA_AAAA, even, _mm512_slli_epi32::<16>(odd));
                let weights = _mm512_xor_si512(_mm512_shuffle_epi8(words, bytes), low_sign);
                *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi8(1), weights);
                _mm512_storeu_si512(a.weights.add(group * GROUP_BYTES + 2 * column).cast(), weights);
            }
        }
    }
    let mut totals = [[0; 2]; MOST_GROUPS];
    for (totals, sums) in totals.iter_mut().zip(sums).take(groups) {
        *totals = [_mm512_mask_reduce_add_epi32(0x5555, sums), _mm512_mask_reduce_add_epi32(0xAAAA, sums)];
    }
    totals
}

/// Rounds a query, 32 dims at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn round_query(a: &mut QueryRounding<'_>) -> [[i32; TERMS]; MOST_GROUPS] {
    // The word of four dims, in the first half of a lane and in the second.
    let first_half = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1));
    let second_half = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 1, 5, 9, 13, 0, 4, 8, 12));
    let in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    let low_sign = _mm512_set1_epi64(0x8080_8080_u64.cast_signed() << 32);
    let (inverse, magic) = (_mm512_set1_ps(a.inverse), _mm512_set1_ps(ROUND));
    let mut totals = [[0; TERMS]; MOST_GROUPS];
    let mut words = a.words.as_chunks_mut::<8>().0.iter_mut();
    for (q, totals) in a.q.chunks(a.group).zip(&mut totals) {
        let mut sums = _mm512_setzero_si512();
        for (q, words) in q.chunks(32).zip(&mut words) {
            let dims = u32::MAX >> (32 - q.len());
            // SAFETY: only the dims of the mask are read; words are as long as a vector.
            unsafe {
                let x = [(0, dims as u16), (16, (dims >> 16) as u16)].map(|(at, dims)| {
                    let x = _mm512_maskz_loadu_ps(dims, q.as_ptr().wrapping_add(at));
                    _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(x, inverse), magic))
                });
                let halves =
                    _mm512_or_si512(_mm512_shuffle_epi8(x[0], first_half), _mm512_shuffle_epi8(x[1], second_half));
                let rounded = _mm512_permutexvar_epi64(in_order, _mm512_xor_si512(halves, low_sign));
                sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), rounded);
                _mm512_storeu_si512(words.as_mut_ptr().cast(), rounded);
            }
        }
        let sums = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums));
        let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let sums = _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums));
        *totals = [_mm_cvtsi128_si32(sums), _mm_extract_epi32::<1>(sums)];
    }
    totals
}

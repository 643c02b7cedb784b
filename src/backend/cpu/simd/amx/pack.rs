//! Converts queries, probabilities, keys and values to what AMX tiles multiply: bf16, or the sum of a high and a low
//! bf16.

use std::arch::x86_64::*;

use super::gemm::SplitMut;
use crate::backend::cpu::kv_layout::{CODE_BLOCK, KEY_GROUP, KeyRange, bf16_pair_index};
use crate::backend::cpu::simd::codes::{Codes, code, layout};
use crate::backend::cpu::simd::vector::SimdF32;
use crate::backend::cpu::simd::x86_64::avx512::{Avx512, visible};

/// Two f32 rows as interleaved pairs of bf16: the numbers rounded towards zero, and the remainder. Exact for values of
/// f16.
#[inline(always)]
unsafe fn split_pair(even: __m512, odd: __m512) -> (__m512i, __m512i) {
    // SAFETY: AVX-512 is there.
    unsafe {
        let mask = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
        let join = |even: __m512, odd: __m512| {
            let (even, odd) = (_mm512_castps_si512(even), _mm512_castps_si512(odd));
            _mm512_or_si512(_mm512_srli_epi32::<16>(even), _mm512_and_si512(odd, mask))
        };
        let high = |x: __m512| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), mask));
        (join(even, odd), join(_mm512_sub_ps(even, high(even)), _mm512_sub_ps(odd, high(odd))))
    }
}

/// Lanes that hold an infinity or a NaN.
#[inline(always)]
unsafe fn not_finite(x: __m512) -> __mmask16 {
    // SAFETY: AVX-512 is there. Class: quiet and signalling NaN, both infinities.
    unsafe { _mm512_fpclass_ps_mask::<0x99>(x) }
}

/// f16 keys of whole key groups, `[dim][16]`, as split pairs `[dim / 2][16][2]`. False if a visible number is not
/// finite.
///
/// # Safety
/// AVX-512 must be available; `src` holds `keys.n` keys, a multiple of 16; both halves of `dst` have room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn split_keys(src: *const u16, dim: usize, keys: KeyRange, dst: SplitMut) -> bool {
    let mut non_finite = 0;
    for key in (0..keys.n).step_by(KEY_GROUP) {
        let visible = visible((keys.from, keys.to), key);
        for at in (key * dim..(key + KEY_GROUP) * dim).step_by(2 * KEY_GROUP) {
            // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
            unsafe {
                let row = |i: usize| _mm512_cvtph_ps(_mm256_loadu_si256(src.add(at + i * KEY_GROUP).cast()));
                let (a, b) = (row(0), row(1));
                non_finite |= (not_finite(a) | not_finite(b)) & visible;
                let (high, low) = split_pair(a, b);
                _mm512_storeu_si512(dst.high.add(at).cast(), high);
                _mm512_storeu_si512(dst.low.add(at).cast(), low);
            }
        }
    }
    non_finite == 0
}

/// Visible f16 values, in rows, as split tiles `[n / 32][dim / 16]`; other keys become 0. False if a visible number is
/// not finite.
///
/// # Safety
/// AVX-512 must be available; `dim` and `keys.n` are multiples of 32; `src` holds `keys.n` rows; both halves of `dst`
/// have room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn split_values(src: *const u16, dim: usize, keys: KeyRange, dst: SplitMut) -> bool {
    let mut non_finite = 0;
    for key in (0..keys.n).step_by(2) {
        for d in (0..dim).step_by(16) {
            // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
            unsafe {
                let row = |key: usize| {
                    let x = _mm512_cvtph_ps(_mm256_loadu_si256(src.add(key * dim + d).cast()));
                    let visible = if keys.contains(key) { 0xFFFF } else { 0 };
                    _mm512_maskz_mov_ps(visible, x)
                };
                let (a, b) = (row(key), row(key + 1));
                non_finite |= not_finite(a) | not_finite(b);
                let (high, low) = split_pair(a, b);
                let at = 2 * bf16_pair_index(dim, key, d);
                _mm512_storeu_si512(dst.high.add(at).cast(), high);
                _mm512_storeu_si512(dst.low.add(at).cast(), low);
            }
        }
    }
    non_finite == 0
}

/// Whether `n` bf16 are all finite.
///
/// # Safety
/// AVX-512 must be available; `src` holds `n` numbers, a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn all_finite(src: *const u16, n: usize) -> bool {
    // Without the sign bit, infinities and NaNs compare as at least infinity.
    let (sign, infinity) = (_mm512_set1_epi16(0x7FFF), _mm512_set1_epi16(0x7F80));
    let mut largest = _mm512_setzero_si512();
    for at in (0..n).step_by(32) {
        // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
        let x = unsafe { _mm512_loadu_si512(src.add(at).cast()) };
        largest = _mm512_max_epu16(largest, _mm512_and_si512(x, sign));
    }
    _mm512_cmplt_epu16_mask(largest, infinity) == u32::MAX
}

/// Copies visible bf16 values, as they are stored in tiles `[n / 32][dim / 16]`; other keys become 0. False if a
/// visible number is not finite.
///
/// # Safety
/// As [`split_values`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn copy_values(src: *const u16, dim: usize, keys: KeyRange, dst: *mut u16) -> bool {
    let mut non_finite = 0;
    for key in (0..keys.n).step_by(2) {
        let half = |key: usize, bits: u32| if keys.contains(key) { bits } else { 0 };
        let visible = half(key, 0xFFFF) | half(key + 1, 0xFFFF_0000);
        for d in (0..dim).step_by(16) {
            // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
            unsafe {
                let at = 2 * bf16_pair_index(dim, key, d);
                let visible = _mm512_set1_epi32(visible.cast_signed());
                let pairs = _mm512_and_si512(_mm512_loadu_si512(src.add(at).cast()), visible);
                non_finite |= not_finite(_mm512_castsi512_ps(pairs))
                    | not_finite(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
                _mm512_storeu_si512(dst.add(at).cast(), pairs);
            }
        }
    }
    non_finite == 0
}

/// Two f32 rows as interleaved pairs of bf16, rounded to nearest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn rounded_pairs(even: __m512, odd: __m512) -> __m512i {
    let order: [u16; 32] = std::array::from_fn(|i| (i % 2 * 16 + i / 2) as u16);
    // SAFETY: 64 bytes are read; the transmute renames 64 bytes to the type that the permutation takes.
    unsafe {
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        _mm512_permutexvar_epi16(order, std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even)))
    }
}

/// Quantised keys of whole key groups as bf16 pairs `[dim / 2][16][2]`, rounded: their own rounding was coarser.
///
/// # Safety
/// AMX with AVX512-BF16 must be available; `src` holds the blocks of `n` keys, a multiple of 16; `dst` has room for
/// them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn round_keys<C: Codes>(src: *const u8, dim: usize, n: usize, dst: *mut u16) {
    let layout = layout::<C>(dim);
    for key in (0..n).step_by(KEY_GROUP) {
        // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
        unsafe {
            let block = src.add(key / CODE_BLOCK * layout.block_bytes());
            for word in 0..dim / C::PER_WORD {
                let d = word * C::PER_WORD;
                let scale =
                    Avx512::load_bf16(block.cast::<u16>().add(layout.scale(key % CODE_BLOCK, d / C::SCALE_DIMS)));
                let words = block.cast::<u32>().add(layout.key_word(key % CODE_BLOCK, word));
                for i in (0..C::PER_WORD).step_by(2) {
                    let x = |i: usize| code::<Avx512, C>(words, layout, i).mul(scale).0;
                    let to = dst.add(key * dim + (d + i) * KEY_GROUP);
                    _mm512_storeu_si512(to.cast(), rounded_pairs(x(i), x(i + 1)));
                }
            }
        }
    }
}

/// Visible quantised values as bf16 in tiles `[n / 32][dim / 16]`, rounded; other keys become 0. False if a visible
/// number is not finite.
///
/// # Safety
/// As [`round_keys`]; `dim` and `keys.n` are multiples of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn round_values<C: Codes>(src: *const u8, dim: usize, keys: KeyRange, dst: *mut u16) -> bool {
    let layout = layout::<C>(dim);
    let mut non_finite = 0;
    for first in (0..keys.n).step_by(C::PER_WORD) {
        for d in (0..dim).step_by(16) {
            // SAFETY: AVX-512 is available, and all addresses lie within `src` and `dst`, by the caller.
            unsafe {
                let block = src.add(first / CODE_BLOCK * layout.block_bytes());
                let words = block.cast::<u32>().add(layout.value_word(first % CODE_BLOCK, d));
                let scales = block.cast::<u16>().add(layout.scale(first % CODE_BLOCK, d / C::SCALE_DIMS));
                for i in (0..C::PER_WORD).step_by(2) {
                    let x = |i: usize| {
                        // A scale that is masked may be NaN.
                        let bits = if keys.contains(first + i) { scales.add(i).read() } else { 0 };
                        code::<Avx512, C>(words, layout, i).mul(Avx512::splat(f32::from_bits(u32::from(bits) << 16))).0
                    };
                    let (even, odd) = (x(i), x(i + 1));
                    non_finite |= not_finite(even) | not_finite(odd);
                    let to = dst.add(2 * bf16_pair_index(dim, first + i, d));
                    _mm512_storeu_si512(to.cast(), rounded_pairs(even, odd));
                }
            }
        }
    }
    non_finite == 0
}

/// f32 to bf16, rounded to nearest; with a low half, the high half is rounded towards zero and the low half holds the
/// remainder, rounded to nearest.
///
/// # Safety
/// AMX with AVX512-BF16 must be available; `n` is a multiple of 32; `src` and each half of `dst` that is not NULL hold
/// `n` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn split_f32(src: *const f32, n: usize, dst: SplitMut) {
    for at in (0..n).step_by(32) {
        // SAFETY: 32 elements from `at` on are among the `n`.
        unsafe {
            split_vectors(_mm512_loadu_ps(src.add(at)), _mm512_loadu_ps(src.add(at + 16)), dst.offset(at));
        }
    }
}

/// [`split_f32`] of 32 numbers.
///
/// # Safety
/// AVX512-BF16 must be available; each half of `dst` that is not NULL has room for 32 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn split_vectors(a: __m512, b: __m512, dst: SplitMut) {
    // SAFETY: the transmute renames 64 bytes to the type that stores take; `dst` has room.
    unsafe {
        let round = |a: __m512, b: __m512| -> __m512i { std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)) };
        if dst.low.is_null() {
            return _mm512_storeu_si512(dst.high.cast(), round(a, b));
        }
        let mask = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
        let high = |x: __m512| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), mask));
        let (ta, tb) = (high(a), high(b));
        _mm512_storeu_si512(dst.high.cast(), round(ta, tb));
        _mm512_storeu_si512(dst.low.cast(), round(_mm512_sub_ps(a, ta), _mm512_sub_ps(b, tb)));
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backend::cpu::simd::Kernels;
    use crate::backend::cpu::simd::codes::{CodesQ4, CodesQ8};
    use crate::config::StorageType;
    use crate::cpu_features::Isa;

    const N: usize = 96;

    /// Blocks of [`N`] slots with any codes and scales of all magnitudes; the scales of `bad` slots are NaN.
    fn blocks(dim: usize, storage: StorageType, bad: &[usize]) -> Vec<u32> {
        let layout = crate::backend::cpu::kv_layout::CodeLayout::new(storage, dim).unwrap();
        let mut state = dim as u64;
        let mut words: Vec<u32> = (0..N / CODE_BLOCK * layout.block_bytes() / 4)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 32) as u32
            })
            .collect();
        for (i, block) in words.chunks_mut(layout.block_bytes() / 4).enumerate() {
            for (at, pair) in block[..layout.scales * CODE_BLOCK / 2].iter_mut().enumerate() {
                *pair = *pair & 0x9FFF_9FFF | 0x2000_2000;
                for half in 0..2 {
                    if bad.contains(&(i * CODE_BLOCK + (2 * at + half) % CODE_BLOCK)) {
                        *pair |= 0x7FC0 << (16 * half);
                    }
                }
            }
        }
        words
    }

    fn hold<C: Codes>(dim: usize) {
        let kernels = Kernels::new(Isa::Avx512, C::TYPE, C::TYPE);
        let keys = KeyRange { from: 5, to: 90, n: N };
        for (bad, finite) in [(&[2, 93][..], true), (&[2, 5, 93], false), (&[89], false)] {
            let stored = blocks(dim, C::TYPE, bad);
            let src: *const u8 = stored.as_ptr().cast();
            let (mut k, mut v) = (vec![1_u16; N * dim], vec![1_u16; N * dim]);
            let (mut wide_k, mut wide_v) = (vec![0.0_f32; N * dim], vec![0.0_f32; N * dim]);
            // SAFETY: the instructions are there; arrays of these sizes.
            unsafe {
                round_keys::<C>(src, dim, N, k.as_mut_ptr());
                assert_eq!(round_values::<C>(src, dim, keys, v.as_mut_ptr()), finite, "{:?}, {bad:?}", C::TYPE);
                (kernels.pack_keys)(src, dim, N / KEY_GROUP, wide_k.as_mut_ptr());
                (kernels.pack_values)(src, dim, keys, wide_v.as_mut_ptr());
            }
            let same = |bits: u16, wide: f32| {
                let (got, want) = (bf16::from_bits(bits).to_f32(), bf16::from_f32(wide).to_f32());
                got == want || got.is_nan() && want.is_nan()
            };
            for (key, d) in (0..N).flat_map(|key| (0..dim).map(move |d| (key, d))) {
                let (group, lane) = (key / KEY_GROUP * KEY_GROUP * dim, key % KEY_GROUP);
                let got = k[group + d / 2 * 2 * KEY_GROUP + lane * 2 + d % 2];
                assert!(same(got, wide_k[group + d * KEY_GROUP + lane]), "{:?}, key {key}, dim {d}", C::TYPE);
                let got = v[2 * bf16_pair_index(dim, key, d) + key % 2];
                assert!(same(got, wide_v[key * dim + d]), "{:?}, value {key}, dim {d}", C::TYPE);
            }
        }
    }

    /// Codes become the bf16 next to what they stand for, where AMX looks for it; values that are not seen become 0.
    #[test]
    fn codes_are_rounded_to_tiles() {
        if !(Isa::Avx512.available() && is_x86_feature_detected!("avx512bf16")) {
            return;
        }
        for dim in [32, 96, 128] {
            hold::<CodesQ8>(dim);
            hold::<CodesQ4>(dim);
        }
    }
}

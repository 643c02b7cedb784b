//! Sixteen tokens to a whole key group: keys are transposed (those in f32 when they are read), bf16 values interleaved.

use crate::backend::cpu::kv_layout::KEY_GROUP;

/// The rows of the 16 tokens of a group.
pub(crate) type GroupRows = [*const u16; KEY_GROUP];
/// Rows, dims, destination.
pub(crate) type TransposeFn = unsafe fn(&GroupRows, usize, *mut u16);

/// Keys in rows to a group: bf16 as `[dim / 2][16][2]`, f16 as `[dim][16]`.
///
/// # Safety
/// Each row must be readable for `dim` elements, an even number, and `dst` writable for sixteen times as many.
#[inline(always)]
pub(crate) unsafe fn transpose_keys<const F16: bool>(rows: &GroupRows, dim: usize, dst: *mut u16) {
    for d in (0..dim).step_by(2) {
        for (lane, row) in rows.iter().enumerate() {
            // SAFETY: rows and `dst` have the sizes that the caller guarantees.
            unsafe {
                let (a, b) = (row.add(d).read(), row.add(d + 1).read());
                let to = dst.add(d * KEY_GROUP);
                if F16 {
                    to.add(lane).write(a);
                    to.add(KEY_GROUP + lane).write(b);
                } else {
                    to.cast::<[u16; 2]>().add(lane).write([a, b]);
                }
            }
        }
    }
}

/// bf16 values in rows to one half of an interleaved tile of 32 slots: `[dim / 16][8][16][2]`, with the other half in
/// between. Padding beyond the last dim stays unchanged.
///
/// # Safety
/// Each row must be readable for `dim` elements, and `dst` writable for `dim` elements, rounded up to 16, of 32 rows,
/// less the other half.
#[inline(always)]
pub(crate) unsafe fn interleave_values(rows: &GroupRows, dim: usize, dst: *mut u16) {
    for d in (0..dim).step_by(KEY_GROUP) {
        let n = KEY_GROUP.min(dim - d);
        for (pair, [a, b]) in rows.as_chunks::<2>().0.iter().enumerate() {
            // SAFETY: rows and `dst` have the sizes that the caller guarantees.
            unsafe {
                let (a, b) = (a.add(d), b.add(d));
                let to = dst.add(d * 2 * KEY_GROUP + pair * 2 * KEY_GROUP).cast::<[u16; 2]>();
                if n == KEY_GROUP {
                    let (a, b) =
                        (a.cast::<[u16; KEY_GROUP]>().read_unaligned(), b.cast::<[u16; KEY_GROUP]>().read_unaligned());
                    to.cast::<[[u16; 2]; KEY_GROUP]>().write(std::array::from_fn(|i| [a[i], b[i]]));
                } else {
                    (0..n).for_each(|i| to.add(i).write([a.add(i).read(), b.add(i).read()]));
                }
            }
        }
    }
}

/// [`transpose_keys`] with AVX-512: 16 x 16 words of two dims are transposed in registers, and whole cache lines are
/// written.
///
/// # Safety
/// As [`transpose_keys`]; the processor must have AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) unsafe fn transpose_keys_avx512<const F16: bool>(rows: &GroupRows, dim: usize, dst: *mut u16) {
    use std::arch::x86_64::*;
    // The low 16 bits of all words, then the high 16 bits.
    let separate = _mm512_set_epi16(
        31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4,
        2, 0,
    );
    for d in (0..dim).step_by(2 * KEY_GROUP) {
        let words = ((dim - d) / 2).min(KEY_GROUP);
        let mask = (0xFFFF_u32 >> (KEY_GROUP - words)) as __mmask16;
        // SAFETY: masked elements are not read; rows and `dst` have the sizes that the caller guarantees.
        let x = rows.map(|row| unsafe { _mm512_maskz_loadu_epi32(mask, row.add(d).cast()) });
        for (word, mut line) in transposed(x).into_iter().enumerate().take(words) {
            if F16 {
                line = _mm512_permutexvar_epi16(separate, line);
            }
            // SAFETY: rows and `dst` have the sizes that the caller guarantees.
            unsafe { _mm512_storeu_si512(dst.add((d + 2 * word) * KEY_GROUP).cast(), line) };
        }
    }
}

/// Bytes from the rows that are transposed to those that are prefetched: sixteen rows at a time are more streams than
/// hardware prefetchers follow.
#[cfg(target_arch = "x86_64")]
const ROWS_AHEAD: usize = 16384;

/// [`group_rows`](super::pack::group_rows) with AVX-512.
///
/// # Safety
/// As there, `src` as bytes; the processor must have AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn group_rows_avx512(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
    use std::arch::x86_64::*;
    for group in 0..groups {
        let at = group * KEY_GROUP * dim;
        for d in (0..dim).step_by(KEY_GROUP) {
            let n = (dim - d).min(KEY_GROUP);
            let mask = (0xFFFF_u32 >> (KEY_GROUP - n)) as __mmask16;
            let row = |lane: usize| src.cast::<i32>().wrapping_add(at + lane * dim + d);
            // SAFETY: masked elements are not read; `src` and `dst` have the sizes that the caller guarantees.
            unsafe {
                let x = std::array::from_fn(|lane| {
                    _mm_prefetch::<_MM_HINT_T0>(row(lane).wrapping_byte_add(ROWS_AHEAD).cast());
                    _mm512_maskz_loadu_epi32(mask, row(lane))
                });
                for (i, line) in transposed(x).into_iter().enumerate().take(n) {
                    _mm512_storeu_si512(dst.add(at + (d + i) * KEY_GROUP).cast(), line);
                }
            }
        }
    }
}

/// [`group_rows`](super::pack::group_rows) with AVX2, for a multiple of 8 dims.
///
/// # Safety
/// As there, `src` as bytes; the processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn group_rows_avx2(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
    use std::arch::x86_64::*;
    const N: usize = 8;
    assert!(dim.is_multiple_of(N), "{dim} dims");
    for at in (0..groups * KEY_GROUP).step_by(N) {
        let to = at / KEY_GROUP * KEY_GROUP * dim + at % KEY_GROUP;
        for d in (0..dim).step_by(N) {
            // SAFETY: `src` and `dst` have the sizes that the caller guarantees.
            unsafe {
                let x: [__m256; N] = std::array::from_fn(|lane| {
                    let row = src.cast::<f32>().add((at + lane) * dim + d);
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_byte_add(ROWS_AHEAD).cast());
                    _mm256_loadu_ps(row)
                });
                // Within lanes of four: pairs of rows, then fours; then the lanes.
                let pair = |i: usize| (_mm256_unpacklo_ps(x[i], x[i + 1]), _mm256_unpackhi_ps(x[i], x[i + 1]));
                let four = |i: usize| {
                    let ((a, b), (c, d)) = (pair(i), pair(i + 2));
                    [
                        _mm256_shuffle_ps::<0x44>(a, c),
                        _mm256_shuffle_ps::<0xEE>(a, c),
                        _mm256_shuffle_ps::<0x44>(b, d),
                        _mm256_shuffle_ps::<0xEE>(b, d),
                    ]
                };
                let (first, second) = (four(0), four(4));
                for i in 0..4 {
                    let low = _mm256_permute2f128_ps::<0x20>(first[i], second[i]);
                    let high = _mm256_permute2f128_ps::<0x31>(first[i], second[i]);
                    _mm256_storeu_ps(dst.add(to + (d + i) * KEY_GROUP), low);
                    _mm256_storeu_ps(dst.add(to + (d + 4 + i) * KEY_GROUP), high);
                }
            }
        }
    }
}

/// Transposes 16 x 16 words.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(x: [std::arch::x86_64::__m512i; KEY_GROUP]) -> [std::arch::x86_64::__m512i; KEY_GROUP] {
    use std::arch::x86_64::*;
    let mut y = x;
    // Within lanes of four words: pairs of rows, then fours.
    for i in (0..KEY_GROUP).step_by(2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    let mut z = y;
    for i in (0..KEY_GROUP).step_by(4) {
        z[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        z[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        z[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        z[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    // Lane l of z[4 i + c] has word 4 l + c of rows 4 i .. 4 i + 4: lanes are transposed like words.
    let mut out = z;
    for c in 0..4 {
        let even = |a, b| _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let odd = |a, b| _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        let (a, b) = (even(z[c], z[4 + c]), even(z[8 + c], z[12 + c]));
        let (e, f) = (odd(z[c], z[4 + c]), odd(z[8 + c], z[12 + c]));
        out[c] = even(a, b);
        out[8 + c] = odd(a, b);
        out[4 + c] = even(e, f);
        out[12 + c] = odd(e, f);
    }
    out
}

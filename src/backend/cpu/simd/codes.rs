//! QK^T and PV over quantised keys and values, and packing them as f32: codes are widened to f32 in registers.
//!
//! Scales are applied to sums of products of a key, and to the probability of a value.

use super::gemm::{PvArgs, QkArgs};
use super::unroll::unrolled;
use super::vector::SimdF32;
use crate::backend::cpu::kv_layout::{CODE_BLOCK, CodeLayout, KEY_GROUP, KeyRange};
use crate::config::{Q4_GROUP, StorageType};

/// Dims of a register tile of PV.
const TILE_DIMS: usize = 16;

/// A type of codes.
pub(crate) trait Codes {
    const TYPE: StorageType;
    /// Codes in a word.
    const PER_WORD: usize;
    /// Bits of a code.
    const BITS: u32;
    /// What makes a stored code one in two's complement.
    const FLIP: u32;
    /// Dims of a row that share a scale; `usize::MAX` = all.
    const SCALE_DIMS: usize;
}

/// 8-bit codes.
#[derive(Debug)]
pub(crate) struct CodesQ8;
/// 4-bit codes, stored plus 8.
#[derive(Debug)]
pub(crate) struct CodesQ4;

impl Codes for CodesQ8 {
    const TYPE: StorageType = StorageType::Q8;
    const PER_WORD: usize = 4;
    const BITS: u32 = 8;
    const FLIP: u32 = 0;
    const SCALE_DIMS: usize = usize::MAX;
}

impl Codes for CodesQ4 {
    const TYPE: StorageType = StorageType::Q4;
    const PER_WORD: usize = 8;
    const BITS: u32 = 4;
    const FLIP: u32 = 0x8888_8888;
    const SCALE_DIMS: usize = Q4_GROUP;
}

#[inline(always)]
pub(super) fn layout<C: Codes>(dim: usize) -> CodeLayout {
    CodeLayout { dim, per_word: C::PER_WORD, scales: C::TYPE.scales(dim) }
}

/// Code `i` of each of N words as f32.
///
/// # Safety
/// As [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn code<V: SimdF32, C: Codes>(words: *const u32, layout: CodeLayout, i: usize) -> V {
    // SAFETY: as the caller's.
    unsafe { V::load_field(words, C::FLIP, 32 - C::BITS - layout.shift(i) as u32, 32 - C::BITS) }
}

/// [`super::gemm::qk`] of quantised keys: `k` is the first block, `first` counts groups from there.
///
/// # Safety
/// As [`SimdF32`] and [`QkArgs`].
#[inline(always)]
pub(crate) unsafe fn qk<V: SimdF32, C: Codes>(a: &QkArgs) {
    for at in (a.first * KEY_GROUP..(a.first + a.groups) * KEY_GROUP).step_by(V::N) {
        let mut r = 0;
        while r < a.rows {
            // SAFETY: as the caller's; each register tile has as many rows as are left.
            r += unsafe {
                match a.rows - r {
                    1 => qk_tile::<V, C, 1>(a, r, at),
                    2 | 3 => qk_tile::<V, C, 2>(a, r, at),
                    _ => qk_tile::<V, C, 4>(a, r, at),
                }
            };
        }
    }
}

/// Scores of `R` rows and of the keys from `at` on, as many as a vector has lanes.
#[inline(always)]
unsafe fn qk_tile<V: SimdF32, C: Codes, const R: usize>(a: &QkArgs, row: usize, at: usize) -> usize {
    let layout = layout::<C>(a.dim);
    let words = a.dim / C::PER_WORD;
    let per_scale = words.min(C::SCALE_DIMS / C::PER_WORD);
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let block = a.k.add(at / CODE_BLOCK * layout.block_bytes());
        let q = a.q.add(row * a.q_stride);
        let mut total = [V::splat(0.0); R];
        for (scale, from) in (0..words).step_by(per_scale).enumerate() {
            let mut sum = [V::splat(0.0); R];
            for word in from..words.min(from + per_scale) {
                let p = block.cast::<u32>().add(layout.key_word(at % CODE_BLOCK, word));
                unrolled!(8, i, {
                    if i < C::PER_WORD {
                        let k = code::<V, C>(p, layout, i);
                        let q = q.add(word * C::PER_WORD + i);
                        unrolled!(R, r, sum[r] = V::splat(*q.add(r * a.q_stride)).fma(k, sum[r]));
                    }
                });
            }
            let scale = V::load_bf16(block.cast::<u16>().add(layout.scale(at % CODE_BLOCK, scale)));
            unrolled!(R, r, total[r] = sum[r].fma(scale, total[r]));
        }
        unrolled!(R, r, total[r].store(a.scores.add((row + r) * a.stride + at)));
    }
    R
}

/// [`super::gemm::pv`] of quantised values.
///
/// # Safety
/// As [`SimdF32`] and [`PvArgs`].
#[inline(always)]
pub(crate) unsafe fn pv<V: SimdF32, C: Codes>(a: &PvArgs) {
    for d in (0..a.dim).step_by(TILE_DIMS) {
        let mut r = 0;
        while r < a.rows {
            // SAFETY: as the caller's; each register tile has as many rows as are left.
            r += unsafe {
                match a.rows - r {
                    1 => pv_tile::<V, C, 1>(a, r, d),
                    2 | 3 => pv_tile::<V, C, 2>(a, r, d),
                    _ => pv_tile::<V, C, 4>(a, r, d),
                }
            };
        }
    }
}

/// Results of `R` rows, 16 dims from `d` on.
#[inline(always)]
unsafe fn pv_tile<V: SimdF32, C: Codes, const R: usize>(a: &PvArgs, row: usize, d: usize) -> usize {
    /// Vectors of 16 dims on the narrowest instruction set.
    const MOST: usize = 4;
    let layout = layout::<C>(a.dim);
    let vectors = TILE_DIMS / V::N;
    // SAFETY: the instruction set is available, and all addresses are rows and columns of the arguments, by the caller.
    unsafe {
        let mut sum = [[V::splat(0.0); MOST]; R];
        let p = a.probs.add(row * a.stride);
        let mut first = a.from - a.from % C::PER_WORD;
        while first < a.to {
            let block = a.v.add(first / CODE_BLOCK * layout.block_bytes());
            let words = block.cast::<u32>().add(layout.value_word(first % CODE_BLOCK, d));
            let scales = block.cast::<u16>().add(layout.scale(first % CODE_BLOCK, d / C::SCALE_DIMS));
            unrolled!(8, i, {
                // What lies in other slots is not read: the scale of one may be NaN.
                // mutant: scale_beyond_the_range
                if i < C::PER_WORD && (a.from..a.to).contains(&(first + i)) {
                    let scale = f32::from_bits(u32::from(scales.add(i).read()) << 16);
                    let mut weight = [V::splat(0.0); R];
                    unrolled!(R, r, weight[r] = V::splat(*p.add(r * a.stride + first + i) * scale));
                    unrolled!(MOST, v, {
                        if v < vectors {
                            let x = code::<V, C>(words.add(v * V::N), layout, i);
                            unrolled!(R, r, sum[r][v] = weight[r].fma(x, sum[r][v]));
                        }
                    });
                }
            });
            first += C::PER_WORD;
        }
        unrolled!(R, r, {
            let alpha = V::splat(*a.alpha.add(row + r));
            unrolled!(MOST, v, {
                if v < vectors {
                    let acc = a.acc.add((row + r) * a.dim + d + v * V::N);
                    V::load(acc).fma(alpha, sum[r][v]).store(acc);
                }
            });
        });
    }
    R
}

/// [`super::pack::pack_keys`] of quantised keys.
///
/// # Safety
/// As [`SimdF32`]; `src` must hold blocks of `groups` groups, `dst` room for as many.
#[inline(always)]
pub(crate) unsafe fn pack_keys<V: SimdF32, C: Codes>(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
    let layout = layout::<C>(dim);
    for at in (0..groups * KEY_GROUP).step_by(V::N) {
        // SAFETY: the addresses lie within `src` and `dst` by the sizes that the caller guarantees.
        unsafe {
            let block = src.add(at / CODE_BLOCK * layout.block_bytes());
            let to = dst.add(at / KEY_GROUP * KEY_GROUP * dim + at % KEY_GROUP);
            for word in 0..dim / C::PER_WORD {
                let d = word * C::PER_WORD;
                let scale = V::load_bf16(block.cast::<u16>().add(layout.scale(at % CODE_BLOCK, d / C::SCALE_DIMS)));
                let p = block.cast::<u32>().add(layout.key_word(at % CODE_BLOCK, word));
                unrolled!(8, i, {
                    if i < C::PER_WORD {
                        code::<V, C>(p, layout, i).mul(scale).store(to.add((d + i) * KEY_GROUP));
                    }
                });
            }
        }
    }
}

/// [`super::pack::pack_values`] of quantised values.
///
/// # Safety
/// As [`SimdF32`]; `src` must hold the blocks of `keys`, `dst` room for `keys.n` rows.
#[inline(always)]
pub(crate) unsafe fn pack_values<V: SimdF32, C: Codes>(
    src: *const u8,
    dim: usize,
    keys: KeyRange,
    dst: *mut f32,
) -> bool {
    let layout = layout::<C>(dim);
    // SAFETY: the addresses lie within `src` and `dst` by the sizes that the caller guarantees.
    unsafe {
        let zero = V::splat(0.0);
        // x * 0 is NaN iff x is infinite or NaN.
        let mut zero_or_nan = zero;
        for first in (0..keys.n).step_by(C::PER_WORD) {
            let block = src.add(first / CODE_BLOCK * layout.block_bytes());
            for d in (0..dim).step_by(V::N) {
                let words = block.cast::<u32>().add(layout.value_word(first % CODE_BLOCK, d));
                let scales = block.cast::<u16>().add(layout.scale(first % CODE_BLOCK, d / C::SCALE_DIMS));
                unrolled!(8, i, {
                    if i < C::PER_WORD {
                        let x = if keys.contains(first + i) {
                            let scale = f32::from_bits(u32::from(scales.add(i).read()) << 16);
                            code::<V, C>(words, layout, i).mul(V::splat(scale))
                        } else {
                            zero
                        };
                        zero_or_nan = x.fma(zero, zero_or_nan);
                        x.store(dst.add((first + i) * dim + d));
                    }
                });
            }
        }
        zero_or_nan.reduce_add() == 0.0
    }
}

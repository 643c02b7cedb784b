//! Packs stored keys and values as f32, in the order that kernels multiply them.

use super::kv_load::{Keys, Values};
use super::vector::SimdF32;
use crate::backend::cpu::kv_layout::{KEY_GROUP, KeyRange};

/// Keys in rows, as f32 is stored, to groups `[dim][16]`.
///
/// # Safety
/// `src` must hold `groups` groups of 16 rows of `dim` f32, `dst` room for as many.
#[inline(always)]
pub(crate) unsafe fn group_rows(src: *const f32, dim: usize, groups: usize, dst: *mut f32) {
    for group in 0..groups {
        for d in 0..dim {
            for lane in 0..KEY_GROUP {
                // SAFETY: the addresses lie within `src` and `dst` by the sizes that the caller guarantees.
                unsafe {
                    let at = group * KEY_GROUP * dim;
                    dst.add(at + d * KEY_GROUP + lane).write(src.add(at + lane * dim + d).read());
                }
            }
        }
    }
}

/// Keys of whole groups as f32 groups `[dim][16]`.
///
/// # Safety
/// As [`SimdF32`]; `src` must hold `groups` groups, `dst` room for as many.
#[inline(always)]
pub(crate) unsafe fn pack_keys<V: SimdF32, K: Keys>(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
    for group in 0..groups {
        for d in (0..dim).step_by(2) {
            for lane in (0..KEY_GROUP).step_by(V::N) {
                // SAFETY: the addresses lie within `src` and `dst` by the sizes that the caller guarantees.
                unsafe {
                    let (a, b) = K::load::<V>(src.add(group * KEY_GROUP * dim * K::SIZE), lane, d);
                    let to = dst.add((group * dim + d) * KEY_GROUP + lane);
                    a.store(to);
                    b.store(to.add(KEY_GROUP));
                }
            }
        }
    }
}

/// Visible values of a block as rows of f32; the other rows become 0. False if a visible number is not finite.
///
/// # Safety
/// As [`SimdF32`] and [`Values`]; `dst` must have room for `keys.n` rows.
#[inline(always)]
pub(crate) unsafe fn pack_values<V: SimdF32, E: Values>(
    src: *const u8,
    dim: usize,
    keys: KeyRange,
    dst: *mut f32,
) -> bool {
    // SAFETY: the addresses lie within `src` and `dst` by the sizes that the caller guarantees.
    unsafe {
        let zero = V::splat(0.0);
        // x * 0 is NaN iff x is infinite or NaN.
        let mut zero_or_nan = zero;
        for key in 0..keys.n {
            for d in (0..dim).step_by(V::N) {
                let x = if keys.contains(key) { E::one::<V>(src, dim, key, d) } else { zero };
                zero_or_nan = x.fma(zero, zero_or_nan);
                x.store(dst.add(key * dim + d));
            }
        }
        zero_or_nan.reduce_add() == 0.0
    }
}

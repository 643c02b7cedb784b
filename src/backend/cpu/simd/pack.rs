//! What is done to rows before kernels multiply them: packed into groups, rotated, narrowed.

use super::kv_load::{Keys, Values};
use super::vector::SimdF32;
use crate::backend::cpu::kv_layout::KEY_GROUP;

/// Keys in rows, as f32 is stored, to groups `[dim][16]`.
///
/// # Safety
/// `src` must hold `groups` groups of 16 rows of `dim` f32, `dst` room for as many.
#[inline(always)]
pub(crate) unsafe fn group_rows(src: *const f32, dim: usize, groups: usize, dst: *mut f32) {
    for group in 0..groups {
        for d in 0..dim {
            for lane in 0..KEY_GROUP {
                // SAFETY: the caller's contract.
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
                // SAFETY: the caller's contract.
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

/// Values of keys `from..to` as rows of f32; the rows before and up to `n` become 0. False if a number is not finite.
///
/// # Safety
/// As [`SimdF32`] and [`Values`]; `dst` must have room for `n` rows.
#[inline(always)]
pub(crate) unsafe fn pack_values<V: SimdF32, E: Values>(
    src: *const u8,
    dim: usize,
    (from, to, n): (usize, usize, usize),
    dst: *mut f32,
) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        let zero = V::splat(0.0);
        // Zero times a number is nothing, unless it is infinite or none.
        let mut nothing = zero;
        for key in 0..n {
            for d in (0..dim).step_by(V::N) {
                let x = if (from..to).contains(&key) { E::one::<V>(src, dim, key, d) } else { zero };
                nothing = x.fma(zero, nothing);
                x.store(dst.add(key * dim + d));
            }
        }
        nothing.reduce_add() == 0.0
    }
}

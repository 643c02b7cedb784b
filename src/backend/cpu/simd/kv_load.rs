//! Loads keys and values as vectors of f32, from the layouts that `kv_store.rs` stores.

use super::vector::SimdF32;
use crate::backend::cpu::kv_layout::{KEY_GROUP, bf16_pair_index};

/// A layout of the keys of a group.
pub(crate) trait Keys {
    /// Bytes of an element.
    const SIZE: usize;
    /// Whether keys are read from the cache's memory; else from scratch.
    const STORED: bool;

    /// Dims `d` and `d + 1`, d even, of the `V::N` keys from `lane` on.
    ///
    /// # Safety
    /// As [`SimdF32`]; `lane + V::N` is at most 16, and `d` below the head's dims.
    unsafe fn load<V: SimdF32>(group: *const u8, lane: usize, d: usize) -> (V, V);
}

/// A layout of values.
pub(crate) trait Values {
    /// Whether decodes prefetch values of this type.
    const PREFETCHED: bool;
    /// Bytes from one dim to the next, and how many addresses two consecutive keys have: one where they are
    /// interleaved.
    const WIDTH: usize;
    const PLACES: usize = 2;

    /// The address of dim `d` of a key.
    #[inline(always)]
    fn place(rows: *const u8, dim: usize, key: usize, d: usize) -> *const u8 {
        rows.wrapping_add((key * dim + d) * Self::WIDTH)
    }

    /// Dims `d..d + V::N` of one key.
    ///
    /// # Safety
    /// As [`SimdF32`]; `rows` are those of a key whose slot is a multiple of 32, `dim` elements to a row.
    unsafe fn one<V: SimdF32>(rows: *const u8, dim: usize, key: usize, d: usize) -> V;

    /// The same of an even key and of the next one.
    ///
    /// # Safety
    /// As [`Values::one`].
    #[inline(always)]
    unsafe fn two<V: SimdF32>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V) {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        unsafe { (Self::one(rows, dim, key, d), Self::one(rows, dim, key + 1, d)) }
    }
}

/// f32: keys `[dim][16]` (packed, not as stored), values in rows.
#[derive(Debug)]
pub(crate) struct StoredF32;
/// f16: keys `[dim][16]`, values in rows.
#[derive(Debug)]
pub(crate) struct StoredF16;
/// bf16: keys `[dim / 2][16][2]`, values in tiles `[key / 32][dim / 16][16][16][2]`, the last three being pairs of
/// keys, dims, and the two of a pair.
#[derive(Debug)]
pub(crate) struct StoredBf16;

impl Keys for StoredF32 {
    const SIZE: usize = 4;
    const STORED: bool = false;

    #[inline(always)]
    unsafe fn load<V: SimdF32>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        unsafe {
            let p = group.cast::<f32>().add(d * KEY_GROUP + lane);
            (V::load(p), V::load(p.add(KEY_GROUP)))
        }
    }
}

impl Keys for StoredF16 {
    const SIZE: usize = 2;
    const STORED: bool = true;

    #[inline(always)]
    unsafe fn load<V: SimdF32>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        unsafe {
            let p = group.cast::<u16>().add(d * KEY_GROUP + lane);
            (V::load_f16(p), V::load_f16(p.add(KEY_GROUP)))
        }
    }
}

impl Keys for StoredBf16 {
    const SIZE: usize = 2;
    const STORED: bool = true;

    #[inline(always)]
    unsafe fn load<V: SimdF32>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        unsafe { V::load_pairs(group.cast::<u32>().add(d / 2 * KEY_GROUP + lane)) }
    }
}

impl Values for StoredF32 {
    const PREFETCHED: bool = false;
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn one<V: SimdF32>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        unsafe { V::load(Self::place(rows, dim, key, d).cast()) }
    }
}

impl Values for StoredF16 {
    const PREFETCHED: bool = true;
    const WIDTH: usize = 2;

    #[inline(always)]
    unsafe fn one<V: SimdF32>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        unsafe { V::load_f16(Self::place(rows, dim, key, d).cast()) }
    }
}

impl Values for StoredBf16 {
    const PREFETCHED: bool = true;
    const WIDTH: usize = 4;
    const PLACES: usize = 1;

    #[inline(always)]
    fn place(rows: *const u8, dim: usize, key: usize, d: usize) -> *const u8 {
        rows.wrapping_add(bf16_pair_index(dim, key, d) * Self::WIDTH)
    }

    #[inline(always)]
    unsafe fn one<V: SimdF32>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        let (even, odd) = unsafe { Self::two(rows, dim, key & !1, d) };
        if key.is_multiple_of(2) { even } else { odd }
    }

    #[inline(always)]
    unsafe fn two<V: SimdF32>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V) {
        // SAFETY: the address lies within the keys or values that the caller guarantees.
        unsafe { V::load_pairs(Self::place(rows, dim, key, d).cast()) }
    }
}

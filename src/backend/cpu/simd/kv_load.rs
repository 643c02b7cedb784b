//! How keys and values lie in memory, for kernels that load them by vectors (`store.rs` stores them so).

use super::vector::Lanes;
use crate::backend::cpu::kv_layout::GROUP;
use crate::backend::cpu::kv_layout::pair_at;

/// How keys of a group lie.
pub(crate) trait Keys {
    /// Bytes of an element.
    const SIZE: usize;
    /// Whether they are read from the cache's memory, not from scratch.
    const STORED: bool;

    /// Dims `d` and `d + 1`, d even, of the keys that begin at `lane`.
    ///
    /// # Safety
    /// As [`Lanes`]; `lane + V::N` is at most 16, and `d` below the head's dims.
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V);
}

/// How values lie.
pub(crate) trait Values {
    /// Whether a decode fetches them ahead; f32 is packed as often as it is read as stored.
    const FETCHED: bool;
    /// Bytes from one dim to the next, and how many places two keys lie in.
    const WIDTH: usize;
    const PLACES: usize = 2;

    /// Where a key has dim `d`.
    #[inline(always)]
    fn place(rows: *const u8, dim: usize, key: usize, d: usize) -> *const u8 {
        rows.wrapping_add((key * dim + d) * Self::WIDTH)
    }

    /// Dims `d..d + V::N` of one key.
    ///
    /// # Safety
    /// As [`Lanes`]; `rows` are those of a key whose slot is a multiple of 32, `dim` elements to a row.
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V;

    /// The same of an even key and of the next.
    ///
    /// # Safety
    /// As [`Values::one`].
    #[inline(always)]
    unsafe fn two<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe { (Self::one(rows, dim, key, d), Self::one(rows, dim, key + 1, d)) }
    }
}

/// f32: keys `[dim][16]` (packed, not as stored), values in rows.
#[derive(Debug)]
pub(crate) struct Single;
/// f16: keys `[dim][16]`, values in rows.
#[derive(Debug)]
pub(crate) struct Half;
/// bf16: keys `[dim / 2][16][2]`, values in tiles `[key / 32][dim / 16][16][16][2]`, the last three being pairs of keys, dims,
/// and the two of a pair.
#[derive(Debug)]
pub(crate) struct Brain;

impl Keys for Single {
    const SIZE: usize = 4;
    const STORED: bool = false;

    #[inline(always)]
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe {
            let p = group.cast::<f32>().add(d * GROUP + lane);
            (V::load(p), V::load(p.add(GROUP)))
        }
    }
}

impl Keys for Half {
    const SIZE: usize = 2;
    const STORED: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe {
            let p = group.cast::<u16>().add(d * GROUP + lane);
            (V::load_f16(p), V::load_f16(p.add(GROUP)))
        }
    }
}

impl Keys for Brain {
    const SIZE: usize = 2;
    const STORED: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(group: *const u8, lane: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe { V::load_pairs(group.cast::<u32>().add(d / 2 * GROUP + lane)) }
    }
}

impl Values for Single {
    const FETCHED: bool = false;
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load(Self::place(rows, dim, key, d).cast()) }
    }
}

impl Values for Half {
    const FETCHED: bool = true;
    const WIDTH: usize = 2;

    #[inline(always)]
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load_f16(Self::place(rows, dim, key, d).cast()) }
    }
}

impl Values for Brain {
    const FETCHED: bool = true;
    const WIDTH: usize = 4;
    const PLACES: usize = 1;

    #[inline(always)]
    fn place(rows: *const u8, dim: usize, key: usize, d: usize) -> *const u8 {
        rows.wrapping_add(pair_at(dim, key, d) * Self::WIDTH)
    }

    #[inline(always)]
    unsafe fn one<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> V {
        // SAFETY: the caller's contract.
        let (even, odd) = unsafe { Self::two(rows, dim, key & !1, d) };
        if key.is_multiple_of(2) { even } else { odd }
    }

    #[inline(always)]
    unsafe fn two<V: Lanes>(rows: *const u8, dim: usize, key: usize, d: usize) -> (V, V) {
        // SAFETY: the caller's contract.
        unsafe { V::load_pairs(Self::place(rows, dim, key, d).cast()) }
    }
}

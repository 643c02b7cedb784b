//! Attention of many rows: tiles of queries over blocks of keys, FlashAttention-style.

#[cfg(target_arch = "x86_64")]
mod amx;
pub(super) mod f32;
#[cfg(target_arch = "x86_64")]
mod fp16;

use super::kv_store::Slots;
use super::query_tile::QueryTile;
use super::scratch::Scratch;
use super::simd::Kernels;
use crate::config::Shape;
use crate::cpu_features::Isa;
use crate::cpu_features::fp16_available;

/// Computes a tile in the types that the instruction set has instructions for; false, and nothing done, where that is f32.
#[cfg(target_arch = "x86_64")]
pub(super) fn attend_narrow(
    isa: Isa,
    tile: &QueryTile<'_>,
    slots: &Slots<'_>,
    kernels: &Kernels,
    scratch: &mut Scratch<'_>,
) -> bool {
    let shape = tile.job.shape;
    match isa {
        Isa::Amx if amx::fits(shape) => amx::tile(tile, slots, kernels, scratch),
        Isa::Avx512 if fp16::fits(shape) && fp16_available() => {
            fp16::tile(tile, slots, kernels, scratch);
        }
        _ => return false,
    }
    true
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn attend_narrow(_: Isa, _: &QueryTile<'_>, _: &Slots<'_>, _: &Kernels, _: &mut Scratch<'_>) -> bool {
    false
}

/// The instruction set whose kernels compute chunks of a shape, where the cache's is `instruction set`.
pub(super) fn isa_for_chunks(shape: &Shape, isa: Isa) -> Isa {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && !amx::fits(shape) {
        return Isa::Avx512;
    }
    let _ = shape;
    isa
}

//! Attention of many rows: tiles of queries over blocks of keys, as in FlashAttention.
//!
//! One loop (`tile_loop.rs`) serves all element types that products are computed in: `f32.rs` for every instruction
//! set, `amx.rs` (bf16 tiles) and `fp16.rs` (AVX-512 FP16).

#[cfg(target_arch = "x86_64")]
mod amx;
mod f32;
#[cfg(target_arch = "x86_64")]
mod fp16;
mod tile_loop;

pub(super) use self::tile_loop::ChunkTile;
use self::tile_loop::attend_tile;
use super::scratch::Scratch;
use crate::config::Shape;
use crate::cpu_features::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu_features::fp16_available;

/// Attention of a loaded tile, with the fastest products that the instruction set has for the cache's shape.
pub(super) fn attend(isa: Isa, chunk: &ChunkTile<'_>, scratch: &mut Scratch<'_>) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Amx if amx::fits(chunk.tile.call.shape) => {
            // SAFETY: a cache's instruction set is one that is available.
            let kernel = unsafe { amx::Amx::new(chunk.tile, scratch) };
            return attend_tile(&kernel, &f32::F32, chunk, scratch);
        }
        Isa::Avx512 if fp16::fits(chunk.tile.call.shape) && fp16_available() => {
            // SAFETY: AVX-512 is the cache's instruction set, and FP16 was just found.
            let kernel = unsafe { fp16::Fp16::new(chunk.tile, scratch) };
            return attend_tile(&kernel, &f32::F32, chunk, scratch);
        }
        _ => {}
    }
    let _ = isa;
    attend_tile(&f32::F32, &f32::F32, chunk, scratch);
}

/// The instruction set whose kernels compute chunks of a shape, where the cache's is `isa`.
pub(super) fn isa_for_chunks(shape: &Shape, isa: Isa) -> Isa {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && !amx::fits(shape) {
        return Isa::Avx512;
    }
    let _ = shape;
    isa
}

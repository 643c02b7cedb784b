//! GEMM on AMX tiles: bf16 products with f32 accumulation, 16 x 16 x 32 per instruction.
//!
//! Rust has no stable intrinsics for AMX, hence inline assembly. Operand layouts are those of Intel's manual (Software
//! Developer's Manual, volume 1, chapter 18): A is 16 rows of 32 numbers; B is 16 pairs of rows of 16 numbers,
//! interleaved by pairs. bf16 keys and values are stored as B.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::backend::cpu::kv_layout::KEY_GROUP;
use crate::backend::cpu::kv_layout::bf16_pair_index;
use crate::backend::cpu::simd::prefetch::prefetch;

/// Rows of queries that are multiplied together: two tiles of 16.
pub(crate) const ROWS: usize = 32;
/// Dims and keys are multiples of this.
pub(crate) const DEPTH: usize = 32;
/// bf16 elements of a tile.
const TILE_ELEMENTS: usize = 512;

/// Configures the thread's eight tiles as 16 rows of 64 bytes while it lives, and restores the host's configuration
/// when dropped: ggml configures a thread's tiles once and never again.
#[derive(Debug)]
pub(crate) struct TileConfig {
    before: Config,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// # Safety
    /// AMX must be available to this process.
    pub unsafe fn new() -> Self {
        const NONE: Config = Config { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let (mut before, mut config) = (NONE, Config { palette: 1, ..NONE });
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: AMX is available; both operands are 64 bytes, the second a valid configuration.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack));
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly));
        }
        Self { before }
    }
}

impl Drop for TileConfig {
    fn drop(&mut self) {
        // SAFETY: `new` configured the tiles; what it saved is a valid configuration. Tiles without a host's
        // configuration are released: otherwise every context switch would save them.
        unsafe {
            if self.before.palette == 0 {
                asm!("tilerelease", options(nostack, nomem));
            } else {
                asm!("ldtilecfg [{}]", in(reg) &raw const self.before, options(nostack, readonly));
            }
        }
    }
}

/// Accumulates A x B in tiles 0 to 3, `[2 x 16 rows][2 x 16 columns]`: two tiles of A, two of B.
macro_rules! accumulate {
    ($a:expr, $a_stride:expr, $a1:expr, $b:expr, $b1:expr, $b_stride:expr) => {
        asm!(
            "tileloadd tmm4, [{a} + {a_stride}]",
            "tileloadd tmm6, [{b} + {b_stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {b_stride}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {a_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            a = in(reg) $a, a1 = in(reg) $a1, a_stride = in(reg) $a_stride,
            b = in(reg) $b, b1 = in(reg) $b1, b_stride = in(reg) $b_stride,
            options(nostack, readonly)
        )
    };
}
pub(crate) use accumulate;

/// Zeroes the four accumulator tiles.
macro_rules! zero_acc {
    () => {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem))
    };
}
pub(crate) use zero_acc;

/// Stores the accumulator tiles as rows of f32: the address of the first of the upper and of the lower 16 rows, and the
/// row stride in bytes.
macro_rules! store_acc {
    ($top:expr, $bottom:expr, $stride:expr) => {
        asm!(
            "tilestored [{top} + {stride}], tmm0",
            "tilestored [{top} + {stride} + 64], tmm1",
            "tilestored [{bottom} + {stride}], tmm2",
            "tilestored [{bottom} + {stride} + 64], tmm3",
            top = in(reg) $top, bottom = in(reg) $bottom, stride = in(reg) $stride,
            options(nostack)
        )
    };
}
pub(crate) use store_acc;

/// A matrix of bf16, or of numbers that are each the sum of a high and a low bf16; `low` is NULL where there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitMatrix {
    pub high: *const u16,
    pub low: *const u16,
}

impl SplitMatrix {
    /// The matrix from an element on.
    pub fn offset(self, elements: usize) -> Self {
        let low = if self.low.is_null() { self.low } else { self.low.wrapping_add(elements) };
        Self { high: self.high.wrapping_add(elements), low }
    }
}

/// A [`SplitMatrix`] to write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitMut {
    pub high: *mut u16,
    pub low: *mut u16,
}

impl SplitMut {
    /// The same to read.
    pub fn as_matrix(self) -> SplitMatrix {
        SplitMatrix { high: self.high, low: self.low }
    }

    /// The matrix from an element on.
    pub fn offset(self, elements: usize) -> Self {
        let low = if self.low.is_null() { self.low } else { self.low.wrapping_add(elements) };
        Self { high: self.high.wrapping_add(elements), low }
    }
}

/// The products of bf16 that make up one of two split matrices: hi*hi, and hi*lo and lo*hi. The dropped lo*lo is below
/// f32 rounding.
pub(crate) fn split_products(a: SplitMatrix, b: SplitMatrix) -> impl Iterator<Item = (*const u16, *const u16)> {
    let n = if a.low.is_null() { 1 } else { 3 }; // mutant: amx_low_half_left_out
    [(a.high, b.high), (a.high, b.low), (a.low, b.high)].into_iter().take(n)
}

/// QK^T: `scores[r][c] = q[r] . k[c]` for 32 rows and `keys` keys.
///
/// # Safety
/// [`TileConfig`] must be alive; `q` holds `[32][dim]`, `k` groups of 16 keys `[dim / 2][16][2]`, `scores` 32 rows
/// `stride` apart; `dim` and `keys` are multiples of 32.
pub(crate) unsafe fn qk(q: SplitMatrix, k: SplitMatrix, dim: usize, keys: usize, scores: *mut f32, stride: usize) {
    for key in (0..keys).step_by(2 * KEY_GROUP) {
        // SAFETY: tiles are configured; each address lies in the matrices that the caller describes.
        unsafe {
            zero_acc!();
            for (q, k) in split_products(q, k) {
                let k = k.add(key * dim);
                for d in (0..dim).step_by(DEPTH) {
                    let (a, b) = (q.add(d), k.add(d * KEY_GROUP));
                    // mutant: amx_tile_of_wrong_rows
                    accumulate!(a, 2 * dim, a.add(16 * dim), b, b.add(KEY_GROUP * dim), 64_usize);
                }
            }
            let out = scores.add(key);
            store_acc!(out, out.add(16 * stride), 4 * stride);
        }
    }
}

/// PV: `acc[r] += probs[r] . v` for 32 rows and `keys` keys.
///
/// # Safety
/// [`TileConfig`] must be alive; `probs` holds 32 rows `stride` apart, `v` tiles `[keys / 32][dim / 16]`, `acc`
/// `[32][dim]`; `dim` and `keys` are multiples of 32.
pub(crate) unsafe fn pv(probs: SplitMatrix, stride: usize, v: SplitMatrix, dim: usize, keys: usize, acc: *mut f32) {
    for d in (0..dim).step_by(32) {
        // SAFETY: as in `qk`.
        unsafe {
            let out = acc.add(d);
            let (top, bottom, row) = (out, out.add(16 * dim), 4 * dim);
            asm!(
                "tileloadd tmm0, [{top} + {row}]",
                "tileloadd tmm1, [{top} + {row} + 64]",
                "tileloadd tmm2, [{bottom} + {row}]",
                "tileloadd tmm3, [{bottom} + {row} + 64]",
                top = in(reg) top, bottom = in(reg) bottom, row = in(reg) row,
                options(nostack, readonly)
            );
            for (p, v) in split_products(probs, v) {
                for key in (0..keys).step_by(DEPTH) {
                    let (a, b) = (p.add(key), v.add(2 * bf16_pair_index(dim, key, d)));
                    // The next values: tile loads would wait for L2.
                    prefetch::<false>(b.wrapping_add(2 * KEY_GROUP * dim).cast(), 4 * TILE_ELEMENTS);
                    accumulate!(a, 2 * stride, a.add(16 * stride), b, b.add(TILE_ELEMENTS), 64_usize);
                }
            }
            store_acc!(top, bottom, row);
        }
    }
}

/// `acc[i] *= alpha` for a row.
///
/// # Safety
/// AVX-512 must be available; `acc` holds `dim` elements, a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn rescale(acc: *mut f32, dim: usize, alpha: f32) {
    for d in (0..dim).step_by(16) {
        // SAFETY: `acc` holds `dim` elements.
        unsafe { _mm512_storeu_ps(acc.add(d), _mm512_mul_ps(_mm512_loadu_ps(acc.add(d)), _mm512_set1_ps(alpha))) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_features::Isa;

    /// The host's configuration, or none, is restored after ours.
    #[test]
    fn the_hosts_tiles_come_back() {
        if !Isa::Amx.available() {
            return;
        }
        let read = || {
            let mut bytes = [0_u8; 64];
            // SAFETY: AMX is available; 64 bytes to write.
            unsafe { asm!("sttilecfg [{}]", in(reg) bytes.as_mut_ptr(), options(nostack)) };
            bytes
        };
        // SAFETY: AMX is available.
        drop(unsafe { TileConfig::new() });
        assert_eq!(read(), [0; 64]);
        let mut host = [0_u8; 64];
        // Palette 1, one tile of 3 rows of 8 bytes.
        (host[0], host[16], host[48]) = (1, 8, 3);
        // SAFETY: a valid configuration; released at the end.
        unsafe { asm!("ldtilecfg [{}]", in(reg) host.as_ptr(), options(nostack, readonly)) };
        // SAFETY: AMX is available.
        drop(unsafe { TileConfig::new() });
        assert_eq!(read(), host);
        // SAFETY: configured above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

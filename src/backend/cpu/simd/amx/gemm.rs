//! Tiles of AMX: matrix products of bfloat16 with f32 sums, 16 x 16 x 32 to an instruction.
//!
//! Rust has no stable intrinsics for them, so they are inline assembly. Layouts are those of Intel's manual (Software
//! Developer's Manual, volume 1, chapter 18): A holds 16 rows of 32 numbers, B 16 pairs of rows of 16 numbers, a pair
//! side by side, which is how bf16 keys and values are stored.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::backend::cpu::kv_layout::KEY_GROUP;
use crate::backend::cpu::kv_layout::bf16_pair_index;
use crate::backend::cpu::simd::prefetch::prefetch;

/// Rows of queries that go through the tiles together: two tiles of 16.
pub(crate) const ROWS: usize = 32;
/// Dims and keys come in multiples of this.
pub(crate) const DEPTH: usize = 32;
/// Numbers in a tile.
const TILE_ELEMENTS: usize = 512;

/// All eight tiles as 16 rows of 64 bytes, from now until it is dropped; then as the host had configured them. ggml
/// configures a thread's tiles once and relies on that for ever.
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
    /// AMX must be [`available`].
    pub unsafe fn new() -> Self {
        const NONE: Config = Config { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let (mut before, mut config) = (NONE, Config { palette: 1, ..NONE });
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: the caller's contract; 64 bytes to write, and a valid configuration.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack));
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly));
        }
        Self { before }
    }
}

impl Drop for TileConfig {
    fn drop(&mut self) {
        // SAFETY: tiles were configured by `new`; what it found is a valid configuration. Left configured, tiles would make
        // every context switch dearer.
        unsafe {
            if self.before.palette == 0 {
                asm!("tilerelease", options(nostack, nomem));
            } else {
                asm!("ldtilecfg [{}]", in(reg) &raw const self.before, options(nostack, readonly));
            }
        }
    }
}

/// Four tiles of sums, `[2 x 16 rows][2 x 16 columns]`, times two of A and two of B.
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

/// Empties the sums.
macro_rules! zero_acc {
    () => {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem))
    };
}
pub(crate) use zero_acc;

/// Writes the sums: rows of f32, the first of the upper 16 and of the lower, and the bytes from one to the next.
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

/// A matrix of bfloat16, and what it rounds off; the second is NULL where nothing is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitMatrix {
    pub high: *const u16,
    pub low: *const u16,
}

/// The products that make up one of two split matrices; that of the two lower halves is below f32's own rounding.
pub(crate) fn halves(a: SplitMatrix, b: SplitMatrix) -> impl Iterator<Item = (*const u16, *const u16)> {
    let n = if a.low.is_null() { 1 } else { 3 };
    [(a.high, b.high), (a.high, b.low), (a.low, b.high)].into_iter().take(n)
}

/// Queries times keys: `scores[r][c] = q[r] . k[c]` for 32 rows and `keys` keys.
///
/// # Safety
/// [`TileConfig`] must be alive; `q` holds `[32][dim]`, `k` groups of 16 keys `[dim / 2][16][2]`, `scores` 32 rows `stride` apart;
/// `dim` and `keys` are multiples of 32.
pub(crate) unsafe fn qk(q: SplitMatrix, k: SplitMatrix, dim: usize, keys: usize, scores: *mut f32, stride: usize) {
    for key in (0..keys).step_by(2 * KEY_GROUP) {
        // SAFETY: the caller's contract.
        unsafe {
            zero_acc!();
            for (q, k) in halves(q, k) {
                let k = k.add(key * dim);
                for d in (0..dim).step_by(DEPTH) {
                    let (a, b) = (q.add(d), k.add(d * KEY_GROUP));
                    accumulate!(a, 2 * dim, a.add(16 * dim), b, b.add(KEY_GROUP * dim), 64_usize);
                }
            }
            let out = scores.add(key);
            store_acc!(out, out.add(16 * stride), 4 * stride);
        }
    }
}

/// Weights times values: `acc[r] += probs[r] . v` for 32 rows and `keys` keys.
///
/// # Safety
/// [`TileConfig`] must be alive; `probs` holds 32 rows `stride` apart, `v` tiles `[keys / 32][dim / 16]`, `acc` `[32][dim]`;
/// `dim` and `keys` are multiples of 32.
pub(crate) unsafe fn pv(probs: SplitMatrix, stride: usize, v: SplitMatrix, dim: usize, keys: usize, acc: *mut f32) {
    for d in (0..dim).step_by(32) {
        // SAFETY: the caller's contract.
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
            for (p, v) in halves(probs, v) {
                for key in (0..keys).step_by(DEPTH) {
                    let (a, b) = (p.add(key), v.add(2 * bf16_pair_index(dim, key, d)));
                    // The next ones: tiles would wait for the second-level cache.
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
/// AMX must be [`available`]; `acc` holds `dim` elements, a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn rescale(acc: *mut f32, dim: usize, alpha: f32) {
    for d in (0..dim).step_by(16) {
        // SAFETY: the caller's contract.
        unsafe { _mm512_storeu_ps(acc.add(d), _mm512_mul_ps(_mm512_loadu_ps(acc.add(d)), _mm512_set1_ps(alpha))) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_features::Isa;

    /// A host's configuration is as it was after ours, and so is none.
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

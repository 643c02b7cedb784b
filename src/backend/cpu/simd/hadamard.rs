//! The Hadamard turn of quantised keys and of their queries.

use super::vector::SimdF32;

/// Multiplies each block of dims by the orthonormal Hadamard matrix of its size, in Sylvester's order; blocks are as
/// long as the largest power of two that divides `x.len()`. Twice gives the row again; q . k does not change if both
/// are turned. It spreads a large channel over all dims, so that one scale serves a row.
///
/// # Safety
/// As [`SimdF32`].
#[inline(always)]
pub(crate) unsafe fn hadamard<V: SimdF32>(x: &mut [f32]) {
    let n = 1 << x.len().trailing_zeros();
    let norm = (n as f64).sqrt().recip() as f32;
    for block in x.chunks_exact_mut(n) {
        // SAFETY: the instruction set is available, by the caller; the blocks have as many vectors.
        unsafe {
            match n / V::N {
                0 => in_memory(block, 1, norm),
                1 => in_registers::<V, 1>(block, norm),
                2 => in_registers::<V, 2>(block, norm),
                4 => in_registers::<V, 4>(block, norm),
                _ => {
                    for part in block.chunks_exact_mut(8 * V::N) {
                        in_registers::<V, 8>(part, 1.0);
                    }
                    in_memory(block, 8 * V::N, norm);
                }
            }
        }
    }
}

/// The stages from a distance of `half` on, and the norm.
#[inline(always)]
fn in_memory(block: &mut [f32], mut half: usize, norm: f32) {
    while half < block.len() {
        for pair in block.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    block.iter_mut().for_each(|x| *x *= norm);
}

/// All stages of `NV` vectors, and the norm.
///
/// # Safety
/// As [`SimdF32`]; `block` has `NV` vectors.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "pairs of vectors")]
unsafe fn in_registers<V: SimdF32, const NV: usize>(block: &mut [f32], norm: f32) {
    assert!(block.len() == NV * V::N, "{} dims", block.len());
    // SAFETY: N elements each, by the assertion; the instruction set is available, by the caller.
    unsafe {
        let mut x = [V::splat(0.0); NV];
        for v in 0..NV {
            x[v] = V::load(block.as_ptr().add(v * V::N)).butterfly::<1>().butterfly::<2>();
            if V::N > 4 {
                x[v] = x[v].butterfly::<4>();
            }
            if V::N > 8 {
                x[v] = x[v].butterfly::<8>();
            }
        }
        let mut half = 1;
        while half < NV {
            for v in 0..NV {
                if v & half == 0 {
                    (x[v], x[v + half]) = (x[v].add(x[v + half]), x[v].sub(x[v + half]));
                }
            }
            half *= 2;
        }
        for v in 0..NV {
            x[v].mul(V::splat(norm)).store(block.as_mut_ptr().add(v * V::N));
        }
    }
}

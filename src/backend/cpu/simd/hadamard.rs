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
        let mut half = 1;
        if n >= V::N {
            // SAFETY: the instruction set is available, by the caller.
            unsafe { within_vectors::<V>(block) };
            half = V::N;
        }
        while half < n {
            for pair in block.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                // Whole vectors, if there are any.
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|x| *x *= norm);
    }
}

/// The stages whose pairs lie in one vector.
#[inline(always)]
unsafe fn within_vectors<V: SimdF32>(block: &mut [f32]) {
    for x in block.chunks_exact_mut(V::N) {
        // SAFETY: N elements; the instruction set is available, by the caller.
        unsafe {
            let mut v = V::load(x.as_ptr()).butterfly::<1>().butterfly::<2>();
            if V::N > 4 {
                v = v.butterfly::<4>();
            }
            if V::N > 8 {
                v = v.butterfly::<8>();
            }
            v.store(x.as_mut_ptr());
        }
    }
}

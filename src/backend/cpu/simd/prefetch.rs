//! Hints that memory will be read or written soon.

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Prefetches `n` bytes from `p` on, to read or, if `WRITE`, to write them. A hint, whatever the address.
#[inline(always)]
pub(crate) fn prefetch<const WRITE: bool>(p: *const u8, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..n).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let p = p.wrapping_add(line).cast();
        // SAFETY: SSE is part of the target; a hint reads nothing and changes nothing.
        unsafe { if WRITE { _mm_prefetch::<_MM_HINT_ET0>(p) } else { _mm_prefetch::<_MM_HINT_T0>(p) } };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (p, n);
}

/// Prefetches the line at `p` into L2. A streaming read needs more outstanding requests than demand loads issue, and
/// should not evict L1. A hint, whatever the address.
#[inline(always)]
pub(crate) fn prefetch_l2(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the target; a hint reads nothing and changes nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

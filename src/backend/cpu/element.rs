//! Element types: what is stored, and how rows become f32 and back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::simd::Kernels;
use crate::config::DType;
use crate::tensor::Element;

/// A type K and V are stored in.
pub(super) trait Stored: Element {
    /// `src` rounded to `Self`: f32 borrows `src`, the others are written to `buf`, which must have room for as many
    /// elements.
    fn converted<'a>(src: &'a [f32], buf: &'a mut [f32], kernels: &Kernels) -> &'a [Self];
}

impl Stored for f32 {
    fn converted<'a>(src: &'a [f32], _: &'a mut [f32], _: &Kernels) -> &'a [Self] {
        src
    }
}

impl Stored for f16 {
    fn converted<'a>(src: &'a [f32], buf: &'a mut [f32], _: &Kernels) -> &'a [Self] {
        assert!(buf.len() >= src.len());
        // SAFETY: an f16 is smaller and less aligned than an f32, and any bits are a valid f16.
        let dst = unsafe { std::slice::from_raw_parts_mut(buf.as_mut_ptr().cast(), src.len()) };
        <[f16]>::convert_from_f32_slice(dst, src);
        dst
    }
}

impl Stored for bf16 {
    fn converted<'a>(src: &'a [f32], buf: &'a mut [f32], kernels: &Kernels) -> &'a [Self] {
        assert!(buf.len() >= src.len());
        // SAFETY: as above, and a bf16 is its bits; the kernels' instruction set is available.
        unsafe {
            (kernels.f32_to_bf16)(src, std::slice::from_raw_parts_mut(buf.as_mut_ptr().cast(), src.len()));
            std::slice::from_raw_parts(buf.as_ptr().cast(), src.len())
        }
    }
}

/// Room for the codes of a row of `dim` dims, one byte each, and for its scales, in a row of as many f32.
pub(super) fn code_rows(buf: &mut [f32], dim: usize, scales: usize) -> (&mut [u8], &mut [u16]) {
    assert!(dim.is_multiple_of(8) && dim + 2 * scales <= 4 * buf.len(), "{dim} codes and {scales} scales");
    let codes = buf.as_mut_ptr().cast::<u8>();
    // SAFETY: both lie within the buffer, by the assertion, and do not overlap; scales begin at an even address; any
    // bits are valid.
    unsafe {
        let after = codes.add(dim).cast::<u16>();
        (std::slice::from_raw_parts_mut(codes, dim), std::slice::from_raw_parts_mut(after, scales))
    }
}

/// Reads `dst.len()` elements of `dtype` as f32.
///
/// # Safety
/// `src` must be readable for that many elements and aligned to them.
unsafe fn load(dtype: DType, src: *const u8, dst: &mut [f32]) {
    // SAFETY: readable or writable for that many elements, and aligned, by the caller.
    unsafe {
        match dtype {
            DType::F32 => std::ptr::copy_nonoverlapping(src.cast(), dst.as_mut_ptr(), dst.len()),
            DType::F16 => std::slice::from_raw_parts(src.cast::<f16>(), dst.len()).convert_to_f32_slice(dst),
            DType::Bf16 => std::slice::from_raw_parts(src.cast::<bf16>(), dst.len()).convert_to_f32_slice(dst),
        }
    }
}

/// `n` elements of `dtype` as f32: themselves, or converted into `buf`.
///
/// # Safety
/// `src` must be readable for that many elements while the result lives and aligned to them.
pub(super) unsafe fn as_f32(dtype: DType, src: *const u8, n: usize, buf: &mut [f32]) -> &[f32] {
    if dtype == DType::F32 {
        // SAFETY: readable or writable for that many elements, and aligned, by the caller.
        return unsafe { std::slice::from_raw_parts(src.cast(), n) };
    }
    let buf = &mut buf[..n];
    // SAFETY: readable or writable for that many elements, and aligned, by the caller.
    unsafe { load(dtype, src, buf) };
    buf
}

/// Writes f32 values times `scale` as `dtype`, rounded to nearest even. `src` is scaled in place.
///
/// # Safety
/// `dst` must be writable for `src.len()` elements and aligned to them; the kernels' instruction set must be available.
pub(super) unsafe fn store_scaled(dtype: DType, src: &mut [f32], scale: f32, dst: *mut u8, kernels: &Kernels) {
    let n = src.len();
    // SAFETY: readable or writable for that many elements, and aligned, by the caller.
    unsafe {
        if dtype == DType::F32 {
            let dst = std::slice::from_raw_parts_mut(dst.cast::<f32>(), n);
            dst.iter_mut().zip(src).for_each(|(d, s)| *d = *s * scale);
            return;
        }
        src.iter_mut().for_each(|s| *s *= scale);
        match dtype {
            DType::Bf16 => (kernels.f32_to_bf16)(src, std::slice::from_raw_parts_mut(dst.cast(), n)),
            _ => std::slice::from_raw_parts_mut(dst.cast::<f16>(), n).convert_from_f32_slice(src),
        }
    }
}

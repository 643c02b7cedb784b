//! Element types: what is stored, and how rows become f32 and back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::config::DType;
use crate::tensor::Element;

/// A type K and V are stored in.
pub(super) trait Stored: Element {
    /// Rounded f32 values: themselves, or in `buf`, which must have room for as many elements.
    fn narrowed<'a>(src: &'a [f32], buf: &'a mut [f32]) -> &'a [Self];

    /// Stores rounded f32 values.
    fn narrow(src: &[f32], dst: &mut [Self]);
}

impl Stored for f32 {
    fn narrowed<'a>(src: &'a [f32], _: &'a mut [f32]) -> &'a [Self] {
        src
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.copy_from_slice(src);
    }
}

macro_rules! stored_half {
    ($($type:ty),*) => {$(
        impl Stored for $type {
            fn narrowed<'a>(src: &'a [f32], buf: &'a mut [f32]) -> &'a [Self] {
                assert!(buf.len() >= src.len());
                // SAFETY: a half is smaller and less aligned than an f32, and any bits are one.
                let dst = unsafe { std::slice::from_raw_parts_mut(buf.as_mut_ptr().cast(), src.len()) };
                Self::narrow(src, dst);
                dst
            }

            fn narrow(src: &[f32], dst: &mut [Self]) {
                dst.convert_from_f32_slice(src);
            }
        }
    )*};
}
stored_half!(f16, bf16);

/// Reads `dst.len()` elements of `dtype` as f32.
///
/// # Safety
/// `src` must be readable for that many elements and aligned to them.
unsafe fn load(dtype: DType, src: *const u8, dst: &mut [f32]) {
    // SAFETY: the caller's contract.
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
pub(super) unsafe fn view(dtype: DType, src: *const u8, n: usize, buf: &mut [f32]) -> &[f32] {
    if dtype == DType::F32 {
        // SAFETY: the caller's contract.
        return unsafe { std::slice::from_raw_parts(src.cast(), n) };
    }
    let buf = &mut buf[..n];
    // SAFETY: the caller's contract.
    unsafe { load(dtype, src, buf) };
    buf
}

/// Writes f32 values as `dtype`, rounded to nearest even.
///
/// # Safety
/// `dst` must be writable for `src.len()` elements and aligned to them.
pub(super) unsafe fn save(dtype: DType, src: &[f32], dst: *mut u8) {
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            DType::F32 => std::ptr::copy_nonoverlapping(src.as_ptr(), dst.cast(), src.len()),
            DType::F16 => f16::narrow(src, std::slice::from_raw_parts_mut(dst.cast(), src.len())),
            DType::Bf16 => bf16::narrow(src, std::slice::from_raw_parts_mut(dst.cast(), src.len())),
        }
    }
}

//! Strided views of the caller's tensors q, k, v, out and lse, `[tokens, heads, dims]`. The dims of a head are
//! contiguous.

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::config::DType;
use crate::error::{Result, bail};

mod sealed {
    pub trait Sealed {}
}

/// An element type of the caller's tensors.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The type as a configuration names it.
    const DTYPE: DType;
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
element!(f32 => F32, f16 => F16, bf16 => Bf16);

/// Input rows `[tokens, heads, dim]`. A stride of 0 means packed.
#[derive(Clone, Copy, Debug)]
pub struct RowsIn<'a> {
    view: View,
    life: PhantomData<&'a [u8]>,
}

/// Output rows `[tokens, heads, dim]`. A stride of 0 means packed.
#[derive(Debug)]
pub struct RowsOut<'a> {
    view: View,
    life: PhantomData<&'a mut [u8]>,
}

/// The tensors of an attend. Q is `[rows, n_q_heads, head_dim]`, out `[rows, n_q_heads, head_dim_v]`.
#[derive(Debug)]
pub struct AttendTensors<'a> {
    /// Queries.
    pub q: RowsIn<'a>,
    /// Results.
    pub out: RowsOut<'a>,
    /// Natural log of the softmax denominators, f32 `[rows, n_q_heads]`, if wanted.
    pub lse: Option<RowsOut<'a>>,
}

/// The tensors of a step. K is `[rows, n_kv_heads, head_dim]`, V `[rows, n_kv_heads, head_dim_v]`, the others are as in
/// [`AttendTensors`].
#[derive(Debug)]
pub struct StepTensors<'a> {
    /// Keys.
    pub k: RowsIn<'a>,
    /// Values.
    pub v: RowsIn<'a>,
    /// Queries.
    pub q: RowsIn<'a>,
    /// Results.
    pub out: RowsOut<'a>,
    /// Natural log of the softmax denominators, if wanted.
    pub lse: Option<RowsOut<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct View {
    ptr: *mut u8,
    /// Elements of the slice at `ptr`; `None` for a raw pointer, whose length is not known.
    len: Option<usize>,
    /// `None` = the type that the cache is configured for.
    dtype: Option<DType>,
    token_stride: i64,
    head_stride: i64,
}

impl<'a> RowsIn<'a> {
    /// Packed rows.
    #[must_use]
    pub fn packed<T: Element>(rows: &'a [T]) -> Self {
        Self::strided(rows, 0, 0)
    }

    /// Rows `token_stride` elements apart, heads `head_stride` elements apart.
    #[must_use]
    pub fn strided<T: Element>(rows: &'a [T], token_stride: i64, head_stride: i64) -> Self {
        let ptr = rows.as_ptr().cast_mut().cast();
        let view = View { ptr, len: Some(rows.len()), dtype: Some(T::DTYPE), token_stride, head_stride };
        Self { view, life: PhantomData }
    }

    /// Rows of the type the cache is configured for, strides in elements.
    ///
    /// # Safety
    /// Every element that the batch addresses must be readable during `'a`: in host memory for a CPU cache, on
    /// the device whenever the work runs for a CUDA cache.
    #[must_use]
    pub unsafe fn from_raw(ptr: *const u8, token_stride: i64, head_stride: i64) -> Self {
        let view = View { ptr: ptr.cast_mut(), len: None, dtype: None, token_stride, head_stride };
        Self { view, life: PhantomData }
    }

    /// Whether the rows are known to be in host memory: made from a slice.
    pub(crate) fn in_host_memory(&self) -> bool {
        self.view.len.is_some()
    }

    /// Checks type, alignment and extent for a batch of `rows` rows, and makes the strides explicit.
    pub(crate) fn resolve(self, name: &str, rows: u64, heads: usize, dim: usize, dtype: DType) -> Result<Strided> {
        self.view.resolve(name, rows, heads, dim, dtype)
    }
}

impl<'a> RowsOut<'a> {
    /// Packed rows.
    #[must_use]
    pub fn packed<T: Element>(rows: &'a mut [T]) -> Self {
        Self::strided(rows, 0, 0)
    }

    /// Rows `token_stride` elements apart, heads `head_stride` elements apart.
    #[must_use]
    pub fn strided<T: Element>(rows: &'a mut [T], token_stride: i64, head_stride: i64) -> Self {
        let len = Some(rows.len());
        let view = View { ptr: rows.as_mut_ptr().cast(), len, dtype: Some(T::DTYPE), token_stride, head_stride };
        Self { view, life: PhantomData }
    }

    /// Rows of the type the cache is configured for, strides in elements.
    ///
    /// # Safety
    /// Every element that the batch addresses must be writable during `'a`, and not accessed otherwise: in
    /// host memory for a CPU cache, on the device whenever the work runs for a CUDA cache.
    #[must_use]
    pub unsafe fn from_raw(ptr: *mut u8, token_stride: i64, head_stride: i64) -> Self {
        Self { view: View { ptr, len: None, dtype: None, token_stride, head_stride }, life: PhantomData }
    }

    /// Whether the rows are known to be in host memory: made from a slice.
    pub(crate) fn in_host_memory(&self) -> bool {
        self.view.len.is_some()
    }

    /// As [`RowsIn::resolve`]; in addition no two rows or heads may overlap, because threads write them concurrently.
    pub(crate) fn resolve(self, name: &str, rows: u64, heads: usize, dim: usize, dtype: DType) -> Result<Strided> {
        let strided = self.view.resolve(name, rows, heads, dim, dtype)?;
        let size = dtype.size() as u64;
        let mut axes = [
            ("token_stride", strided.token.unsigned_abs() as u64 / size, rows),
            ("head_stride", strided.head.unsigned_abs() as u64 / size, heads as u64),
        ];
        axes.sort_by_key(|&(_, stride, count)| (count > 1, stride));
        let mut width = dim as u128;
        for (axis, stride, count) in axes {
            if count > 1 {
                if u128::from(stride) < width {
                    bail!(
                        InvalidArgument,
                        "{name} {axis} {stride} makes rows overlap: at least {width} elements are needed"
                    );
                }
                width += u128::from(stride) * u128::from(count - 1);
            }
        }
        Ok(strided)
    }
}

impl View {
    fn resolve(self, name: &str, rows: u64, heads: usize, dim: usize, dtype: DType) -> Result<Strided> {
        if let Some(given) = self.dtype.filter(|&given| given != dtype) {
            bail!(InvalidArgument, "{name} holds {given:?}, the cache is configured for {dtype:?}");
        }
        // An empty batch addresses nothing, and the data pointer of an empty C++ vector may be NULL.
        if self.ptr.is_null() && rows > 0 {
            bail!(NullPointer, "{name} is NULL");
        }
        if !(self.ptr as usize).is_multiple_of(dtype.size()) {
            bail!(InvalidArgument, "{name} {:p} is not aligned to its element size {}", self.ptr, dtype.size());
        }
        let head = if self.head_stride == 0 { dim as i64 } else { self.head_stride };
        // heads <= 65,536 and dim <= 512 in any valid configuration: the packed stride cannot overflow.
        let token = if self.token_stride == 0 { (heads * dim) as i64 } else { self.token_stride };
        let (mut lowest, mut highest) = (0_i128, dim as i128);
        for reach in [i128::from(token) * (i128::from(rows) - 1).max(0), i128::from(head) * (heads as i128 - 1)] {
            if reach < 0 { lowest += reach } else { highest += reach }
        }
        let limit = isize::MAX as i128 / dtype.size() as i128;
        if lowest < -limit || highest > limit {
            bail!(
                InvalidArgument,
                "{name} token_stride {token} and head_stride {head} over {rows} rows reach outside the address space"
            );
        }
        if let Some(len) = self.len
            && rows > 0
            && (lowest < 0 || highest > len as i128)
        {
            bail!(InvalidArgument, "{name} has {len} elements, the batch addresses {lowest}..{highest}");
        }
        let size = dtype.size() as isize;
        // A stride that does not fit belongs to a tensor of one row or head (checked above), where it is never used.
        let bytes = |stride: i64| isize::try_from(stride).ok().and_then(|s| s.checked_mul(size)).unwrap_or(0);
        Ok(Strided { ptr: self.ptr, token: bytes(token), head: bytes(head) })
    }
}

/// A checked view: base address, and strides in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    ptr: *mut u8,
    token: isize,
    head: isize,
}

// SAFETY: a `Strided` is an address and strides; dereferencing it is unsafe, and backends give each thread its own rows
// and heads of an output.
unsafe impl Send for Strided {}
// SAFETY: as for Send.
unsafe impl Sync for Strided {}

impl Strided {
    /// Address, and bytes between rows and between heads.
    pub(crate) fn raw(self) -> (usize, isize, isize) {
        (self.ptr.expose_provenance(), self.token, self.head)
    }

    /// Address of the first dim of one head of one row; both must be within the batch that the view was resolved for.
    pub(crate) fn at(&self, row: u64, head: usize) -> *mut u8 {
        // `resolve` has checked that every address of the batch is in range, so neither product nor sum wraps.
        self.ptr.wrapping_offset(self.token.wrapping_mul(row as isize)).wrapping_offset(self.head * head as isize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_views_are_rejected() {
        let rows = [0.0_f32; 24];
        let text = |r: RowsIn<'_>| r.resolve("k", 3, 1, 8, DType::F32).map_err(|e| e.message().to_owned());
        assert!(text(RowsIn::packed(&rows)).is_ok());
        assert!(text(RowsIn::packed(&rows[..23])).unwrap_err().contains("23 elements"));
        assert!(text(RowsIn::strided(&rows, i64::MAX, 0)).unwrap_err().contains("address space"));
        assert!(text(RowsIn::strided(&rows, i64::MIN, i64::MIN)).unwrap_err().contains("address space"));
        assert!(text(RowsIn::packed(&[bf16::ZERO; 24])).unwrap_err().contains("Bf16"));
    }

    #[test]
    fn overlapping_outputs_are_rejected() {
        let mut rows = [0.0_f32; 64];
        let mut check =
            |token, head| RowsOut::strided(&mut rows, token, head).resolve("out", 2, 2, 8, DType::F32).is_ok();
        assert!(check(16, 8) && check(8, 16) && check(0, 0));
        assert!(!check(8, 8) && !check(4, 16) && !check(16, 4) && !check(12, 8));
    }

    #[test]
    fn one_row_may_have_any_stride() {
        let mut rows = [0.0_f32; 8];
        assert!(RowsOut::strided(&mut rows, 1, 1).resolve("out", 1, 1, 8, DType::F32).is_ok());
    }
}

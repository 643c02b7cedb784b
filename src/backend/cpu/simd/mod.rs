//! The kernels of the CPU backend, compiled for each instruction set.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod convert;
#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16;
pub(crate) mod gemm;
pub(crate) mod kv_load;
mod pack;
pub(crate) mod prefetch;
mod rope;
mod scalar;
pub(crate) mod softmax;
pub(crate) mod transpose;
pub(crate) mod unroll;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use self::gemm::{PvArgs, QkArgs};
use self::softmax::{ColumnRange, SoftmaxArgs};
use self::transpose::{GroupRows, TransposeFn};
use crate::backend::cpu::kv_layout::KeyRange;
use crate::config::{DType, RopeStyle};
use crate::cpu_features::Isa;
use crate::rope::Frequencies;

/// Style, cosines, sines, source, destination.
type RotateFn = unsafe fn(RopeStyle, &[f32], &[f32], &[f32], &mut [f32]);

/// The kernels of one instruction set for one storage type.
///
/// # Safety
/// Each may be called only where its instruction set is available, with arguments as its struct describes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    /// QK^T with keys as they are stored. `None` for f32, which is stored in rows.
    pub qk: Option<unsafe fn(&QkArgs)>,
    /// QK^T with keys packed by `pack_keys`.
    pub qk_packed: unsafe fn(&QkArgs),
    /// PV with values as they are stored.
    pub pv: unsafe fn(&PvArgs),
    /// PV with values packed by `pack_values`.
    pub pv_packed: unsafe fn(&PvArgs),
    /// Scores to probabilities.
    pub softmax: unsafe fn(&SoftmaxArgs),
    /// Stored keys to f32 groups: source, dims, groups, destination.
    pub pack_keys: unsafe fn(*const u8, usize, usize, *mut f32),
    /// Stored values to f32 rows: source, padded dims, keys, destination. Whether all visible numbers are finite.
    pub pack_values: unsafe fn(*const u8, usize, KeyRange, *mut f32) -> bool,
    /// Sixteen rows of keys to a stored group. `None` for f32, which is stored in rows.
    pub transpose_keys: Option<TransposeFn>,
    /// Sixteen rows of bf16 values to half of an interleaved tile.
    pub interleave_values: TransposeFn,
    /// RoPE of one row.
    pub rotate: RotateFn,
    /// Rounds to nearest even.
    pub f32_to_bf16: unsafe fn(&[f32], &mut [u16]),
    /// Cosines and sines at a position: frequencies, position, mscale, cosines, sines.
    pub angles: unsafe fn(&Frequencies, u64, f32, &mut [f32], &mut [f32]),
}

/// Compiles the kernels for one instruction set. Its registers hold accumulators of `$nv` vectors by six rows (four
/// without `SimdF32::SIX_ROWS`).
macro_rules! isa_kernels {
    ($name:ident, $lanes:ty, $nv:literal, $(#[$features:meta])?) => {
        mod $name {
            use super::gemm;
            use self::kv_load::{StoredBf16, StoredF16, StoredF32};
            use super::gemm::{QkArgs, PvArgs};
            use self::softmax::SoftmaxArgs;
            use super::*;

            macro_rules! typed {
                ($k:ident, $e:ty) => {
                    pub(super) mod $k {
                        use super::*;

                        $(#[$features])?
                        pub unsafe fn qk(a: &QkArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                            unsafe { gemm::qk::<$lanes, $e, $nv>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn pv(a: &PvArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                            unsafe { gemm::pv::<$lanes, $e, $nv>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn pack_values(src: *const u8, dim: usize, keys: KeyRange, dst: *mut f32) -> bool {
                            // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                            unsafe { pack::pack_values::<$lanes, $e>(src, dim, keys, dst) }
                        }
                    }
                };
            }
            typed!(f32, StoredF32);
            typed!(f16, StoredF16);
            typed!(bf16, StoredBf16);

            $(#[$features])?
            unsafe fn pack_keys_f16(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                unsafe { pack::pack_keys::<$lanes, StoredF16>(src, dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn pack_keys_bf16(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                unsafe { pack::pack_keys::<$lanes, StoredBf16>(src, dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn group_rows(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                unsafe { pack::group_rows(src.cast(), dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn transpose_keys<const HALF: bool>(rows: &GroupRows, dim: usize, dst: *mut u16) {
                // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                unsafe { transpose::transpose_keys::<HALF>(rows, dim, dst) }
            }

            $(#[$features])?
            unsafe fn interleave_values(rows: &GroupRows, dim: usize, dst: *mut u16) {
                // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                unsafe { transpose::interleave_values(rows, dim, dst) }
            }

            $(#[$features])?
            unsafe fn softmax<const PRECISE: bool>(a: &SoftmaxArgs) {
                // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                unsafe { softmax::softmax::<$lanes, PRECISE>(a) }
            }

            $(#[$features])?
            unsafe fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], x: &[f32], y: &mut [f32]) {
                // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                unsafe { rope::rotate::<$lanes>(style, cos, sin, x, y) }
            }

            $(#[$features])?
            unsafe fn f32_to_bf16(src: &[f32], dst: &mut [u16]) {
                convert::f32_to_bf16(src, dst);
            }

            $(#[$features])?
            unsafe fn angles(f: &Frequencies, position: u64, mscale: f32, cos: &mut [f32], sin: &mut [f32]) {
                rope::angles(f, position, mscale, cos, sin);
            }

            pub(super) fn kernels(dtype: DType) -> Kernels {
                let common = Kernels {
                    qk: None,
                    qk_packed: f32::qk,
                    pv: f32::pv,
                    pv_packed: f32::pv,
                    softmax: softmax::<true>,
                    pack_keys: group_rows,
                    pack_values: f32::pack_values,
                    transpose_keys: None,
                    interleave_values,
                    rotate,
                    f32_to_bf16,
                    angles,
                };
                match dtype {
                    DType::F32 => common,
                    DType::F16 => Kernels {
                        qk: Some(f16::qk),
                        softmax: softmax::<false>,
                        pv: f16::pv,
                        pack_keys: pack_keys_f16,
                        pack_values: f16::pack_values,
                        transpose_keys: Some(transpose_keys::<true>),
                        ..common
                    },
                    DType::Bf16 => Kernels {
                        qk: Some(bf16::qk),
                        softmax: softmax::<false>,
                        pv: bf16::pv,
                        pack_keys: pack_keys_bf16,
                        pack_values: bf16::pack_values,
                        transpose_keys: Some(transpose_keys::<false>),
                        ..common
                    },
                }
            }
        }
    };
}

isa_kernels!(scalar_kernels, super::scalar::Scalar, 2,);
#[cfg(target_arch = "x86_64")]
isa_kernels!(avx2_kernels, super::x86_64::avx2::Avx2, 2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
isa_kernels!(
    avx512_kernels,
    super::x86_64::avx512::Avx512,
    4,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
);
#[cfg(target_arch = "aarch64")]
isa_kernels!(neon_kernels, super::aarch64::neon::Neon, 4,);

impl Kernels {
    /// The kernels of an instruction set, which must be available.
    pub fn new(isa: Isa, dtype: DType) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2_kernels::kernels(dtype),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => Self {
                transpose_keys: match dtype {
                    DType::F32 => None,
                    DType::F16 => Some(transpose::transpose_keys_avx512::<true>),
                    DType::Bf16 => Some(transpose::transpose_keys_avx512::<false>),
                },
                ..avx512_kernels::kernels(dtype)
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon_kernels::kernels(dtype),
            _ => scalar_kernels::kernels(dtype),
        }
    }
}

/// PV row by row, each over its own visible columns.
///
/// # Safety
/// `all` must be valid for all rows and for the union of their columns.
pub(super) unsafe fn pv_rows(all: &PvArgs, visible: &[ColumnRange], kernels: &Kernels) {
    for (r, visible) in visible.iter().enumerate() {
        // SAFETY: a row of `all`, over columns that `all` may read; the instruction set is available.
        unsafe {
            (kernels.pv)(&PvArgs {
                probs: all.probs.add(r * all.stride),
                rows: 1,
                from: visible.from,
                to: visible.to,
                acc: all.acc.add(r * all.dim),
                alpha: all.alpha.add(r),
                ..*all
            });
        }
    }
}

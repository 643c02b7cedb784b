//! Instruction sets as the instruction sets of a ladder: the best that the processor has is chosen once per process.

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
use self::softmax::ColumnRange;
use self::softmax::SoftmaxArgs;
use self::transpose::{GroupRows, TransposeFn};
use crate::backend::cpu::kv_layout::KeyRange;
use crate::config::{DType, RopeStyle};
use crate::cpu_features::Isa;
use crate::rope::Frequencies;

/// Style, cosines, sines, from, to.
type RotateFn = unsafe fn(RopeStyle, &[f32], &[f32], &[f32], &mut [f32]);

/// The kernels of one instruction set for one storage type.
///
/// # Safety
/// Each may be called only where its instruction set is available, with arguments as its struct describes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    /// With keys as they are stored; f32 has none, since it is stored in rows.
    pub qk: Option<unsafe fn(&QkArgs)>,
    /// With keys packed by `pack_keys`.
    pub qk_packed: unsafe fn(&QkArgs),
    /// With values as they are stored.
    pub pv: unsafe fn(&PvArgs),
    /// With values packed by `pack_values`.
    pub pv_packed: unsafe fn(&PvArgs),
    pub softmax: unsafe fn(&SoftmaxArgs),
    /// Stored keys, dims, groups, where to.
    pub pack_keys: unsafe fn(*const u8, usize, usize, *mut f32),
    /// Stored values, padded dims, (from, to, rows), where to; whether all are finite.
    pub pack_values: unsafe fn(*const u8, usize, KeyRange, *mut f32) -> bool,
    /// Rows of a group's keys, dims, the group; f32 has none, since it is stored in rows.
    pub transpose_keys: Option<TransposeFn>,
    /// Rows of a group's values in bfloat16, dims, where their half of a tile begins.
    pub interleave_values: TransposeFn,
    pub rotate: RotateFn,
    pub f32_to_bf16: unsafe fn(&[f32], &mut [u16]),
    pub angles: unsafe fn(&Frequencies, u64, f32, &mut [f32], &mut [f32]),
}

/// Compiles the kernels for the vectors of one instruction set. `$nv` vectors by six rows of sums (or four, `SimdF32::SIX_ROWS`) fit its
/// registers.
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
                            // SAFETY: the caller's contract.
                            unsafe { gemm::qk::<$lanes, $e, $nv>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn pv(a: &PvArgs) {
                            // SAFETY: the caller's contract.
                            unsafe { gemm::pv::<$lanes, $e, $nv>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn pack_values(src: *const u8, dim: usize, keys: KeyRange, dst: *mut f32) -> bool {
                            // SAFETY: the caller's contract.
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
                // SAFETY: the caller's contract.
                unsafe { pack::pack_keys::<$lanes, StoredF16>(src, dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn pack_keys_bf16(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the caller's contract.
                unsafe { pack::pack_keys::<$lanes, StoredBf16>(src, dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn group_rows(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the caller's contract.
                unsafe { pack::group_rows(src.cast(), dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn transpose_keys<const HALF: bool>(rows: &GroupRows, dim: usize, dst: *mut u16) {
                // SAFETY: the caller's contract.
                unsafe { transpose::transpose_keys::<HALF>(rows, dim, dst) }
            }

            $(#[$features])?
            unsafe fn interleave_values(rows: &GroupRows, dim: usize, dst: *mut u16) {
                // SAFETY: the caller's contract.
                unsafe { transpose::interleave_values(rows, dim, dst) }
            }

            $(#[$features])?
            unsafe fn softmax<const PRECISE: bool>(a: &SoftmaxArgs) {
                // SAFETY: the caller's contract.
                unsafe { softmax::softmax::<$lanes, PRECISE>(a) }
            }

            $(#[$features])?
            unsafe fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], x: &[f32], y: &mut [f32]) {
                // SAFETY: the caller's contract.
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
isa_kernels!(avx512_kernels, super::x86_64::avx512::Avx512, 4, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
isa_kernels!(neon_kernels, super::aarch64::neon::Neon, 4,);

impl Kernels {
    /// Of a instruction set that is available.
    pub fn new(isa: Isa, dtype: DType) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2_kernels::kernels(dtype),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => Self {
                transpose_keys: match dtype {
                    DType::F32 => None,
                    DType::F16 => Some(transpose::group_keys_avx512::<true>),
                    DType::Bf16 => Some(transpose::group_keys_avx512::<false>),
                },
                ..avx512_kernels::kernels(dtype)
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon_kernels::kernels(dtype),
            _ => scalar_kernels::kernels(dtype),
        }
    }
}

/// Adds to each row what it alone sees.
///
/// # Safety
/// `all` must hold for all rows.
pub(super) unsafe fn pv_rows(all: &PvArgs, visible: &[ColumnRange], kernels: &Kernels) {
    for (r, visible) in visible.iter().enumerate() {
        // SAFETY: the caller's contract; the instruction set is available.
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

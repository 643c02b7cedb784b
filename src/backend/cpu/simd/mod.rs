//! The kernels of the CPU backend, compiled for each instruction set.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod codes;
mod convert;
#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16;
pub(crate) mod gemm;
mod hadamard;
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    expect(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "products of bytes are written for x86-64 and AArch64 alone"
    )
)]
pub(crate) mod integer;
pub(crate) mod kv_load;
mod pack;
pub(crate) mod prefetch;
mod quantise;
mod rope;
mod scalar;
pub(crate) mod softmax;
pub(crate) mod transpose;
pub(crate) mod unroll;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use self::gemm::{PvArgs, QkArgs};
use self::integer::{KeyProducts, ValueProducts};
use self::softmax::{ColumnRange, SoftmaxArgs};
use self::transpose::{GroupRows, TransposeFn};
use crate::backend::cpu::kv_layout::KeyRange;
use crate::config::{RopeStyle, StorageType};
use crate::cpu_features::Isa;
#[cfg(target_arch = "aarch64")]
use crate::cpu_features::dotprod_available;
#[cfg(target_arch = "x86_64")]
use crate::cpu_features::{avx_vnni_available, vnni_available};
use crate::rope::Frequencies;

/// Style, cosines, sines, source, destination.
type RotateFn = unsafe fn(RopeStyle, &[f32], &[f32], &[f32], &mut [f32]);

/// The kernels of one instruction set for the types that K and V are stored in.
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
    /// Products of rounded queries and keys of codes. `None` where f32 serves them.
    pub key_products: Option<KeyProducts>,
    /// Products of rounded weights and values of codes. `None` where f32 serves them.
    pub value_products: Option<ValueProducts>,
    /// Scores to probabilities.
    pub softmax: unsafe fn(&SoftmaxArgs),
    /// Stored keys to f32 groups: source, dims, groups, destination.
    pub pack_keys: unsafe fn(*const u8, usize, usize, *mut f32),
    /// Stored values to f32 rows: source, padded dims, keys, destination. Whether all visible numbers are finite.
    pub pack_values: unsafe fn(*const u8, usize, KeyRange, *mut f32) -> bool,
    /// Sixteen rows of keys to a stored group. `None` for types whose keys are written one by one.
    pub transpose_keys: Option<TransposeFn>,
    /// Sixteen rows of bf16 values to half of an interleaved tile.
    pub interleave_values: TransposeFn,
    /// The Hadamard turn of one row.
    pub hadamard: unsafe fn(&mut [f32]),
    /// A row in q8: row, codes. Returns the scale.
    pub quantise_q8: unsafe fn(&[f32], &mut [u8]) -> u16,
    /// A row in q4: row, codes plus 8 in a byte each, scales.
    pub quantise_q4: unsafe fn(&[f32], &mut [u8], &mut [u16]),
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

            macro_rules! pack_keys {
                ($k:ident, $e:ty) => {
                    $(#[$features])?
                    unsafe fn $k(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                        // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                        unsafe { pack::pack_keys::<$lanes, $e>(src, dim, groups, dst) }
                    }
                };
            }
            pack_keys!(pack_keys_f16, StoredF16);
            pack_keys!(pack_keys_bf16, StoredBf16);

            macro_rules! quantised {
                ($k:ident, $c:ty) => {
                    mod $k {
                        use super::*;

                        $(#[$features])?
                        pub unsafe fn qk(a: &QkArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                            unsafe { codes::qk::<$lanes, $c>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn pv(a: &PvArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                            unsafe { codes::pv::<$lanes, $c>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn pack_keys(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                            // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                            unsafe { codes::pack_keys::<$lanes, $c>(src, dim, groups, dst) }
                        }

                        $(#[$features])?
                        pub unsafe fn pack_values(src: *const u8, dim: usize, keys: KeyRange, dst: *mut f32) -> bool {
                            // SAFETY: the instruction set and the arguments, by the contract of `Kernels`.
                            unsafe { codes::pack_values::<$lanes, $c>(src, dim, keys, dst) }
                        }
                    }
                };
            }
            quantised!(q8, codes::CodesQ8);
            quantised!(q4, codes::CodesQ4);

            $(#[$features])?
            unsafe fn hadamard(x: &mut [f32]) {
                // SAFETY: the instruction set, by the contract of `Kernels`.
                unsafe { hadamard::hadamard::<$lanes>(x) }
            }

            $(#[$features])?
            unsafe fn quantise_q8(x: &[f32], to: &mut [u8]) -> u16 {
                quantise::quantise_q8(x, to)
            }

            $(#[$features])?
            unsafe fn quantise_q4(x: &[f32], to: &mut [u8], scales: &mut [u16]) {
                quantise::quantise_q4(x, to, scales);
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

            pub(super) fn kernels(k: StorageType, v: StorageType) -> Kernels {
                // Where keys are f32, scores are, and probabilities are worth as much.
                let precise = k == StorageType::F32;
                let mut kernels = Kernels {
                    qk: None,
                    qk_packed: f32::qk,
                    pv: f32::pv,
                    pv_packed: f32::pv,
                    key_products: None,
                    value_products: None,
                    softmax: if precise { softmax::<true> } else { softmax::<false> },
                    pack_keys: group_rows,
                    pack_values: f32::pack_values,
                    transpose_keys: None,
                    interleave_values,
                    hadamard,
                    quantise_q8,
                    quantise_q4,
                    rotate,
                    f32_to_bf16,
                    angles,
                };
                match k {
                    StorageType::F32 => {}
                    StorageType::F16 => {
                        kernels.qk = Some(f16::qk);
                        kernels.pack_keys = pack_keys_f16;
                        kernels.transpose_keys = Some(transpose_keys::<true>);
                    }
                    StorageType::Bf16 => {
                        kernels.qk = Some(bf16::qk);
                        kernels.pack_keys = pack_keys_bf16;
                        kernels.transpose_keys = Some(transpose_keys::<false>);
                    }
                    StorageType::Q8 => {
                        kernels.qk = Some(q8::qk);
                        kernels.pack_keys = q8::pack_keys;
                    }
                    StorageType::Q4 => {
                        kernels.qk = Some(q4::qk);
                        kernels.pack_keys = q4::pack_keys;
                    }
                }
                (kernels.pv, kernels.pack_values) = match v {
                    StorageType::F32 => (f32::pv as _, f32::pack_values as _),
                    StorageType::F16 => (f16::pv as _, f16::pack_values as _),
                    StorageType::Bf16 => (bf16::pv as _, bf16::pack_values as _),
                    StorageType::Q8 => (q8::pv as _, q8::pack_values as _),
                    StorageType::Q4 => (q4::pv as _, q4::pack_values as _),
                };
                kernels
            }
        }
    };
}

isa_kernels!(scalar_kernels, super::scalar::Scalar, 1,);
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
    /// The kernels of an instruction set, which must be available, for the types of K and of V.
    pub fn new(isa: Isa, k: StorageType, v: StorageType) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                let kernels = avx2_kernels::kernels(k, v);
                Self {
                    key_products: integer::avx_vnni::keys(k).filter(|_| avx_vnni_available()),
                    value_products: integer::avx_vnni::values(v).filter(|_| avx_vnni_available()),
                    pack_keys: if k == StorageType::F32 { transpose::group_rows_avx2 } else { kernels.pack_keys },
                    ..kernels
                }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => {
                let kernels = avx512_kernels::kernels(k, v);
                Self {
                    key_products: integer::avx512_vnni::keys(k).filter(|_| vnni_available()),
                    value_products: integer::avx512_vnni::values(v).filter(|_| vnni_available()),
                    pack_keys: if k == StorageType::F32 { transpose::group_rows_avx512 } else { kernels.pack_keys },
                    transpose_keys: match k {
                        StorageType::F16 => Some(transpose::transpose_keys_avx512::<true>),
                        StorageType::Bf16 => Some(transpose::transpose_keys_avx512::<false>),
                        StorageType::F32 | StorageType::Q8 | StorageType::Q4 => None,
                    },
                    ..kernels
                }
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Self {
                key_products: integer::neon_dotprod::keys(k).filter(|_| dotprod_available()),
                value_products: integer::neon_dotprod::values(v).filter(|_| dotprod_available()),
                ..neon_kernels::kernels(k, v)
            },
            _ => scalar_kernels::kernels(k, v),
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

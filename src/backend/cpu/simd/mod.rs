//! Instruction sets as the rungs of a ladder: the best that the processor has is chosen once per process.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx_pack;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16_pack;
pub(crate) mod kernels;
mod lanes;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod regroup;
mod repack;
mod scalar;
mod weigh;
#[cfg(target_arch = "x86_64")]
pub(crate) mod weigh_at_once;
#[cfg(target_arch = "x86_64")]
pub(crate) mod weigh_halves;
#[cfg(target_arch = "x86_64")]
pub(crate) mod weigh_tiles;

use self::kernels::{Scores, Sums, Weights};
use self::regroup::{GroupRows, Regroup};
use crate::config::{DType, RopeStyle};
use crate::phase::Frequencies;
use crate::status::{Result, bail};

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// What every target has.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL; FP16 for chunks of bf16 where the processor has it.
    Avx512,
    /// AVX-512, and AMX tiles of bfloat16 for chunks.
    Amx,
    /// NEON, on AArch64.
    Neon,
}

/// Names a rung to use instead of the best: `scalar`, `avx2`, `avx512`, `amx`, `neon`.
pub const RUNG_VARIABLE: &str = "SINKCACHE_CPU";

impl Rung {
    const ALL: [(&'static str, Self); 5] = [
        ("scalar", Self::Scalar),
        ("avx2", Self::Avx2),
        ("avx512", Self::Avx512),
        ("amx", Self::Amx),
        ("neon", Self::Neon),
    ];

    /// Its name in [`RUNG_VARIABLE`].
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// Whether this process may use it.
    #[must_use]
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match self {
                Self::Scalar => true,
                Self::Avx2 => avx2,
                Self::Avx512 => avx2 && avx512,
                Self::Amx => avx2 && avx512 && amx::available(),
                Self::Neon => false,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            // NEON is part of the target.
            self == Self::Scalar || (cfg!(target_arch = "aarch64") && self == Self::Neon)
        }
    }

    /// The rungs that this process may use, the best last.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::ALL.into_iter().map(|(_, rung)| rung).filter(|rung| rung.available()).collect()
    }

    /// The one asked for, else the one [`RUNG_VARIABLE`] names, else the best.
    ///
    /// # Errors
    /// `InvalidConfig` for an unknown name or a rung the processor does not have.
    pub(crate) fn choose(asked: Option<Self>) -> Result<Self> {
        let best = Self::ALL.into_iter().rfind(|(_, rung)| rung.available()).map_or(Self::Scalar, |(_, rung)| rung);
        let name = std::env::var_os(RUNG_VARIABLE).filter(|name| asked.is_none() && !name.is_empty());
        let rung = match (asked, &name) {
            (Some(rung), _) => rung,
            (None, None) => return Ok(best),
            (None, Some(name)) => match Self::ALL.into_iter().find(|(n, _)| name == n) {
                Some((_, rung)) => rung,
                None => {
                    let name = name.display();
                    bail!(InvalidConfig, "{RUNG_VARIABLE} is {name}: scalar, avx2, avx512, amx or neon is allowed")
                }
            },
        };
        if rung.available() {
            return Ok(rung);
        }
        bail!(InvalidConfig, "this processor has no {}: {} is its best", rung.name(), best.name())
    }
}

/// Asks for `n` bytes from `p` on, to read them or, if `WRITE`, to write them; a hint, whatever the address.
#[inline(always)]
pub(crate) fn prefetch<const WRITE: bool>(p: *const u8, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..n).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let p = p.wrapping_add(line).cast();
        // SAFETY: SSE is part of the target; a hint reads nothing and changes nothing.
        unsafe { if WRITE { _mm_prefetch::<_MM_HINT_ET0>(p) } else { _mm_prefetch::<_MM_HINT_T0>(p) } };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (p, n);
}

/// Asks for the line at `p` in the second-level cache: what is read once at the speed of memory needs more requests under way than
/// loads make, and must not push out what is at hand. A hint, whatever the address.
#[inline(always)]
pub(crate) fn fetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the target; a hint reads nothing and changes nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Style, cosines, sines, from, to.
type Rotate = unsafe fn(RopeStyle, &[f32], &[f32], &[f32], &mut [f32]);

/// The kernels of one rung for one storage type.
///
/// # Safety
/// Each may be called only where its rung is available, with arguments as its struct describes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    /// With keys as they are stored; f32 has none, since it is stored in rows.
    pub scores: Option<unsafe fn(&Scores)>,
    /// With keys packed by `pack_keys`.
    pub scores_packed: unsafe fn(&Scores),
    /// With values as they are stored.
    pub sums: unsafe fn(&Sums),
    /// With values packed by `pack_values`.
    pub sums_packed: unsafe fn(&Sums),
    pub weigh: unsafe fn(&Weights),
    /// Stored keys, dims, groups, where to.
    pub pack_keys: unsafe fn(*const u8, usize, usize, *mut f32),
    /// Stored values, padded dims, (from, to, rows), where to; whether all are finite.
    pub pack_values: unsafe fn(*const u8, usize, (usize, usize, usize), *mut f32) -> bool,
    /// Rows of a group's keys, dims, the group; f32 has none, since it is stored in rows.
    pub group_keys: Option<Regroup>,
    /// Rows of a group's values in bfloat16, dims, where their half of a tile begins.
    pub pair_values: Regroup,
    pub rotate: Rotate,
    pub narrow_to_bf16: unsafe fn(&[f32], &mut [u16]),
    pub angles: unsafe fn(&Frequencies, u64, f32, &mut [f32], &mut [f32]),
}

/// Compiles the kernels for the vectors of one rung. `$nv` vectors by six rows of sums (or four, `Lanes::SIX_ROWS`) fit its
/// registers.
macro_rules! rung {
    ($name:ident, $lanes:ty, $nv:literal, $(#[$features:meta])?) => {
        mod $name {
            use super::kernels::{self, Brain, Half, Scores, Single, Sums, Weights};
            use super::*;

            macro_rules! typed {
                ($k:ident, $e:ty) => {
                    pub(super) mod $k {
                        use super::*;

                        $(#[$features])?
                        pub unsafe fn scores(a: &Scores) {
                            // SAFETY: the caller's contract.
                            unsafe { kernels::scores::<$lanes, $e, $nv>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn sums(a: &Sums) {
                            // SAFETY: the caller's contract.
                            unsafe { kernels::sums::<$lanes, $e, $nv>(a) }
                        }

                        $(#[$features])?
                        pub unsafe fn pack_values(src: *const u8, dim: usize, keys: (usize, usize, usize), dst: *mut f32) -> bool {
                            // SAFETY: the caller's contract.
                            unsafe { kernels::pack_values::<$lanes, $e>(src, dim, keys, dst) }
                        }
                    }
                };
            }
            typed!(single, Single);
            typed!(half, Half);
            typed!(brain, Brain);

            $(#[$features])?
            unsafe fn pack_half(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the caller's contract.
                unsafe { kernels::pack_keys::<$lanes, Half>(src, dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn pack_brain(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the caller's contract.
                unsafe { kernels::pack_keys::<$lanes, Brain>(src, dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn group_rows(src: *const u8, dim: usize, groups: usize, dst: *mut f32) {
                // SAFETY: the caller's contract.
                unsafe { kernels::group_rows(src.cast(), dim, groups, dst) }
            }

            $(#[$features])?
            unsafe fn group_keys<const HALF: bool>(rows: &GroupRows, dim: usize, dst: *mut u16) {
                // SAFETY: the caller's contract.
                unsafe { regroup::group_keys::<HALF>(rows, dim, dst) }
            }

            $(#[$features])?
            unsafe fn pair_values(rows: &GroupRows, dim: usize, dst: *mut u16) {
                // SAFETY: the caller's contract.
                unsafe { regroup::pair_values(rows, dim, dst) }
            }

            $(#[$features])?
            unsafe fn weigh<const PRECISE: bool>(a: &Weights) {
                // SAFETY: the caller's contract.
                unsafe { kernels::weigh::<$lanes, PRECISE>(a) }
            }

            $(#[$features])?
            unsafe fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], x: &[f32], y: &mut [f32]) {
                // SAFETY: the caller's contract.
                unsafe { kernels::rotate::<$lanes>(style, cos, sin, x, y) }
            }

            $(#[$features])?
            unsafe fn narrow_to_bf16(src: &[f32], dst: &mut [u16]) {
                kernels::narrow_to_bf16(src, dst);
            }

            $(#[$features])?
            unsafe fn angles(f: &Frequencies, position: u64, mscale: f32, cos: &mut [f32], sin: &mut [f32]) {
                kernels::angles(f, position, mscale, cos, sin);
            }

            pub(super) fn kernels(dtype: DType) -> Kernels {
                let common = Kernels {
                    scores: None,
                    scores_packed: single::scores,
                    sums: single::sums,
                    sums_packed: single::sums,
                    weigh: weigh::<true>,
                    pack_keys: group_rows,
                    pack_values: single::pack_values,
                    group_keys: None,
                    pair_values,
                    rotate,
                    narrow_to_bf16,
                    angles,
                };
                match dtype {
                    DType::F32 => common,
                    DType::F16 => Kernels {
                        scores: Some(half::scores),
                        weigh: weigh::<false>,
                        sums: half::sums,
                        pack_keys: pack_half,
                        pack_values: half::pack_values,
                        group_keys: Some(group_keys::<true>),
                        ..common
                    },
                    DType::Bf16 => Kernels {
                        scores: Some(brain::scores),
                        weigh: weigh::<false>,
                        sums: brain::sums,
                        pack_keys: pack_brain,
                        pack_values: brain::pack_values,
                        group_keys: Some(group_keys::<false>),
                        ..common
                    },
                }
            }
        }
    };
}

rung!(scalar_kernels, super::scalar::Scalar, 2,);
#[cfg(target_arch = "x86_64")]
rung!(avx2_kernels, super::avx2::Avx2, 2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
rung!(avx512_kernels, super::avx512::Avx512, 4, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
rung!(neon_kernels, super::neon::Neon, 4,);

impl Kernels {
    /// Of a rung that is available.
    pub fn new(rung: Rung, dtype: DType) -> Self {
        match rung {
            #[cfg(target_arch = "x86_64")]
            Rung::Avx2 => avx2_kernels::kernels(dtype),
            #[cfg(target_arch = "x86_64")]
            Rung::Avx512 | Rung::Amx => Self {
                group_keys: match dtype {
                    DType::F32 => None,
                    DType::F16 => Some(regroup::group_keys_avx512::<true>),
                    DType::Bf16 => Some(regroup::group_keys_avx512::<false>),
                },
                ..avx512_kernels::kernels(dtype)
            },
            #[cfg(target_arch = "aarch64")]
            Rung::Neon => neon_kernels::kernels(dtype),
            _ => scalar_kernels::kernels(dtype),
        }
    }
}

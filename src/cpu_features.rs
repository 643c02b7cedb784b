//! Which instruction set the CPU kernels use: detection, and the choice by `SINKCACHE_CPU`.

use crate::error::{Result, bail};

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
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

/// Names a instruction set to use instead of the best: `scalar`, `avx2`, `avx512`, `amx`, `neon`.
pub const ISA_VARIABLE: &str = "SINKCACHE_CPU";

impl Isa {
    const ALL: [(&'static str, Self); 5] = [
        ("scalar", Self::Scalar),
        ("avx2", Self::Avx2),
        ("avx512", Self::Avx512),
        ("amx", Self::Amx),
        ("neon", Self::Neon),
    ];

    /// Its name in [`ISA_VARIABLE`].
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
                Self::Amx => avx2 && avx512 && x86::amx_available(),
                Self::Neon => false,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            // NEON is part of the target.
            self == Self::Scalar || (cfg!(target_arch = "aarch64") && self == Self::Neon)
        }
    }

    /// The instruction sets that this process may use, the best last.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::ALL.into_iter().map(|(_, isa)| isa).filter(|isa| isa.available()).collect()
    }

    /// The one asked for, else the one [`ISA_VARIABLE`] names, else the best.
    ///
    /// # Errors
    /// `InvalidConfig` for an unknown name or a instruction set the processor does not have.
    pub(crate) fn choose(asked: Option<Self>) -> Result<Self> {
        let best = Self::ALL.into_iter().rfind(|(_, isa)| isa.available()).map_or(Self::Scalar, |(_, isa)| isa);
        let name = std::env::var_os(ISA_VARIABLE).filter(|name| asked.is_none() && !name.is_empty());
        let isa = match (asked, &name) {
            (Some(isa), _) => isa,
            (None, None) => return Ok(best),
            (None, Some(name)) => match Self::ALL.into_iter().find(|(n, _)| name == n) {
                Some((_, isa)) => isa,
                None => {
                    let name = name.display();
                    bail!(InvalidConfig, "{ISA_VARIABLE} is {name}: scalar, avx2, avx512, amx or neon is allowed")
                }
            },
        };
        if isa.available() {
            return Ok(isa);
        }
        bail!(InvalidConfig, "this processor has no {}: {} is its best", isa.name(), best.name())
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::fp16_available;

/// What `is_x86_feature_detected` of stable Rust does not know.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    /// Whether processor and kernel have AMX with bfloat16, and this process may use it. Asks the kernel once.
    pub(super) fn amx_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| amx_in_processor() && amx_permitted())
    }

    fn amx_in_processor() -> bool {
        if !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
            return false;
        }
        let (seven, one) = (__cpuid_count(7, 0), __cpuid_count(7, 1));
        let (amx_bf16, amx_tile, avx512_bf16) = (seven.edx >> 22 & 1, seven.edx >> 24 & 1, one.eax >> 5 & 1);
        // SAFETY: the processor has XSAVE, and so XGETBV. Bits 17 and 18: the kernel saves tile configuration and data.
        let kernel = unsafe { xgetbv() } >> 17 & 3;
        seven.eax >= 1 && amx_bf16 & amx_tile & avx512_bf16 == 1 && kernel == 3
    }

    #[target_feature(enable = "xsave")]
    unsafe fn xgetbv() -> u64 {
        // SAFETY: the caller's contract.
        unsafe { _xgetbv(0) }
    }

    /// Linux hands out the 8 KiB of tile state on request only.
    #[cfg(target_os = "linux")]
    fn amx_permitted() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: grants this process a larger register state, nothing else.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn amx_permitted() -> bool {
        false
    }

    /// Whether the processor has AVX-512 FP16. The rest of AVX-512 is another question.
    pub(crate) fn fp16_available() -> bool {
        // Asked for every tile, and a virtual machine may have to leave its processor to answer.
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 23 & 1 == 1)
    }
}

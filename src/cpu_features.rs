//! The instruction set that the CPU kernels use: detection, and the choice by `SINKCACHE_CPU`.

use crate::error::{Result, bail};

/// An instruction set of the CPU kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, for every target.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL; also AVX-512 FP16 for chunks of bf16, where the processor has it.
    Avx512,
    /// AVX-512, and AMX bfloat16 tiles for chunks.
    Amx,
    /// NEON, on AArch64.
    Neon,
}

/// The environment variable that selects an instruction set: `scalar`, `avx2`, `avx512`, `amx` or `neon`. Unset or
/// empty = the best available.
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

    /// Whether processor and operating system let this process use it.
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
            // Every AArch64 processor has NEON.
            self == Self::Scalar || (cfg!(target_arch = "aarch64") && self == Self::Neon)
        }
    }

    /// The available instruction sets, the best last.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::ALL.into_iter().map(|(_, isa)| isa).filter(|isa| isa.available()).collect()
    }

    /// The requested instruction set, or the one that [`ISA_VARIABLE`] names, or the best available.
    ///
    /// # Errors
    /// `InvalidConfig` for an unknown name, or an instruction set that is not available.
    pub(crate) fn choose(requested: Option<Self>) -> Result<Self> {
        // Where another one is asked for, the system gets no request for AMX: it changes the whole process.
        let best = || Self::ALL.into_iter().rfind(|(_, isa)| isa.available()).map_or(Self::Scalar, |(_, isa)| isa);
        let name = variable().filter(|name| requested.is_none() && !name.is_empty());
        let isa = match (requested, &name) {
            (Some(isa), _) => isa,
            (None, None) => return Ok(best()),
            (None, Some(name)) => match Self::ALL.into_iter().find(|(n, _)| *name == *n) {
                Some((_, isa)) => isa,
                None => {
                    // No more than fits into an error's text.
                    bail!(InvalidConfig, "{ISA_VARIABLE} is {name:.100}: scalar, avx2, avx512, amx or neon is allowed")
                }
            },
        };
        if isa.available() {
            return Ok(isa);
        }
        #[cfg(target_arch = "x86_64")]
        if let (Self::Amx, Some(why)) = (isa, x86::amx_refused()) {
            bail!(
                InvalidConfig,
                "amx, which was asked for, is not available: {why}; {} is the best that is",
                best().name()
            );
        }
        let asked = if name.is_some() { "SINKCACHE_CPU" } else { "isa" };
        bail!(InvalidConfig, "{asked} is {0}: this processor has no {0}, {1} is its best", isa.name(), best().name())
    }
}

/// The value of [`ISA_VARIABLE`]. `std::env` would copy it, and abort without memory for the copy.
#[cfg(unix)]
fn variable() -> Option<&'static str> {
    // SAFETY: a C string. As everywhere, a host must not change the environment while others read it.
    let value = unsafe { libc::getenv(c"SINKCACHE_CPU".as_ptr()) };
    // SAFETY: not NULL, so a C string that stays until the environment changes.
    (!value.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(value) }.to_str().unwrap_or("(not UTF-8)"))
}

#[cfg(not(unix))]
fn variable() -> Option<String> {
    std::env::var(ISA_VARIABLE).ok()
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::fp16_available;

/// Whether the processor multiplies bytes in AVX-512 registers (AVX512_VNNI). It does not imply the rest of AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) fn vnni_available() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// Whether the processor multiplies bytes in AVX2 registers (AVX-VNNI).
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx_vnni_available() -> bool {
    is_x86_feature_detected!("avxvnni")
}

/// Whether the processor multiplies bytes in NEON registers (FEAT_DotProd).
#[cfg(target_arch = "aarch64")]
pub(crate) fn dotprod_available() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Features that `is_x86_feature_detected` of stable Rust does not know.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::fmt;
    use std::num::NonZeroUsize;

    // Cells in which threads do not wait for each other: in a child of fork(2) the other may be missing.
    use once_cell::race::{OnceBool, OnceNonZeroUsize};

    /// Whether processor and operating system support AMX with bfloat16.
    pub(super) fn amx_available() -> bool {
        amx_in_processor() && amx_permission() == 0 || emulated() && is_x86_feature_detected!("avx512bf16")
    }

    /// Why the system does not let a processor's AMX be used.
    pub(super) fn amx_refused() -> Option<Refusal> {
        let refused = amx_in_processor() && amx_permission() != 0;
        refused.then(|| Refusal { errno: amx_permission(), signal_stack: signal_stack_size() })
    }

    /// The permission, requested from the system once: 0, or the error. A refusal is kept, so that all caches of a
    /// process choose the same instruction set.
    fn amx_permission() -> i32 {
        static PERMISSION: OnceNonZeroUsize = OnceNonZeroUsize::new();
        // One more than the error number.
        let kept = PERMISSION.get_or_init(|| NonZeroUsize::MIN.saturating_add(request_amx() as usize));
        kept.get() as i32 - 1
    }

    fn amx_in_processor() -> bool {
        static THERE: OnceBool = OnceBool::new();
        THERE.get_or_init(find_amx)
    }

    fn find_amx() -> bool {
        if !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
            return false;
        }
        let (seven, one) = (__cpuid_count(7, 0), __cpuid_count(7, 1));
        let (amx_bf16, amx_tile, avx512_bf16) = (seven.edx >> 22 & 1, seven.edx >> 24 & 1, one.eax >> 5 & 1);
        // Bits 17 and 18: the operating system saves tile configuration and tile data.
        // SAFETY: XSAVE was detected (with OSXSAVE), so XGETBV is available.
        let tile_state = unsafe { xgetbv() } >> 17 & 3;
        seven.eax >= 1 && amx_bf16 & amx_tile & avx512_bf16 == 1 && tile_state == 3
    }

    #[target_feature(enable = "xsave")]
    unsafe fn xgetbv() -> u64 {
        // SAFETY: the caller has checked that the processor has XSAVE; register 0 always exists.
        unsafe { _xgetbv(0) }
    }

    /// Linux grants the 8 KiB of tile state only on request.
    #[cfg(target_os = "linux")]
    fn request_amx() -> i32 {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call only grants this process a larger register state.
        let code = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        if code == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL) }
    }

    /// This library requests AMX from Linux only.
    #[cfg(not(target_os = "linux"))]
    fn request_amx() -> i32 {
        libc::ENOSYS
    }

    /// The least size of an alternate signal stack that holds every register of this processor; 0 if Linux does not
    /// say.
    #[cfg(target_os = "linux")]
    fn signal_stack_size() -> u64 {
        const AT_MINSIGSTKSZ: libc::c_ulong = 51;
        // SAFETY: reads a number that Linux gave the process.
        unsafe { libc::getauxval(AT_MINSIGSTKSZ) }
    }

    #[cfg(not(target_os = "linux"))]
    fn signal_stack_size() -> u64 {
        0
    }

    /// Says what was asked of Linux, its answer, and what it stands for here.
    pub(super) struct Refusal {
        pub errno: i32,
        pub signal_stack: u64,
    }

    impl fmt::Display for Refusal {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            if cfg!(not(target_os = "linux")) {
                return f.write_str("this library requests AMX from Linux only");
            }
            f.write_str("Linux refused arch_prctl(ARCH_REQ_XCOMP_PERM, 18), the use of AMX tiles: ")?;
            match self.errno {
                libc::ENOSPC => write!(
                    f,
                    "ENOSPC. The alternate signal stack (sigaltstack) of a thread is too small for the tiles: make it \
                     larger than {} bytes, sysconf(_SC_MINSIGSTKSZ), before the first cache is created",
                    self.signal_stack
                ),
                libc::EINVAL => f.write_str("EINVAL. Linux 5.16 or later is needed"),
                libc::EPERM => f.write_str("EPERM. A seccomp filter may forbid it"),
                libc::ENOSYS => f.write_str("ENOSYS. A seccomp filter may forbid it"),
                errno => write!(f, "error {errno}"),
            }
        }
    }

    /// Whether the processor has AVX-512 FP16. It does not imply the rest of AVX-512, see [`super::Isa::available`].
    pub(crate) fn fp16_available() -> bool {
        // Kept: it is queried for every tile, and CPUID may trap in a virtual machine.
        static AVAILABLE: OnceBool = OnceBool::new();
        AVAILABLE.get_or_init(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 23 & 1 == 1 || emulated())
    }

    /// Whether `tools/isa_emulator` emulates AMX and AVX-512 FP16 in this process. Only a build for it asks.
    #[cfg(all(sinkcache_emulated_isa, target_os = "linux"))]
    fn emulated() -> bool {
        type Ready = unsafe extern "C" fn() -> libc::c_int;
        // SAFETY: `dlsym` takes a C string and searches the loaded libraries. NULL becomes None; a library that has a
        // symbol of this name is the emulator, where it is a function of this type.
        let ready = unsafe {
            std::mem::transmute::<*mut libc::c_void, Option<Ready>>(libc::dlsym(
                libc::RTLD_DEFAULT,
                c"isa_emulator_ready".as_ptr(),
            ))
        };
        // SAFETY: it has no preconditions.
        ready.is_some_and(|ready| unsafe { ready() } != 0)
    }

    #[cfg(not(all(sinkcache_emulated_isa, target_os = "linux")))]
    fn emulated() -> bool {
        false
    }
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use super::x86::Refusal;

    /// The text has the request, the system's answer, and what helps.
    #[test]
    fn a_refusal_of_amx_says_why() {
        for (errno, hint) in [
            (libc::ENOSPC, "larger than 11952 bytes, sysconf(_SC_MINSIGSTKSZ), before the first cache"),
            (libc::EINVAL, "Linux 5.16"),
            (libc::EPERM, "seccomp"),
            (libc::EOPNOTSUPP, "error 95"),
        ] {
            let text = Refusal { errno, signal_stack: 11952 }.to_string();
            assert!(text.contains("arch_prctl(ARCH_REQ_XCOMP_PERM, 18)") && text.contains(hint), "{text}");
        }
    }
}

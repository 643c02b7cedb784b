//! Peak memory of this process.

/// The most bytes this process has held in memory at once since it began; `None` where the system does not tell.
#[must_use]
pub fn peak_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: getrusage fills the struct it is given, or fails and leaves it zeroed.
        let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
        // SAFETY: integers only, all zero before the call.
        let peak = unsafe { usage.assume_init() }.ru_maxrss;
        // Apple counts bytes, the others KiB.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        (status == 0).then(|| u64::try_from(peak).unwrap_or(0) * unit)
    }
    #[cfg(not(unix))]
    None
}

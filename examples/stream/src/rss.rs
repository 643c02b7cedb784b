//! Peak memory of this process.

/// The largest resident set size of this process so far, in bytes; `None` where the system does not report it.
#[must_use]
pub fn peak_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the pointer is to a local of the type that getrusage writes.
        let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
        // SAFETY: the struct was zeroed, and zero is valid for all its fields, which are integers.
        let peak = unsafe { usage.assume_init() }.ru_maxrss;
        // Apple reports bytes, other systems KiB.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        (status == 0).then(|| u64::try_from(peak).unwrap_or(0) * unit)
    }
    #[cfg(not(unix))]
    None
}

//! Settings of the CUDA backend.

use std::ffi::c_void;

use crate::memory::Memory;

/// Where a CUDA cache lives.
#[derive(Clone, Copy, Debug)]
pub struct CudaConfig {
    /// Device ordinal; its primary context is used.
    pub device: u32,
    /// The host's own context instead (`CUcontext`); NULL = the primary one. It must outlive the cache.
    pub context: *mut c_void,
    /// Device memory; the default is `cuMemAlloc`.
    pub memory: Memory,
    /// Keep compiled kernels on disk.
    pub disk_cache: bool,
    /// Programmatic dependent launches, from compute capability 9.0 on: blocks of a kernel take their places while the
    /// kernel before it in the stream still runs, if that one lets them.
    pub programmatic: bool,
}

// SAFETY: a context may be used from any thread.
unsafe impl Send for CudaConfig {}
// SAFETY: as above.
unsafe impl Sync for CudaConfig {}

impl Default for CudaConfig {
    fn default() -> Self {
        Self {
            device: 0,
            context: std::ptr::null_mut(),
            memory: Memory::default(),
            disk_cache: true,
            programmatic: false,
        }
    }
}

//! Settings of the CUDA backend.

use std::ffi::c_void;

use crate::memory::Memory;

/// Device, memory and launches of a CUDA cache.
#[derive(Clone, Copy, Debug)]
pub struct CudaConfig {
    /// Device ordinal; its primary context is used.
    pub device: u32,
    /// A context of the host (`CUcontext`) to use instead, which must outlive the cache; NULL = the primary context.
    pub context: *mut c_void,
    /// Allocator of device memory; the default is `cuMemAlloc`.
    pub memory: Memory,
    /// Keep compiled kernels in a cache on disk.
    pub disk_cache: bool,
    /// Programmatic dependent launch, from compute capability 9.0 on: blocks are scheduled while the preceding kernel
    /// of the stream drains, if that kernel calls `griddepcontrol.launch_dependents`.
    pub programmatic: bool,
}

// SAFETY: `context` is a handle of the driver, which may be used from any thread; `Memory` is Send and Sync.
unsafe impl Send for CudaConfig {}
// SAFETY: as for Send.
unsafe impl Sync for CudaConfig {}

impl Default for CudaConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl CudaConfig {
    pub(crate) const DEFAULT: Self = Self {
        device: 0,
        context: std::ptr::null_mut(),
        memory: Memory::PROCESS,
        disk_cache: true,
        programmatic: false,
    };
}

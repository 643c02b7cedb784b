//! Device memory, allocated at creation and freed at destruction.

use std::ffi::c_void;
use std::ptr::NonNull;

use cudarc::driver::sys;

use super::driver::{CurrentContext, check};
use crate::error::{Result, bail};
use crate::memory::Memory;

/// Alignment of every device buffer: what `cuMemAlloc` guarantees.
pub const ALIGN: usize = 256;

/// A block of device memory.
///
/// It has no `Drop`: freeing needs the current context, which only the owner can give.
#[derive(Debug)]
pub struct DeviceBuffer {
    address: u64,
    bytes: usize,
    memory: Memory,
}

impl DeviceBuffer {
    /// `bytes` uninitialised bytes, from the host's callbacks or `cuMemAlloc`. `what` is for messages.
    pub fn new(_: &CurrentContext<'_>, memory: Memory, bytes: u64, what: &str) -> Result<Self> {
        let Ok(bytes) = usize::try_from(bytes.max(1)) else {
            bail!(OutOfMemory, "{bytes} bytes for {what} exceed the address space");
        };
        if let Some(ptr) = memory.call_alloc(bytes, ALIGN) {
            let address = ptr as u64;
            let buffer = Self { address, bytes, memory };
            if address == 0 {
                bail!(OutOfMemory, "{bytes} bytes of device memory for {what}: device_alloc returned NULL");
            }
            if !address.is_multiple_of(ALIGN as u64) {
                buffer.release();
                bail!(InvalidArgument, "device_alloc returned {address:#x} for {what}, not aligned to {ALIGN}");
            }
            return Ok(buffer);
        }
        let mut address = 0;
        // SAFETY: a context is current, and the output is writable.
        let code = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) };
        check(code, &format!("{bytes} bytes of device memory for {what}"))?;
        Ok(Self { address, bytes, memory })
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Sets all of it to zero.
    pub fn zero(&self, setup: &SetupStream<'_>) -> Result<()> {
        // SAFETY: the buffer has `bytes` bytes, and nothing else uses it before the cache is created.
        check(unsafe { sys::cuMemsetD8Async(self.address, 0, self.bytes, setup.stream) }, "cuMemsetD8Async")
    }

    /// Writes `values` from byte `at` on.
    pub fn write<T: Copy>(&self, setup: &SetupStream<'_>, at: usize, values: &[T]) -> Result<()> {
        let bytes = size_of_val(values);
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes), "write of {bytes} bytes at {at}");
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.address + at as u64, values.as_ptr().cast());
        // SAFETY: in range by the assertion. `values` is pageable memory, which the driver has read when the call
        // returns.
        check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, setup.stream) }, "cuMemcpyHtoDAsync")
    }

    /// Frees it. Its context must be current, and the device must have finished with it.
    pub fn free(self, _: &CurrentContext<'_>) {
        self.release();
    }

    fn release(&self) {
        if !self.memory.call_free(self.address as *mut c_void, self.bytes) {
            // SAFETY: `new` allocated it with cuMemAlloc, and `free` consumes the buffer, so that it is freed once. A
            // destroyed context has freed it already: an error code then, which changes nothing.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// A stream of our own in which new memory is initialised. The legacy default stream would synchronise with the host's
/// blocking streams, one of which may be being captured.
#[derive(Debug)]
pub struct SetupStream<'a> {
    stream: sys::CUstream,
    _current: &'a CurrentContext<'a>,
}

impl<'a> SetupStream<'a> {
    /// A stream of the current context.
    pub fn new(current: &'a CurrentContext<'a>) -> Result<Self> {
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current, and the output is writable.
        check(unsafe { sys::cuStreamCreate(&raw mut stream, flags) }, "cuStreamCreate")?;
        Ok(Self { stream, _current: current })
    }

    /// Waits for everything that was written.
    pub fn finish(self) -> Result<()> {
        // SAFETY: `new` created the stream, and only drop destroys it.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "initialising device memory")
    }
}

impl Drop for SetupStream<'_> {
    fn drop(&mut self) {
        // SAFETY: `new` created the stream; the driver finishes the work that is still in it before it frees it.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

/// Host memory that is mapped into the device's address space: the device writes it, and the host reads it without
/// waiting.
#[derive(Debug)]
pub struct MappedHost<T> {
    host: NonNull<T>,
    device: u64,
}

// SAFETY: pinned memory is not bound to a thread.
unsafe impl<T: Send> Send for MappedHost<T> {}
// SAFETY: a shared reference gives addresses only; who reads through them does so atomically or volatilely.
unsafe impl<T: Send> Sync for MappedHost<T> {}

impl<T: Copy + Default> MappedHost<T> {
    /// One `T` with its default value.
    pub fn new(_: &CurrentContext<'_>) -> Result<Self> {
        let (mut host, mut device) = (std::ptr::null_mut(), 0);
        let what = &format!("{} bytes of host memory for the device", size_of::<T>());
        // SAFETY: a context is current, and outputs are writable. The block has the size of a `T` and is page-aligned,
        // so that a `T` may be written to it; on failure it is freed once.
        unsafe {
            check(sys::cuMemHostAlloc(&raw mut host, size_of::<T>(), sys::CU_MEMHOSTALLOC_DEVICEMAP), what)?;
            let Some(place) = NonNull::new(host.cast::<T>()) else {
                bail!(OutOfMemory, "{what}: the driver returned NULL");
            };
            place.write(T::default());
            if let Err(error) = check(sys::cuMemHostGetDevicePointer_v2(&raw mut device, host, 0), what) {
                let _ = sys::cuMemFreeHost(host);
                return Err(error);
            }
            Ok(Self { host: place, device })
        }
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.device
    }

    /// Its address on the host. The device may be writing there.
    pub fn host(&self) -> *mut T {
        self.host.as_ptr()
    }

    /// Frees it. Its context must be current, and the device must have finished with it.
    pub fn free(self, _: &CurrentContext<'_>) {
        // SAFETY: `new` allocated it with cuMemHostAlloc, and `self` is consumed, so that it is freed once.
        let _ = unsafe { sys::cuMemFreeHost(self.host.as_ptr().cast()) };
    }
}

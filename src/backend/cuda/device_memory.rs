//! Device memory, had at create and given back at destroy.

use std::ffi::c_void;
use std::ptr::NonNull;

use cudarc::driver::sys;

use super::driver::{Current, check};
use crate::error::{Result, bail};
use crate::memory::Memory;

/// Alignment of every device buffer: what `cuMemAlloc` gives.
pub const ALIGN: usize = 256;

/// A block of device memory.
///
/// It has no `Drop`: freeing needs the context current, which the owner sees to.
#[derive(Debug)]
pub struct DeviceBuffer {
    address: u64,
    bytes: usize,
    memory: Memory,
}

impl DeviceBuffer {
    /// `bytes` bytes holding whatever was there, from the caller's callbacks or `cuMemAlloc`.
    pub fn new(_: &Current<'_>, memory: Memory, bytes: u64, what: &str) -> Result<Self> {
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
                buffer.give_back();
                bail!(InvalidArgument, "device_alloc returned {address:#x} for {what}, not aligned to {ALIGN}");
            }
            return Ok(buffer);
        }
        let mut address = 0;
        // SAFETY: a context is current.
        let code = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) };
        check(code, &format!("{bytes} bytes of device memory for {what}"))?;
        Ok(Self { address, bytes, memory })
    }

    /// Its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Sets all of it to zero.
    pub fn zero(&self, setup: &Setup<'_>) -> Result<()> {
        // SAFETY: the block is ours and that long.
        check(unsafe { sys::cuMemsetD8Async(self.address, 0, self.bytes, setup.stream) }, "cuMemsetD8Async")
    }

    /// Writes `values` from byte `at` on.
    pub fn write<T: Copy>(&self, setup: &Setup<'_>, at: usize, values: &[T]) -> Result<()> {
        let bytes = size_of_val(values);
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes), "write of {bytes} bytes at {at}");
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.address + at as u64, values.as_ptr().cast());
        // SAFETY: in range by the check; pageable memory has been read when the call returns.
        check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, setup.stream) }, "cuMemcpyHtoDAsync")
    }

    /// Gives it back; its context must be current and the device done with it.
    pub fn free(self, _: &Current<'_>) {
        self.give_back();
    }

    fn give_back(&self) {
        if !self.memory.call_free(self.address as *mut c_void, self.bytes) {
            // SAFETY: allocated by `new`. A context that is gone has freed it.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// A stream to fill new memory in: not the legacy one, which a stream that is being captured may depend on.
#[derive(Debug)]
pub struct Setup<'a> {
    stream: sys::CUstream,
    _current: &'a Current<'a>,
}

impl<'a> Setup<'a> {
    /// Of the current context.
    pub fn new(current: &'a Current<'a>) -> Result<Self> {
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current, the output writable.
        check(unsafe { sys::cuStreamCreate(&raw mut stream, flags) }, "cuStreamCreate")?;
        Ok(Self { stream, _current: current })
    }

    /// Waits until all is filled.
    pub fn finish(self) -> Result<()> {
        // SAFETY: our own stream.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "filling new device memory")
    }
}

impl Drop for Setup<'_> {
    fn drop(&mut self) {
        // SAFETY: our own stream; work still in it is finished first.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

/// Host memory that the device can write: how it speaks to the host without being waited for.
#[derive(Debug)]
pub struct Mapped<T> {
    host: NonNull<T>,
    device: u64,
}

// SAFETY: an address of memory that is read and written by volatile accesses.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mapped<T> {}

impl<T: Copy + Default> Mapped<T> {
    /// One `T` of its default value.
    pub fn new(_: &Current<'_>) -> Result<Self> {
        let (mut host, mut device) = (std::ptr::null_mut(), 0);
        // SAFETY: outputs are writable; a context is current.
        unsafe {
            check(sys::cuMemHostAlloc(&raw mut host, size_of::<T>(), sys::CU_MEMHOSTALLOC_DEVICEMAP), "mapped memory")?;
            let Some(place) = NonNull::new(host.cast::<T>()) else {
                bail!(OutOfMemory, "mapped memory: the driver returned NULL");
            };
            place.write(T::default());
            if let Err(error) = check(sys::cuMemHostGetDevicePointer_v2(&raw mut device, host, 0), "mapped memory") {
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

    /// Its place on the host; the device may be writing.
    pub fn host(&self) -> *mut T {
        self.host.as_ptr()
    }

    /// Gives it back; its context must be current and the device done with it.
    pub fn free(self, _: &Current<'_>) {
        // SAFETY: allocated by `new`.
        let _ = unsafe { sys::cuMemFreeHost(self.host.as_ptr().cast()) };
    }
}

//! The CUDA driver as a guest uses it: presence asked before anything else, the host's current context left as it was
//! found, no call that waits but at create and destroy.

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::backend::Stream;
use crate::error::{Error, Result, Status, bail};

/// Turns a driver's answer into a status. An error of the device itself stays: every later call would fail too.
pub fn check(code: sys::CUresult, what: &str) -> Result<()> {
    use sys::CUresult as E;
    let status = match code {
        E::CUDA_SUCCESS => return Ok(()),
        E::CUDA_ERROR_OUT_OF_MEMORY => Status::OutOfMemory,
        E::CUDA_ERROR_INVALID_VALUE
        | E::CUDA_ERROR_INVALID_CONTEXT
        | E::CUDA_ERROR_INVALID_HANDLE
        | E::CUDA_ERROR_CONTEXT_IS_DESTROYED => Status::InvalidArgument,
        E::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        | E::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        | E::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
        | E::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD => Status::InvalidArgument,
        E::CUDA_ERROR_NO_DEVICE | E::CUDA_ERROR_INVALID_DEVICE => Status::BackendUnavailable,
        // Code for another device, or from a compiler newer than the driver.
        E::CUDA_ERROR_NO_BINARY_FOR_GPU | E::CUDA_ERROR_INVALID_IMAGE | E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            Status::BackendUnavailable
        }
        _ => Status::DeviceLost,
    };
    Err(Error::new(status, format!("{what}: {}", name(code))))
}

/// The driver's name of an error.
fn name(code: sys::CUresult) -> String {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the driver is present, or there would be no code; it writes a static string or NULL.
    let known = unsafe { sys::cuGetErrorName(code, &raw mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
    if known {
        // SAFETY: a static string of the driver.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    } else {
        format!("CUDA error {}", code as u32)
    }
}

/// The driver, started; or why there is none. Asked once: a driver does not appear later.
pub fn start() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // SAFETY: loads and unloads a library by name.
            if !unsafe { sys::is_culib_present() } {
                bail!(BackendUnavailable, "no CUDA: the driver library libcuda.so.1 was not found");
            }
            // SAFETY: no preconditions.
            check(unsafe { sys::cuInit(0) }, "CUDA driver: cuInit")
                .map_err(|e| Error::new(Status::BackendUnavailable, e.message().to_owned()))
        })
        .clone()
}

/// Devices the driver has; 0 without one.
pub fn device_count() -> u32 {
    let mut n = 0;
    // SAFETY: the driver has started.
    if start().is_err() || unsafe { sys::cuDeviceGetCount(&raw mut n) } != sys::CUresult::CUDA_SUCCESS {
        return 0;
    }
    u32::try_from(n).unwrap_or(0)
}

/// Compute capability times ten of a device, asked without a context.
pub fn arch_of(ordinal: u32) -> Option<u32> {
    let mut device = 0;
    // SAFETY: the output is writable; the driver refuses an ordinal that is none.
    let code = unsafe { sys::cuDeviceGet(&raw mut device, i32::try_from(ordinal).ok()?) };
    (code == sys::CUresult::CUDA_SUCCESS).then(|| arch(device).ok())?
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the output is writable.
    check(unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) }, "device attribute")?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn arch(device: sys::CUdevice) -> Result<u32> {
    use sys::CUdevice_attribute as A;
    let major = attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok(major * 10 + attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?)
}

/// A context to work in: a device's primary one, kept alive, or the host's own.
#[derive(Debug)]
pub struct Context {
    handle: sys::CUcontext,
    device: sys::CUdevice,
    /// Given back on drop; a host's own context is not ours to end.
    retained: bool,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The host's context, or with none given the primary context of a device.
    pub fn new(ordinal: u32, host: *mut c_void) -> Result<Self> {
        start()?;
        if !host.is_null() {
            let mut device = 0;
            let handle = host.cast();
            // SAFETY: the host promises a live context; the driver refuses what is none.
            check(unsafe { sys::cuCtxPushCurrent_v2(handle) }, "cuda_context")?;
            // SAFETY: a context is current.
            let outcome = check(unsafe { sys::cuCtxGetDevice(&raw mut device) }, "device of cuda_context");
            pop();
            outcome?;
            return Ok(Self { handle, device, retained: false });
        }
        let n = device_count();
        if ordinal >= n {
            match n {
                0 => bail!(BackendUnavailable, "no CUDA device"),
                _ => bail!(InvalidConfig, "cuda_device is {ordinal}: 0 to {} is allowed", n - 1),
            }
        }
        let (mut device, mut handle) = (0, std::ptr::null_mut());
        // SAFETY: outputs are writable; the ordinal is in range.
        unsafe {
            check(sys::cuDeviceGet(&raw mut device, ordinal as i32), "cuDeviceGet")?;
            check(sys::cuDevicePrimaryCtxRetain(&raw mut handle, device), "primary context")?;
        }
        Ok(Self { handle, device, retained: true })
    }

    /// Makes it current until the guard is dropped.
    pub fn enter(&self) -> Result<Current<'_>> {
        // SAFETY: the context lives: retained, or the host's promise.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.handle) }, "context")?;
        Ok(Current { context: self })
    }

    /// Compute capability times ten, such as 90.
    pub fn arch(&self) -> Result<u32> {
        arch(self.device)
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> Result<u32> {
        attribute(self.device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// Shared memory a block may have.
    pub fn shared_limit(&self) -> Result<u32> {
        attribute(self.device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.retained {
            // SAFETY: retained once in `new`. A driver that is shutting down refuses, which is fine.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

fn pop() {
    let mut was = std::ptr::null_mut();
    // SAFETY: pops what was pushed.
    let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut was) };
}

/// A context made current; on drop the host's is current again.
#[derive(Debug)]
pub struct Current<'a> {
    context: &'a Context,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        pop();
    }
}

impl Current<'_> {
    /// The context itself.
    pub fn context(&self) -> &Context {
        self.context
    }

    /// Whether a stream is being captured into a graph.
    pub fn capturing(&self, stream: Stream) -> Result<bool> {
        use sys::CUstreamCaptureStatus as S;
        let mut status = S::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the output is writable; the host promises a live stream of this context.
        check(unsafe { sys::cuStreamIsCapturing(raw(stream), &raw mut status) }, "stream")?;
        match status {
            S::CU_STREAM_CAPTURE_STATUS_NONE => Ok(false),
            S::CU_STREAM_CAPTURE_STATUS_ACTIVE => Ok(true),
            _ => bail!(InvalidArgument, "the capture of this stream has been invalidated: end it"),
        }
    }

    /// Waits for all work of a stream.
    pub fn wait(&self, stream: Stream) -> Result<()> {
        // SAFETY: as above.
        check(unsafe { sys::cuStreamSynchronize(raw(stream)) }, "stream")
    }

    /// Waits for all work of the context.
    pub fn wait_all(&self) -> Result<()> {
        // SAFETY: a context is current.
        check(unsafe { sys::cuCtxSynchronize() }, "context")
    }

    /// Copies device memory to the host, after the work that `stream` holds, and waits.
    pub fn read<T: Copy>(&self, stream: Stream, from: u64, to: &mut [T]) -> Result<()> {
        // SAFETY: the caller reads what it allocated; `to` is writable for its length and takes any bytes.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, size_of_val(to), raw(stream)) };
        check(code, "cuMemcpyDtoHAsync")?;
        self.wait(stream)
    }

    /// Puts a kernel into a stream. `params` is copied before this returns.
    pub fn launch<P>(&self, kernel: &Kernel, size: Size, to: To, params: &P) -> Result<()> {
        let mut args = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let [x, y, z] = size.grid;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: size.shared,
            hStream: raw(to.stream),
            attrs: &raw mut attribute,
            numAttrs: u32::from(to.programmatic),
        };
        // SAFETY: the kernel takes one `P` by value, which the caller vouches for by its choice of kernel; drivers from
        // before this call existed have no programmatic launches, and get the older call.
        let code = unsafe {
            if to.programmatic {
                sys::cuLaunchKernelEx(&raw const config, kernel.function, args.as_mut_ptr(), std::ptr::null_mut())
            } else {
                let (threads, shared, stream) = (kernel.threads, size.shared, raw(to.stream));
                let none = std::ptr::null_mut();
                sys::cuLaunchKernel(kernel.function, x, y, z, threads, 1, 1, shared, stream, args.as_mut_ptr(), none)
            }
        };
        check(code, kernel.name)
    }
}

/// Blocks of a launch, and the bytes of shared memory of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub grid: [u32; 3],
    pub shared: u32,
}

/// Where launches go. `programmatic`: their blocks may take their places while the kernel before them still runs; every
/// kernel begins by waiting for it.
#[derive(Clone, Copy, Debug)]
pub struct To {
    pub stream: Stream,
    pub programmatic: bool,
}

fn raw(stream: Stream) -> sys::CUstream {
    std::ptr::with_exposed_provenance_mut(stream.0)
}

/// Lets the calling thread allocate and wait although another thread's stream may be captured in global mode: what is
/// done at create touches no captured stream.
#[derive(Debug)]
pub struct Relaxed {
    before: sys::CUstreamCaptureMode,
}

impl Relaxed {
    /// Until dropped.
    pub fn new() -> Result<Self> {
        let mut before = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges this thread's mode with `before`.
        check(unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut before) }, "capture mode")?;
        Ok(Self { before })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut self.before) };
    }
}

/// Loaded device code.
#[derive(Debug)]
pub struct Module(sys::CUmodule);

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin into the current context.
    pub fn load(_: &Current<'_>, cubin: &[u8]) -> Result<Self> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the driver checks the image's header; images come from NVRTC, at some time, or from the checked disk cache.
        check(unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) }, "loading a kernel module")?;
        Ok(Self(module))
    }

    /// One of its kernels, run by blocks of `threads` with up to `shared` bytes of shared memory.
    pub fn kernel(&self, name: &'static CStr, threads: u32, shared: u32) -> Result<Kernel> {
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name a C string.
        check(unsafe { sys::cuModuleGetFunction(&raw mut function, self.0, name.as_ptr()) }, "kernel")?;
        // Above 48 KiB only for those who ask.
        if shared > 48 * 1024 {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is live.
            check(unsafe { sys::cuFuncSetAttribute(function, which, shared as i32) }, "shared memory")?;
        }
        Ok(Kernel { function, threads, name: name.to_str().unwrap_or("kernel") })
    }

    /// How many blocks of a kernel a multiprocessor holds at once.
    pub fn blocks_at_once(&self, kernel: &Kernel, shared: u32) -> Result<u32> {
        let mut blocks = 0;
        // SAFETY: the output is writable, the function live.
        let code = unsafe {
            let (function, threads) = (kernel.function, kernel.threads as i32);
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut blocks, function, threads, shared as usize)
        };
        check(code, kernel.name)?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Frees it; its context must be current and its kernels idle.
    pub fn unload(self, _: &Current<'_>) {
        // SAFETY: loaded once, unloaded once.
        let _ = unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// A kernel and the threads of its blocks.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    function: sys::CUfunction,
    pub threads: u32,
    pub name: &'static str,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

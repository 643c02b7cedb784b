//! The CUDA driver, used as a library should in a host's process: nothing else is called before the driver is known to
//! be present, the host's current context is restored, and no call waits but at creation, destruction and read-back.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys;
use once_cell::sync::OnceCell;

use crate::backend::Stream;
use crate::error::{Error, Result, Status, bail};
use crate::process::{generation, watch_forks};

/// Shared memory, in bytes, that a kernel may use without an opt-in.
pub const DEFAULT_SHARED_LIMIT: u32 = 48 * 1024;

/// The first architecture with clusters of blocks.
const CLUSTER_ARCH: u32 = 90;
/// 0: no launch has clusters. For comparisons, and for a driver whose clusters do not work.
const CLUSTERS_VARIABLE: &str = "SINKCACHE_CUDA_CLUSTERS";

/// Turns a result code of the driver into a status. `DeviceLost` stands for errors after which every later call fails
/// too.
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
    // SAFETY: `code` comes from the driver, so it is loaded; the output is writable, and gets a static string or NULL.
    let known = unsafe { sys::cuGetErrorName(code, &raw mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
    if known {
        // SAFETY: not NULL, so a NUL-terminated string that the driver keeps until the process ends.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    } else {
        format!("CUDA error {}", code as u32)
    }
}

/// Loads and initialises the driver, or says why it cannot. An attempt that fails is made again at the next call: by
/// then the driver may be installed, or its device there. It costs a search of the loader's path.
///
/// A child of a process that has started the driver cannot use it: NVIDIA's driver does not work there, and a thread
/// that was inside it holds its locks forever.
pub fn start() -> Result<()> {
    static STARTED: OnceCell<()> = OnceCell::new();
    /// 1 + the generation of the process that came here first; 0 before.
    static PROCESS: AtomicU32 = AtomicU32::new(0);
    if PROCESS.load(Ordering::Acquire) == 0 {
        // Without a driver nothing is locked or allocated: queries need neither.
        is_loadable()?;
        watch_forks()?;
    }
    let this = 1 + generation();
    if let Err(first) = PROCESS.compare_exchange(0, this, Ordering::AcqRel, Ordering::Acquire)
        && first != this
    {
        bail!(
            BackendUnavailable,
            "no CUDA: the driver was started before this process was forked, so it is unusable here"
        );
    }
    STARTED
        .get_or_try_init(|| {
            // SAFETY: opens libcuda by name; NVIDIA's initialisers may run at any time, on any thread.
            if !unsafe { sys::is_culib_present() } {
                bail!(BackendUnavailable, "no CUDA: the driver library libcuda.so.1 was not found");
            }
            // SAFETY: the library is present, so it loads.
            if let Err(e) = unsafe { sys::culib().get::<unsafe extern "C" fn(u32) -> u32>(b"cuInit\0") } {
                let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                bail!(BackendUnavailable, "no CUDA: the driver library libcuda.so.1 was found, but {why}");
            }
            // SAFETY: the library has the function; cuInit has no other precondition.
            check(unsafe { sys::cuInit(0) }, "CUDA driver: cuInit")
                .map_err(|e| Error::new(Status::BackendUnavailable, e.message()))
        })
        .copied()
}

/// Whether the loader opens the driver, or why it does not.
#[cfg(unix)]
fn is_loadable() -> Result<()> {
    for name in [c"libcuda.so.1", c"libcuda.so"] {
        // SAFETY: the name is a C string. The library stays loaded: `start` opens it again.
        if !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY) }.is_null() {
            return Ok(());
        }
        // SAFETY: NULL, or a C string of this thread that is valid until its next call of the loader.
        let text = unsafe { libc::dlerror() };
        // SAFETY: not NULL, so a C string.
        let text = if text.is_null() { c"" } else { unsafe { CStr::from_ptr(text) } };
        let (name, why) = (name.to_str().unwrap_or(""), text.to_str().unwrap_or("the loader's text is not UTF-8"));
        // The loader says only in a text whether it found the file.
        let not_found = why.strip_prefix(name).is_some_and(|rest| rest.starts_with(": cannot open shared object file"));
        if !not_found {
            bail!(BackendUnavailable, "no CUDA: the driver library {name} was found, but does not load: {why}");
        }
    }
    bail!(BackendUnavailable, "no CUDA: the driver library libcuda.so.1 was not found")
}

/// Found out by [`start`].
#[cfg(not(unix))]
fn is_loadable() -> Result<()> {
    Ok(())
}

/// The number of devices; 0 without a driver.
pub fn device_count() -> u32 {
    let mut n = 0;
    // SAFETY: `||` calls it only after `start` has succeeded; the output is writable.
    if start().is_err() || unsafe { sys::cuDeviceGetCount(&raw mut n) } != sys::CUresult::CUDA_SUCCESS {
        return 0;
    }
    u32::try_from(n).unwrap_or(0)
}

/// Compute capability times ten of a device. Needs no context, but an initialised driver.
pub fn arch_of(ordinal: u32) -> Option<u32> {
    let mut device = 0;
    // SAFETY: the output is writable; an ordinal out of range is an error code.
    let code = unsafe { sys::cuDeviceGet(&raw mut device, i32::try_from(ordinal).ok()?) };
    (code == sys::CUresult::CUDA_SUCCESS).then(|| arch(device).ok())?
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the output is writable; a device that does not exist is an error code.
    check(unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) }, "device attribute")?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn arch(device: sys::CUdevice) -> Result<u32> {
    use sys::CUdevice_attribute as A;
    let major = attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok(major * 10 + attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?)
}

/// The context that a cache works in: a device's primary one, retained, or the host's own.
#[derive(Debug)]
pub struct Context {
    handle: sys::CUcontext,
    device: sys::CUdevice,
    /// A primary context, which is released on drop. A host's own context is left to the host.
    retained: bool,
}

// SAFETY: a context handle is not bound to a thread: any thread may push it.
unsafe impl Send for Context {}
// SAFETY: the driver serialises calls on one context itself.
unsafe impl Sync for Context {}

impl Context {
    /// The handle as a number.
    pub fn number(&self) -> usize {
        self.handle.expose_provenance()
    }

    /// The host's context; where it is NULL, the primary context of device `ordinal`.
    pub fn new(ordinal: u32, host: *mut c_void) -> Result<Self> {
        start()?;
        if !host.is_null() {
            let mut device = 0;
            let handle = host.cast();
            // SAFETY: `CudaConfig::context` is a live context by its documentation.
            check(unsafe { sys::cuCtxPushCurrent_v2(handle) }, "cuda_context")?;
            // SAFETY: the context was pushed above; the output is writable.
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
        // SAFETY: the driver is initialised, outputs are writable, and the ordinal was checked above.
        unsafe {
            check(sys::cuDeviceGet(&raw mut device, ordinal as i32), "cuDeviceGet")?;
            check(sys::cuDevicePrimaryCtxRetain(&raw mut handle, device), "primary context")?;
        }
        Ok(Self { handle, device, retained: true })
    }

    /// Makes it current on this thread until the guard is dropped.
    pub fn enter(&self) -> Result<CurrentContext<'_>> {
        // SAFETY: the handle is live: retained by `new`, or the host's, which must outlive the cache.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.handle) }, "context")?;
        Ok(CurrentContext { context: self })
    }

    /// Compute capability times ten, such as 90.
    pub fn arch(&self) -> Result<u32> {
        arch(self.device)
    }

    /// The device's multiprocessors.
    pub fn multiprocessors(&self) -> Result<u32> {
        attribute(self.device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// Whether the device runs clusters of blocks, and they are not switched off.
    pub fn has_clusters(&self) -> bool {
        if std::env::var_os(CLUSTERS_VARIABLE).is_some_and(|on| on == "0") {
            return false;
        }
        // Older drivers do not know the attribute.
        self.arch().is_ok_and(|arch| arch >= CLUSTER_ARCH)
            && attribute(self.device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH).unwrap_or(0) != 0
    }

    /// The most shared memory that a block may use, in bytes.
    pub fn shared_limit(&self) -> Result<u32> {
        attribute(self.device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.retained {
            // SAFETY: releases what `new` retained, once. At process exit the driver may already be shut down: an error
            // code then, which changes nothing.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

/// Pops the context that this thread pushed last.
fn pop() {
    let mut was = std::ptr::null_mut();
    // SAFETY: callers have pushed a context on this thread, and the output is writable.
    let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut was) };
}

/// Proof that a context is current on this thread. Drop restores the context that was current before.
#[derive(Debug)]
pub struct CurrentContext<'a> {
    context: &'a Context,
}

impl Drop for CurrentContext<'_> {
    fn drop(&mut self) {
        pop();
    }
}

/// A piece of every row of a run: `width` bytes at multiples of `pitch` on the device and of `host_pitch` on the host.
#[derive(Clone, Copy, Debug)]
pub struct RowPiece {
    pub address: u64,
    pub pitch: usize,
    pub width: usize,
    pub host_pitch: usize,
}

impl RowPiece {
    /// Whether the pieces follow each other on both sides.
    fn contiguous(&self) -> bool {
        self.pitch == self.width && self.host_pitch == self.width
    }

    /// A copy of the pieces that end within `bytes` from `host` on.
    fn copy(&self, host: *mut u8, bytes: usize, to_host: bool) -> sys::CUDA_MEMCPY2D {
        use sys::CUmemorytype::{CU_MEMORYTYPE_DEVICE as DEVICE, CU_MEMORYTYPE_HOST as HOST};
        let (from, to) = if to_host { (DEVICE, HOST) } else { (HOST, DEVICE) };
        let pitch = |side| if side == HOST { self.host_pitch } else { self.pitch };
        // Of each side's addresses, the one of its memory type counts.
        sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: from,
            srcHost: host.cast_const().cast(),
            srcDevice: self.address,
            srcArray: std::ptr::null_mut(),
            srcPitch: pitch(from),
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: to,
            dstHost: host.cast(),
            dstDevice: self.address,
            dstArray: std::ptr::null_mut(),
            dstPitch: pitch(to),
            WidthInBytes: self.width,
            Height: if bytes < self.width { 0 } else { (bytes - self.width) / self.host_pitch + 1 },
        }
    }
}

impl CurrentContext<'_> {
    /// The context.
    pub fn context(&self) -> &Context {
        self.context
    }

    /// Whether a stream is being captured into a graph.
    pub fn capturing(&self, stream: Stream) -> Result<bool> {
        use sys::CUstreamCaptureStatus as S;
        let mut status = S::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the output is writable; the host's stream is live and of this context (the contract of `set_stream`).
        check(unsafe { sys::cuStreamIsCapturing(raw(stream), &raw mut status) }, "stream")?;
        match status {
            S::CU_STREAM_CAPTURE_STATUS_NONE => Ok(false),
            S::CU_STREAM_CAPTURE_STATUS_ACTIVE => Ok(true),
            _ => bail!(InvalidArgument, "the capture of this stream has been invalidated: end it"),
        }
    }

    /// Waits for all work of a stream.
    pub fn wait(&self, stream: Stream) -> Result<()> {
        // SAFETY: the host's stream is live and of this context (the contract of `set_stream`).
        check(unsafe { sys::cuStreamSynchronize(raw(stream)) }, "stream")
    }

    /// Waits for all work of the context.
    pub fn wait_all(&self) -> Result<()> {
        // SAFETY: a context is current, since `self` exists.
        check(unsafe { sys::cuCtxSynchronize() }, "context")
    }

    /// Copies device memory to the host after the work that is in the stream, and waits for the copy.
    pub fn read<T: Copy>(&self, stream: Stream, from: u64, to: &mut [T]) -> Result<()> {
        // SAFETY: `to` is writable for its length, and is read only after the copy has been waited for. Callers pass
        // `T`s that are plain numbers and addresses within the cache's own allocations.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, size_of_val(to), raw(stream)) };
        check(code, "cuMemcpyDtoHAsync")?;
        self.wait(stream)
    }

    /// Puts a copy of rows to the host into a stream. `to` may be read once the stream has been waited for.
    pub fn read_rows_later(&self, stream: Stream, rows: RowPiece, to: &mut [u8]) -> Result<()> {
        if rows.contiguous() {
            // SAFETY: `to` is writable for its length; callers wait before they read it or let it go. They pass
            // addresses within the cache's own allocations.
            let code =
                unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), rows.address, to.len(), raw(stream)) };
            return check(code, "cuMemcpyDtoHAsync");
        }
        let copy = rows.copy(to.as_mut_ptr(), to.len(), true);
        // SAFETY: as above; the copy has no more rows than end within `to`.
        check(unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, raw(stream)) }, "cuMemcpy2DAsync")
    }

    /// Puts a copy of rows from the host into a stream. Pageable memory has been read when this returns; pinned memory
    /// must stay as it is until the stream's work has finished.
    pub fn write_rows(&self, stream: Stream, rows: RowPiece, from: &[u8]) -> Result<()> {
        if rows.contiguous() {
            return self.write(stream, rows.address, from);
        }
        let copy = rows.copy(from.as_ptr().cast_mut(), from.len(), false);
        // SAFETY: `from` is readable for the copy's rows, and callers keep it where it is pinned. They pass addresses
        // within the cache's own allocations.
        check(unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, raw(stream)) }, "cuMemcpy2DAsync")
    }

    /// Puts a copy of host memory to the device into a stream. Pageable memory has been read when this returns; pinned
    /// memory must stay as it is until the stream's work has finished.
    pub fn write<T: Copy>(&self, stream: Stream, to: u64, from: &[T]) -> Result<()> {
        // SAFETY: `from` is readable for its length, and callers keep it where it is pinned. They pass addresses within
        // the cache's own allocations.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), size_of_val(from), raw(stream)) };
        check(code, "cuMemcpyHtoDAsync")
    }

    /// Puts a copy within device memory into a stream.
    pub fn copy(&self, stream: Stream, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: callers pass addresses within allocations of caches of this context.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, raw(stream)) }, "cuMemcpyDtoDAsync")
    }

    /// Puts a kernel into a stream. `params` is copied before this returns.
    pub fn launch<P>(&self, kernel: &Kernel, size: LaunchSize, target: LaunchTarget, params: &P) -> Result<()> {
        let mut args = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let [x, y, z] = size.grid;
        let programmatic = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let clustered = size.cluster > 1;
        let mut attributes = [programmatic, cluster_attribute(size.cluster)];
        // Either of them may be left out.
        let used = &mut attributes[usize::from(!target.programmatic)..1 + usize::from(clustered)];
        let config = launch_config(kernel, size, raw(target.stream), used);
        let threads = kernel.threads;
        let none = std::ptr::null_mut();
        // SAFETY: `args` points to one `P`, and callers choose the kernel whose parameter is a `P`; the function is
        // loaded, and the stream live. cuLaunchKernelEx is missing in drivers older than programmatic launches and
        // clusters, which cannot be switched on there.
        let code = unsafe {
            if target.programmatic || clustered {
                sys::cuLaunchKernelEx(&raw const config, kernel.function, args.as_mut_ptr(), none)
            } else {
                let shared = size.shared_bytes;
                let stream = raw(target.stream);
                sys::cuLaunchKernel(kernel.function, x, y, z, threads, 1, 1, shared, stream, args.as_mut_ptr(), none)
            }
        };
        check(code, kernel.name)
    }
}

/// Blocks of a launch, and the shared memory of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchSize {
    pub grid: [u32; 3],
    pub shared_bytes: u32,
    /// Blocks that follow each other in z and run as one cluster: a divisor of the grid's z; 1 without clusters.
    pub cluster: u32,
}

impl LaunchSize {
    /// Without clusters.
    pub fn new(grid: [u32; 3], shared_bytes: u32) -> Self {
        Self { grid, shared_bytes, cluster: 1 }
    }
}

fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
    let size = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: blocks };
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { clusterDim: size },
    }
}

/// It points to `attributes`.
fn launch_config(
    kernel: &Kernel,
    size: LaunchSize,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    let [x, y, z] = size.grid;
    sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: kernel.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: size.shared_bytes,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

/// Where launches go.
#[derive(Clone, Copy, Debug)]
pub struct LaunchTarget {
    pub stream: Stream,
    /// Programmatic dependent launches: blocks may be scheduled while the preceding kernel still runs, for which every
    /// kernel begins by waiting.
    pub programmatic: bool,
}

fn raw(stream: Stream) -> sys::CUstream {
    std::ptr::with_exposed_provenance_mut(stream.0)
}

/// Switches the calling thread's capture mode to relaxed. A stream that another thread captures in global mode would
/// otherwise make allocations and waits fail. Creation and destruction touch no captured stream.
#[derive(Debug)]
pub struct RelaxedCapture {
    before: sys::CUstreamCaptureMode,
}

impl RelaxedCapture {
    /// Until the guard is dropped.
    pub fn new() -> Result<Self> {
        let mut before = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the driver is initialised, and `before` is readable and writable.
        check(unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut before) }, "capture mode")?;
        Ok(Self { before })
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: the driver is initialised, and `before` is readable and writable.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut self.before) };
    }
}

/// Device code, loaded into a context.
#[derive(Debug)]
pub struct Module(sys::CUmodule);

// SAFETY: a module handle is not bound to a thread.
unsafe impl Send for Module {}
// SAFETY: a shared reference only looks kernels up, which the driver serialises.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin into the current context.
    pub fn load(_: &CurrentContext<'_>, cubin: &[u8]) -> Result<Self> {
        let mut module = std::ptr::null_mut();
        // SAFETY: a context is current. The image is a whole ELF file, as the driver requires of a pointer without
        // length: it comes from NVRTC, from the library itself, or from the disk cache, which checks length and
        // checksum.
        check(unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) }, "loading a kernel module")?;
        Ok(Self(module))
    }

    /// One of its kernels, for blocks of `threads` threads with up to `shared_bytes` of dynamic shared memory.
    pub fn kernel(&self, name: &'static CStr, threads: u32, shared_bytes: u32) -> Result<Kernel> {
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded (`unload` takes it by value), the name a C string, the output writable.
        check(unsafe { sys::cuModuleGetFunction(&raw mut function, self.0, name.as_ptr()) }, "kernel")?;
        // More than 48 KiB need an opt-in.
        if shared_bytes > DEFAULT_SHARED_LIMIT {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            check(unsafe { sys::cuFuncSetAttribute(function, which, shared_bytes as i32) }, "shared memory")?;
        }
        Ok(Kernel { function, threads, name: name.to_str().unwrap_or("kernel") })
    }

    /// The occupancy of a kernel: blocks that are resident on a multiprocessor together.
    pub fn blocks_per_multiprocessor(&self, kernel: &Kernel, shared_bytes: u32) -> Result<u32> {
        let mut blocks = 0;
        let threads = kernel.threads as i32;
        let shared = shared_bytes as usize;
        // SAFETY: the output is writable, and the function is of this loaded module.
        let code = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut blocks, kernel.function, threads, shared)
        };
        check(code, kernel.name)?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Clusters of so many blocks that the device runs at the same time; 0 where it refuses them. Callers ask only
    /// devices of compute capability 9.0 on, whose drivers have the function.
    pub fn resident_clusters(&self, kernel: &Kernel, shared_bytes: u32, blocks: u32) -> u32 {
        let size = LaunchSize { grid: [1, 1, blocks], shared_bytes, cluster: blocks };
        let mut attributes = [cluster_attribute(blocks)];
        let config = launch_config(kernel, size, std::ptr::null_mut(), &mut attributes);
        let mut clusters = 0;
        // SAFETY: the output is writable, the attributes outlive the call, and the function is of this loaded module.
        let code = unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut clusters, kernel.function, &raw const config) };
        if code == sys::CUresult::CUDA_SUCCESS { u32::try_from(clusters).unwrap_or(0) } else { 0 }
    }

    /// Frees it. Its context must be current and its kernels idle.
    pub fn unload(self, _: &CurrentContext<'_>) {
        // SAFETY: `self` is consumed, so it is unloaded once; kernels of it are not launched any more.
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

// SAFETY: a function handle is not bound to a thread.
unsafe impl Send for Kernel {}
// SAFETY: a shared reference only launches, which the driver serialises.
unsafe impl Sync for Kernel {}

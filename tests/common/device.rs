//! A CUDA host for tests: a context, a stream, device memory. Which backend the shared tests run on is
//! `SKC_TEST_BACKEND` (`cpu`, the default, or `cuda`); with `cuda` they fail where there is no CUDA.

use std::cell::OnceCell;
use std::marker::PhantomData;

use cudarc::driver::sys::{self, CUresult};
use sinkcache::{AttendTensors, BackendKind, Batch, Cache, RowsIn, RowsOut, StepTensors};

use super::Call;

/// The backend under test.
pub fn backend() -> BackendKind {
    match std::env::var("SKC_TEST_BACKEND").as_deref() {
        Ok("cuda") => BackendKind::Cuda,
        Ok("cpu") | Err(_) => BackendKind::Cpu,
        Ok(other) => panic!("SKC_TEST_BACKEND is {other}: cpu or cuda is allowed"),
    }
}

/// Fails unless the driver's call succeeded.
#[track_caller]
pub fn ok(code: CUresult) {
    assert_eq!(code, CUresult::CUDA_SUCCESS);
}

/// The CUDA host of a thread: the primary context of device 0, made current, and a non-blocking stream.
pub struct Host {
    pub context: sys::CUcontext,
    pub stream: sys::CUstream,
}

thread_local! {
    static HOST: OnceCell<Host> = const { OnceCell::new() };
}

/// Runs `body` with the thread's host.
pub fn with_host<T>(body: impl FnOnce(&Host) -> T) -> T {
    HOST.with(|host| body(host.get_or_init(Host::new)))
}

impl Host {
    fn new() -> Self {
        // SAFETY: calls of the driver without preconditions; outputs are writable.
        unsafe {
            assert!(sys::is_culib_present(), "SKC_TEST_BACKEND is cuda, but there is no CUDA driver");
            ok(sys::cuInit(0));
            let (mut device, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
            ok(sys::cuDeviceGet(&raw mut device, 0));
            ok(sys::cuDevicePrimaryCtxRetain(&raw mut context, device));
            ok(sys::cuCtxSetCurrent(context));
            ok(sys::cuStreamCreate(&raw mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32));
            Self { context, stream }
        }
    }

    /// Waits for the stream.
    pub fn wait(&self) {
        // SAFETY: the stream is live.
        ok(unsafe { sys::cuStreamSynchronize(self.stream) });
    }

    /// Multiprocessors of the device.
    pub fn multiprocessors(&self) -> u32 {
        self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// The major number of the device's compute capability.
    pub fn compute_capability(&self) -> u32 {
        self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
    }

    fn attribute(&self, which: sys::CUdevice_attribute) -> u32 {
        let (mut device, mut n) = (0, 0);
        // SAFETY: outputs are writable; a context is current.
        unsafe {
            ok(sys::cuCtxGetDevice(&raw mut device));
            ok(sys::cuDeviceGetAttribute(&raw mut n, which, device));
        }
        n as u32
    }

    /// The context that is current on this thread.
    pub fn current() -> sys::CUcontext {
        let mut context = std::ptr::null_mut();
        // SAFETY: the output is writable.
        ok(unsafe { sys::cuCtxGetCurrent(&raw mut context) });
        context
    }
}

/// Device memory for `T`s.
pub struct Buf<T> {
    pub address: u64,
    pub len: usize,
    kind: PhantomData<T>,
}

impl<T: Copy> Buf<T> {
    pub fn new(values: &[T]) -> Self {
        let mut address = 0;
        // SAFETY: the output is writable; a context is current.
        ok(unsafe { sys::cuMemAlloc_v2(&raw mut address, size_of_val(values).max(1)) });
        let buf = Self { address, len: values.len(), kind: PhantomData };
        buf.write(values);
        buf
    }

    /// Overwrites its contents, in the stream of the thread's host.
    pub fn write(&self, values: &[T]) {
        assert!(values.len() <= self.len);
        with_host(|host| {
            // SAFETY: within the block; pageable memory has been read when the call returns.
            unsafe {
                let (from, bytes) = (values.as_ptr().cast(), size_of_val(values));
                if bytes > 0 {
                    ok(sys::cuMemcpyHtoDAsync_v2(self.address, from, bytes, host.stream));
                }
            }
            host.wait();
        });
    }

    /// Its contents after all work in the stream of the thread's host.
    pub fn read(&self) -> Vec<T> {
        with_host(|host| {
            let mut values = Vec::<T>::with_capacity(self.len);
            // SAFETY: the vector has capacity for that many bytes, and every byte pattern is a valid `T`.
            unsafe {
                if self.len > 0 {
                    let bytes = self.len * size_of::<T>();
                    ok(sys::cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), self.address, bytes, host.stream));
                }
                host.wait();
                values.set_len(self.len);
            }
            values
        })
    }

    /// As rows of a call's input.
    pub fn rows(&self) -> RowsIn<'_> {
        // SAFETY: device memory for as many elements as it was made from, which lives as long as the borrow.
        unsafe { RowsIn::from_raw(std::ptr::with_exposed_provenance(self.address as usize), 0, 0) }
    }

    /// As rows of a call's output.
    pub fn rows_out(&mut self) -> RowsOut<'_> {
        // SAFETY: as above.
        unsafe { RowsOut::from_raw(std::ptr::with_exposed_provenance_mut(self.address as usize), 0, 0) }
    }
}

impl<T> Drop for Buf<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; cuMemFree waits for work that uses it.
        unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// The tensors of [`feed_on_device`], in host memory.
pub struct HostTensors<'a, T> {
    pub q: &'a [T],
    pub k: &'a [T],
    pub v: &'a [T],
    pub out: &'a mut [T],
    pub lse: &'a mut [f32],
}

/// Appends and attends with copies of the tensors in device memory, in the stream of the thread's host.
pub fn feed_on_device<T: Copy>(
    cache: &mut Cache,
    layer: u32,
    batch: Batch<'_>,
    tensors: HostTensors<'_, T>,
    call: Call,
) {
    with_host(|host| {
        let HostTensors { q, k, v, out, lse } = tensors;
        let [q, k, v] = [q, k, v].map(Buf::new);
        let (mut o, mut l) = (Buf::new(out), Buf::new(lse));
        // SAFETY: the host's stream belongs to the primary context, as the cache does, and lives as long as the thread.
        unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
        let (k, v, q) = (k.rows(), v.rows(), q.rows());
        match call {
            Call::Two => {
                cache.append(layer, batch, k, v).unwrap();
                let tensors = AttendTensors { q, out: o.rows_out(), lse: Some(l.rows_out()) };
                cache.attend(layer, batch, tensors).unwrap();
            }
            Call::Step => {
                let tensors = StepTensors { k, v, q, out: o.rows_out(), lse: Some(l.rows_out()) };
                cache.step(layer, batch, tensors).unwrap();
            }
        }
        out.copy_from_slice(&o.read());
        lse.copy_from_slice(&l.read());
        assert_eq!(Host::current(), host.context, "the host's context was changed");
        assert_eq!(cache.take_error().unwrap(), None);
    });
}

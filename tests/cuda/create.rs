//! Creating a cache, and the CUDA contexts of its host.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{self, CUresult};
use sinkcache::{Batch, Cache, CacheConfig, CudaConfig, LayerConfig, Memory, RowsIn, Status, StepTensors};

use crate::common::device::{Host, ok, with_host};
use crate::common::new_cache;
use crate::support::{Graph, KV, Random, Tensors, close, config, cuda, to_bf16};

/// A cache that needs more memory than the device has is rejected, and leaks nothing.
#[test]
fn too_large_a_cache_is_a_status() {
    let Some(_turn) = cuda() else { return };
    with_host(|_| {
        let free = || {
            let (mut free, mut total) = (0, 0);
            // SAFETY: outputs are writable.
            ok(unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) });
            free
        };
        drop(new_cache(&config(1, 1, 4, 60)));
        let before = free();
        let layers = vec![LayerConfig { n_sink: 4, window: 1 << 20, ..LayerConfig::default() }];
        let huge = CacheConfig { n_layers: 60_000, n_seqs: 1 << 20, layers, ..config(1, 1, 4, 60) };
        for _ in 0..3 {
            assert_eq!(Cache::new(&huge).unwrap_err().status(), Status::OutOfMemory);
        }
        assert_eq!(free(), before);
    });
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let Some(_turn) = cuda() else { return };
    let cuda = CudaConfig { device: 4_000, ..CudaConfig::default() };
    let error = Cache::new(&CacheConfig { cuda, ..config(1, 1, 4, 60) }).unwrap_err();
    assert_eq!(error.status(), Status::InvalidConfig);
    assert!(error.message().contains("cuda_device is 4000"), "{error}");
}

/// Every call leaves the host's current context unchanged, also if there is none.
#[test]
fn the_hosts_context_is_unchanged() {
    let Some(_turn) = cuda() else { return };
    with_host(|host| {
        let mut other = null_mut();
        // SAFETY: outputs are writable; the context is destroyed below.
        unsafe {
            let mut device = 0;
            ok(sys::cuDeviceGet(&raw mut device, 0));
            ok(sys::cuCtxCreate_v4(&raw mut other, null_mut(), 0, device));
            // cuCtxCreate makes it current: pop it, so that there can be no current context.
            ok(sys::cuCtxPopCurrent_v2(&raw mut other));
        }
        for current in [other, null_mut(), host.context] {
            // SAFETY: a live context or none.
            ok(unsafe { sys::cuCtxSetCurrent(current) });
            let mut cache = Cache::new(&config(1, 2, 4, 60)).unwrap();
            assert_eq!(Host::current(), current);
            // SAFETY: the host's stream.
            unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
            assert_eq!(Host::current(), current);
            cache.reset(&[0], None).unwrap();
            cache.fork(&[0], &[1]).unwrap();
            cache.read_back(1).unwrap();
            cache.take_error().unwrap();
            // Rejected: tensors in host memory.
            let rows = to_bf16(&[0.0; KV]);
            let rows = RowsIn::packed(&rows);
            assert!(cache.append(0, Batch::new(&[0], &[1]), rows, rows).is_err());
            assert_eq!(Host::current(), current);
            drop(cache);
            assert_eq!(Host::current(), current);
        }
        // SAFETY: made above; its caches are gone.
        ok(unsafe { sys::cuCtxDestroy_v2(other) });
        // SAFETY: live.
        ok(unsafe { sys::cuCtxSetCurrent(host.context) });
    });
}

/// One cache in the primary context and one in a context of the host, at the same time.
#[test]
fn two_contexts() {
    let Some(_turn) = cuda() else { return };
    with_host(|host| {
        let (mut device, mut own) = (0, null_mut());
        // SAFETY: outputs are writable.
        unsafe {
            ok(sys::cuDeviceGet(&raw mut device, 0));
            ok(sys::cuCtxCreate_v4(&raw mut own, null_mut(), 0, device));
            ok(sys::cuCtxPopCurrent_v2(&raw mut own));
        }
        let here =
            |context| CacheConfig { cuda: CudaConfig { context, ..CudaConfig::default() }, ..config(1, 1, 2, 9) };
        let step = |context: sys::CUcontext, cache: &mut Cache| {
            // SAFETY: a live context; its default stream.
            unsafe {
                ok(sys::cuCtxSetCurrent(context));
                cache.set_stream(null_mut()).unwrap();
            }
            let mut t = Tensors::new(3);
            t.draw(&mut Random(4), 3);
            t.feed(cache, 0, Batch::new(&[0], &[3]));
            // SAFETY: a context is current.
            ok(unsafe { sys::cuCtxSynchronize() });
            t.out.read()
        };
        // The thread's stream belongs to the primary context: only the cache there can use it.
        let mut first = Cache::new(&here(null_mut())).unwrap();
        let want: Vec<_> = (0..5).map(|_| step(host.context, &mut first)).collect();
        let mut second = Cache::new(&here(own.cast())).unwrap();
        let info = |c: &Cache| c.seq_info(0, 0).unwrap();
        let mut got = vec![];
        for _ in 0..5 {
            got.push(own_step(own, &mut second));
            step(host.context, &mut first);
        }
        assert_eq!(info(&second).len_min * 2, info(&first).len_min);
        got.iter().zip(&want).for_each(|(a, b)| close(a, b));
        drop((first, second));
        // SAFETY: its cache is gone.
        unsafe {
            ok(sys::cuCtxSetCurrent(host.context));
            ok(sys::cuCtxDestroy_v2(own));
        }
    });
}

/// A step of three tokens in a context other than the thread's, with synchronous copies.
fn own_step(context: sys::CUcontext, cache: &mut Cache) -> Vec<f32> {
    let mut random = Random(4);
    let rows = [4 * 64, 2 * 64, 2 * 64].map(|width| to_bf16(&random.rows(3 * width)));
    let mut out = vec![0.0_f32; 3 * 4 * 64];
    // SAFETY: blocks as long as what is copied; all is waited for before they are freed.
    unsafe {
        ok(sys::cuCtxSetCurrent(context));
        cache.set_stream(null_mut()).unwrap();
        let place = |bytes: usize| {
            let mut address = 0;
            ok(sys::cuMemAlloc_v2(&raw mut address, bytes));
            address
        };
        let [q, k, v] = [0, 1, 2].map(|i| {
            let address = place(size_of_val(rows[i].as_slice()));
            ok(sys::cuMemcpyHtoD_v2(address, rows[i].as_ptr().cast(), size_of_val(rows[i].as_slice())));
            address
        });
        let o = place(size_of_val(out.as_slice()));
        let input = |a: u64| RowsIn::from_raw(std::ptr::with_exposed_provenance(a as usize), 0, 0);
        let output = sinkcache::RowsOut::from_raw(std::ptr::with_exposed_provenance_mut(o as usize), 0, 0);
        let tensors = StepTensors { k: input(k), v: input(v), q: input(q), out: output, lse: None };
        cache.step(0, Batch::new(&[0], &[3]), tensors).unwrap();
        ok(sys::cuMemcpyDtoH_v2(out.as_mut_ptr().cast(), o, size_of_val(out.as_slice())));
        [q, k, v, o].into_iter().for_each(|a| ok(sys::cuMemFree_v2(a)));
    }
    out
}

static TAKEN: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn take(_: *mut c_void, bytes: usize, _: usize) -> *mut c_void {
    let mut address = 0;
    // SAFETY: the cache's context is current.
    if unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) } != CUresult::CUDA_SUCCESS {
        return null_mut();
    }
    TAKEN.fetch_add(bytes as u64, Ordering::Relaxed);
    std::ptr::with_exposed_provenance_mut(address as usize)
}

unsafe extern "C" fn give(_: *mut c_void, ptr: *mut c_void, bytes: usize) {
    // SAFETY: taken above; the cache's context is current.
    ok(unsafe { sys::cuMemFree_v2(ptr as u64) });
    TAKEN.fetch_sub(bytes as u64, Ordering::Relaxed);
}

unsafe extern "C" fn nothing(_: *mut c_void, _: usize, _: usize) -> *mut c_void {
    null_mut()
}

/// Device memory is allocated and freed by the callbacks, as many bytes as skc_cache_bytes says.
#[test]
fn memory_from_callbacks() {
    let Some(_turn) = cuda() else { return };
    let with = |alloc| {
        // SAFETY: the functions above keep the contract.
        let memory = unsafe { Memory::new(alloc, give, null_mut()) };
        CacheConfig { cuda: CudaConfig { memory, ..CudaConfig::default() }, ..config(2, 3, 4, 60) }
    };
    let config = with(take);
    let cache = new_cache(&config);
    assert_eq!(TAKEN.load(Ordering::Relaxed), Cache::footprint(&config).unwrap().device);
    drop(cache);
    assert_eq!(TAKEN.load(Ordering::Relaxed), 0);
    let error = Cache::new(&with(nothing)).unwrap_err();
    assert_eq!(error.status(), Status::OutOfMemory);
    assert!(error.message().contains("device_alloc returned NULL"), "{error}");
}

/// A cache can be created while a stream of another thread, or of this one, is being captured.
#[test]
fn create_during_a_capture() {
    let Some(_turn) = cuda() else { return };
    with_host(|host| {
        let mut made = None;
        let graph = Graph::capture(host, || made = Some(Cache::new(&config(1, 1, 4, 60)).unwrap()));
        graph.launch(host);
        host.wait();
        let mut cache = made.unwrap();
        // SAFETY: the host's stream.
        unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
        let mut t = Tensors::new(1);
        t.draw(&mut Random(3), 1);
        t.feed(&mut cache, 0, Batch::new(&[0], &[1]));
        assert!(t.out.read().iter().all(|x| x.is_finite()));
    });
}

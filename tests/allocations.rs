//! All memory is allocated when a cache is created: steps and edits allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use sinkcache::ffi;
use sinkcache::{AttendTensors, Batch, Cache, CacheConfig, LayerConfig, Memory, RowsIn, RowsOut, StepTensors};

struct Counting;

thread_local! {
    /// Counted per thread: threads of the test harness allocate, too.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        // SAFETY: the caller's layout and pointer, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: the caller's layout and pointer, unchanged.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn config() -> CacheConfig {
    CacheConfig {
        n_layers: 2,
        n_seqs: 4,
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        max_chunk: 8,
        layers: vec![LayerConfig { n_sink: 2, window: 10, ..LayerConfig::default() }],
        ..CacheConfig::default()
    }
}

/// A single test, so that no other test allocates at the same time.
#[test]
fn nothing_is_allocated_after_create() {
    let footprint = Cache::footprint(&config()).unwrap();
    let before = LIVE.get();
    let mut cache = Cache::new(&config()).unwrap();
    let taken = LIVE.get().wrapping_sub(before) as u64;
    // The footprint does not include the objects themselves and their settings: a fixed size.
    let expected = footprint.host..footprint.host + 4096;
    assert!(expected.contains(&taken), "{taken} bytes allocated, footprint {}", footprint.host);

    let (k, q) = (vec![1.0_f32; 24 * 32], vec![1.0_f32; 24 * 64]);
    let (mut out, mut lse) = (vec![0.0_f32; 24 * 64], vec![0.0_f32; 24 * 4]);
    let (ids, counts) = ([0, 2, -1, 3], [3, 1, 2, 2]);
    let calls = CALLS.get();
    for round in 0..2_000 {
        for layer in 0..2 {
            let batch = Batch::new(&ids, &counts);
            let rows = || RowsIn::packed(&k);
            cache.append(layer, batch, rows(), rows()).unwrap();
            let (q, lse) = (RowsIn::packed(&q), Some(RowsOut::packed(&mut lse)));
            cache.attend(layer, batch, AttendTensors { q, out: RowsOut::packed(&mut out), lse }).unwrap();
            let tensors = StepTensors { k: rows(), v: rows(), q, out: RowsOut::packed(&mut out), lse: None };
            cache.step(layer, Batch::new(&[1], &[20]), tensors).unwrap();
        }
        cache.rewind(&[0, 1], &[1, 2]).unwrap();
        cache.evict(&[1], &[1]).unwrap();
        cache.abort_step(None).unwrap();
        if round % 100 == 0 {
            cache.fork(&[0], &[3]).unwrap();
            cache.reset(&[2], None).unwrap();
        }
    }
    assert_eq!(CALLS.get(), calls);
    drop((cache, k, q, out, lse));
    assert_eq!(LIVE.get(), before);

    failing_allocations();
    uninitialised_memory_is_never_read();
    the_c_abi_allocates_nothing();
}

/// Callbacks that count bytes, fill new memory with 0xFF (NaN in every type), and fail from the n-th call on.
#[derive(Default)]
struct Callbacks {
    left: AtomicUsize,
    live: AtomicUsize,
}

unsafe extern "C" fn alloc(user: *mut c_void, bytes: usize, align: usize) -> *mut c_void {
    // SAFETY: `user` is the test's `Callbacks`.
    let c = unsafe { &*user.cast::<Callbacks>() };
    if c.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err() {
        return std::ptr::null_mut();
    }
    c.live.fetch_add(bytes, Ordering::Relaxed);
    let layout = Layout::from_size_align(bytes, align).unwrap();
    // SAFETY: the layout is not empty; the block has that many bytes.
    unsafe {
        let ptr = System.alloc(layout);
        ptr.write_bytes(0xFF, bytes);
        ptr.cast()
    }
}

unsafe extern "C" fn free(user: *mut c_void, ptr: *mut c_void, bytes: usize) {
    // SAFETY: `user` is the test's `Callbacks`; `ptr` came from `alloc`, which aligns to 64.
    unsafe {
        (*user.cast::<Callbacks>()).live.fetch_sub(bytes, Ordering::Relaxed);
        System.dealloc(ptr.cast(), Layout::from_size_align(bytes, 64).unwrap());
    }
}

fn with_callbacks(c: &Callbacks) -> CacheConfig {
    // SAFETY: the callbacks outlive every cache made here.
    let memory = unsafe { Memory::new(alloc, free, std::ptr::from_ref(c).cast_mut().cast()) };
    CacheConfig { memory, ..config() }
}

fn failing_allocations() {
    let mut failures = 0;
    for n in 0.. {
        let c = Callbacks { left: n.into(), ..Callbacks::default() };
        match Cache::new(&with_callbacks(&c)) {
            Ok(cache) => {
                drop(cache);
                assert_eq!(c.live.load(Ordering::Relaxed), 0);
                break;
            }
            Err(e) => {
                assert_eq!(e.status(), sinkcache::Status::OutOfMemory, "{e}");
                assert_eq!(c.live.load(Ordering::Relaxed), 0, "a failed creation leaks");
                failures += 1;
            }
        }
    }
    assert!(failures >= 2);
}

fn uninitialised_memory_is_never_read() {
    let c = Callbacks { left: usize::MAX.into(), ..Callbacks::default() };
    let run = |config: &CacheConfig| {
        let mut cache = Cache::new(config).unwrap();
        let rows: Vec<f32> = (0..24 * 64).map(|i| (i % 13) as f32 / 8.0 - 0.7).collect();
        let mut all = Vec::new();
        for n in [1, 3, 8, 20, 2, 8] {
            let mut out = vec![0.0_f32; n * 64];
            let (k, q) = (RowsIn::packed(&rows[..n * 32]), RowsIn::packed(&rows[..n * 64]));
            for layer in 0..2 {
                let tensors = StepTensors { k, v: k, q, out: RowsOut::packed(&mut out), lse: None };
                cache.step(layer, Batch::new(&[1], &[n as i32]), tensors).unwrap();
            }
            cache.fork(&[1], &[2]).unwrap();
            all.extend(out);
        }
        all
    };
    let got = run(&with_callbacks(&c));
    assert!(got.iter().all(|x| x.is_finite()));
    assert_eq!(got, run(&config()));
}

/// The same through handles, argument structs and the registry.
fn the_c_abi_allocates_nothing() {
    let layer = ffi::skc_layer_config { n_sink: 2, window: 10, ..Default::default() };
    let config = ffi::skc_cache_config {
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        n_layer_configs: 1,
        layers: &raw const layer,
        ..Default::default()
    };
    let mut cache = std::ptr::null_mut();
    // SAFETY: the configuration is valid, the handle writable.
    assert_eq!(unsafe { ffi::skc_create_cache(&raw const config, &raw mut cache) }, 0);
    let (rows, ids, n) = ([0.5_f32; 64], [0], [1]);
    let mut out = [0.0_f32; 64];
    // SAFETY: all fields are integers and pointers, for which zero is valid.
    let mut args: ffi::skc_step_args = unsafe { std::mem::zeroed() };
    args.struct_size = size_of::<ffi::skc_step_args>() as u32;
    args.n_entries = 1;
    (args.seq_ids, args.n_tokens) = (ids.as_ptr(), n.as_ptr());
    (args.k, args.v, args.q) = (rows.as_ptr().cast(), rows.as_ptr().cast(), rows.as_ptr().cast());
    args.out = out.as_mut_ptr().cast();
    let calls = CALLS.get();
    for _ in 0..10_000 {
        // SAFETY: arguments are as the header demands.
        unsafe {
            assert_eq!(ffi::skc_step(cache, &raw const args), 0);
            assert_eq!(ffi::skc_step_part(cache, &raw const args, 0, 1), 0);
        }
    }
    assert_eq!(CALLS.get(), calls);
    assert_eq!(ffi::skc_destroy_cache(cache), 0);
}

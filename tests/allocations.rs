//! All memory is allocated when a cache is created: steps, edits and rejected calls allocate nothing. A failed
//! allocation is an error, and leaks nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use sinkcache::ffi;
use sinkcache::{
    AttendTensors, Batch, Cache, CacheConfig, Isa, LayerConfig, Memory, RowsIn, RowsOut, StepTensors, StorageType,
};

struct Counting;

thread_local! {
    /// Counted per thread: threads of the test harness allocate, too.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<usize> = const { Cell::new(0) };
    /// Allocations that succeed before all others fail.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

// SAFETY: every call is passed on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        if LEFT.get() == 0 {
            return std::ptr::null_mut();
        }
        LEFT.set(LEFT.get().saturating_sub(usize::from(LEFT.get() != usize::MAX)));
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

/// But for the objects themselves and their settings: a fixed size, however many sequences and ranges there are.
fn the_footprint_is_what_is_allocated() {
    let beyond = |n_seqs: u32, max_segments: u32| {
        let layers = vec![LayerConfig { max_segments, ..config().layers[0].clone() }];
        let config = CacheConfig { n_seqs, layers, ..config() };
        let before = LIVE.get();
        let cache = Cache::new(&config).unwrap();
        let taken = LIVE.get().wrapping_sub(before) as i64;
        drop(cache);
        taken - Cache::footprint(&config).unwrap().host as i64
    };
    let fixed = beyond(4, 0);
    assert!((0..4096).contains(&fixed), "{fixed} bytes beyond the footprint");
    for (n_seqs, max_segments) in [(1, 0), (500, 0), (1, 5), (500, 5)] {
        assert_eq!(beyond(n_seqs, max_segments), fixed, "{n_seqs} sequences, {max_segments} segments");
    }
}

/// A single test, so that no other test allocates at the same time.
#[test]
fn nothing_is_allocated_after_create() {
    the_footprint_is_what_is_allocated();
    let before = LIVE.get();
    let mut cache = Cache::new(&config()).unwrap();

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
    failing_allocations_of_the_process();
    contents_of_new_memory_change_no_bit();
    the_c_abi_allocates_nothing();
}

/// Callbacks that count bytes, fill new memory with one byte, and fail from the n-th call on.
#[derive(Default)]
struct Callbacks {
    left: AtomicUsize,
    live: AtomicUsize,
    fill: u8,
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
        ptr.write_bytes(c.fill, bytes);
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

fn with_callbacks(c: &Callbacks, config: CacheConfig) -> CacheConfig {
    // SAFETY: the callbacks outlive every cache made here.
    let memory = unsafe { Memory::new(alloc, free, std::ptr::from_ref(c).cast_mut().cast()) };
    CacheConfig { memory, ..config }
}

fn failing_allocations() {
    let mut failures = 0;
    for n in 0.. {
        let c = Callbacks { left: n.into(), ..Callbacks::default() };
        match Cache::new(&with_callbacks(&c, config())) {
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

/// Every allocation of a cache's creation fails in turn, and all that follow it.
fn failing_allocations_of_the_process() {
    let per_layer = || LayerConfig { sink_logits: vec![0.5; 4], inv_freq: vec![0.25; 8], ..config().layers[0].clone() };
    for n_threads in [1, 3] {
        for layers in [config().layers, vec![per_layer(), per_layer()]] {
            let config = CacheConfig { n_threads, layers, ..config() };
            let mut failures = 0;
            for n in 0.. {
                let live = LIVE.get();
                LEFT.set(n);
                let outcome = Cache::new(&config);
                let footprint = Cache::footprint(&config);
                LEFT.set(usize::MAX);
                match outcome {
                    Ok(cache) => {
                        drop((cache, footprint));
                        break;
                    }
                    Err(e) => assert_eq!(e.status(), sinkcache::Status::OutOfMemory, "allocation {n}: {e}"),
                }
                drop(footprint);
                assert_eq!(LIVE.get(), live, "a creation that failed at allocation {n} leaks");
                failures += 1;
            }
            assert!(failures >= 8, "{failures} places");
        }
    }
}

/// Slots that were never written are read with their block, and hidden: whatever they hold, no bit of a result changes.
fn contents_of_new_memory_change_no_bit() {
    // NaN, large and small numbers, minus zero and denormals, in every storage type.
    const FILLS: [u8; 6] = [0xFF, 0x7F, 0x7B, 0x3C, 0x80, 0x00];
    let rows: Vec<f32> = (0..300 * 4 * 64).map(|i| (i * 7 % 113) as f32 / 64.0 - 0.9).collect();
    let run = |config: &CacheConfig| {
        let mut cache = Cache::new(config).unwrap();
        let mut all: Vec<u32> = Vec::new();
        for n in [1, 3, 8, 70, 20, 2, 40, 300, 1] {
            let mut out = vec![0.0_f32; n * 4 * config.head_dim as usize];
            let (k, q) = (RowsIn::packed(&rows[..out.len() / 2]), RowsIn::packed(&rows[..out.len()]));
            let tensors = StepTensors { k, v: k, q, out: RowsOut::packed(&mut out), lse: None };
            cache.step(0, Batch::new(&[1], &[n as i32]), tensors).unwrap();
            cache.fork(&[1], &[2]).unwrap();
            all.extend(out.iter().map(|x| x.to_bits()));
        }
        all
    };
    for (isa, head_dim) in Isa::all().into_iter().flat_map(|isa| [16, 32, 64].map(|dim| (isa, dim))) {
        for kv_dtype in StorageType::ALL {
            let layers = vec![LayerConfig { n_sink: 2, window: 150, ..LayerConfig::default() }];
            let config = || CacheConfig {
                n_layers: 1,
                max_chunk: 96,
                head_dim,
                kv_dtype,
                isa: Some(isa),
                layers: layers.clone(),
                ..config()
            };
            let expected = run(&config());
            assert!(expected.iter().all(|&bits| f32::from_bits(bits).is_finite()));
            for fill in FILLS {
                let c = Callbacks { left: usize::MAX.into(), fill, ..Callbacks::default() };
                let got = run(&with_callbacks(&c, config()));
                assert!(
                    got == expected,
                    "{isa:?}, {head_dim} dims, {kv_dtype:?}: memory of {fill:#x} changes a result"
                );
            }
        }
    }
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
    rejected_calls_allocate_nothing(cache, &args);
    assert_eq!(ffi::skc_destroy_cache(cache), 0);
    assert_eq!(ffi::skc_destroy_cache(cache), ffi::SKC_STATUS_INVALID_HANDLE);
    assert_eq!(CALLS.get(), calls);
}

fn rejected_calls_allocate_nothing(cache: *mut ffi::skc_cache, good: &ffi::skc_step_args) {
    let calls = CALLS.get();
    let step = |change: &dyn Fn(&mut ffi::skc_step_args)| {
        let mut args = *good;
        change(&mut args);
        // SAFETY: what the header demands, but for what the call rejects before it is used.
        unsafe { [ffi::skc_step(cache, &raw const args), ffi::skc_step_part(cache, &raw const args, 0, 1)] }
    };
    let other = [7];
    // SAFETY: as above.
    unsafe {
        assert_eq!(step(&|a| a.layer = 9), [ffi::SKC_STATUS_OUT_OF_RANGE; 2]);
        assert_eq!(step(&|a| a.struct_size = 1), [ffi::SKC_STATUS_VERSION_MISMATCH; 2]);
        assert_eq!(step(&|a| a.flags = 1 << 20), [ffi::SKC_STATUS_VERSION_MISMATCH; 2]);
        assert_eq!(step(&|a| a.k = std::ptr::null()), [ffi::SKC_STATUS_NULL_POINTER; 2]);
        assert_eq!(step(&|a| a.seq_ids = other.as_ptr()), [ffi::SKC_STATUS_OUT_OF_RANGE; 2]);
        assert_eq!(step(&|a| a.n_entries = u32::MAX), [ffi::SKC_STATUS_OUT_OF_RANGE; 2]);
        assert_eq!(step(&|a| a.q_head_stride = i64::MAX), [ffi::SKC_STATUS_INVALID_ARGUMENT; 2]);
        assert_eq!(ffi::skc_step(std::ptr::null_mut(), good), ffi::SKC_STATUS_INVALID_HANDLE);
        let mut kernel: ffi::skc_kernel_info = std::mem::zeroed();
        kernel.struct_size = size_of::<ffi::skc_kernel_info>() as u32;
        assert_eq!(ffi::skc_kernel_choice(cache, 0, 2, 1, 1, &raw mut kernel), 0);
        assert_eq!(ffi::skc_kernel_choice(cache, 3, 2, 1, 1, &raw mut kernel), ffi::SKC_STATUS_OUT_OF_RANGE);
        let mut info: ffi::skc_sequence_info = std::mem::zeroed();
        info.struct_size = size_of::<ffi::skc_sequence_info>() as u32;
        assert_eq!(ffi::skc_seq_info(cache, 0, 0, &raw mut info), 0);
        assert_eq!(ffi::skc_seq_info(cache, 0, 44, &raw mut info), ffi::SKC_STATUS_OUT_OF_RANGE);
        let mut value = 0;
        assert_eq!(ffi::skc_constant(c"SKC_NOTHING".as_ptr(), &raw mut value), ffi::SKC_STATUS_INVALID_ARGUMENT);
        assert!(!std::ffi::CStr::from_ptr(ffi::skc_last_error()).is_empty());
    }
    assert_eq!(CALLS.get(), calls);
}

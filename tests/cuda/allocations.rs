//! Every allocation of device and pinned memory fails in turn, on the stand-in: a call that allocates says so, leaks
//! nothing and changes nothing; all others do not notice.

use sinkcache::{BackendKind, Batch, Cache, CacheConfig, Error, HostTag, LayerConfig, Status, StorageType};

use crate::common::new_cache;
use crate::support::{Random, Tensors, config, cuda, stand_in_function};

const TAG: HostTag = [9; 32];

/// The stand-in's functions; a GPU's driver has none.
struct StandIn {
    fail: unsafe extern "C" fn(i64),
    count: unsafe extern "C" fn() -> u64,
    live: unsafe extern "C" fn() -> u64,
}

impl StandIn {
    fn find() -> Option<Self> {
        // SAFETY: the functions of tools/cuda_shim/api_test.cpp have these types.
        unsafe {
            Some(Self {
                fail: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn(i64)>(stand_in_function(
                    c"skc_shim_fail_allocation",
                )?),
                count: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn() -> u64>(stand_in_function(
                    c"skc_shim_count_allocations",
                )?),
                live: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn() -> u64>(stand_in_function(
                    c"skc_shim_live_allocations",
                )?),
            })
        }
    }

    /// The n-th allocation from now on fails; 0: none.
    fn fail(&self, n: i64) {
        // SAFETY: the stand-in's.
        unsafe { (self.fail)(n) };
    }

    fn count(&self) -> u64 {
        // SAFETY: the stand-in's.
        unsafe { (self.count)() }
    }

    fn live(&self) -> u64 {
        // SAFETY: the stand-in's.
        unsafe { (self.live)() }
    }

    /// Calls with its first allocation failing, then the second, until none fails. Returns how many did.
    fn each_fails<T>(&self, name: &str, mut call: impl FnMut() -> Result<T, Error>) -> i64 {
        for n in 1.. {
            let before = self.live();
            self.fail(n);
            let outcome = call();
            self.fail(0);
            match outcome {
                Ok(value) => {
                    drop(value);
                    assert_eq!(self.live(), before, "{name} leaks");
                    return n - 1;
                }
                Err(e) => {
                    assert_eq!(e.status(), Status::OutOfMemory, "{name}, allocation {n}: {e}");
                    assert!(e.message().contains("byte"), "{name}, allocation {n}: {e}");
                    assert_eq!(self.live(), before, "{name} that failed at allocation {n} leaks");
                }
            }
        }
        unreachable!()
    }
}

fn configs() -> Vec<(&'static str, CacheConfig)> {
    let plain = config(2, 3, 4, 60);
    let edited = LayerConfig {
        max_pinned: 8,
        max_segments: 4,
        inv_freq: vec![0.5; 32],
        sink_logits: vec![0.0; 4],
        ..plain.layers[0].clone()
    };
    let quantised = CacheConfig { k_dtype: Some(StorageType::Q8), v_dtype: Some(StorageType::Q4), ..plain.clone() };
    vec![
        ("plain", plain.clone()),
        ("segments", CacheConfig { layers: vec![edited], ..plain }),
        ("quantised", quantised),
    ]
}

#[test]
fn creation_survives_each_failure() {
    let Some(_turn) = cuda() else { return };
    // The first one compiles kernels and takes the device's context.
    drop(new_cache(&config(1, 1, 4, 60)));
    let Some(shim) = StandIn::find() else {
        println!("skipped: allocations of this driver do not fail");
        return;
    };
    for (name, config) in configs() {
        drop(new_cache(&config));
        let failed = shim.each_fails(name, || Cache::new(&config));
        println!("create, {name}: {failed} allocations of the device's and of pinned memory");
        assert!(failed >= 2, "{name}: {failed}");
    }
}

/// What a caller can know of all sequences.
fn state(cache: &mut Cache) -> Vec<(sinkcache::SeqInfo, Vec<u8>)> {
    (0..3)
        .map(|seq| {
            let mut bytes = vec![0; cache.snapshot_bytes(seq).unwrap()];
            cache.save_sequence(seq, &TAG, &mut bytes).unwrap();
            (cache.seq_info(0, seq).unwrap(), bytes)
        })
        .collect()
}

#[test]
fn calls_on_a_cache_allocate_nothing() {
    let Some(_turn) = cuda() else { return };
    for (name, config) in configs() {
        let mut cache = new_cache(&config);
        let Some(shim) = StandIn::find() else {
            println!("skipped: allocations of this driver do not fail");
            return;
        };
        let cpu = CacheConfig { backend: BackendKind::Cpu, ..config.clone() };
        let mut other = Cache::new(&cpu).unwrap();
        let mut t = Tensors::new(40);
        t.draw(&mut Random(5), 40);
        let mut bytes = vec![0; 1 << 20];
        let counted = shim.count();
        shim.fail(1);
        for layer in 0..2 {
            t.step(&mut cache, layer, Batch::new(&[0, 1], &[30, 10]));
            t.feed(&mut cache, layer, Batch::new(&[0, 2], &[16, 1]));
        }
        cache.evict(&[0], &[3]).unwrap();
        cache.rewind(&[0], &[2]).unwrap();
        cache.fork(&[0], &[2]).unwrap();
        if config.layers[0].max_segments > 0 {
            cache.pin(&[0], &[20], &[2]).unwrap();
            cache.evict_range(&[0], &[30], &[3]).unwrap();
        }
        let written = cache.save_sequence(0, &TAG, &mut bytes).unwrap();
        cache.load_sequence(1, &TAG, &bytes[..written]).unwrap();
        cache.read_back(1).unwrap();
        cache.abort_step(None).unwrap();
        cache.reset(&[2], None).unwrap();
        other.copy_sequence(0, &mut cache, 0).unwrap();
        cache.copy_sequence(2, &mut other, 0).unwrap();
        shim.fail(0);
        assert_eq!(shim.count(), counted, "{name}: calls allocate");
        assert_eq!(state(&mut cache).len(), 3);
    }
}

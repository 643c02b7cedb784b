//! Built-in kernels (feature `cubins`): which devices they run on, with and without a compiler, and the warnings.
//!
//! Each test needs an environment of its own, which `scripts/cuda_cubins.py` provides: the library with built-in
//! kernels for [`SHAPES`] on 8.0 and 9.0, the stand-in driver as device `SKC_SHIM_ARCH`, with or without its compiler.
//! `SKC_CUBINS` names the test that the environment is for; all others are skipped.
#![cfg(feature = "cubins")]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::Mutex;

use sinkcache::ffi::{
    SKC_BACKEND_CPU, SKC_BACKEND_CUDA, SKC_DTYPE_F16, SKC_LOG_INFO, SKC_LOG_WARN, skc_cache_config,
    skc_cache_config_init, skc_capabilities, skc_capability_info, skc_create_cache, skc_destroy_cache,
    skc_layer_config, skc_layer_config_init,
};
use sinkcache::{BackendKind, Cache, CacheConfig, DType, LayerConfig, Status};

/// Whether the environment is for this test.
fn mine(test: &str) -> bool {
    let mine = std::env::var("SKC_CUBINS").as_deref() == Ok(test);
    if !mine {
        println!("skipped: not the environment of this test");
    }
    mine
}

/// A cache with head_dim `dim` and `group` query heads per KV head; one layer for each of `softcaps`.
fn config(dim: u32, group: u32, dtype: DType, softcaps: &[f64]) -> CacheConfig {
    let layer = |&softcap: &f64| LayerConfig { n_sink: 2, window: 30, softcap, ..LayerConfig::default() };
    CacheConfig {
        backend: BackendKind::Cuda,
        n_layers: softcaps.len() as u32,
        n_q_heads: 2 * group,
        n_kv_heads: 2,
        head_dim: dim,
        in_dtype: dtype,
        out_dtype: DType::F32,
        kv_dtype: dtype.into(),
        layers: softcaps.iter().map(layer).collect(),
        ..CacheConfig::default()
    }
}

fn built_in() -> CacheConfig {
    config(64, 2, DType::Bf16, &[0.0])
}

fn warnings(config: &CacheConfig) -> Vec<String> {
    Cache::new(config).unwrap().warnings().to_vec()
}

/// Mask of the backends that can be used now.
fn backends() -> u32 {
    // SAFETY: plain numbers.
    let mut info: skc_capability_info = unsafe { std::mem::zeroed() };
    info.struct_size = size_of_val(&info) as u32;
    // SAFETY: a whole struct.
    assert_eq!(unsafe { skc_capabilities(&raw mut info) }, 0);
    info.backends
}

/// Number of kernels in the disk cache.
fn on_disk() -> usize {
    let dir = std::env::var_os("SINKCACHE_CUDA_CACHE_DIR").unwrap();
    std::fs::read_dir(dir).map_or(0, |entries| entries.filter(|e| e.as_ref().unwrap().path().is_file()).count())
}

/// Device 9.0, no compiler.
#[test]
fn what_is_built_in_needs_no_compiler() {
    if !mine("what_is_built_in_needs_no_compiler") {
        return;
    }
    assert_eq!(warnings(&built_in()), [""; 0]);
    assert_eq!(warnings(&config(128, 1, DType::Bf16, &[0.0, 0.0])), [""; 0]);
    // These shapes have no specialised kernels at all: nothing is missing.
    assert_eq!(warnings(&config(64, 2, DType::F32, &[0.0])), [""; 0]);
    assert_eq!(warnings(&config(128, 16, DType::F16, &[0.0])), [""; 0]);
    assert_eq!(backends(), 1 << SKC_BACKEND_CPU | 1 << SKC_BACKEND_CUDA);
}

/// Device 9.0, no compiler: it runs on the generic kernel, with one warning per shape.
#[test]
fn what_is_not_built_in_runs_and_says_so() {
    if !mine("what_is_not_built_in_runs_and_says_so") {
        return;
    }
    let said = warnings(&config(64, 2, DType::Bf16, &[0.0, 5.0, 5.0, 0.0]));
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["64x2:bf16+softcap in SINKCACHE_CUBIN_SHAPES", "is not built in for sm_90a", "no CUDA compiler"] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
    assert!(!said[0].contains(" only"), "built in for no device: {said:?}");
    let said = warnings(&config(256, 4, DType::F16, &[0.0, 5.0]));
    assert_eq!(said.len(), 2);
    assert!(said[0].contains("256x4:f16 in") && said[1].contains("256x4:f16+softcap in"), "{said:?}");
}

/// Device 9.0, no compiler: through the C ABI.
#[test]
fn the_log_says_so() {
    if !mine("the_log_says_so") {
        return;
    }
    unsafe extern "C" fn log(user: *mut c_void, level: u32, text: *const c_char) {
        // SAFETY: the list below; a C string during the call.
        let (lines, text) = unsafe { (&*user.cast::<Mutex<Vec<(u32, String)>>>(), CStr::from_ptr(text)) };
        lines.lock().unwrap().push((level, text.to_str().unwrap().to_owned()));
    }
    let lines = Mutex::new(Vec::<(u32, String)>::new());
    // SAFETY: plain numbers and pointers, filled by the calls; all alive until destroy.
    unsafe {
        let (mut config, mut layer): (skc_cache_config, skc_layer_config) = std::mem::zeroed();
        assert_eq!(skc_layer_config_init(&raw mut layer, size_of::<skc_layer_config>() as u32), 0);
        assert_eq!(skc_cache_config_init(&raw mut config, size_of::<skc_cache_config>() as u32), 0);
        config.backend = SKC_BACKEND_CUDA;
        (config.n_layers, config.n_seqs, config.n_q_heads, config.n_kv_heads, config.head_dim) = (1, 1, 4, 2, 128);
        (config.in_dtype, config.kv_dtype) = (SKC_DTYPE_F16, SKC_DTYPE_F16);
        (config.n_layer_configs, config.layers) = (1, &raw const layer);
        config.log = Some(log);
        config.log_user = (&raw const lines).cast_mut().cast();
        let mut cache = null_mut();
        assert_eq!(skc_create_cache(&raw const config, &raw mut cache), 0);
        assert_eq!(skc_destroy_cache(cache), 0);
    }
    let lines = lines.into_inner().unwrap();
    assert_eq!(lines.iter().map(|l| l.0).collect::<Vec<_>>(), [SKC_LOG_INFO, SKC_LOG_WARN, SKC_LOG_INFO]);
    assert!(lines[1].1.contains("128x2:f16 in SINKCACHE_CUBIN_SHAPES"), "{lines:?}");
}

/// Device 8.6, no compiler: kernels built in for 8.0 run there.
#[test]
fn a_later_device_of_the_same_major_version() {
    if !mine("a_later_device_of_the_same_major_version") {
        return;
    }
    assert_eq!(warnings(&built_in()), [""; 0]);
    assert_eq!(backends(), 1 << SKC_BACKEND_CPU | 1 << SKC_BACKEND_CUDA);
    assert!(warnings(&config(64, 4, DType::Bf16, &[0.0]))[0].contains("not built in for sm_86"));
}

/// Device 10.0, no compiler.
#[test]
fn a_device_that_nothing_runs_on_is_refused() {
    if !mine("a_device_that_nothing_runs_on_is_refused") {
        return;
    }
    assert_eq!(backends(), 1 << SKC_BACKEND_CPU);
    let error = Cache::new(&built_in()).unwrap_err();
    assert_eq!(error.status(), Status::BackendUnavailable);
    assert!(error.message().contains("no CUDA compiler"), "{error}");
    assert!(error.message().ends_with("common.cu is built in for sm_80, sm_90a only"), "{error}");
}

/// Device 9.0 with a compiler: it compiles only what is not built in.
#[test]
fn the_compiler_does_the_rest() {
    if !mine("the_compiler_does_the_rest") {
        return;
    }
    assert_eq!(warnings(&built_in()), [""; 0]);
    assert_eq!(on_disk(), 0);
    assert_eq!(warnings(&config(64, 3, DType::Bf16, &[0.0])), [""; 0]);
    assert_eq!(on_disk(), 1);
}

/// Device 9.0 with a compiler, and a driver that cannot load the built-in kernels (here: the stand-in, with code of
/// NVIDIA's compiler; elsewhere: a driver older than the compiler of the build).
#[test]
fn a_driver_that_refuses_what_is_built_in() {
    if !mine("a_driver_that_refuses_what_is_built_in") {
        return;
    }
    assert_eq!(warnings(&built_in()), [""; 0]);
    assert_eq!(on_disk(), 2, "common and fast");
}

/// The same without a compiler.
#[test]
fn a_driver_that_refuses_all_there_is() {
    if !mine("a_driver_that_refuses_all_there_is") {
        return;
    }
    let error = Cache::new(&built_in()).unwrap_err();
    assert_eq!(error.status(), Status::BackendUnavailable);
    for part in ["no CUDA compiler", "built in, but loading a kernel module: CUDA_ERROR_INVALID_IMAGE"] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
}

/// Device 8.6 with a compiler: compiles code for 8.6 rather than use that for 8.0.
#[test]
fn the_compiler_before_code_for_another_device() {
    if !mine("the_compiler_before_code_for_another_device") {
        return;
    }
    assert_eq!(warnings(&built_in()), [""; 0]);
    assert_eq!(on_disk(), 2, "common and fast");
}

//! Graphs, random rows, and a cache with the tensors of one step in device memory.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys;
use half::bf16;
use parking_lot::{Mutex, MutexGuard};
use sinkcache::{
    AttendTensors, BackendKind, Batch, Cache, CacheConfig, DType, LayerConfig, RowsIn, RowsOut, StepTensors,
    StorageType,
};

use crate::common::device::{Buf, Host, backend, ok};

/// A lock for one test at a time, or `None` to skip it: there is no driver, and none is required. One at a time because
/// a capture forbids other threads to allocate, and free memory is compared.
pub fn cuda() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    // SAFETY: loads and unloads a library by name.
    if backend() == BackendKind::Cpu && !unsafe { sys::is_culib_present() } {
        println!("skipped: no CUDA driver");
        return None;
    }
    Some(TURN.lock())
}

/// A function of `tools/cuda_shim/api_test.cpp`; a GPU's driver has none of them.
pub fn stand_in_function(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: strings; the driver has been loaded and stays.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        let found = libc::dlsym(library, name.as_ptr());
        (!found.is_null()).then_some(found)
    }
}

/// A small cache of a shape that has specialised kernels: bf16, 4 query heads, 2 KV heads, head_dim 64.
pub fn config(n_layers: u32, n_seqs: u32, n_sink: u32, window: u32) -> CacheConfig {
    CacheConfig {
        backend: BackendKind::Cuda,
        n_layers,
        n_seqs,
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        in_dtype: DType::Bf16,
        out_dtype: DType::F32,
        kv_dtype: StorageType::Bf16,
        max_chunk: 16,
        max_rewind: 8,
        layers: vec![LayerConfig { n_sink, window, ..LayerConfig::default() }],
        ..CacheConfig::default()
    }
}

/// Repeatable random numbers: multiples of 1/32 below 2, which are exact in every type.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    pub fn rows(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(128) as f32 / 32.0 - 2.0).collect()
    }
}

pub fn to_bf16(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// The tensors of a step of up to `rows` rows of [`config`]'s shape in device memory.
pub struct Tensors {
    pub q: Buf<bf16>,
    pub k: Buf<bf16>,
    pub v: Buf<bf16>,
    pub out: Buf<f32>,
}

/// Elements of a row of q and out, and of k and v.
pub const Q: usize = 4 * 64;
pub const KV: usize = 2 * 64;

impl Tensors {
    pub fn new(rows: usize) -> Self {
        let zero = bf16::ZERO;
        Self {
            q: Buf::new(&vec![zero; rows * Q]),
            k: Buf::new(&vec![zero; rows * KV]),
            v: Buf::new(&vec![zero; rows * KV]),
            out: Buf::new(&vec![f32::NAN; rows * Q]),
        }
    }

    /// New values for the first `rows` rows; out is NaN again.
    pub fn draw(&self, random: &mut Random, rows: usize) {
        self.q.write(&to_bf16(&random.rows(rows * Q)));
        self.k.write(&to_bf16(&random.rows(rows * KV)));
        self.v.write(&to_bf16(&random.rows(rows * KV)));
        self.out.write(&vec![f32::NAN; self.out.len]);
    }

    /// Append and attend as two calls.
    pub fn feed(&mut self, cache: &mut Cache, layer: u32, batch: Batch<'_>) {
        cache.append(layer, batch, self.k.rows(), self.v.rows()).unwrap();
        let tensors = AttendTensors { q: self.q.rows(), out: self.out.rows_out(), lse: None };
        cache.attend(layer, batch, tensors).unwrap();
    }

    /// Append and attend as one call.
    pub fn step(&mut self, cache: &mut Cache, layer: u32, batch: Batch<'_>) {
        let (q, k, v) = (self.q.rows(), self.k.rows(), self.v.rows());
        cache.step(layer, batch, StepTensors { k, v, q, out: self.out.rows_out(), lse: None }).unwrap();
    }

    /// The same on a CPU cache. Returns the output.
    pub fn feed_cpu(&self, cache: &mut Cache, layer: u32, batch: Batch<'_>) -> Vec<f32> {
        let (q, k, v) = (self.q.read(), self.k.read(), self.v.read());
        let mut out = vec![f32::NAN; self.out.len];
        cache.append(layer, batch, RowsIn::packed(&k), RowsIn::packed(&v)).unwrap();
        let tensors = AttendTensors { q: RowsIn::packed(&q), out: RowsOut::packed(&mut out), lse: None };
        cache.attend(layer, batch, tensors).unwrap();
        out
    }
}

/// Checks that two backends agree: both round q and probabilities to bf16, or neither does.
#[track_caller]
pub fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().filter(|x| x.is_finite()).fold(0.0_f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        let both_untouched = a.is_nan() && b.is_nan();
        assert!(both_untouched || (a - b).abs() <= 2e-2 * largest, "element {i}: {a}, not {b} (largest {largest})");
    }
}

/// A captured graph, ready to be replayed.
pub struct Graph {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

impl Graph {
    /// Captures the work that `body` puts into the host's stream.
    pub fn capture(host: &Host, body: impl FnOnce()) -> Self {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        let (mut graph, mut exec) = (null_mut(), null_mut());
        // SAFETY: the stream is live; outputs are writable.
        unsafe {
            ok(sys::cuStreamBeginCapture_v2(host.stream, mode));
            body();
            ok(sys::cuStreamEndCapture(host.stream, &raw mut graph));
            ok(sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0));
        }
        Self { graph, exec }
    }

    /// Number of its nodes.
    pub fn nodes(&self) -> u64 {
        let mut n = 0;
        // SAFETY: the graph is live, the output writable.
        ok(unsafe { sys::cuGraphGetNodes(self.graph, null_mut(), &raw mut n) });
        n as u64
    }

    pub fn launch(&self, host: &Host) {
        // SAFETY: both are live.
        ok(unsafe { sys::cuGraphLaunch(self.exec, host.stream) });
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, ended once.
        unsafe {
            sys::cuGraphExecDestroy(self.exec);
            sys::cuGraphDestroy(self.graph);
        }
    }
}

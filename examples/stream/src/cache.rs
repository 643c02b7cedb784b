//! The only module that calls sinkcache: through its C functions and C structs, as a program in C would.

use std::ffi::{CStr, c_void};
use std::fmt;
use std::ptr;

use clap::ValueEnum;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use sinkcache::ffi::{self, skc_cache, skc_cache_config, skc_layer_config, skc_reset_args, skc_status, skc_step_args};

/// Type keys and values are stored in.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the types")]
pub enum KvDtype {
    F32,
    F16,
    Bf16,
}

impl KvDtype {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// A call that was refused.
#[derive(Debug)]
pub struct CacheError {
    call: &'static str,
    status: skc_status,
    text: String,
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: never NULL and valid for ever.
        let name = unsafe { CStr::from_ptr(ffi::skc_status_name(self.status)) };
        write!(f, "{}: {} ({})", self.call, self.text, name.to_string_lossy())
    }
}

impl std::error::Error for CacheError {}

/// A status as a result; the text belongs to the latest failing call of this thread, so it is copied at once.
fn check(call: &'static str, status: skc_status) -> Result<(), CacheError> {
    if status == ffi::SKC_STATUS_OK {
        return Ok(());
    }
    // SAFETY: never NULL, and valid until this thread's next failing call.
    let text = unsafe { CStr::from_ptr(ffi::skc_last_error()) }.to_string_lossy().into_owned();
    Err(CacheError { call, status, text })
}

/// A cache of one sequence, all its layers alike.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    /// Layers.
    pub n_layers: u32,
    /// Query heads.
    pub n_q_heads: u32,
    /// Heads of keys and values.
    pub n_kv_heads: u32,
    /// Dims of a head.
    pub head_dim: u32,
    /// Rotated dims of a head.
    pub rope_dim: u32,
    /// RoPE base.
    pub rope_base: f64,
    /// Pinned first tokens.
    pub n_sink: u32,
    /// Most recent tokens a query sees.
    pub window: u32,
    /// Most tokens of a step that is not split.
    pub max_chunk: u32,
    /// Stored type.
    pub kv_dtype: KvDtype,
    /// Threads of attention.
    pub n_threads: u32,
}

impl CacheShape {
    /// Calls `f` with the C configuration, whose pointer to the layers holds during the call only.
    fn with_config<R>(&self, f: impl FnOnce(&skc_cache_config) -> R) -> R {
        let layer = skc_layer_config {
            n_sink: self.n_sink,
            window: self.window,
            position_mode: ffi::SKC_POSITION_ROPE,
            // A GGUF of a Llama has the rows of Q and K permuted for pairs of neighbours.
            rope_style: ffi::SKC_ROPE_INTERLEAVED,
            rope_dim: self.rope_dim,
            rope_base: self.rope_base,
            ..skc_layer_config::default()
        };
        f(&skc_cache_config {
            n_layers: self.n_layers,
            n_q_heads: self.n_q_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            kv_dtype: match self.kv_dtype {
                KvDtype::F32 => ffi::SKC_DTYPE_F32,
                KvDtype::F16 => ffi::SKC_DTYPE_F16,
                KvDtype::Bf16 => ffi::SKC_DTYPE_BF16,
            },
            max_chunk: self.max_chunk,
            max_rewind: 0,
            n_threads: self.n_threads,
            n_layer_configs: 1,
            layers: &raw const layer,
            parallel_for: (self.n_threads > 1).then_some(parallel_for),
            ..skc_cache_config::default()
        })
    }

    /// Bytes a cache of this shape takes for ever.
    ///
    /// # Errors
    /// A shape sinkcache refuses.
    pub fn bytes(&self) -> Result<u64, CacheError> {
        let (mut host, mut device) = (0, 0);
        // SAFETY: the configuration is filled, its layers outlive the call, the outputs are writable.
        let status = self.with_config(|config| unsafe { ffi::skc_cache_bytes(config, &raw mut host, &raw mut device) });
        check("skc_cache_bytes", status)?;
        Ok(host + device)
    }
}

/// A pointer that parallel tasks share.
#[derive(Clone, Copy)]
struct Shared(*mut c_void);
// SAFETY: sinkcache hands it to the host for exactly this: its tasks may run on any threads.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// Attention's parallel loop on the threads that also multiply matrices, so that two pools do not fight for the cores.
unsafe extern "C" fn parallel_for(_: *mut c_void, n: u32, task: ffi::skc_task_fn, data: *mut c_void) {
    let (Some(task), data) = (task, Shared(data)) else { return };
    (0..n).into_par_iter().with_max_len(1).for_each(|i| {
        // SAFETY: task and data come from sinkcache and are passed through, before this loop returns.
        unsafe { task(data.get(), i) };
    });
}

/// A live cache; dropping it destroys it.
#[derive(Debug)]
pub struct KvCache {
    handle: *mut skc_cache,
    shape: CacheShape,
}

impl KvCache {
    /// Makes an empty cache.
    ///
    /// # Errors
    /// A shape sinkcache refuses, or memory that cannot be had.
    pub fn new(shape: CacheShape) -> Result<Self, CacheError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the configuration is filled, its layers outlive the call, the output is writable.
        let status = shape.with_config(|config| unsafe { ffi::skc_create_cache(config, &raw mut handle) });
        check("skc_create_cache", status)?;
        Ok(Self { handle, shape })
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Stores the next tokens of a layer and attends to them: rows of `qkv` are the heads of q, of k and of v side by
    /// side, rows of `out` the heads of the result.
    ///
    /// # Errors
    /// What sinkcache refuses.
    ///
    /// # Panics
    /// If `qkv` and `out` are not of one number of rows.
    pub fn step(&mut self, layer: u32, qkv: &[f32], out: &mut [f32]) -> Result<(), CacheError> {
        let dim = self.shape.head_dim as usize;
        let (q_width, kv_width) = (self.shape.n_q_heads as usize * dim, self.shape.n_kv_heads as usize * dim);
        let row = q_width + 2 * kv_width;
        let rows = qkv.len() / row;
        assert!(qkv.len() == rows * row && out.len() == rows * q_width, "rows of qkv and out differ");
        let n_tokens = i32::try_from(rows).expect("a chunk is short");
        let args = skc_step_args {
            struct_size: size_of::<skc_step_args>() as u32,
            flags: 0,
            layer,
            n_entries: 1,
            seq_ids: &raw const SEQUENCE,
            n_tokens: &raw const n_tokens,
            q: qkv.as_ptr().cast(),
            k: qkv[q_width.min(qkv.len())..].as_ptr().cast(),
            v: qkv[(q_width + kv_width).min(qkv.len())..].as_ptr().cast(),
            out: out.as_mut_ptr().cast(),
            lse: ptr::null_mut(),
            q_token_stride: row as i64,
            k_token_stride: row as i64,
            v_token_stride: row as i64,
            q_head_stride: 0,
            k_head_stride: 0,
            v_head_stride: 0,
            out_token_stride: 0,
            out_head_stride: 0,
            lse_token_stride: 0,
            lse_head_stride: 0,
            stream: ptr::null_mut(),
            n_rows: 0,
            max_tokens: 0,
            reserved: 0,
        };
        // SAFETY: the pointers hold `rows` rows at the strides given, by the assertion, and live during the call.
        check("skc_step", unsafe { ffi::skc_step(self.handle, &raw const args) })
    }

    /// Empties the cache.
    ///
    /// # Errors
    /// What sinkcache refuses.
    pub fn reset(&mut self) -> Result<(), CacheError> {
        let args = skc_reset_args {
            struct_size: size_of::<skc_reset_args>() as u32,
            flags: 0,
            n_entries: 1,
            reserved: 0,
            seq_ids: &raw const SEQUENCE,
            start_positions: ptr::null(),
            stream: ptr::null_mut(),
        };
        // SAFETY: the arrays have one entry.
        check("skc_reset", unsafe { ffi::skc_reset(self.handle, &raw const args) })
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        // Nothing is left to be done about a failure.
        let _ = ffi::skc_destroy_cache(self.handle);
    }
}

/// The one sequence of a cache.
static SEQUENCE: i32 = 0;

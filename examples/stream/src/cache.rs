//! The only module that calls sinkcache. It uses the C functions and C structs, as a program in C would.

use std::ffi::{CStr, c_void};
use std::fmt;
use std::ptr;
use std::str::FromStr;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use sinkcache::ffi::{self, skc_cache, skc_cache_config, skc_layer_config, skc_reset_args, skc_status, skc_step_args};

/// The names of the types that keys and values may be stored in, with their numbers.
const STORAGE_TYPES: [(&str, u32); 5] = [
    ("f32", ffi::SKC_DTYPE_F32),
    ("f16", ffi::SKC_DTYPE_F16),
    ("bf16", ffi::SKC_DTYPE_BF16),
    ("q8", ffi::SKC_DTYPE_Q8),
    ("q4", ffi::SKC_DTYPE_Q4),
];

/// The types that keys and values are stored in: `f16` for both, or `q8/q4` for keys in q8 and values in q4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvTypes {
    k: usize,
    v: usize,
}

impl KvTypes {
    /// Both in f32.
    pub const F32: Self = Self { k: 0, v: 0 };
    /// Both in f16.
    pub const F16: Self = Self { k: 1, v: 1 };

    /// Bytes of K and V of one token in all layers: numbers, or codes and their scales (2 bytes for a row in q8, for
    /// every 32 dims in q4).
    #[must_use]
    pub fn bytes_per_token(self, shape: &CacheShape) -> u64 {
        let dim = u64::from(shape.head_dim);
        let row = |i: usize| match STORAGE_TYPES[i].1 {
            ffi::SKC_DTYPE_F32 => 4 * dim,
            ffi::SKC_DTYPE_Q8 => dim + 2,
            ffi::SKC_DTYPE_Q4 => dim / 2 + 2 * dim.div_ceil(32),
            _ => 2 * dim,
        };
        u64::from(shape.n_layers) * u64::from(shape.n_kv_heads) * (row(self.k) + row(self.v))
    }
}

impl fmt::Display for KvTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [k, v] = [self.k, self.v].map(|i| STORAGE_TYPES[i].0);
        if k == v { f.write_str(k) } else { write!(f, "{k}/{v}") }
    }
}

impl FromStr for KvTypes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (k, v) = text.split_once('/').unwrap_or((text, text));
        let find = |name: &str| {
            let at = STORAGE_TYPES.iter().position(|t| t.0 == name);
            at.ok_or_else(|| {
                format!("'{name}' is no storage type: f32, f16, bf16, q8 or q4 is allowed, or K/V of them")
            })
        };
        Ok(Self { k: find(k)?, v: find(v)? })
    }
}

/// A call that failed.
#[derive(Debug)]
pub struct CacheError {
    call: &'static str,
    status: skc_status,
    text: String,
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: a status name is never NULL and is a constant of the library.
        let name = unsafe { CStr::from_ptr(ffi::skc_status_name(self.status)) };
        write!(f, "{}: {} ({})", self.call, self.text, name.to_string_lossy())
    }
}

impl std::error::Error for CacheError {}

/// A status as a result. The error text is copied because this thread's next failing call overwrites it.
fn check(call: &'static str, status: skc_status) -> Result<(), CacheError> {
    if status == ffi::SKC_STATUS_OK {
        return Ok(());
    }
    // SAFETY: the text is never NULL and stays valid until this thread's next failing call.
    let text = unsafe { CStr::from_ptr(ffi::skc_last_error()) }.to_string_lossy().into_owned();
    Err(CacheError { call, status, text })
}

/// The shape of a cache of one sequence whose layers have equal settings.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    /// Layers.
    pub n_layers: u32,
    /// Query heads.
    pub n_q_heads: u32,
    /// KV heads.
    pub n_kv_heads: u32,
    /// Dimensions of a head.
    pub head_dim: u32,
    /// Dimensions of a head that RoPE rotates.
    pub rope_dim: u32,
    /// RoPE base.
    pub rope_base: f64,
    /// Sinks.
    pub n_sink: u32,
    /// Window.
    pub window: u32,
    /// The most tokens that a step computes as one chunk.
    pub max_chunk: u32,
    /// Stored types.
    pub kv_dtype: KvTypes,
    /// Threads of attention.
    pub n_threads: u32,
}

impl CacheShape {
    /// Calls `f` with the C configuration. Its pointer to the layer settings is valid during the call only.
    fn with_config<R>(&self, f: impl FnOnce(&skc_cache_config) -> R) -> R {
        let layer = skc_layer_config {
            n_sink: self.n_sink,
            window: self.window,
            position_mode: ffi::SKC_POSITION_ROPE,
            // The conversion to GGUF permutes the rows of Q and K of a Llama for RoPE on neighbouring dimensions.
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
            k_dtype: STORAGE_TYPES[self.kv_dtype.k].1,
            v_dtype: STORAGE_TYPES[self.kv_dtype.v].1,
            max_chunk: self.max_chunk,
            max_rewind: 0,
            n_threads: self.n_threads,
            n_layer_configs: 1,
            layers: &raw const layer,
            parallel_for: (self.n_threads > 1).then_some(parallel_for),
            ..skc_cache_config::default()
        })
    }

    /// Bytes of memory of a cache of this shape. They do not change while it lives.
    ///
    /// # Errors
    /// A shape that sinkcache rejects.
    pub fn bytes(&self) -> Result<u64, CacheError> {
        let (mut host, mut device) = (0, 0);
        // SAFETY: with_config keeps the configuration and its layers alive during the call; the outputs are locals.
        let status = self.with_config(|config| unsafe { ffi::skc_cache_bytes(config, &raw mut host, &raw mut device) });
        check("skc_cache_bytes", status)?;
        Ok(host + device)
    }
}

/// The data pointer of sinkcache's tasks.
#[derive(Clone, Copy)]
struct Shared(*mut c_void);
// SAFETY: this code only passes the pointer on, and sinkcache's tasks may run on any thread.
unsafe impl Send for Shared {}
// SAFETY: as for Send; tasks may also run at the same time.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// Runs sinkcache's tasks on the threads that also multiply matrices: two pools would compete for the cores.
unsafe extern "C" fn parallel_for(_: *mut c_void, n: u32, task: ffi::skc_task_fn, data: *mut c_void) {
    let (Some(task), data) = (task, Shared(data)) else { return };
    (0..n).into_par_iter().with_max_len(1).for_each(|i| {
        // SAFETY: task and data come from one call of sinkcache, and the loop ends before that call does.
        unsafe { task(data.get(), i) };
    });
}

/// A cache. Dropping it destroys it.
#[derive(Debug)]
pub struct KvCache {
    handle: *mut skc_cache,
    shape: CacheShape,
}

impl KvCache {
    /// Makes an empty cache.
    ///
    /// # Errors
    /// A shape that sinkcache rejects, or too little memory.
    pub fn new(shape: CacheShape) -> Result<Self, CacheError> {
        let mut handle = ptr::null_mut();
        // SAFETY: with_config keeps the configuration and its layers alive during the call; the output is a local.
        let status = shape.with_config(|config| unsafe { ffi::skc_create_cache(config, &raw mut handle) });
        check("skc_create_cache", status)?;
        Ok(Self { handle, shape })
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Appends new tokens to a layer and computes their attention. A row of `qkv` holds the heads of q, then those of
    /// k, then those of v; a row of `out` holds the heads of the result.
    ///
    /// # Errors
    /// Whatever sinkcache reports.
    ///
    /// # Panics
    /// If `qkv` and `out` differ in their number of rows.
    pub fn step(&mut self, layer: u32, qkv: &[f32], out: &mut [f32]) -> Result<(), CacheError> {
        let dim = self.shape.head_dim as usize;
        let (q_width, kv_width) = (self.shape.n_q_heads as usize * dim, self.shape.n_kv_heads as usize * dim);
        let row = q_width + 2 * kv_width;
        let rows = qkv.len() / row;
        assert!(qkv.len() == rows * row && out.len() == rows * q_width, "rows of qkv and out differ");
        let n_tokens = i32::try_from(rows).expect("a chunk has at most 8192 rows");
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
        // SAFETY: by the assertion, q, k, v and out hold `rows` rows at their strides; all borrows outlive the call.
        check("skc_step", unsafe { ffi::skc_step(self.handle, &raw const args) })
    }

    /// Empties the cache.
    ///
    /// # Errors
    /// Whatever sinkcache reports.
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
        // SAFETY: n_entries is 1, and seq_ids points to one id.
        check("skc_reset", unsafe { ffi::skc_reset(self.handle, &raw const args) })
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        // A failure cannot be reported from drop.
        let _ = ffi::skc_destroy_cache(self.handle);
    }
}

/// The id of the only sequence of a cache.
static SEQUENCE: i32 = 0;

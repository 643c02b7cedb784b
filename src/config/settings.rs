//! The settings of a cache and of its layers.

use super::cuda::CudaConfig;
use super::types::{BackendKind, DType, PositionMode, RopeStyle, StorageType};
use crate::cpu_features::Isa;
use crate::exec::ParallelFor;
use crate::memory::Memory;

/// Settings of one layer.
#[derive(Clone, Debug)]
pub struct LayerConfig {
    /// First tokens of each sequence, which are never dropped.
    pub n_sink: u32,
    /// Most recent tokens that a query attends to, its own included; at least 1.
    pub window: u32,
    /// How keys and queries get their positions.
    pub position_mode: PositionMode,
    /// Which dims `RoPE` rotates together.
    pub rope_style: RopeStyle,
    /// Leading dims of a head that `RoPE` rotates, an even number; 0 = `head_dim`.
    pub rope_dim: u32,
    /// Base of the `RoPE` frequencies (theta).
    pub rope_base: f64,
    /// Linear position scaling: angle = position x `rope_scale` x frequency.
    pub rope_scale: f64,
    /// Factor on the rotated dims of q and of k (`YaRN`'s attention factor). In `RopeApplied` the host applies it to k
    /// and to the queries, and the cache does not.
    pub rope_mscale: f64,
    /// Angular frequencies `[rope_dim / 2]` in radians per token; empty = those of `rope_base`.
    pub inv_freq: Vec<f32>,
    /// `ALiBi` slopes `[n_q_heads]`; required in `Alibi`, empty otherwise.
    pub alibi_slopes: Vec<f32>,
    /// Factor on QK^T, at least 1e-30; 0 = 1 / sqrt(`head_dim`).
    pub scale: f64,
    /// Above 0: score = softcap x tanh(score / softcap).
    pub softcap: f64,
    /// Learned sink logit per query head `[n_q_heads]`, added to the softmax denominator unscaled; empty = none.
    pub sink_logits: Vec<f32>,
    /// The most tokens of a sequence that [`Cache::pin`](crate::Cache::pin) may hold at a time, at most 2^24. A layer
    /// with 0 ignores pins.
    pub max_pinned: u32,
    /// The most runs of pinned tokens and ranges dropped by [`Cache::evict_range`](crate::Cache::evict_range) that a
    /// sequence may have at a time, at most 1,024. A dropped range counts until the window has moved past it.
    pub max_segments: u32,
}

impl Default for LayerConfig {
    fn default() -> Self {
        Self {
            n_sink: 4,
            window: 2044,
            position_mode: PositionMode::Rope,
            rope_style: RopeStyle::Neox,
            rope_dim: 0,
            rope_base: 10_000.0,
            rope_scale: 1.0,
            rope_mscale: 1.0,
            inv_freq: Vec::new(),
            alibi_slopes: Vec::new(),
            scale: 0.0,
            softcap: 0.0,
            sink_logits: Vec::new(),
            max_pinned: 0,
            max_segments: 0,
        }
    }
}

/// Settings of a cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Where K and V are stored and kernels run.
    pub backend: BackendKind,
    /// Attention layers, 1 to 65,536.
    pub n_layers: u32,
    /// Sequences that the cache holds, 1 to 2^24.
    pub n_seqs: u32,
    /// Query heads, a multiple of `n_kv_heads`, at most 65,536.
    pub n_q_heads: u32,
    /// Heads of K and V. Query head h uses KV head h / (`n_q_heads` / `n_kv_heads`).
    pub n_kv_heads: u32,
    /// Dims of a head of Q and K: a multiple of 8, at most 512.
    pub head_dim: u32,
    /// Dims of a head of V: the same limits; 0 = `head_dim`.
    pub head_dim_v: u32,
    /// Element type of the caller's q, k and v.
    pub in_dtype: DType,
    /// Element type of the output.
    pub out_dtype: DType,
    /// Type that K and V are stored in.
    pub kv_dtype: StorageType,
    /// Type of K where it is not `kv_dtype`.
    pub k_dtype: Option<StorageType>,
    /// Type of V where it is not `kv_dtype`.
    pub v_dtype: Option<StorageType>,
    /// The most tokens of one sequence in one append.
    pub max_chunk: u32,
    /// How far below its highest length a sequence may be rewound.
    pub max_rewind: u32,
    /// Threads of the cache's pool, or parts that a call is divided into for `parallel_for` or a thread team; 1 to
    /// 1,024.
    pub n_threads: u32,
    /// One element for all layers, or one for each layer.
    pub layers: Vec<LayerConfig>,
    /// Allocator of host memory.
    pub memory: Memory,
    /// The host's parallel loop; `None` = a pool of `n_threads` threads.
    pub parallel_for: Option<ParallelFor>,
    /// Instruction set of the CPU kernels; `None` = what `SINKCACHE_CPU` names, or else the best available.
    pub isa: Option<Isa>,
    /// Settings of the CUDA backend.
    pub cuda: CudaConfig,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { layers: vec![LayerConfig::default()], ..Self::WITHOUT_LAYERS }
    }
}

impl CacheConfig {
    /// The defaults, without a layer: a constant, for callers that must not allocate.
    pub(crate) const WITHOUT_LAYERS: Self = Self {
        backend: BackendKind::Cpu,
        n_layers: 1,
        n_seqs: 1,
        n_q_heads: 0,
        n_kv_heads: 0,
        head_dim: 0,
        head_dim_v: 0,
        in_dtype: DType::F32,
        out_dtype: DType::F32,
        kv_dtype: StorageType::F16,
        k_dtype: None,
        v_dtype: None,
        max_chunk: 512,
        max_rewind: 16,
        n_threads: 1,
        layers: Vec::new(),
        memory: Memory::PROCESS,
        parallel_for: None,
        isa: None,
        cuda: CudaConfig::DEFAULT,
    };
}

/// Bytes that a cache allocates, all of them when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Host memory: for the CPU backend K, V, scratch and counters; for CUDA the host's counters.
    pub host: u64,
    /// Device memory; 0 for the CPU backend.
    pub device: u64,
}

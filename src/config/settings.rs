//! Everything a user may set.

use super::cuda::CudaConfig;
use super::types::{BackendKind, DType, PositionMode, RopeStyle};
use crate::cpu_features::Isa;
use crate::exec::ParallelFor;
use crate::memory::Memory;

/// Settings of one layer.
#[derive(Clone, Debug)]
pub struct LayerConfig {
    /// Pinned first tokens of each sequence.
    pub n_sink: u32,
    /// Most recent tokens a query sees, its own included; at least 1.
    pub window: u32,
    /// Position mode.
    pub position_mode: PositionMode,
    /// `RoPE` style.
    pub rope_style: RopeStyle,
    /// Rotated leading dims, even; 0 = `head_dim`.
    pub rope_dim: u32,
    /// `RoPE` base.
    pub rope_base: f64,
    /// Linear position scaling: angle = position x `rope_scale` x frequency.
    pub rope_scale: f64,
    /// Factor on the rotated dims of q and of k (`YaRN`'s attention factor). The host's business in `RopeApplied`.
    pub rope_mscale: f64,
    /// Angular frequencies `[rope_dim / 2]` instead of those of `rope_base`; empty = from the base.
    pub inv_freq: Vec<f32>,
    /// `ALiBi` slopes `[n_q_heads]`; needed in `Alibi`, empty otherwise.
    pub alibi_slopes: Vec<f32>,
    /// Factor on scores; 0 = 1 / sqrt(`head_dim`).
    pub scale: f64,
    /// Above 0: score = softcap x tanh(score / softcap).
    pub softcap: f64,
    /// Learned logit per query head `[n_q_heads]`, raw, in the denominator only; empty = none.
    pub sink_logits: Vec<f32>,
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
        }
    }
}

/// Settings of a cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Backend.
    pub backend: BackendKind,
    /// Layers, 1 to 65,536.
    pub n_layers: u32,
    /// Sequences, 1 to 2^24.
    pub n_seqs: u32,
    /// Query heads, a multiple of `n_kv_heads`, at most 65,536.
    pub n_q_heads: u32,
    /// Heads of K and V.
    pub n_kv_heads: u32,
    /// Dims of a head of Q and K: a multiple of 8, at most 512.
    pub head_dim: u32,
    /// Dims of a head of V, likewise; 0 = `head_dim`.
    pub head_dim_v: u32,
    /// Type of q, k and v as they come in.
    pub in_dtype: DType,
    /// Type of out.
    pub out_dtype: DType,
    /// Type K and V are stored in.
    pub kv_dtype: DType,
    /// Most tokens of one sequence in one append.
    pub max_chunk: u32,
    /// How far below its highest length a sequence may be cut back.
    pub max_rewind: u32,
    /// Threads, or parts a host's parallel-for or thread team is given; 1 to 1,024.
    pub n_threads: u32,
    /// One setting for all layers, or `n_layers` settings.
    pub layers: Vec<LayerConfig>,
    /// Where memory comes from.
    pub memory: Memory,
    /// The host's parallel loop; `None` = `n_threads` threads of our own.
    pub parallel_for: Option<ParallelFor>,
    /// Which instruction set the CPU backend uses; `None` = the best, or what `SINKCACHE_CPU` names.
    pub isa: Option<Isa>,
    /// Which device, for the CUDA backend.
    pub cuda: CudaConfig,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            backend: BackendKind::Cpu,
            n_layers: 1,
            n_seqs: 1,
            n_q_heads: 0,
            n_kv_heads: 0,
            head_dim: 0,
            head_dim_v: 0,
            in_dtype: DType::F32,
            out_dtype: DType::F32,
            kv_dtype: DType::F16,
            max_chunk: 512,
            max_rewind: 16,
            n_threads: 1,
            layers: vec![LayerConfig::default()],
            memory: Memory::default(),
            parallel_for: None,
            isa: None,
            cuda: CudaConfig::default(),
        }
    }
}

/// Bytes a cache takes, all of them at create.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Host memory: on the CPU backend K, V, scratch and counters.
    pub host: u64,
    /// Device memory.
    pub device: u64,
}

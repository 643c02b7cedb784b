//! Everything a user may set, validated in one place.

use crate::backend::cpu::Rung;
use crate::backend::cuda::CudaConfig;
use crate::exec::ParallelFor;
use crate::memory::{Memory, copied};
use crate::phase::Frequencies;
use crate::ring::Ring;
use crate::status::{Result, bail};

/// An element type. The numbers are the C ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DType {
    /// IEEE binary32.
    F32 = 1,
    /// IEEE binary16.
    F16 = 2,
    /// bfloat16.
    Bf16 = 3,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Where a cache lives and computes. The numbers are the C ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BackendKind {
    /// Host memory, the host's threads.
    Cpu = 1,
    /// An NVIDIA GPU.
    Cuda = 2,
}

/// Who gives keys and queries their positions. The numbers are the C ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PositionMode {
    /// The cache rotates k and q.
    Rope = 1,
    /// The host has rotated k and q at their stream positions, which advance by one per token.
    RopeApplied = 2,
    /// Nobody rotates; a bias of -slope x distance in cache positions.
    Alibi = 3,
    /// No positions.
    None = 4,
}

/// Which dims of a head form a rotated pair. The numbers are the C ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RopeStyle {
    /// Dim i with dim i + `rope_dim` / 2.
    Neox = 1,
    /// Dim 2i with dim 2i + 1.
    Interleaved = 2,
}

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
    pub rung: Option<Rung>,
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
            rung: None,
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

/// Head counts, dims and types of a valid cache.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    /// Query heads per KV head.
    pub group: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub in_dtype: DType,
    pub out_dtype: DType,
    pub kv_dtype: DType,
    pub max_chunk: u64,
}

/// A valid layer, ready for a backend.
#[derive(Clone, Debug)]
pub struct Layer {
    pub ring: Ring,
    pub position_mode: PositionMode,
    pub rope_style: RopeStyle,
    /// Empty where nothing is rotated.
    pub frequencies: Frequencies,
    pub mscale: f32,
    pub scale: f32,
    /// 0 = none.
    pub softcap: f32,
    pub alibi_slopes: Vec<f32>,
    pub sink_logits: Vec<f32>,
}

pub const MAX_LAYERS: u32 = 65_536;
pub const MAX_SEQS: u32 = 1 << 24;
pub const MAX_HEADS: u32 = 65_536;
pub const MAX_HEAD_DIM: u32 = 512;
pub const HEAD_DIM_MULTIPLE: u32 = 8;
pub const MAX_CHUNK: u32 = 1 << 30;
pub const MAX_THREADS: u32 = 1_024;

fn in_range(name: &str, value: u32, low: u32, high: u32) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    bail!(InvalidConfig, "{name} is {value}: {low} to {high} is allowed")
}

fn dim(name: &str, value: u32) -> Result<()> {
    if (HEAD_DIM_MULTIPLE..=MAX_HEAD_DIM).contains(&value) && value.is_multiple_of(HEAD_DIM_MULTIPLE) {
        return Ok(());
    }
    bail!(InvalidConfig, "{name} is {value}: a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM} is allowed")
}

fn positive(name: &str, value: f64) -> Result<()> {
    // Kernels compute in f32: a value that vanishes or overflows there would make every result 0 or NaN.
    if value.is_finite() && value as f32 > 0.0 && (value as f32).is_finite() {
        return Ok(());
    }
    bail!(InvalidConfig, "{name} is {value}: a finite number above 0 is needed")
}

fn finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => bail!(InvalidConfig, "{name}[{i}] is {}: a finite number is needed", values[i]),
    }
}

impl CacheConfig {
    /// Checks every value that concerns all layers.
    pub(crate) fn shape(&self) -> Result<Shape> {
        in_range("n_layers", self.n_layers, 1, MAX_LAYERS)?;
        in_range("n_seqs", self.n_seqs, 1, MAX_SEQS)?;
        in_range("n_q_heads", self.n_q_heads, 1, MAX_HEADS)?;
        in_range("n_kv_heads", self.n_kv_heads, 1, self.n_q_heads)?;
        if !self.n_q_heads.is_multiple_of(self.n_kv_heads) {
            bail!(InvalidConfig, "n_q_heads {} is not a multiple of n_kv_heads {}", self.n_q_heads, self.n_kv_heads);
        }
        dim("head_dim", self.head_dim)?;
        let head_dim_v = if self.head_dim_v == 0 { self.head_dim } else { self.head_dim_v };
        dim("head_dim_v", head_dim_v)?;
        in_range("max_chunk", self.max_chunk, 1, MAX_CHUNK)?;
        in_range("max_rewind", self.max_rewind, 0, MAX_CHUNK)?;
        in_range("n_threads", self.n_threads, 1, MAX_THREADS)?;
        if self.layers.len() != 1 && self.layers.len() != self.n_layers as usize {
            bail!(
                InvalidConfig,
                "{} layer configurations: 1 for all or one for each of the {} layers is needed",
                self.layers.len(),
                self.n_layers
            );
        }
        Ok(Shape {
            n_q_heads: self.n_q_heads as usize,
            n_kv_heads: self.n_kv_heads as usize,
            group: (self.n_q_heads / self.n_kv_heads) as usize,
            head_dim: self.head_dim as usize,
            head_dim_v: head_dim_v as usize,
            in_dtype: self.in_dtype,
            out_dtype: self.out_dtype,
            kv_dtype: self.kv_dtype,
            max_chunk: self.max_chunk.into(),
        })
    }

    /// Checks the configuration of one layer.
    pub(crate) fn layer(&self, c: &LayerConfig) -> Result<Layer> {
        in_range("window", c.window, 1, u32::MAX)?;
        let rotates = matches!(c.position_mode, PositionMode::Rope | PositionMode::RopeApplied);
        if !rotates && !c.inv_freq.is_empty() {
            bail!(InvalidConfig, "inv_freq has {} values, but {:?} rotates nothing", c.inv_freq.len(), c.position_mode);
        }
        let frequencies = if rotates { self.frequencies(c)? } else { Frequencies::default() };
        let alibi = c.position_mode == PositionMode::Alibi;
        if c.alibi_slopes.len() != if alibi { self.n_q_heads as usize } else { 0 } {
            bail!(
                InvalidConfig,
                "alibi_slopes has {} values: position mode {:?} with {} query heads needs {}",
                c.alibi_slopes.len(),
                c.position_mode,
                self.n_q_heads,
                if alibi { self.n_q_heads } else { 0 }
            );
        }
        finite("alibi_slopes", &c.alibi_slopes)?;
        if !c.sink_logits.is_empty() && c.sink_logits.len() != self.n_q_heads as usize {
            bail!(
                InvalidConfig,
                "sink_logits has {} values: none or one for each of the {} query heads is needed",
                c.sink_logits.len(),
                self.n_q_heads
            );
        }
        finite("sink_logits", &c.sink_logits)?;
        let scale = if c.scale == 0.0 { f64::from(self.head_dim).sqrt().recip() } else { c.scale };
        positive("scale", scale)?;
        if c.softcap != 0.0 {
            positive("softcap", c.softcap)?;
        }
        Ok(Layer {
            ring: Ring::new(c.n_sink, c.window, self.max_chunk, self.max_rewind),
            position_mode: c.position_mode,
            rope_style: c.rope_style,
            frequencies,
            mscale: c.rope_mscale as f32,
            scale: scale as f32,
            softcap: c.softcap as f32,
            alibi_slopes: copied(&c.alibi_slopes, "alibi_slopes")?,
            sink_logits: copied(&c.sink_logits, "sink_logits")?,
        })
    }

    fn frequencies(&self, c: &LayerConfig) -> Result<Frequencies> {
        let rope_dim = if c.rope_dim == 0 { self.head_dim } else { c.rope_dim };
        if !rope_dim.is_multiple_of(2) || rope_dim > self.head_dim {
            bail!(InvalidConfig, "rope_dim is {rope_dim}: an even number up to head_dim {} is allowed", self.head_dim);
        }
        positive("rope_base", c.rope_base)?;
        positive("rope_scale", c.rope_scale)?;
        positive("rope_mscale", c.rope_mscale)?;
        if c.inv_freq.is_empty() {
            let d = f64::from(rope_dim);
            let radians = (0..rope_dim / 2).map(|i| c.rope_base.powf(-f64::from(2 * i) / d) * c.rope_scale);
            return Ok(Frequencies::from_radians(radians));
        }
        if c.inv_freq.len() != rope_dim as usize / 2 {
            bail!(InvalidConfig, "inv_freq has {} values: half of rope_dim {rope_dim} is needed", c.inv_freq.len());
        }
        finite("inv_freq", &c.inv_freq)?;
        Ok(Frequencies::from_radians(c.inv_freq.iter().map(|&f| f64::from(f) * c.rope_scale)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    fn valid() -> CacheConfig {
        CacheConfig { n_q_heads: 4, n_kv_heads: 2, head_dim: 64, ..CacheConfig::default() }
    }

    fn refusal(change: impl FnOnce(&mut CacheConfig, &mut LayerConfig)) -> String {
        let (mut config, mut layer) = (valid(), LayerConfig::default());
        change(&mut config, &mut layer);
        let error = config.shape().and_then(|_| config.layer(&layer)).unwrap_err();
        assert_eq!(error.status(), Status::InvalidConfig);
        error.message().to_owned()
    }

    #[test]
    fn every_refusal_names_the_value_and_what_is_allowed() {
        assert!(valid().shape().is_ok() && valid().layer(&LayerConfig::default()).is_ok());
        assert_eq!(refusal(|c, _| c.n_layers = 0), "n_layers is 0: 1 to 65536 is allowed");
        assert_eq!(refusal(|c, _| c.n_seqs = u32::MAX), "n_seqs is 4294967295: 1 to 16777216 is allowed");
        assert_eq!(refusal(|c, _| c.n_kv_heads = 5), "n_kv_heads is 5: 1 to 4 is allowed");
        assert_eq!(refusal(|c, _| c.n_kv_heads = 3), "n_q_heads 4 is not a multiple of n_kv_heads 3");
        assert_eq!(refusal(|c, _| c.head_dim = 12), "head_dim is 12: a multiple of 8 up to 512 is allowed");
        assert_eq!(refusal(|c, _| c.head_dim_v = 520), "head_dim_v is 520: a multiple of 8 up to 512 is allowed");
        assert!(refusal(|c, _| c.max_chunk = 0).starts_with("max_chunk is 0"));
        assert!(refusal(|c, _| c.max_rewind = u32::MAX).starts_with("max_rewind is 4294967295"));
        assert!(refusal(|c, _| c.n_threads = 0).starts_with("n_threads is 0"));
        assert!(refusal(|c, _| c.layers.clear()).starts_with("0 layer configurations"));
        assert!(refusal(|_, l| l.window = 0).starts_with("window is 0"));
        assert!(refusal(|_, l| l.rope_dim = 7).starts_with("rope_dim is 7"));
        assert!(refusal(|_, l| l.rope_dim = 66).starts_with("rope_dim is 66"));
        assert!(refusal(|_, l| l.rope_base = -1.0).starts_with("rope_base is -1"));
        assert!(refusal(|_, l| l.rope_scale = f64::NAN).starts_with("rope_scale is NaN"));
        assert!(refusal(|_, l| l.rope_mscale = f64::INFINITY).starts_with("rope_mscale is inf"));
        assert!(refusal(|_, l| l.inv_freq = vec![1.0; 31]).starts_with("inv_freq has 31 values"));
        assert!(refusal(|_, l| l.inv_freq = vec![f32::NAN; 32]).starts_with("inv_freq[0] is NaN"));
        assert!(refusal(|_, l| l.alibi_slopes = vec![1.0; 4]).starts_with("alibi_slopes has 4 values"));
        assert!(refusal(|_, l| l.position_mode = PositionMode::Alibi).contains("4 query heads needs 4"));
        assert!(refusal(|_, l| l.sink_logits = vec![0.0; 2]).starts_with("sink_logits has 2 values"));
        assert!(refusal(|_, l| l.sink_logits = vec![f32::NEG_INFINITY; 4]).starts_with("sink_logits[0] is -inf"));
        assert!(refusal(|_, l| l.scale = -0.5).starts_with("scale is -0.5"));
        assert!(refusal(|_, l| l.softcap = 1e-300).starts_with("softcap is"));
        assert!(
            refusal(|_, l| {
                l.position_mode = PositionMode::None;
                l.inv_freq = vec![1.0; 32];
            })
            .contains("rotates nothing")
        );
    }
}

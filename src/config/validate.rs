//! Checks of a configuration, all in this file, and the checked form that backends use.

use super::layers::{Layer, Layers};
use super::settings::{CacheConfig, LayerConfig};
use super::types::{DType, PositionMode, StorageType, Which};
use crate::error::{Error, Result, bail};
use crate::memory::{copied, with_room};
use crate::ring::Ring;
use crate::rope::Frequencies;

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
    /// Types that K and V are stored in.
    pub k_type: StorageType,
    pub v_type: StorageType,
    pub max_chunk: u64,
    /// Whether a layer has room for pinned or evicted ranges.
    pub edits: bool,
}

impl Shape {
    /// Bytes of a stored row of one head: its numbers or codes, and its scales.
    pub fn row_bytes(&self, which: Which) -> usize {
        match which {
            Which::K => self.k_type.row_bytes(self.head_dim),
            Which::V => self.v_type.row_bytes(self.head_dim_v),
        }
    }
}

pub const MAX_LAYERS: u32 = 65_536;
pub const MAX_SEQS: u32 = 1 << 24;
pub const MAX_HEADS: u32 = 65_536;
pub const MAX_HEAD_DIM: u32 = 512;
pub const HEAD_DIM_MULTIPLE: u32 = 8;
pub const MAX_CHUNK: u32 = 1 << 30;
pub const MAX_THREADS: u32 = 1_024;
pub const MAX_PINNED: u32 = 1 << 24;
pub const MAX_SEGMENTS: u32 = 1_024;
const MIN_SCALE: f64 = 1e-30;

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
    // Kernels compute in f32: a value that is 0 or infinite there would make every result 0 or NaN.
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
    /// Checks a whole configuration.
    pub(crate) fn validate(&self) -> Result<(Shape, Layers)> {
        let shape = self.shape()?;
        if self.layers.len() != 1 && self.layers.len() != self.n_layers as usize {
            bail!(
                InvalidConfig,
                "{} layer configurations: 1 for all or one for each of the {} layers is needed",
                self.layers.len(),
                self.n_layers
            );
        }
        let mut layers = with_room(self.layers.len(), "layers")?;
        if let [one] = self.layers.as_slice() {
            layers.push(self.layer(one)?);
            return Ok((shape, Layers::new(layers, self.n_layers as usize)));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let layer =
                self.layer(layer).map_err(|e| Error::new(e.status(), format_args!("layer {i}: {}", e.message())))?;
            layers.push(layer);
        }
        Ok((shape, Layers::new(layers, self.n_layers as usize)))
    }

    /// Checks the settings that concern all layers, and none of `layers`.
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
        Ok(Shape {
            n_q_heads: self.n_q_heads as usize,
            n_kv_heads: self.n_kv_heads as usize,
            group: (self.n_q_heads / self.n_kv_heads) as usize,
            head_dim: self.head_dim as usize,
            head_dim_v: head_dim_v as usize,
            in_dtype: self.in_dtype,
            out_dtype: self.out_dtype,
            k_type: self.k_dtype.unwrap_or(self.kv_dtype),
            v_type: self.v_dtype.unwrap_or(self.kv_dtype),
            max_chunk: self.max_chunk.into(),
            edits: self.layers.iter().any(|layer| layer.max_segments > 0),
        })
    }

    /// Checks the settings of one layer.
    pub(crate) fn layer(&self, c: &LayerConfig) -> Result<Layer> {
        in_range("window", c.window, 1, u32::MAX)?;
        in_range("max_pinned", c.max_pinned, 0, MAX_PINNED)?;
        in_range("max_segments", c.max_segments, 0, MAX_SEGMENTS)?;
        let rope = matches!(c.position_mode, PositionMode::Rope | PositionMode::RopeApplied);
        if !rope && !c.inv_freq.is_empty() {
            bail!(
                InvalidConfig,
                "inv_freq has {} values, but {:?} does not use RoPE",
                c.inv_freq.len(),
                c.position_mode
            );
        }
        let frequencies = if rope { self.frequencies(c)? } else { Frequencies::default() };
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
        // Distances of raw scores would overflow before they are scaled.
        if scale < MIN_SCALE {
            bail!(InvalidConfig, "scale is {scale:e}: at least {MIN_SCALE:e} is needed");
        }
        if c.softcap != 0.0 {
            positive("softcap", c.softcap)?;
        }
        Ok(Layer {
            ring: Ring::new(c.n_sink, c.window, self.max_chunk, self.max_rewind)
                .with_edits(c.max_pinned, c.max_segments),
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
            return Frequencies::from_radians(radians);
        }
        if c.inv_freq.len() != rope_dim as usize / 2 {
            bail!(InvalidConfig, "inv_freq has {} values: half of rope_dim {rope_dim} is needed", c.inv_freq.len());
        }
        finite("inv_freq", &c.inv_freq)?;
        Frequencies::from_radians(c.inv_freq.iter().map(|&f| f64::from(f) * c.rope_scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::error::Status;

    fn valid() -> CacheConfig {
        CacheConfig { n_q_heads: 4, n_kv_heads: 2, head_dim: 64, ..CacheConfig::default() }
    }

    fn rejection(change: impl FnOnce(&mut CacheConfig, &mut LayerConfig)) -> String {
        let (mut config, mut layer) = (valid(), LayerConfig::default());
        change(&mut config, &mut layer);
        if config.layers.len() == 1 {
            config.layers = vec![layer];
        }
        let error = config.validate().unwrap_err();
        assert_eq!(error.status(), Status::InvalidConfig);
        error.message().to_owned()
    }

    #[test]
    fn every_rejection_names_the_value_and_what_is_allowed() {
        assert!(valid().shape().is_ok() && valid().layer(&LayerConfig::default()).is_ok());
        assert_eq!(rejection(|c, _| c.n_layers = 0), "n_layers is 0: 1 to 65536 is allowed");
        assert_eq!(rejection(|c, _| c.n_seqs = u32::MAX), "n_seqs is 4294967295: 1 to 16777216 is allowed");
        assert_eq!(rejection(|c, _| c.n_kv_heads = 5), "n_kv_heads is 5: 1 to 4 is allowed");
        assert_eq!(rejection(|c, _| c.n_kv_heads = 3), "n_q_heads 4 is not a multiple of n_kv_heads 3");
        assert_eq!(rejection(|c, _| c.head_dim = 12), "head_dim is 12: a multiple of 8 up to 512 is allowed");
        assert_eq!(rejection(|c, _| c.head_dim_v = 520), "head_dim_v is 520: a multiple of 8 up to 512 is allowed");
        assert!(rejection(|c, _| c.max_chunk = 0).starts_with("max_chunk is 0"));
        assert!(rejection(|c, _| c.max_rewind = u32::MAX).starts_with("max_rewind is 4294967295"));
        assert!(rejection(|c, _| c.n_threads = 0).starts_with("n_threads is 0"));
        assert!(rejection(|c, _| c.layers.clear()).starts_with("0 layer configurations"));
        assert!(rejection(|_, l| l.window = 0).starts_with("window is 0"));
        assert_eq!(rejection(|_, l| l.max_pinned = (1 << 24) + 1), "max_pinned is 16777217: 0 to 16777216 is allowed");
        assert_eq!(rejection(|_, l| l.max_segments = 1_025), "max_segments is 1025: 0 to 1024 is allowed");
        assert!(rejection(|_, l| l.rope_dim = 7).starts_with("rope_dim is 7"));
        assert!(rejection(|_, l| l.rope_dim = 66).starts_with("rope_dim is 66"));
        assert!(rejection(|_, l| l.rope_base = -1.0).starts_with("rope_base is -1"));
        assert!(rejection(|_, l| l.rope_scale = f64::NAN).starts_with("rope_scale is NaN"));
        assert!(rejection(|_, l| l.rope_mscale = f64::INFINITY).starts_with("rope_mscale is inf"));
        assert!(rejection(|_, l| l.inv_freq = vec![1.0; 31]).starts_with("inv_freq has 31 values"));
        assert!(rejection(|_, l| l.inv_freq = vec![f32::NAN; 32]).starts_with("inv_freq[0] is NaN"));
        assert!(rejection(|_, l| l.alibi_slopes = vec![1.0; 4]).starts_with("alibi_slopes has 4 values"));
        assert!(rejection(|_, l| l.position_mode = PositionMode::Alibi).contains("4 query heads needs 4"));
        assert!(rejection(|_, l| l.sink_logits = vec![0.0; 2]).starts_with("sink_logits has 2 values"));
        assert!(rejection(|_, l| l.sink_logits = vec![f32::NEG_INFINITY; 4]).starts_with("sink_logits[0] is -inf"));
        assert!(rejection(|_, l| l.scale = 1e-31).ends_with("1e-31: at least 1e-30 is needed"));
        assert!(rejection(|_, l| l.scale = -0.5).starts_with("scale is -0.5"));
        assert!(rejection(|_, l| l.softcap = 1e-300).starts_with("softcap is"));
        assert!(
            rejection(|_, l| {
                l.position_mode = PositionMode::None;
                l.inv_freq = vec![1.0; 32];
            })
            .contains("does not use RoPE")
        );
    }
}

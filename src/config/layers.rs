//! The checked layers of a cache.

use std::ops::Index;

use super::types::{PositionMode, RopeStyle};
use crate::error::Result;
use crate::memory::{copied, with_room};
use crate::ring::Ring;
use crate::rope::Frequencies;

/// A valid layer, ready for a backend.
#[derive(Debug)]
pub struct Layer {
    pub ring: Ring,
    pub position_mode: PositionMode,
    pub rope_style: RopeStyle,
    /// Empty where `RoPE` is not used.
    pub frequencies: Frequencies,
    pub mscale: f32,
    pub scale: f32,
    /// 0 = no softcap.
    pub softcap: f32,
    pub alibi_slopes: Vec<f32>,
    pub sink_logits: Vec<f32>,
}

impl Layer {
    /// A copy, or `OutOfMemory`.
    pub fn copied(&self) -> Result<Self> {
        Ok(Self {
            frequencies: self.frequencies.copied()?,
            alibi_slopes: copied(&self.alibi_slopes, "alibi_slopes")?,
            sink_logits: copied(&self.sink_logits, "sink_logits")?,
            ..*self
        })
    }
}

/// The layers of a cache. Those that share one configuration share one [`Layer`].
#[derive(Debug)]
pub struct Layers {
    /// One for all layers, or one for each.
    distinct: Vec<Layer>,
    n: usize,
}

impl Layers {
    /// `n` layers, of which `distinct` has one for all or one for each.
    pub fn new(distinct: Vec<Layer>, n: usize) -> Self {
        debug_assert!(distinct.len() == 1 || distinct.len() == n, "{} of {n} layers", distinct.len());
        Self { distinct, n }
    }

    pub fn len(&self) -> usize {
        self.n
    }

    /// One for all layers, or one for each.
    pub fn distinct(&self) -> &[Layer] {
        &self.distinct
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Layer> + Clone {
        (0..self.n).map(|i| &self[i])
    }

    /// A copy, or `OutOfMemory`.
    pub fn copied(&self) -> Result<Self> {
        let mut distinct = with_room(self.distinct.len(), "layers")?;
        for layer in &self.distinct {
            distinct.push(layer.copied()?);
        }
        Ok(Self { distinct, n: self.n })
    }
}

impl Index<usize> for Layers {
    type Output = Layer;

    fn index(&self, layer: usize) -> &Layer {
        assert!(layer < self.n, "layer {layer} of {}", self.n);
        self.distinct.get(layer).unwrap_or(&self.distinct[0])
    }
}

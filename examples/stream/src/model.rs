//! A Llama. sinkcache stores its keys and values and computes its attention, candle does the rest.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use crate::cache::{CacheShape, KvCache, KvTypes};
use crate::gguf::Gguf;
use crate::ops::{add, multiply, rms_norm, row, swiglu, with_values};
use crate::text::BYTE_OFFSET;

/// Tokens of a byte vocabulary: `<unk>`, `<s>`, `</s>` and the bytes.
pub const VOCABULARY: usize = BYTE_OFFSET as usize + 256;

/// The shape of a Llama.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the usual names")]
pub struct LlamaConfig {
    pub n_layers: usize,
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub rope_dim: usize,
    pub rope_base: f32,
    pub embedding: usize,
    pub feed_forward: usize,
    pub rms_eps: f32,
    /// Length of the sequences that the model was trained on.
    pub trained_length: usize,
}

impl LlamaConfig {
    fn read(gguf: &Gguf) -> Result<Self> {
        let embedding = gguf.count("llama.embedding_length")?;
        let n_q_heads = gguf.count("llama.attention.head_count")?;
        let head_dim = gguf.count_or("llama.attention.key_length", Some((embedding / n_q_heads).max(1)))?;
        let config = Self {
            n_layers: gguf.count("llama.block_count")?,
            n_q_heads,
            n_kv_heads: gguf.count_or("llama.attention.head_count_kv", Some(n_q_heads))?,
            head_dim,
            rope_dim: gguf.count_or("llama.rope.dimension_count", Some(head_dim))?,
            rope_base: gguf.number("llama.rope.freq_base", Some(10_000.0))?,
            embedding,
            feed_forward: gguf.count("llama.feed_forward_length")?,
            rms_eps: gguf.number("llama.attention.layer_norm_rms_epsilon", None)?,
            trained_length: gguf.count("llama.context_length")?,
        };
        let scaled = gguf.sets("llama.rope.scaling.type") || gguf.has_tensor("rope_freqs.weight");
        ensure!(!scaled, "it scales RoPE: this example supports unscaled RoPE only");
        let words = gguf.array_len("tokenizer.ggml.tokens");
        let words = gguf.count_or("llama.vocab_size", words.or(Some(VOCABULARY)))?.max(words.unwrap_or(0));
        ensure!(
            words == VOCABULARY,
            "its vocabulary has {words} tokens: only bytes ({VOCABULARY} tokens) are supported"
        );
        Ok(config)
    }
}

struct Layer {
    attention_norm: Vec<f32>,
    /// The projections to q, k and v in one matrix.
    qkv: Tensor,
    attention_out: Tensor,
    feed_forward_norm: Vec<f32>,
    /// The projections to gate and up in one matrix.
    gate_up: Tensor,
    down: Tensor,
}

/// A model with its weights in f32.
pub struct Llama {
    config: LlamaConfig,
    embeddings: Vec<f32>,
    layers: Vec<Layer>,
    out_norm: Vec<f32>,
    out: Tensor,
}

impl Llama {
    /// Loads a GGUF file.
    ///
    /// # Errors
    /// A file that cannot be read, or does not hold a Llama with a byte vocabulary and unscaled RoPE.
    pub fn open(path: &Path) -> Result<Self> {
        let mut gguf = Gguf::open(path)?;
        Self::read(&mut gguf).with_context(|| format!("model '{}'", path.display()))
    }

    fn read(gguf: &mut Gguf) -> Result<Self> {
        let config = LlamaConfig::read(gguf)?;
        let width = config.embedding;
        let embeddings = gguf.tensor("token_embd.weight", &[VOCABULARY, width])?;
        let out = match gguf.has_tensor("output.weight") {
            true => gguf.tensor("output.weight", &[VOCABULARY, width])?,
            false => embeddings.clone(),
        };
        Ok(Self {
            embeddings: embeddings.flatten_all()?.to_vec1()?,
            layers: (0..config.n_layers).map(|i| Layer::read(gguf, &config, i)).collect::<Result<_>>()?,
            out_norm: gguf.tensor("output_norm.weight", &[width])?.to_vec1()?,
            out: out.t()?,
            config,
        })
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The shape of a cache for this model.
    #[must_use]
    pub fn cache_shape(
        &self,
        n_sink: u32,
        window: u32,
        max_chunk: u32,
        kv_dtype: KvTypes,
        n_threads: u32,
    ) -> CacheShape {
        // No cast truncates: Gguf::count limits all counts to 2^20.
        CacheShape {
            n_layers: self.config.n_layers as u32,
            n_q_heads: self.config.n_q_heads as u32,
            n_kv_heads: self.config.n_kv_heads as u32,
            head_dim: self.config.head_dim as u32,
            rope_dim: self.config.rope_dim as u32,
            rope_base: f64::from(self.config.rope_base),
            n_sink,
            window,
            max_chunk,
            kv_dtype,
            n_threads,
        }
    }

    /// Appends `tokens` to the cache's sequence. Returns the logits `[keep.len(), VOCABULARY]` of the tokens whose
    /// indices are in `keep`, ascending; the logits of other tokens are not computed.
    ///
    /// # Errors
    /// Whatever candle or sinkcache reports.
    pub fn forward(&self, tokens: &[u32], keep: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let width = self.config.embedding;
        let mut x: Vec<f32> = tokens.iter().flat_map(|&t| row(&self.embeddings, t, width)).copied().collect();
        for (i, layer) in self.layers.iter().enumerate() {
            let mut attended = self.attend(i as u32, layer, &x, cache)?;
            // In the last layer, rows that are not kept were needed for their keys and values only.
            if i + 1 == self.layers.len() {
                x = keep.iter().flat_map(|&i| row(&x, i, width)).copied().collect();
                let width = self.config.n_q_heads * self.config.head_dim;
                attended = keep.iter().flat_map(|&i| row(&attended, i, width)).copied().collect();
            }
            if x.is_empty() {
                return Ok(x);
            }
            add(&mut x, &multiply(attended, &layer.attention_out)?)?;
            self.feed_forward(layer, &mut x)?;
        }
        let logits = multiply(rms_norm(&x, &self.out_norm, self.config.rms_eps), &self.out)?;
        with_values(&logits, |logits| Ok(logits.to_vec()))
    }

    /// The results of a layer's attention heads, before the output projection.
    fn attend(&self, i: u32, layer: &Layer, x: &[f32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let config = &self.config;
        let qkv = multiply(rms_norm(x, &layer.attention_norm, config.rms_eps), &layer.qkv)?;
        let mut attended = vec![0.0; x.len() / config.embedding * config.n_q_heads * config.head_dim];
        with_values(&qkv, |qkv| Ok(cache.step(i, qkv, &mut attended)?))?;
        Ok(attended)
    }

    fn feed_forward(&self, layer: &Layer, x: &mut [f32]) -> Result<()> {
        let config = &self.config;
        let gate_up = multiply(rms_norm(x, &layer.feed_forward_norm, config.rms_eps), &layer.gate_up)?;
        let inner = with_values(&gate_up, |gate_up| Ok(swiglu(gate_up, config.feed_forward)))?;
        add(x, &multiply(inner, &layer.down)?)
    }
}

impl Layer {
    fn read(gguf: &mut Gguf, config: &LlamaConfig, i: usize) -> Result<Self> {
        let (width, inner) = (config.embedding, config.feed_forward);
        let (q, kv) = (config.n_q_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let mut tensor = |name: &str, shape: &[usize]| gguf.tensor(&format!("blk.{i}.{name}.weight"), shape);
        let qkv = [tensor("attn_q", &[q, width])?, tensor("attn_k", &[kv, width])?, tensor("attn_v", &[kv, width])?];
        let gate_up = [tensor("ffn_gate", &[inner, width])?, tensor("ffn_up", &[inner, width])?];
        Ok(Self {
            attention_norm: tensor("attn_norm", &[width])?.to_vec1()?,
            qkv: Tensor::cat(&qkv, 0)?.t()?,
            attention_out: tensor("attn_output", &[width, q])?.t()?,
            feed_forward_norm: tensor("ffn_norm", &[width])?.to_vec1()?,
            gate_up: Tensor::cat(&gate_up, 0)?.t()?,
            down: tensor("ffn_down", &[width, inner])?.t()?,
        })
    }
}

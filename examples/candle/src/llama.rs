//! A Llama from a GGUF file, of candle's own parts: what `candle_transformers::models::quantized_llama` computes, with
//! another attention. That model's cache is a private field of its layers, and nothing can be put in its place.

use std::io::{Read, Seek};

use candle_core::quantized::QMatMul;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Module, Result, Tensor};
use candle_nn::Embedding;
use candle_nn::ops::silu;
use candle_transformers::quantized_nn::RmsNorm;
use sinkcache::{CacheConfig, DType, LayerConfig, PositionMode, RopeStyle, StorageType};

use crate::sink_attention::SinkAttention;

/// What a GGUF file says of the model's shape.
pub struct Config {
    pub layers: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub eps: f64,
    pub rope_base: f32,
}

struct Layer {
    attention_norm: RmsNorm,
    wq: QMatMul,
    wk: QMatMul,
    wv: QMatMul,
    wo: QMatMul,
    mlp_norm: RmsNorm,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
}

pub struct Llama {
    pub config: Config,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: QMatMul,
}

impl Config {
    fn read(file: &Content) -> Result<Self> {
        let get = |key: &str| -> Result<&Value> {
            let key = format!("llama.{key}");
            file.metadata.get(&key).ok_or_else(|| candle_core::Error::Msg(format!("the file has no {key}")))
        };
        let count = |key| get(key)?.to_u32().map(|n| n as usize);
        let (q_heads, width) = (count("attention.head_count")?, count("embedding_length")?);
        if q_heads == 0 {
            candle_core::bail!("llama.attention.head_count is 0: at least 1 is needed");
        }
        Ok(Self {
            layers: count("block_count")?,
            q_heads,
            kv_heads: count("attention.head_count_kv")?,
            head_dim: width / q_heads,
            eps: get("attention.layer_norm_rms_epsilon")?.to_f32()?.into(),
            rope_base: get("rope.freq_base").and_then(Value::to_f32).unwrap_or(10_000.0),
        })
    }

    /// A cache of sinks and window for this model. GGUF files have the pairs of `RoPE` side by side.
    pub fn cache(&self, n_sink: u32, window: u32) -> CacheConfig {
        let layer = LayerConfig {
            n_sink,
            window,
            position_mode: PositionMode::Rope,
            rope_style: RopeStyle::Interleaved,
            rope_base: f64::from(self.rope_base),
            ..LayerConfig::default()
        };
        CacheConfig {
            n_layers: self.layers as u32,
            n_seqs: 1,
            n_q_heads: self.q_heads as u32,
            n_kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            in_dtype: DType::F32,
            kv_dtype: StorageType::F32,
            layers: vec![layer],
            ..CacheConfig::default()
        }
    }
}

impl Llama {
    /// Reads all weights; those in quantized types stay so.
    pub fn read(file: &Content, reader: &mut (impl Read + Seek), device: &Device) -> Result<Self> {
        let config = Config::read(file)?;
        let mut tensor = |name: String| file.tensor(reader, &format!("{name}.weight"), device);
        let embedding = tensor("token_embd".into())?.dequantize(device)?;
        let width = embedding.dim(1)?;
        // Without a tensor of its own, the output is the embedding.
        let tied = !file.tensor_infos.contains_key("output.weight");
        let output = QMatMul::from_qtensor(tensor(if tied { "token_embd" } else { "output" }.into())?)?;
        let layers = (0..config.layers).map(|i| {
            let mut part = |name: &str| tensor(format!("blk.{i}.{name}"));
            Ok(Layer {
                attention_norm: RmsNorm::from_qtensor(part("attn_norm")?, config.eps)?,
                wq: QMatMul::from_qtensor(part("attn_q")?)?,
                wk: QMatMul::from_qtensor(part("attn_k")?)?,
                wv: QMatMul::from_qtensor(part("attn_v")?)?,
                wo: QMatMul::from_qtensor(part("attn_output")?)?,
                mlp_norm: RmsNorm::from_qtensor(part("ffn_norm")?, config.eps)?,
                gate: QMatMul::from_qtensor(part("ffn_gate")?)?,
                up: QMatMul::from_qtensor(part("ffn_up")?)?,
                down: QMatMul::from_qtensor(part("ffn_down")?)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        let norm = RmsNorm::from_qtensor(tensor("output_norm".into())?, config.eps)?;
        Ok(Self { embedding: Embedding::new(embedding, width), layers, norm, output, config })
    }

    /// Logits `[tokens, vocabulary]` of the next tokens of the text that `attention` has read.
    pub fn forward(&self, tokens: &[u32], attention: &SinkAttention) -> Result<Tensor> {
        let Config { q_heads, kv_heads, head_dim, .. } = self.config;
        let n = tokens.len();
        let mut x = self.embedding.forward(&Tensor::new(tokens, self.embedding.embeddings().device())?)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = layer.attention_norm.forward(&x)?;
            let q = layer.wq.forward(&h)?.reshape((n, q_heads, head_dim))?;
            let k = layer.wk.forward(&h)?.reshape((n, kv_heads, head_dim))?;
            let v = layer.wv.forward(&h)?.reshape((n, kv_heads, head_dim))?;
            let attended = attention.step(i, &q, &k, &v)?.flatten_from(1)?;
            x = (x + layer.wo.forward(&attended)?)?;
            let h = layer.mlp_norm.forward(&x)?;
            let inner = (silu(&layer.gate.forward(&h)?)? * layer.up.forward(&h)?)?;
            x = (x + layer.down.forward(&inner)?)?;
        }
        self.output.forward(&self.norm.forward(&x)?)
    }
}

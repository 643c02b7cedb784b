//! The bundled Llama in candle, over sinks and a window: its logits are those of candle's own model while all tokens
//! are held, and its perplexity stays where it is far beyond that.
//!
//! `cargo run --release` in this folder; candle computes on the CPU.

mod llama;
mod sink_attention;

use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Error, IndexOp, Result, Tensor, bail};
use candle_nn::ops::log_softmax;
use candle_transformers::models::quantized_llama::ModelWeights;

use crate::llama::Llama;
use crate::sink_attention::SinkAttention;

const SINKS: u32 = 4;
const WINDOW: u32 = 252;
const TOKENS: usize = 4000;
const CHUNK: usize = 64;
/// Of the last row of logits, relative to the largest: rounding in f32 by other kernels in another order.
const TOLERANCE: f32 = 2e-5;

fn data(name: &str) -> Result<File> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(name);
    File::open(&path).map_err(|error| Error::Msg(format!("{}: {error}", path.display())))
}

/// Token 1 begins a text; byte b is token b + 3.
fn tokens() -> Result<Vec<u32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/stream.txt");
    let text = fs::read(path)?;
    Ok(std::iter::once(1).chain(text.iter().map(|&byte| u32::from(byte) + 3)).take(TOKENS + 1).collect())
}

fn largest(x: &Tensor) -> Result<f32> {
    x.abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// Sum of the negative log probabilities of `next`.
fn loss(logits: &Tensor, next: &[u32]) -> Result<f64> {
    let index = Tensor::new(next, logits.device())?.unsqueeze(1)?;
    Ok(-f64::from(log_softmax(logits, 1)?.gather(&index, 1)?.sum_all()?.to_scalar::<f32>()?))
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let mut file = data("tiny-llama-bytes.gguf")?;
    let content = Content::read(&mut file)?;
    let model = Llama::read(&content, &mut file, &device)?;
    let mut stock = ModelWeights::from_gguf(content, &mut file, &device)?;
    let tokens = tokens()?;

    // While all tokens are held: candle's own model, token by token.
    let attention = SinkAttention::new(&model.config.cache(SINKS, WINDOW))?;
    let mut worst = 0.0_f32;
    let held = (SINKS + WINDOW) as usize;
    for (t, token) in tokens[..held].iter().enumerate() {
        let want = stock.forward(&Tensor::new(&[[*token]], &device)?, t)?.i(0)?;
        let got = model.forward(&[*token], &attention)?.i(0)?;
        let difference = largest(&(got - &want)?)? / largest(&want)?;
        if difference.is_nan() || difference > TOLERANCE {
            bail!("token {t}: logits differ by {difference:.1e} from those of candle's model");
        }
        worst = worst.max(difference);
    }

    // The whole text, in chunks.
    let attention = SinkAttention::new(&model.config.cache(SINKS, WINDOW))?;
    let (mut sum, mut beyond) = (0.0, 0.0);
    for (i, chunk) in tokens[..TOKENS].chunks(CHUNK).enumerate() {
        let next = &tokens[i * CHUNK + 1..][..chunk.len()];
        sum += loss(&model.forward(chunk, &attention)?, next)?;
        if i * CHUNK < held {
            beyond = sum;
        }
    }
    let perplexity = ((sum - beyond) / (TOKENS - held) as f64).exp();
    let info = attention.cache().seq_info(0, 0).map_err(Error::wrap)?;
    if (info.len_min, info.cached) != (TOKENS as u64, u64::from(SINKS + WINDOW)) {
        bail!("{info:?}");
    }

    // candle's own model keeps all tokens: here until four times as many as it was trained on.
    let dense = 4 * held;
    let mut sum = 0.0;
    for (t, token) in tokens[..dense].iter().enumerate() {
        let logits = stock.forward(&Tensor::new(&[[*token]], &device)?, t)?;
        if t >= 2 * held {
            sum += loss(&logits, &tokens[t + 1..t + 2])?;
        }
    }
    let dense_perplexity = (sum / (dense - 2 * held) as f64).exp();
    println!(
        "candle: {held} tokens of logits within {worst:.1e} of its own Llama; then perplexity {perplexity:.3} over {} \
         tokens with {} held; its own cache has {dense_perplexity:.1} from {} to {dense}",
        TOKENS - held,
        info.cached,
        2 * held,
    );
    if perplexity > 4.0 || dense_perplexity < 10.0 {
        bail!("the model does not stream as it should");
    }
    Ok(())
}

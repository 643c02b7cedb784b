//! Streams random tokens past a window, and checks every row of the output against a plain softmax over the tokens
//! held.
//!
//! `cargo run --release -p sinkcache-example`

use std::error::Error;

use sinkcache::{
    Batch, Cache, CacheConfig, LayerConfig, PositionMode, RowsIn, RowsOut, Status, StepTensors, StorageType,
};

const Q_HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const SINKS: usize = 4;
const WINDOW: usize = 60;
const PROMPT: usize = 100;
const TOKENS: usize = 1000;
const Q_ROW: usize = Q_HEADS * DIM;
const KV_ROW: usize = KV_HEADS * DIM;
const TOLERANCE: f64 = 1e-5;

/// `n` numbers, uniform in [-1, 1), in place of the q, k and v of a model.
fn random(n: usize, state: &mut u32) -> Vec<f32> {
    let next = |_| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(next).collect()
}

/// The model's side of the stream: all queries, keys and values.
struct Tokens {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Tokens {
    /// Attention of one head of token `t`: a plain softmax over sinks and window.
    fn attend(&self, t: usize, head: usize) -> [f64; DIM] {
        let kv = head / (Q_HEADS / KV_HEADS) * DIM;
        let q = &self.q[t * Q_ROW + head * DIM..][..DIM];
        let (mut out, mut sum) = ([0.0; DIM], 0.0);
        for i in (0..=t).filter(|&i| i < SINKS || i + WINDOW > t) {
            let (k, v) = (&self.k[i * KV_ROW + kv..][..DIM], &self.v[i * KV_ROW + kv..][..DIM]);
            let score: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            let p = (score / (DIM as f64).sqrt()).exp();
            sum += p;
            out.iter_mut().zip(v).for_each(|(out, &v)| *out += p * f64::from(v));
        }
        out.map(|x| x / sum)
    }

    /// The largest difference of token `t`'s row of the output from the plain softmax, and the largest value of that.
    fn difference(&self, t: usize, row: &[f32]) -> (f64, f64) {
        let want = (0..Q_HEADS).flat_map(|head| self.attend(t, head));
        row.iter().zip(want).fold((0.0, 0.0), |(worst, largest), (&x, want)| {
            let difference = (f64::from(x) - want).abs();
            // max() would drop a NaN.
            (if difference > worst || difference.is_nan() { difference } else { worst }, want.abs().max(largest))
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let layer = LayerConfig {
        n_sink: SINKS as u32,
        window: WINDOW as u32,
        position_mode: PositionMode::None,
        ..LayerConfig::default()
    };
    let config = CacheConfig {
        n_q_heads: Q_HEADS as u32,
        n_kv_heads: KV_HEADS as u32,
        head_dim: DIM as u32,
        kv_dtype: StorageType::F32,
        layers: vec![layer],
        ..CacheConfig::default()
    };
    let bytes = Cache::footprint(&config)?.host;
    // Calls take `&mut self`: that a cache has one call at a time, the compiler checks. The C ABI answers with BUSY.
    let mut cache = Cache::new(&config)?;

    let mut state = 1;
    let tokens = Tokens {
        q: random(TOKENS * Q_ROW, &mut state),
        k: random(TOKENS * KV_ROW, &mut state),
        v: random(TOKENS * KV_ROW, &mut state),
    };
    let mut out = vec![0.0_f32; PROMPT * Q_ROW];
    let mut step = |layer: u32, t: usize, n: usize, out: &mut [f32]| {
        let n_tokens = [n as i32];
        cache.step(
            layer,
            Batch::new(&[0], &n_tokens),
            StepTensors {
                // A slice's type must be the configured one, and its length must hold the batch.
                q: RowsIn::packed(&tokens.q[t * Q_ROW..]),
                k: RowsIn::packed(&tokens.k[t * KV_ROW..]),
                v: RowsIn::packed(&tokens.v[t * KV_ROW..]),
                out: RowsOut::packed(out),
                lse: None,
            },
        )
    };

    // A prompt that is longer than the window, then token by token.
    let (mut t, mut n, mut worst) = (0, PROMPT, 0.0);
    while t < TOKENS {
        step(0, t, n, &mut out)?;
        for (i, row) in out.chunks_exact(Q_ROW).take(n).enumerate() {
            let (difference, largest) = tokens.difference(t + i, row);
            if difference.is_nan() || difference > TOLERANCE * largest {
                return Err(format!("token {} differs from the plain softmax by {difference:.1e}", t + i).into());
            }
            worst = f64::max(worst, difference / largest);
        }
        (t, n) = (t + n, 1);
    }

    match step(7, 0, 1, &mut out) {
        Err(error) if error.status() == Status::OutOfRange => {
            println!("expected error: {:?}: {error}", error.status());
        }
        other => return Err(format!("a step in layer 7 of 1: {other:?}").into()),
    }
    let info = cache.seq_info(0, 0)?;
    if (info.len_min, info.cached) != (TOKENS as u64, (SINKS + WINDOW) as u64) {
        return Err(format!("{info:?}").into());
    }
    println!("Rust: {} tokens, {} kept, {bytes} bytes, {worst:.1e} from a plain softmax", info.len_min, info.cached);
    Ok(())
}

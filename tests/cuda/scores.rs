//! Scores so large that one key takes all: every kernel, against the definition in f64.

use half::{bf16, f16};
use sinkcache::{
    AttendTensors, BackendKind, Batch, Cache, CacheConfig, DType, Element, LayerConfig, PositionMode, StepTensors,
    TokenCall,
};

use crate::common::device::Buf;
use crate::common::new_cache;
use crate::support::{Random, cuda};

/// Scores reach about this.
const LARGEST: [f64; 5] = [1e2, 1e6, 1e10, 1e20, 1e30];
const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// Tokens of the first call: a chunk.
const PROMPT: usize = 150;

#[derive(Clone, Copy, Debug)]
struct Case {
    head_dim: usize,
    dtype: DType,
    call: TokenCall,
    /// Tokens of each call after the first.
    n: usize,
    kernel: &'static str,
    softcap: f64,
    alibi: bool,
    sink_logits: bool,
}

const fn case(head_dim: usize, dtype: DType, call: TokenCall, n: usize, kernel: &'static str) -> Case {
    Case { head_dim, dtype, call, n, kernel, softcap: 0.0, alibi: false, sink_logits: false }
}

const CASES: [Case; 11] = [
    case(64, DType::F16, TokenCall::Step, 1, "skc_step_decode"),
    case(64, DType::Bf16, TokenCall::Step, 4, "skc_step_decode"),
    case(128, DType::F16, TokenCall::Attend, 2, "skc_attend_decode"),
    Case { sink_logits: true, ..case(64, DType::F16, TokenCall::Attend, 1, "skc_attend_decode") },
    Case { softcap: 20.0, ..case(64, DType::F16, TokenCall::Step, 1, "skc_step_decode") },
    Case { alibi: true, ..case(64, DType::F16, TokenCall::Step, 1, "skc_step_decode") },
    Case { sink_logits: true, ..case(64, DType::F16, TokenCall::Step, 40, "skc_attend_chunk") },
    Case { alibi: true, ..case(64, DType::Bf16, TokenCall::Step, 40, "skc_attend_chunk") },
    case(64, DType::F32, TokenCall::Step, 1, "skc_attend_generic"),
    Case { sink_logits: true, ..case(40, DType::F16, TokenCall::Step, 3, "skc_attend_generic") },
    Case { alibi: true, ..case(64, DType::F32, TokenCall::Step, 3, "skc_attend_generic") },
];

impl Case {
    fn layer(&self, largest: f64) -> LayerConfig {
        let per_head = |f: &dyn Fn(usize) -> f64| (0..Q_HEADS).map(|h| f(h) as f32).collect::<Vec<_>>();
        LayerConfig {
            n_sink: 4,
            window: 400,
            position_mode: if self.alibi { PositionMode::Alibi } else { PositionMode::None },
            // Products of query and key reach some hundreds.
            scale: largest / 128.0,
            softcap: self.softcap,
            alibi_slopes: if self.alibi { per_head(&|h| largest / 1e4 / (h + 1) as f64) } else { vec![] },
            // One above all scores, one below, and two that do not matter.
            sink_logits: if self.sink_logits {
                per_head(&|h| [16.0 * largest, -16.0 * largest, 1.0, 0.0][h])
            } else {
                vec![]
            },
            ..LayerConfig::default()
        }
    }

    fn config(&self, largest: f64) -> CacheConfig {
        CacheConfig {
            backend: BackendKind::Cuda,
            n_q_heads: Q_HEADS as u32,
            n_kv_heads: KV_HEADS as u32,
            head_dim: self.head_dim as u32,
            in_dtype: self.dtype,
            out_dtype: DType::F32,
            kv_dtype: self.dtype.into(),
            max_chunk: 64,
            max_rewind: 8,
            layers: vec![self.layer(largest)],
            ..CacheConfig::default()
        }
    }
}

/// All tokens so far.
#[derive(Default)]
struct Stream {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Stream {
    /// The row of query head `head` of token `t`, and its lse. All tokens are visible.
    fn attend(&self, case: &Case, layer: &LayerConfig, t: usize, head: usize) -> (Vec<f64>, f64) {
        let dim = case.head_dim;
        let row = |x: &[f32], heads: usize, t: usize, h: usize| -> Vec<f64> {
            x[(t * heads + h) * dim..][..dim].iter().map(|&x| f64::from(x)).collect()
        };
        let kv_head = head / (Q_HEADS / KV_HEADS);
        let q = row(&self.q, Q_HEADS, t, head);
        let mut scores: Vec<f64> = (0..=t)
            .map(|j| {
                let k = row(&self.k, KV_HEADS, j, kv_head);
                let mut score = q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() * f64::from(layer.scale as f32);
                if layer.softcap > 0.0 {
                    score = layer.softcap * (score / layer.softcap).tanh();
                }
                let slope = layer.alibi_slopes.get(head).map_or(0.0, |&s| f64::from(s));
                score - slope * (t - j) as f64
            })
            .collect();
        scores.extend(layer.sink_logits.get(head).map(|&s| f64::from(s)));
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![0.0; dim];
        for (j, score) in scores.iter().take(t + 1).enumerate() {
            let p = (score - max).exp() / sum;
            for (o, v) in out.iter_mut().zip(row(&self.v, KV_HEADS, j, kv_head)) {
                *o += p * v;
            }
        }
        (out, max + sum.ln())
    }
}

/// Feeds `n` tokens and compares their rows.
fn feed<T: Element>(
    cache: &mut Cache,
    stream: &mut Stream,
    random: &mut Random,
    (case, largest): (&Case, f64),
    n: usize,
    to: fn(f32) -> T,
) {
    let first = stream.k.len() / (KV_HEADS * case.head_dim);
    let mut draw = |heads: usize| random.rows(n * heads * case.head_dim);
    let (q, k, v) = (draw(Q_HEADS), draw(KV_HEADS), draw(KV_HEADS));
    let [dq, dk, dv] = [&q, &k, &v].map(|x| Buf::new(&x.iter().map(|&x| to(x)).collect::<Vec<T>>()));
    stream.q.extend(&q);
    stream.k.extend(&k);
    stream.v.extend(&v);
    let mut out = Buf::new(&vec![f32::NAN; n * Q_HEADS * case.head_dim]);
    let mut lse = Buf::new(&vec![f32::NAN; n * Q_HEADS]);
    let counts = [n as i32];
    let batch = Batch::new(&[0], &counts);
    // A prompt of several chunks is one call.
    if case.call == TokenCall::Attend && n <= 64 {
        cache.append(0, batch, dk.rows(), dv.rows()).unwrap();
        let tensors = AttendTensors { q: dq.rows(), out: out.rows_out(), lse: Some(lse.rows_out()) };
        cache.attend(0, batch, tensors).unwrap();
    } else {
        let (k, v, q) = (dk.rows(), dv.rows(), dq.rows());
        cache.step(0, batch, StepTensors { k, v, q, out: out.rows_out(), lse: Some(lse.rows_out()) }).unwrap();
    }
    let (out, lse) = (out.read(), lse.read());
    let layer = case.layer(largest);
    // Probabilities of keys that tie are rounded to the type; values are below 2.
    let bound = if case.dtype == DType::Bf16 { 4e-2 } else { 1e-2 };
    for (i, (got, &lse)) in out.chunks_exact(case.head_dim).zip(&lse).enumerate() {
        let (t, head) = (first + i / Q_HEADS, i % Q_HEADS);
        let (want, want_lse) = stream.attend(case, &layer, t, head);
        let at = || format!("{case:?}, scores of {largest:e}, token {t}, head {head}");
        for (d, (&a, b)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(a) - b).abs() <= bound, "dim {d}: {a}, not {b}: {}", at());
        }
        let difference = (f64::from(lse) - want_lse).abs();
        assert!(difference <= 2e-6 * want_lse.abs() + 2e-2, "lse {lse}, not {want_lse}: {}", at());
    }
}

#[test]
fn the_largest_key_wins_however_large_the_scores() {
    let Some(_turn) = cuda() else { return };
    for case in CASES {
        for largest in LARGEST {
            let mut cache = new_cache(&case.config(largest));
            let choice = cache.kernel_choice(0, case.call, 1, case.n as u32).unwrap();
            assert_eq!(choice.kernel, case.kernel, "{case:?}");
            assert!(!case.kernel.ends_with("decode") || choice.n_splits > 1, "{case:?}: not split");
            let (mut stream, mut random) = (Stream::default(), Random(largest as u64 | 1));
            for n in [PROMPT, case.n, case.n, case.n] {
                let what = (&case, largest);
                match case.dtype {
                    DType::F32 => feed(&mut cache, &mut stream, &mut random, what, n, |x| x),
                    DType::F16 => feed(&mut cache, &mut stream, &mut random, what, n, f16::from_f32),
                    DType::Bf16 => feed(&mut cache, &mut stream, &mut random, what, n, bf16::from_f32),
                }
            }
        }
    }
}

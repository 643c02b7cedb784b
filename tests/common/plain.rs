//! The reference for the error bounds of every storage type but f32: a plain, unfused attention that rounds what a
//! kernel would store (K and V as they are stored; rotated Q, probabilities and the output in 16 bits); everything else
//! is f32.

use sinkcache::DType;

use super::Rows;
use super::oracle::{Oracle, OracleConfig, Segment};
use super::quantised::{KvTypes, round};

/// One sequence in one layer. The oracle knows its length and which tokens are held.
#[derive(Clone, Debug)]
pub struct Plain {
    types: KvTypes,
    /// The type in which the host passes queries and keys that it has rotated; `None`: the cache rotates them.
    hosted: Option<DType>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// Rows of all heads, rotated.
fn rotated(cfg: &OracleConfig, x: &[f32], pos: f64) -> Vec<f32> {
    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    cfg.rotate(&x, pos).into_iter().map(|x| x as f32).collect()
}

impl Plain {
    pub fn new(types: impl Into<KvTypes>) -> Self {
        Self { types: types.into(), hosted: None, keys: Vec::new(), values: Vec::new() }
    }

    /// The host rotates q and k and passes them in `dtype`: q is rounded before it is rotated again for older segments,
    /// k before it is stored.
    pub fn hosted(self, dtype: DType) -> Self {
        Self { hosted: Some(dtype), ..self }
    }

    /// A row of all heads, rotated, as the host passes it.
    fn passed(&self, oracle: &Oracle, x: &[f32], pos: usize) -> Vec<f32> {
        let dtype = self.hosted.unwrap_or(DType::F32);
        rotated(&oracle.cfg, x, pos as f64).into_iter().map(|x| round(dtype, x)).collect()
    }

    /// Drops the tokens that the oracle has rewound.
    pub fn follow(&mut self, oracle: &Oracle) {
        self.keys.truncate(oracle.len());
        self.values.truncate(oracle.len());
    }

    /// Appends a token that the oracle has appended just before.
    pub fn push(&mut self, oracle: &Oracle, k: &[f32], v: &[f32]) {
        let (c, types) = (&oracle.cfg, self.types);
        let k = self.passed(oracle, k, oracle.len() - 1);
        self.keys.push(k.chunks(c.head_dim).flat_map(|k| types.key(k)).collect());
        self.values.push(v.chunks(c.head_dim_v).flat_map(|v| types.value(v)).collect());
    }

    /// Appends a token that the oracle has appended just before, and attends: `out` is extended by
    /// `[n_q_heads][head_dim_v]`.
    pub fn step(&mut self, oracle: &Oracle, token: Rows<'_>, out: &mut Vec<f32>) {
        self.push(oracle, token.k, token.v);
        let (c, types) = (&oracle.cfg, self.types);
        let p = oracle.len() - 1;
        // A pure rotation: the host has applied mscale.
        let mut back = oracle.cfg.clone();
        back.layer.rope_mscale = 1.0;
        let q = self.passed(oracle, token.q, p);
        // Of each segment: its tokens and their query, rotated to where their keys are.
        let segment = |s: Segment| {
            let q = if self.hosted.is_some() {
                rotated(&back, &q, -(s.offset as f64))
            } else {
                rotated(&oracle.cfg, token.q, p as f64 - s.offset as f64)
            };
            (s, q.chunks(c.head_dim).flat_map(|q| types.query(q)).collect())
        };
        let segments: Vec<(Segment, Vec<f32>)> = oracle.segments().into_iter().map(segment).collect();
        let narrow = |x: f32| round(types.narrow(), x);
        let held = oracle.held();
        let (d, dv, group) = (c.head_dim, c.head_dim_v, c.n_q_heads / c.n_kv_heads);
        let scale = if c.layer.scale == 0.0 { (d as f64).sqrt().recip() } else { c.layer.scale } as f32;
        let cap = c.layer.softcap as f32;
        for h in 0..c.n_q_heads {
            let kv = h / group;
            let score = |j: usize, q: &[f32]| {
                self.keys[j][kv * d..(kv + 1) * d].iter().zip(&q[h * d..]).map(|(a, b)| a * b).sum::<f32>() * scale
            };
            let mut s: Vec<f32> =
                segments.iter().flat_map(|(s, q)| (s.first..s.end).map(move |j| score(j, q))).collect();
            for (rank, s) in s.iter_mut().enumerate() {
                if cap > 0.0 {
                    *s = cap * (*s / cap).tanh();
                }
                if let Some(slope) = c.layer.alibi_slopes.get(h) {
                    *s -= slope * (held.len() - 1 - rank) as f32;
                }
            }
            let logit = c.layer.sink_logits.get(h).copied();
            let max = s.iter().copied().chain(logit).fold(f32::NEG_INFINITY, f32::max);
            let z: f32 = s.iter().copied().chain(logit).map(|s| (s - max).exp()).sum();
            for i in 0..dv {
                let sum: f32 =
                    s.iter().zip(&held).map(|(s, &j)| narrow((s - max).exp() / z) * self.values[j][kv * dv + i]).sum();
                out.push(narrow(sum));
            }
        }
    }
}

//! The reference for the error bounds of f16 and bf16: a plain, unfused attention that rounds to the half type what a
//! kernel would store in it (rotated K, V, rotated Q, probabilities and the output); everything else is f32.

use sinkcache::StorageType;

use super::oracle::Oracle;
use super::{Rows, round};

/// One sequence in one layer. The oracle knows its length and which tokens are held.
#[derive(Clone, Debug, Default)]
pub struct Plain {
    hosted: bool,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn rotated(oracle: &Oracle, x: &[f32], pos: usize, dtype: StorageType) -> Vec<f32> {
    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    oracle.cfg.rotate(&x, pos as f64).into_iter().map(|x| round(dtype, x as f32)).collect()
}

impl Plain {
    /// `hosted`: the host has rotated q and passed it in the half type, so that q is rounded before it is rotated again
    /// for the sinks.
    pub fn new(hosted: bool) -> Self {
        Self { hosted, ..Self::default() }
    }

    /// Drops the tokens that the oracle has rewound.
    pub fn follow(&mut self, oracle: &Oracle) {
        self.keys.truncate(oracle.len());
        self.values.truncate(oracle.len());
    }

    /// Appends a token that the oracle has appended just before.
    pub fn push(&mut self, oracle: &Oracle, k: &[f32], v: &[f32], dtype: StorageType) {
        let p = oracle.len() - 1;
        self.keys.push(rotated(oracle, k, p, dtype));
        self.values.push(v.iter().map(|&x| round(dtype, x)).collect());
    }

    /// Appends a token that the oracle has appended just before, and attends: `out` is extended by
    /// `[n_q_heads][head_dim_v]`.
    pub fn step(&mut self, oracle: &Oracle, token: Rows<'_>, dtype: StorageType, out: &mut Vec<f32>) {
        let q = token.q;
        self.push(oracle, token.k, token.v, dtype);
        let c = &oracle.cfg;
        let (p, evicted, n_sink) = (oracle.len() - 1, oracle.evicted(oracle.len()), c.layer.n_sink as usize);
        let position = |p: usize| if p < n_sink { p } else { p - evicted };
        let q_window = rotated(oracle, q, p, dtype);
        let q_sink = if self.hosted {
            let back = position(p) as f64 - p as f64;
            let mut cfg = c.clone();
            cfg.layer.rope_mscale = 1.0;
            let x: Vec<f64> = q_window.iter().map(|&x| f64::from(x)).collect();
            cfg.rotate(&x, back).into_iter().map(|x| round(dtype, x as f32)).collect()
        } else {
            rotated(oracle, q, position(p), dtype)
        };
        let held = oracle.held();
        let (d, dv, group) = (c.head_dim, c.head_dim_v, c.n_q_heads / c.n_kv_heads);
        let scale = if c.layer.scale == 0.0 { (d as f64).sqrt().recip() } else { c.layer.scale } as f32;
        let cap = c.layer.softcap as f32;
        for h in 0..c.n_q_heads {
            let kv = h / group;
            let mut s: Vec<f32> = held
                .iter()
                .map(|&j| {
                    let q = if j < n_sink { &q_sink } else { &q_window };
                    self.keys[j][kv * d..(kv + 1) * d].iter().zip(&q[h * d..]).map(|(a, b)| a * b).sum::<f32>() * scale
                })
                .collect();
            for (s, &j) in s.iter_mut().zip(&held) {
                if cap > 0.0 {
                    *s = cap * (*s / cap).tanh();
                }
                if let Some(slope) = c.layer.alibi_slopes.get(h) {
                    *s -= slope * (position(p) - position(j)) as f32;
                }
            }
            let logit = c.layer.sink_logits.get(h).copied();
            let max = s.iter().copied().chain(logit).fold(f32::NEG_INFINITY, f32::max);
            let z: f32 = s.iter().copied().chain(logit).map(|s| (s - max).exp()).sum();
            for i in 0..dv {
                let sum: f32 = s
                    .iter()
                    .zip(&held)
                    .map(|(s, &j)| round(dtype, (s - max).exp() / z) * self.values[j][kv * dv + i])
                    .sum();
                out.push(round(dtype, sum));
            }
        }
    }
}

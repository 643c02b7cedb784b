//! Streams whose QK^T is exact in every type and order of summation, of any size: their softmax is well-posed however
//! large the scores are. Equal scores are equal everywhere, others differ by a whole unit.

use sinkcache::{Batch, Cache, CacheConfig, Isa, LayerConfig, PositionMode, StorageType};

use super::oracle::{Oracle, OracleConfig};
use super::{Call, Rows, feed};

pub const N_SINK: usize = 5;
const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// Random numbers of one seed.
#[derive(Debug)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }

    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A stream: some tokens to begin with, then `tail` tokens whose results are compared.
#[derive(Debug)]
pub struct ExactScores {
    pub what: String,
    dims: (usize, usize),
    layer: LayerConfig,
    pub prefix: usize,
    pub tail: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl ExactScores {
    /// With one unit of QK^T worth `2^exponent` in scores (about: the scale may be no power of two). `long`: a window
    /// of several KV splits and key blocks.
    pub fn new(seed: u64, exponent: i32, long: bool, kv_dtype: StorageType) -> Self {
        let mut draw = Draw::new(seed);
        let dims = draw.one_of(&[(32, 32), (64, 64), (32, 40), (128, 128), (96, 32)]);
        let (prefix, tail, window) = if long { (1100, 12, 1090) } else { (draw.below(80), 72, 20 + draw.below(60)) };
        let n = prefix + tail;
        // Powers of two: products stay exact. Keys of f16 and of fp16 products end at 2^16 and 2^13.
        let key_exponent =
            if kv_dtype == StorageType::F16 { draw.one_of(&[0, 12]) } else { draw.one_of(&[0, 4, 30, -20]) };
        let transform = draw.below(5);
        let scale: f64 = if transform == 1 { 0.125 } else { draw.one_of(&[1.0, 0.088_388_35, 0.37]) };
        let unit = 2.0_f64.powi(exponent);
        let q_size = 2.0_f32.powi(exponent - key_exponent - (scale.log2().floor() as i32));
        let mut layer = LayerConfig {
            n_sink: N_SINK as u32,
            window: window as u32,
            position_mode: PositionMode::None,
            scale,
            ..LayerConfig::default()
        };
        match transform {
            // In eighths of a unit, so that sums stay exact; one head has none.
            1 => {
                layer.position_mode = PositionMode::Alibi;
                layer.alibi_slopes = [0.25, 0.125, 0.0, 1.0].map(|slope| (slope * unit) as f32).to_vec();
            }
            // Of either sign, halfway between two scores.
            2 => {
                let mut logit = || (unit * (draw.below(60) as f64 - 20.5)) as f32;
                layer.sink_logits = (0..Q_HEADS).map(|_| logit()).collect();
            }
            // Every score is far in the flat part, or 0.
            3 => layer.softcap = (unit / 64.0).min(50.0),
            _ => {}
        }
        let signs: Vec<f32> = (0..KV_HEADS * dims.0).map(|_| draw.one_of(&[1.0, -1.0])).collect();
        let group = Q_HEADS / KV_HEADS;
        let sign = |i: usize| signs[i / (dims.0 * group) % KV_HEADS * dims.0 + i % dims.0];
        let q = (0..n * Q_HEADS * dims.0).map(|i| sign(i) * draw.one_of(&[1.0, 2.0]) * q_size).collect();
        let key_size = 2.0_f32.powi(key_exponent);
        let one = |draw: &mut Draw| draw.one_of(&[-3.0, -1.0, 0.0, 1.0, 2.0, 3.0]) * key_size;
        let mut k: Vec<f32> = (0..n * KV_HEADS * dims.0).map(|_| one(&mut draw)).collect();
        // The largest key of all rows: a sink, one of an earlier block, one of the last block, all three, none.
        let all = [draw.below(N_SINK), n - n.min(window) / 2, n - 1];
        let largest = draw.one_of(&[&all[..1], &all[1..2], &all[2..], &all, &[]]);
        for at in largest {
            let key = &mut k[at * KV_HEADS * dims.0..][..KV_HEADS * dims.0];
            key.iter_mut().zip(&signs).for_each(|(k, sign)| *k = sign * 3.0 * key_size);
        }
        let v = (0..n * KV_HEADS * dims.1).map(|_| draw.below(64) as f32 / 32.0 - 1.0).collect();
        let what = format!("seed {seed}, unit 2^{exponent}, {dims:?}, largest {largest:?} of {n}, {layer:?}");
        Self { what, dims, layer, prefix, tail, q, k, v }
    }

    fn rows(&self, from: usize, n: usize) -> Rows<'_> {
        let (q, k, v) = (Q_HEADS * self.dims.0, KV_HEADS * self.dims.0, KV_HEADS * self.dims.1);
        Rows { q: &self.q[from * q..][..n * q], k: &self.k[from * k..][..n * k], v: &self.v[from * v..][..n * v] }
    }

    /// Results and lse of the tail, by the definition.
    pub fn defined(&self) -> (Vec<f32>, Vec<f32>) {
        let mut oracle = Oracle::new(OracleConfig {
            n_q_heads: Q_HEADS,
            n_kv_heads: KV_HEADS,
            head_dim: self.dims.0,
            head_dim_v: self.dims.1,
            max_rewind: 16,
            max_pinned: 0,
            max_segments: 0,
            layer: LayerConfig { scale: f64::from(self.layer.scale as f32), ..self.layer.clone() },
        });
        let (mut out, mut lse) = (vec![], vec![]);
        for at in 0..self.prefix + self.tail {
            let rows = self.rows(at, 1);
            if at < self.prefix {
                oracle.push(rows.k, rows.v);
            } else {
                oracle.step(rows.q, rows.k, rows.v, &mut out, &mut lse);
            }
        }
        (out, lse)
    }

    /// Results and lse of the tail, in calls of `cut` tokens.
    pub fn computed(&self, isa: Isa, kv_dtype: StorageType, cut: usize, n_threads: u32) -> (Vec<f32>, Vec<f32>) {
        let config = CacheConfig {
            n_q_heads: Q_HEADS as u32,
            n_kv_heads: KV_HEADS as u32,
            head_dim: self.dims.0 as u32,
            head_dim_v: self.dims.1 as u32,
            kv_dtype,
            max_chunk: 300,
            layers: vec![self.layer.clone()],
            isa: Some(isa),
            n_threads,
            ..CacheConfig::default()
        };
        let mut cache = Cache::new(&config).unwrap();
        let (mut out, mut lse) = (vec![], vec![]);
        let mut add = |from: usize, n: usize, keep: bool| {
            let got = feed(&mut cache, &config, 0, Batch::new(&[0], &[n as i32]), self.rows(from, n), Call::Step);
            if keep {
                out.extend(got.0);
                lse.extend(got.1);
            }
        };
        if self.prefix > 0 {
            add(0, self.prefix, false);
        }
        for at in (0..self.tail).step_by(cut) {
            add(self.prefix + at, cut.min(self.tail - at), true);
        }
        (out, lse)
    }
}

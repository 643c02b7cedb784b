//! The oracle: the definition of the cache, naive and in f64. It keeps all tokens un-rotated, and rotates them anew for
//! every query.

use sinkcache::{LayerConfig, PositionMode, RopeStyle};

/// One sequence in one layer.
#[derive(Clone, Debug)]
pub struct Oracle {
    pub cfg: OracleConfig,
    pub k: Vec<Vec<f64>>,
    pub v: Vec<Vec<f64>>,
    pub floor: usize,
    pub highest: usize,
    /// Window tokens below it were not in the snapshot that was loaded.
    pub loaded_from: usize,
}

/// Heads and dims, and the settings of a layer.
#[derive(Clone, Debug)]
pub struct OracleConfig {
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub max_rewind: usize,
    pub layer: LayerConfig,
}

impl OracleConfig {
    pub fn inv_freq(&self) -> Vec<f64> {
        let l = &self.layer;
        if !l.inv_freq.is_empty() {
            return l.inv_freq.iter().map(|&f| f64::from(f)).collect();
        }
        let d = if l.rope_dim == 0 { self.head_dim } else { l.rope_dim as usize };
        (0..d / 2).map(|i| l.rope_base.powf(-((2 * i) as f64) / d as f64)).collect()
    }

    /// Heads of `x` rotated to position `pos`; unchanged in modes without RoPE.
    pub fn rotate(&self, x: &[f64], pos: f64) -> Vec<f64> {
        let l = &self.layer;
        let mut y = x.to_vec();
        if !matches!(l.position_mode, PositionMode::Rope | PositionMode::RopeApplied) {
            return y;
        }
        let inv_freq = self.inv_freq();
        let half = inv_freq.len();
        for head in y.chunks_exact_mut(self.head_dim) {
            for (i, f) in inv_freq.iter().enumerate() {
                let (sin, cos) = (pos * l.rope_scale * f).sin_cos();
                let (a, b) = match l.rope_style {
                    RopeStyle::Neox => (i, i + half),
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                };
                let (x0, x1) = (head[a], head[b]);
                head[a] = (x0 * cos - x1 * sin) * l.rope_mscale;
                head[b] = (x1 * cos + x0 * sin) * l.rope_mscale;
            }
        }
        y
    }
}

/// An edit that the definition does not allow.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected;

impl Oracle {
    pub fn new(cfg: OracleConfig) -> Self {
        Self { cfg, k: Vec::new(), v: Vec::new(), floor: 0, highest: 0, loaded_from: 0 }
    }

    fn n_sink(&self) -> usize {
        self.cfg.layer.n_sink as usize
    }

    fn window(&self) -> usize {
        self.cfg.layer.window as usize
    }

    pub fn len(&self) -> usize {
        self.k.len()
    }

    /// E at length `len`.
    pub fn evicted(&self, len: usize) -> usize {
        self.floor.max(len.saturating_sub(self.n_sink() + self.window()))
    }

    /// Indices of the tokens held.
    pub fn held(&self) -> Vec<usize> {
        let n = self.len();
        (0..self.n_sink().min(n)).chain(self.n_sink() + self.evicted(n)..n).collect()
    }

    /// Tokens in the window.
    pub fn window_len(&self) -> usize {
        self.len().saturating_sub(self.n_sink() + self.evicted(self.len()))
    }

    pub fn evict(&mut self, n: usize) -> Result<(), Rejected> {
        self.can_evict(n).then_some(()).ok_or(Rejected)?;
        if n > 0 {
            self.floor = self.evicted(self.len()) + n;
        }
        Ok(())
    }

    pub fn can_evict(&self, n: usize) -> bool {
        n <= self.window_len()
    }

    pub fn rewind(&mut self, n: usize) -> Result<(), Rejected> {
        self.can_rewind(n).then_some(()).ok_or(Rejected)?;
        self.k.truncate(self.len() - n);
        self.v.truncate(self.k.len());
        Ok(())
    }

    pub fn can_rewind(&self, n: usize) -> bool {
        if n == 0 {
            return true;
        }
        let Some(new) = self.len().checked_sub(n) else { return false };
        if self.floor > 0 && new < self.n_sink() + self.floor {
            return false;
        }
        let oldest = self.n_sink() + self.evicted(new);
        oldest + self.window() + self.cfg.max_rewind >= self.highest && oldest >= self.loaded_from
    }

    /// Oldest window token that is visible now, or after a rewind: those from it on are in a snapshot.
    pub fn saved_from(&self) -> usize {
        let after = |n: usize| self.n_sink() + self.evicted(self.len() - n);
        (0..=self.len()).filter(|&n| self.can_rewind(n)).map(after).min().unwrap()
    }

    /// Saved, and loaded into a cache with other settings: a rewind there may bring back what is in the snapshot, and
    /// no more than the settings of that cache allow.
    pub fn load(&mut self, max_chunk: usize, max_rewind: usize) {
        self.loaded_from = self.saved_from();
        self.cfg.max_rewind = max_rewind;
        let slots = self.window() + max_chunk.max(max_rewind);
        self.highest = self.highest.min(self.n_sink() + self.evicted(self.len()) + slots);
        self.loaded_from = self.saved_from();
    }

    pub fn reset(&mut self) {
        *self = Self::new(self.cfg.clone());
    }

    /// Appends a token without attending.
    pub fn push(&mut self, k: &[f32], v: &[f32]) {
        self.k.push(k.iter().map(|&x| f64::from(x)).collect());
        self.v.push(v.iter().map(|&x| f64::from(x)).collect());
        self.highest = self.highest.max(self.len());
    }

    /// Appends one token and attends with its query: out `[n_q_heads][head_dim_v]` and lse `[n_q_heads]` are extended.
    pub fn step(&mut self, q: &[f32], k: &[f32], v: &[f32], out: &mut Vec<f32>, lse: &mut Vec<f32>) {
        self.push(k, v);
        let (c, held) = (&self.cfg, self.held());
        let evicted = self.evicted(self.len());
        let position = |p: usize| if p < self.n_sink() { p } else { p - evicted };
        let here = position(self.len() - 1);
        let keys: Vec<_> = held.iter().map(|&p| c.rotate(&self.k[p], position(p) as f64)).collect();
        let q: Vec<f64> = q.iter().map(|&x| f64::from(x)).collect();
        let q = c.rotate(&q, here as f64);
        let (d, dv, group) = (c.head_dim, c.head_dim_v, c.n_q_heads / c.n_kv_heads);
        let scale = if c.layer.scale == 0.0 { (d as f64).sqrt().recip() } else { c.layer.scale };
        for h in 0..c.n_q_heads {
            let kv = h / group;
            let scores: Vec<f64> = keys
                .iter()
                .zip(&held)
                .map(|(key, &p)| {
                    let dot: f64 = key[kv * d..(kv + 1) * d].iter().zip(&q[h * d..]).map(|(a, b)| a * b).sum();
                    let mut s = dot * scale;
                    if c.layer.softcap > 0.0 {
                        s = c.layer.softcap * (s / c.layer.softcap).tanh();
                    }
                    if let Some(&slope) = c.layer.alibi_slopes.get(h) {
                        s -= f64::from(slope) * (here - position(p)) as f64;
                    }
                    s
                })
                .collect();
            let logit = c.layer.sink_logits.get(h).map(|&l| f64::from(l));
            let max = scores.iter().copied().chain(logit).fold(f64::NEG_INFINITY, f64::max);
            let z: f64 = scores.iter().copied().chain(logit).map(|s| (s - max).exp()).sum();
            for i in 0..dv {
                let sum: f64 = scores.iter().zip(&held).map(|(s, &p)| (s - max).exp() * self.v[p][kv * dv + i]).sum();
                out.push((sum / z) as f32);
            }
            lse.push((max + z.ln()) as f32);
        }
    }
}

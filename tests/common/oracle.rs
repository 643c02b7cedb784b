//! The oracle: the definition of the cache, naive and in f64. It keeps all tokens un-rotated, and rotates them anew for
//! every query. A token's position is its rank among the tokens held.

use std::collections::BTreeSet;

use sinkcache::{LayerConfig, PositionMode, RopeStyle, SeqInfo, Status};

/// One sequence in one layer.
#[derive(Clone, Debug)]
pub struct Oracle {
    pub cfg: OracleConfig,
    pub k: Vec<Vec<f64>>,
    pub v: Vec<Vec<f64>>,
    /// Highest length since the last reset.
    pub highest: usize,
    /// What is neither sink nor pin below this index is gone for good.
    pub below: usize,
    /// Tokens that are held for ever, sinks not counted.
    pub pins: BTreeSet<usize>,
    /// Tokens that were evicted from the middle.
    pub holes: BTreeSet<usize>,
    /// A rewind may not cut below it.
    pub edited: usize,
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
        self.rotate_by(&self.inv_freq(), x, pos)
    }

    fn rotate_by(&self, inv_freq: &[f64], x: &[f64], pos: f64) -> Vec<f64> {
        let l = &self.layer;
        let mut y = x.to_vec();
        if !matches!(l.position_mode, PositionMode::Rope | PositionMode::RopeApplied) {
            return y;
        }
        let half = inv_freq.len();
        for (i, f) in inv_freq.iter().enumerate() {
            let (sin, cos) = (pos * l.rope_scale * f).sin_cos();
            let (a, b) = match l.rope_style {
                RopeStyle::Neox => (i, i + half),
                RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            };
            for head in y.chunks_exact_mut(self.head_dim) {
                let (x0, x1) = (head[a], head[b]);
                head[a] = (x0 * cos - x1 * sin) * l.rope_mscale;
                head[b] = (x1 * cos + x0 * sin) * l.rope_mscale;
            }
        }
        y
    }
}

/// Why an edit is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// More than there is, or a sink in an evicted range.
    OutOfRange,
    /// Tokens that are needed are no longer held.
    TokensGone,
    /// More pinned tokens or segments than the layer's settings allow.
    NoRoom,
}

impl Rejected {
    pub fn status(self) -> Status {
        match self {
            Self::OutOfRange => Status::OutOfRange,
            Self::TokensGone => Status::TokensGone,
            Self::NoRoom => Status::NoRoom,
        }
    }
}

/// An edit of the tokens `first..first + n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEdit {
    Pin,
    Evict,
}

/// Consecutive tokens that are held, and how many more tokens were dropped behind them than before the query: a query
/// at stream position p meets their keys rotated to p - `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub first: usize,
    pub end: usize,
    pub offset: usize,
}

/// Maximal runs of consecutive tokens as (first, end).
pub fn runs(tokens: impl IntoIterator<Item = usize>) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = vec![];
    for t in tokens {
        match runs.last_mut() {
            Some((_, end)) if *end == t => *end += 1,
            _ => runs.push((t, t + 1)),
        }
    }
    runs
}

impl Oracle {
    pub fn new(cfg: OracleConfig) -> Self {
        Self {
            k: Vec::new(),
            v: Vec::new(),
            highest: 0,
            below: cfg.layer.n_sink as usize,
            pins: BTreeSet::new(),
            holes: BTreeSet::new(),
            edited: 0,
            loaded_from: 0,
            cfg,
        }
    }

    /// The same without K and V: its lengths.
    pub fn without_rows(&self) -> Self {
        let rows = vec![vec![]; self.len()];
        let (cfg, pins, holes) = (self.cfg.clone(), self.pins.clone(), self.holes.clone());
        Self { cfg, pins, holes, k: rows.clone(), v: rows, ..*self }
    }

    fn n_sink(&self) -> usize {
        self.cfg.layer.n_sink as usize
    }

    fn window_size(&self) -> usize {
        self.cfg.layer.window as usize
    }

    pub fn len(&self) -> usize {
        self.k.len()
    }

    /// The window's tokens at a length, in order.
    fn window_at(&self, len: usize) -> Vec<usize> {
        let others = (self.below..len).rev().filter(|t| !self.pins.contains(t) && !self.holes.contains(t));
        let mut window: Vec<_> = others.take(self.window_size()).collect();
        window.reverse();
        window
    }

    /// The window's tokens, in order.
    pub fn window(&self) -> Vec<usize> {
        self.window_at(self.len())
    }

    /// Tokens in the window.
    pub fn window_len(&self) -> usize {
        self.window().len()
    }

    /// Indices of the tokens held, in order.
    pub fn held(&self) -> Vec<usize> {
        let sinks = 0..self.n_sink().min(self.len());
        let mut held: Vec<_> = sinks.chain(self.pins.iter().copied()).chain(self.window()).collect();
        held.sort_unstable();
        held
    }

    /// The tokens held as maximal runs of consecutive indices.
    pub fn segments(&self) -> Vec<Segment> {
        let dropped = self.evicted();
        let mut rank = 0;
        let segment = |(first, end): (usize, usize)| {
            let offset = dropped - (first - rank);
            rank += end - first;
            Segment { first, end, offset }
        };
        runs(self.held()).into_iter().map(segment).collect()
    }

    /// Tokens that are no longer held.
    pub fn evicted(&self) -> usize {
        self.len() - self.held().len()
    }

    /// Tokens that can be appended before one is dropped.
    pub fn room(&self) -> usize {
        self.n_sink().saturating_sub(self.len()) + self.window_size() - self.window_len()
    }

    /// What `max_segments` limits: pinned runs, and evicted ranges younger than the window's oldest token.
    pub fn counted(&self) -> usize {
        self.counted_with(&self.pins, &self.holes)
    }

    fn counted_with(&self, pins: &BTreeSet<usize>, holes: &BTreeSet<usize>) -> usize {
        // What has left the window does not come back.
        let oldest = self.window().into_iter().find(|t| !pins.contains(t) && !holes.contains(t));
        let oldest = oldest.unwrap_or(self.len());
        let young = runs(holes.iter().copied()).into_iter().filter(|&(first, _)| first > oldest).count();
        runs(pins.iter().copied()).len() + young
    }

    /// What a cache says of the sequence in this layer.
    pub fn info(&self, start: u64) -> SeqInfo {
        SeqInfo {
            len_min: self.len() as u64,
            len_max: self.len() as u64,
            start_position: start,
            cached: self.held().len() as u64,
            evicted: self.evicted() as u64,
            room: self.room() as u64,
            rewindable: self.rewindable() as u64,
            pinned: self.pins.len() as u64,
            segments: self.segments().len() as u64,
            counted: self.counted() as u64,
        }
    }

    /// Drops the `n` oldest tokens of the window.
    pub fn evict(&mut self, n: usize) -> Result<(), Rejected> {
        self.check_evict(n)?;
        if n > 0 {
            let end = self.window()[n - 1] + 1;
            self.below = self.below.max(end);
            self.edited = self.edited.max(end);
        }
        Ok(())
    }

    pub fn check_evict(&self, n: usize) -> Result<(), Rejected> {
        if n > self.window_len() { Err(Rejected::OutOfRange) } else { Ok(()) }
    }

    /// Pins a range, or drops what is held of it. Returns whether that changed anything.
    pub fn edit_range(&mut self, edit: RangeEdit, first: u64, n: u64) -> Result<bool, Rejected> {
        let Some(tokens) = self.changed_by(edit, first, n)? else { return Ok(false) };
        // What is not held now never comes back, so a rewind may cut neither that nor what is edited.
        self.below = self.below.max(self.window().first().copied().unwrap_or(self.len()));
        self.edited = self.edited.max(tokens.last().unwrap() + 1).max(self.below);
        (self.pins, self.holes) = self.with(edit, &tokens);
        Ok(true)
    }

    pub fn check_range(&self, edit: RangeEdit, first: u64, n: u64) -> Result<(), Rejected> {
        self.changed_by(edit, first, n).map(drop)
    }

    /// The tokens that a range edit changes; `None`: no token.
    fn changed_by(&self, edit: RangeEdit, first: u64, n: u64) -> Result<Option<BTreeSet<usize>>, Rejected> {
        let end = first.checked_add(n).filter(|&end| end <= self.len() as u64).ok_or(Rejected::OutOfRange)?;
        let (asked, held) = (first as usize..end as usize, BTreeSet::from_iter(self.held()));
        let tokens: BTreeSet<usize> = match edit {
            RangeEdit::Pin if !asked.clone().all(|t| held.contains(&t)) => return Err(Rejected::TokensGone),
            RangeEdit::Pin => asked.filter(|t| *t >= self.n_sink() && !self.pins.contains(t)).collect(),
            RangeEdit::Evict if n > 0 && asked.start < self.n_sink() => return Err(Rejected::OutOfRange),
            RangeEdit::Evict => asked.filter(|t| held.contains(t)).collect(),
        };
        if tokens.is_empty() {
            return Ok(None);
        }
        let (pins, holes) = self.with(edit, &tokens);
        let (max_pinned, max_segments) = (self.cfg.layer.max_pinned as usize, self.cfg.layer.max_segments as usize);
        let too_many = pins.len() > max_pinned || self.counted_with(&pins, &holes) > max_segments;
        if too_many { Err(Rejected::NoRoom) } else { Ok(Some(tokens)) }
    }

    /// Pins and holes after an edit of these tokens.
    fn with(&self, edit: RangeEdit, tokens: &BTreeSet<usize>) -> (BTreeSet<usize>, BTreeSet<usize>) {
        match edit {
            RangeEdit::Pin => (&self.pins | tokens, self.holes.clone()),
            RangeEdit::Evict => (&self.pins - tokens, &self.holes | tokens),
        }
    }

    pub fn rewind(&mut self, n: usize) -> Result<(), Rejected> {
        self.check_rewind(n)?;
        self.k.truncate(self.len() - n);
        self.v.truncate(self.k.len());
        Ok(())
    }

    pub fn check_rewind(&self, n: usize) -> Result<(), Rejected> {
        let new = self.len().checked_sub(n).ok_or(Rejected::OutOfRange)?;
        if n == 0 {
            return Ok(());
        }
        let oldest = self.oldest_at(new);
        let intact = self.turns(oldest) + self.window_size() + self.cfg.max_rewind >= self.turns(self.highest);
        let held = (self.edited == 0 || new >= self.edited) && oldest >= self.loaded_from;
        if intact && held { Ok(()) } else { Err(Rejected::TokensGone) }
    }

    /// Cuts the last `n` tokens, which other layers do not have yet: they may have taken all slots but those of the
    /// window before them.
    pub fn abort(&mut self, n: usize, slots: usize) -> Result<(), Rejected> {
        let new = self.len() - n;
        if new == 0 {
            self.reset();
            return Ok(());
        }
        let oldest = self.oldest_at(new);
        if self.turns(oldest) + slots < self.turns(self.highest) || oldest < self.loaded_from {
            return Err(Rejected::TokensGone);
        }
        self.k.truncate(new);
        self.v.truncate(new);
        Ok(())
    }

    /// The most tokens that can be rewound.
    pub fn rewindable(&self) -> usize {
        (1..=self.len()).take_while(|&n| self.check_rewind(n).is_ok()).last().unwrap_or(0)
    }

    /// The oldest token of the window at a length, or where it would begin.
    fn oldest_at(&self, len: usize) -> usize {
        self.window_at(len).first().copied().unwrap_or(len.max(self.below))
    }

    /// Tokens before `t` that took turns in the window.
    fn turns(&self, t: usize) -> usize {
        t.saturating_sub(self.n_sink()) - self.pins.range(..t).count() - self.holes.range(..t).count()
    }

    /// Oldest window token that is visible now, or after a rewind: those from it on are in a snapshot.
    pub fn saved_from(&self) -> usize {
        let after = |n: usize| self.oldest_at(self.len() - n);
        (0..=self.rewindable()).map(after).min().unwrap()
    }

    /// Saved, and loaded into a cache with other settings: a rewind there may bring back what is in the snapshot, and
    /// no more than the settings of that cache allow.
    pub fn load(&mut self, max_chunk: usize, max_rewind: usize) {
        self.loaded_from = self.saved_from();
        self.cfg.max_rewind = max_rewind;
        let slots = self.window_size() + max_chunk.max(max_rewind);
        // The length at which the last of these turns is taken.
        let last = self.turns(self.oldest_at(self.len())) + slots;
        self.highest = self.highest.min(self.n_sink() + last + self.pins.len() + self.holes.len());
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
        let (here, inv_freq) = (held.len() - 1, c.inv_freq());
        let rotated = |(rank, &t): (usize, &usize)| c.rotate_by(&inv_freq, &self.k[t], rank as f64);
        let keys: Vec<_> = held.iter().enumerate().map(rotated).collect();
        let q: Vec<f64> = q.iter().map(|&x| f64::from(x)).collect();
        let q = c.rotate_by(&inv_freq, &q, here as f64);
        let (d, dv, group) = (c.head_dim, c.head_dim_v, c.n_q_heads / c.n_kv_heads);
        let scale = if c.layer.scale == 0.0 { (d as f64).sqrt().recip() } else { c.layer.scale };
        for h in 0..c.n_q_heads {
            let kv = h / group;
            let scores: Vec<f64> = keys
                .iter()
                .enumerate()
                .map(|(rank, key)| {
                    let dot: f64 = key[kv * d..(kv + 1) * d].iter().zip(&q[h * d..]).map(|(a, b)| a * b).sum();
                    let mut s = dot * scale;
                    if c.layer.softcap > 0.0 {
                        s = c.layer.softcap * (s / c.layer.softcap).tanh();
                    }
                    if let Some(&slope) = c.layer.alibi_slopes.get(h) {
                        s -= f64::from(slope) * (here - rank) as f64;
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

//! A history that is being run.

use std::collections::BTreeMap;

use proptest::test_runner::TestCaseError;
use sinkcache::{
    AttendTensors, BackendKind, Batch, Cache, CacheConfig, DType, LayerConfig, PositionMode, RowsIn, RowsOut, Status,
    StorageType,
};

use crate::common::history::{Event, History, N_SEQS};
use crate::common::oracle::Oracle;
use crate::common::plain::Plain;
use crate::common::quantised::KvTypes;
use crate::common::{self, Call, Rows, check, feed};

/// A history that is being run: the cache, and for each layer and sequence the oracle.
pub struct Run {
    pub config: CacheConfig,
    pub cache: Cache,
    /// Sequences are forked instead of saved and loaded, where that must give the same.
    pub forks: bool,
    /// `[layer][sequence]`.
    pub oracles: Vec<Vec<Oracle>>,
    pub plains: Vec<Vec<Plain>>,
    /// Position of token 0, per sequence.
    pub starts: [u64; N_SEQS],
    /// Queries of the latest append that may still be passed, per sequence; `None`: layers differ.
    pub attendable: [Option<usize>; N_SEQS],
    /// Length at the first pin or evicted range since the last reset, per sequence.
    pub edited_at: [Option<usize>; N_SEQS],
    random: u64,
    pub got: Vec<f32>,
    want: Vec<f32>,
    rough: Vec<f32>,
    /// Length of the longest sequence so far.
    longest: usize,
    /// Whether a sequence has taken all slots again after a pin or an evicted range.
    wrapped_after_edit: bool,
    /// How often each kind of event has happened.
    pub counts: BTreeMap<String, usize>,
}

/// What the test prints of a history.
pub struct Summary {
    pub length: usize,
    pub capacity: usize,
    pub wrapped: bool,
    pub wrapped_after_edit: bool,
    pub counts: BTreeMap<String, usize>,
}

fn poison(n: usize) -> Vec<f32> {
    (0..n).map(|i| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3]).collect()
}

impl Run {
    pub fn new(history: &History) -> Self {
        let oracles: Vec<Vec<_>> = (0..history.config.layers.len())
            .map(|layer| (0..N_SEQS).map(|_| Oracle::new(history.oracle(layer))).collect())
            .collect();
        Self {
            config: history.config.clone(),
            cache: common::new_cache(&history.config),
            forks: false,
            plains: oracles
                .iter()
                .map(|l| {
                    let applied = l[0].cfg.layer.position_mode == PositionMode::RopeApplied;
                    let plain = Plain::new(KvTypes::of(&history.config));
                    let hosted = applied && history.config.in_dtype != DType::F32;
                    vec![if hosted { plain.hosted(history.config.in_dtype) } else { plain }; l.len()]
                })
                .collect(),
            oracles,
            starts: [0; N_SEQS],
            attendable: [Some(0); N_SEQS],
            edited_at: [None; N_SEQS],
            random: history.seed | 1,
            got: vec![],
            want: vec![],
            rough: vec![],
            longest: 0,
            wrapped_after_edit: false,
            counts: BTreeMap::new(),
        }
    }

    /// Rows of about unit variance; multiples of 1/32, which are exact in every type.
    pub fn draw(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                (self.random >> 58) as f32 / 16.0 - 2.0
            })
            .collect()
    }

    pub fn note(&mut self, what: &str) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    fn dims(&self) -> (usize, usize, usize) {
        let c = &self.oracles[0][0].cfg;
        (c.n_q_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim_v)
    }

    /// Rows as the host passes them: rotated at their stream positions in mode `RopeApplied`.
    fn hosted(&self, layer: usize, seq: usize, at: usize, x: &[f32], width: usize) -> Vec<f32> {
        let c = &self.oracles[layer][seq].cfg;
        if c.layer.position_mode != PositionMode::RopeApplied {
            return x.to_vec();
        }
        let row = |(i, x): (usize, &[f32])| {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            c.rotate(&x, (at + i) as f64).into_iter().map(|x| x as f32).collect::<Vec<_>>()
        };
        x.chunks_exact(width).enumerate().flat_map(row).collect()
    }

    /// Appends `n[seq]` tokens to each sequence and attends. Results are compared at the end of the history. `repeat`:
    /// how many of the last queries of sequence 0 are passed again.
    pub fn feed(&mut self, n: [usize; N_SEQS], step: bool, repeat: usize) {
        let (nq, nk, nv) = self.dims();
        // The entries are not in the order of the sequences, and one of them is padding.
        let order = [2, 0, 1];
        let ids = [2, -1, 0, 1].map(|i: i32| i);
        let counts = [n[2], 2, n[0], n[1]].map(|n| n as i32);
        for layer in 0..self.oracles.len() {
            let (mut q, mut k, mut v) = (vec![], vec![], vec![]);
            let (mut want, mut want_lse, mut rough) = (vec![], vec![], vec![]);
            for (entry, seq) in order.into_iter().enumerate() {
                let at = self.oracles[layer][seq].len();
                let (qs, ks, vs) = (self.draw(n[seq] * nq), self.draw(n[seq] * nk), self.draw(n[seq] * nv));
                q.extend(self.hosted(layer, seq, at, &qs, nq));
                k.extend(self.hosted(layer, seq, at, &ks, nk));
                v.extend_from_slice(&vs);
                if entry == 0 {
                    for (x, width) in [(&mut q, nq), (&mut k, nk), (&mut v, nv)] {
                        x.extend(vec![f32::NAN; 2 * width]);
                    }
                }
                for i in 0..n[seq] {
                    let (q, k, v) = (&qs[i * nq..(i + 1) * nq], &ks[i * nk..(i + 1) * nk], &vs[i * nv..(i + 1) * nv]);
                    let oracle = &mut self.oracles[layer][seq];
                    oracle.step(q, k, v, &mut want, &mut want_lse);
                    self.plains[layer][seq].step(oracle, Rows { q, k, v }, &mut rough);
                }
            }
            let rows = Rows { q: &q, k: &k, v: &v };
            let call = if step { Call::Step } else { Call::Two };
            let config = &self.config;
            let batch = Batch::new(&ids, &counts);
            let (out, lse) = feed(&mut self.cache, config, layer as u32, batch, rows, call);
            // The rows of the padding entry must be untouched: NaN.
            let (width, heads) = (config.n_q_heads as usize * config.head_dim_v as usize, config.n_q_heads as usize);
            let (pad, end) = (n[2] * width, (n[2] + 2) * width);
            assert!(out[pad..end].iter().all(|x| x.is_nan()), "padding rows were written");
            self.got.extend_from_slice(&out[..pad]);
            self.got.extend_from_slice(&out[end..]);
            self.want.extend_from_slice(&want);
            self.rough.extend_from_slice(&rough);
            if KvTypes::of(config) == StorageType::F32.into() {
                let lse = lse[..n[2] * heads].iter().chain(&lse[(n[2] + 2) * heads..]);
                for (a, b) in lse.zip(&want_lse) {
                    assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "lse {a}, not {b}");
                }
            }
            if repeat > 0 && repeat <= n[0] && !step {
                let from = (n[2] + 2 + n[0] - repeat) * nq;
                let at = (n[2] + 2 + n[0] - repeat) * width;
                let (q, before) = (&q[from..from + repeat * nq], &out[at..at + repeat * width]);
                self.attend_again(layer as u32, repeat, n[0], q, before);
            }
        }
        for (seq, n) in n.into_iter().enumerate() {
            self.appended(seq, n);
        }
    }

    /// Attends with the last `n` of `of` queries of sequence 0 again. All of them give the same bits on the CPU; fewer
    /// may be computed by another kernel, and are only held to the same bounds.
    fn attend_again(&mut self, layer: u32, n: usize, of: usize, q: &[f32], before: &[f32]) {
        let config = &self.config;
        let again = common::attend(&mut self.cache, config, layer, Batch::new(&[0], &[n as i32]), q);
        if config.backend == BackendKind::Cpu && n == of {
            assert!(again == before, "the same queries gave other results");
            return;
        }
        // Keys are what they are for both; queries and probabilities may be rounded to the narrow type, or to integers:
        // probabilities of values with codes to 16 bits of the largest.
        let types = KvTypes::of(config);
        let step = match types.k {
            StorageType::F32 if matches!(types.v, StorageType::Q8 | StorageType::Q4) => 1e-4,
            StorageType::F32 => 1e-5,
            StorageType::F16 => 2e-3,
            StorageType::Bf16 | StorageType::Q8 | StorageType::Q4 => 1.6e-2,
        };
        let largest = before.iter().fold(1.0_f32, |m, x| m.max(x.abs()));
        for (a, b) in again.iter().zip(before) {
            assert!((a - b).abs() <= 4.0 * step * largest, "fewer queries: {a}, before {b}");
        }
    }

    /// Appends tokens of NaN and infinity to one sequence in the first layer alone.
    pub fn poison_first_layer(&mut self, seq: usize, n: usize) {
        let (nq, nk, nv) = self.dims();
        let (q, k, v) = (self.draw(n * nq), poison(n * nk), poison(n * nv));
        let (ids, counts) = ([seq as i32], [n as i32]);
        let rows = Rows { q: &q, k: &k, v: &v };
        feed(&mut self.cache, &self.config, 0, Batch::new(&ids, &counts), rows, Call::Two);
        (0..n).for_each(|_| self.oracles[0][seq].push(&[], &[]));
    }

    /// Brings up to date what is known of a sequence to which `n` tokens were appended.
    fn appended(&mut self, seq: usize, n: usize) {
        let len = self.oracles[0][seq].len();
        self.longest = self.longest.max(len);
        if n > 0 {
            self.attendable[seq] = Some(n.min(self.config.max_chunk as usize));
        }
        let slots = self.slots();
        self.wrapped_after_edit |= self.edited_at[seq].is_some_and(|at| len > at + slots);
    }

    /// Slots of the layer that has most.
    fn slots(&self) -> usize {
        let most = |l: &LayerConfig| l.n_sink + l.window + self.config.max_chunk.max(self.config.max_rewind);
        self.config.layers.iter().map(most).max().unwrap() as usize
    }

    /// Appends tokens to one sequence: `before` others, `n` of NaN and infinity, `after` others. The oracle gets zeros
    /// instead of those. Results are compared where no such token is visible.
    pub fn poison(&mut self, seq: usize, [before, n, after]: [usize; 3]) {
        let (nq, nk, nv) = self.dims();
        let all = before + n + after;
        for layer in 0..self.oracles.len() {
            let at = self.oracles[layer][seq].len();
            let (qs, mut ks, mut vs) = (self.draw(all * nq), self.draw(all * nk), self.draw(all * nv));
            ks[before * nk..(before + n) * nk].fill(0.0);
            vs[before * nv..(before + n) * nv].fill(0.0);
            let (mut want, mut rough) = (vec![], vec![]);
            for i in 0..all {
                let (q, k, v) = (&qs[i * nq..(i + 1) * nq], &ks[i * nk..(i + 1) * nk], &vs[i * nv..(i + 1) * nv]);
                let (oracle, plain) = (&mut self.oracles[layer][seq], &mut self.plains[layer][seq]);
                if i < before {
                    oracle.step(q, k, v, &mut want, &mut vec![]);
                    plain.step(oracle, Rows { q, k, v }, &mut rough);
                } else {
                    oracle.push(k, v);
                    plain.push(oracle, k, v);
                }
            }
            let q = self.hosted(layer, seq, at, &qs, nq);
            let mut k = self.hosted(layer, seq, at, &ks, nk);
            k[before * nk..(before + n) * nk].copy_from_slice(&poison(n * nk));
            vs[before * nv..(before + n) * nv].copy_from_slice(&poison(n * nv));
            let rows = Rows { q: &q, k: &k, v: &vs };
            let (ids, counts) = ([seq as i32], [all as i32]);
            let batch = Batch::new(&ids, &counts);
            let (out, _) = feed(&mut self.cache, &self.config, layer as u32, batch, rows, Call::Step);
            self.got.extend_from_slice(&out[..want.len()]);
            self.want.extend(want);
            self.rough.extend(rough);
        }
        self.appended(seq, all);
    }

    /// Compares what the cache says of each sequence with the oracle.
    pub fn check_infos(&self) {
        for (layer, seq) in (0..self.oracles.len()).flat_map(|l| (0..N_SEQS).map(move |s| (l, s))) {
            let info = self.cache.seq_info(layer as u32, seq as i32).unwrap();
            assert_eq!(info, self.oracles[layer][seq].info(self.starts[seq]), "layer {layer}, sequence {seq}");
        }
    }

    /// Checks that the latest append's queries can be passed again, or no longer can after an edit.
    pub fn check_attendable(&mut self, seq: usize) {
        // A cache for 16-bit rows may have come from a device.
        let takes_f32 = !self.cache.is_on_device() && self.config.in_dtype == DType::F32;
        let Some(attendable) = self.attendable[seq].filter(|_| takes_f32) else { return };
        let c = &self.config;
        let q = vec![0.0_f32; (c.n_q_heads * c.head_dim) as usize];
        let mut out = vec![f32::NAN; (c.n_q_heads * c.head_dim_v) as usize];
        for layer in 0..self.oracles.len() as u32 {
            let tensors = AttendTensors { q: RowsIn::packed(&q), out: RowsOut::packed(&mut out), lse: None };
            let outcome = self.cache.attend(layer, Batch::new(&[seq as i32], &[1]), tensors);
            match outcome {
                Ok(()) => {
                    assert!(attendable > 0, "layer {layer}: a query of before an edit was taken");
                    assert!(out.iter().all(|x| x.is_finite()), "layer {layer}: {out:?}");
                }
                Err(e) => {
                    assert!(attendable == 0 && e.status() == Status::OutOfRange, "layer {layer}: {e}");
                }
            }
        }
    }

    /// Appends tokens until each sequence has taken all slots again since its first pin or evicted range.
    fn wrap_after_edits(&mut self) -> Result<(), TestCaseError> {
        let slots = self.slots();
        let missing = |seq: usize| {
            let at = self.edited_at[seq]?;
            (at + slots + 1).checked_sub(self.oracles[0][seq].len())
        };
        let n = [0, 1, 2].map(|seq| missing(seq).unwrap_or(0));
        self.event(&Event::Feed { n: n.map(|n| u8::try_from(n).unwrap()), step: true, repeat: 0 })
    }

    /// Ends the history, and compares all results.
    pub fn finish(mut self) -> Result<Summary, TestCaseError> {
        self.wrap_after_edits()?;
        let types = KvTypes::of(&self.config);
        check(types, &self.got, &self.want, Some(&self.rough)).map_err(TestCaseError::fail)?;
        let l = &self.config.layers[0];
        let capacity = (l.n_sink + l.window) as usize;
        let slots = capacity + self.config.max_chunk.max(self.config.max_rewind) as usize;
        Ok(Summary {
            length: self.longest,
            capacity,
            wrapped: self.longest > slots,
            wrapped_after_edit: self.wrapped_after_edit,
            counts: self.counts,
        })
    }
}

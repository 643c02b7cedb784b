//! Random histories of ragged batches, edits and poisoned tokens against the definition.

mod common;

use std::collections::BTreeMap;

use common::history::{Event, History, N_SEQS, Other, histories, histories_with_snapshots};
use common::oracle::{Oracle, Rejected};
use common::plain::Plain;
use common::quantised::KvTypes;
use common::{Call, Rows, check, feed};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use sinkcache::{BackendKind, Batch, Cache, CacheConfig, DType, PositionMode, Status, StorageType};

/// A history that is being run: the cache, and for each layer and sequence the oracle.
struct Run {
    config: CacheConfig,
    cache: Cache,
    /// Sequences are forked instead of saved and loaded, where that must give the same.
    forks: bool,
    /// `[layer][sequence]`.
    oracles: Vec<Vec<Oracle>>,
    plains: Vec<Vec<Plain>>,
    random: u64,
    got: Vec<f32>,
    want: Vec<f32>,
    rough: Vec<f32>,
    /// Length of the longest sequence so far.
    longest: usize,
    /// How often each kind of event has happened.
    counts: BTreeMap<&'static str, usize>,
}

/// What the test prints of a history.
struct Summary {
    length: usize,
    capacity: usize,
    wrapped: bool,
    counts: BTreeMap<&'static str, usize>,
}

/// An edit: the oracle's half and the cache's.
struct EditCalls {
    check: fn(&Oracle, usize) -> Result<(), Rejected>,
    apply: fn(&mut Oracle, usize),
    call: fn(&mut Cache, &[i32], &[i32]) -> sinkcache::Result<()>,
}

fn fail<T>(text: String) -> Result<T, TestCaseError> {
    Err(TestCaseError::fail(text))
}

impl Run {
    fn new(history: &History) -> Self {
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
            random: history.seed | 1,
            got: vec![],
            want: vec![],
            rough: vec![],
            longest: 0,
            counts: BTreeMap::new(),
        }
    }

    /// Rows of about unit variance; multiples of 1/32, which are exact in every type.
    fn draw(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                (self.random >> 58) as f32 / 16.0 - 2.0
            })
            .collect()
    }

    fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
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
    fn feed(&mut self, n: [usize; N_SEQS], step: bool, repeat: usize) {
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
        self.longest = self.longest.max(self.oracles[0].iter().map(Oracle::len).max().unwrap());
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

    /// Appends tokens of NaN and infinity to one sequence; the oracle gets zeros instead. Results are not compared.
    fn poison(&mut self, seq: usize, n: usize) {
        let (nq, nk, nv) = self.dims();
        let poison = |n: usize| (0..n).map(|i| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3]).collect::<Vec<_>>();
        let (q, k, v) = (self.draw(n * nq), poison(n * nk), poison(n * nv));
        for layer in 0..self.oracles.len() {
            let rows = Rows { q: &q, k: &k, v: &v };
            let (ids, counts) = ([seq as i32], [n as i32]);
            feed(&mut self.cache, &self.config, layer as u32, Batch::new(&ids, &counts), rows, Call::Step);
            let (k, v) = (vec![0.0; nk], vec![0.0; nv]);
            for _ in 0..n {
                self.oracles[layer][seq].push(&k, &v);
                self.plains[layer][seq].push(&self.oracles[layer][seq], &k, &v);
            }
        }
    }

    /// An edit of one sequence: the cache must accept it if the oracles of all layers do. Returns whether it did.
    fn edit(&mut self, what: &'static str, seq: usize, n: usize, edit: &EditCalls) -> Result<bool, TestCaseError> {
        let allowed = self.oracles.iter().all(|l| (edit.check)(&l[seq], n).is_ok());
        let before: Vec<_> =
            (0..self.oracles.len() as u32).map(|l| self.cache.seq_info(l, seq as i32).unwrap()).collect();
        match (edit.call)(&mut self.cache, &[seq as i32], &[n as i32]) {
            Ok(()) if !allowed => fail(format!("{what} {n} of sequence {seq} was not rejected")),
            Err(e) if allowed => fail(format!("{what} {n} of sequence {seq} was rejected: {e}")),
            Err(e) => {
                assert!(matches!(e.status(), Status::OutOfRange | Status::TokensGone));
                let after: Vec<_> =
                    (0..self.oracles.len() as u32).map(|l| self.cache.seq_info(l, seq as i32).unwrap()).collect();
                assert_eq!(before, after, "a rejected edit changed something");
                self.note("rejected");
                Ok(false)
            }
            Ok(()) => {
                for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
                    (edit.apply)(&mut oracles[seq], n);
                    plains[seq].follow(&oracles[seq]);
                }
                if n > 0 {
                    self.note(what);
                }
                Ok(true)
            }
        }
    }

    /// The settings of another cache that a sequence of this one can be loaded into.
    fn other_config(&self, other: Other) -> CacheConfig {
        let backend = match common::device::backend() {
            BackendKind::Cuda if other.elsewhere => BackendKind::Cpu,
            backend => backend,
        };
        CacheConfig {
            backend,
            max_chunk: other.max_chunk.into(),
            max_rewind: other.max_rewind.into(),
            n_seqs: other.n_seqs.into(),
            n_threads: other.n_threads.into(),
            isa: self.config.isa.filter(|_| backend == BackendKind::Cpu),
            ..self.config.clone()
        }
    }

    fn load(&mut self, src: usize, dst: usize, other: Other) {
        self.note("load");
        if self.forks {
            if src != dst {
                self.cache.fork(&[src as i32], &[dst as i32]).unwrap();
            }
        } else {
            let mut via = common::new_cache(&self.other_config(other));
            let there = i32::from(other.n_seqs) - 1;
            common::transfer(&mut self.cache, src as i32, &mut via, there, other.copied);
            common::transfer(&mut via, there, &mut self.cache, dst as i32, !other.copied);
        }
        let (max_chunk, max_rewind) = (self.config.max_chunk as usize, self.config.max_rewind as usize);
        for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
            oracles[dst] = oracles[src].clone();
            oracles[dst].load(other.max_chunk.into(), other.max_rewind.into());
            oracles[dst].load(max_chunk, max_rewind);
            plains[dst] = plains[src].clone();
        }
    }

    fn move_all(&mut self, other: Other) {
        if self.forks {
            return;
        }
        self.note("move");
        let config = self.other_config(other);
        let mut cache = common::new_cache(&config);
        for seq in 0..N_SEQS as i32 {
            common::transfer(&mut self.cache, seq, &mut cache, seq, other.copied);
        }
        (self.cache, self.config) = (cache, config);
        for oracle in self.oracles.iter_mut().flatten() {
            oracle.load(other.max_chunk.into(), other.max_rewind.into());
        }
    }

    fn evict(&mut self, what: &'static str, seq: usize, n: usize) -> Result<bool, TestCaseError> {
        let evict = EditCalls { check: Oracle::check_evict, apply: |o, n| o.evict(n).unwrap(), call: Cache::evict };
        self.edit(what, seq, n, &evict)
    }

    fn rewind(&mut self, what: &'static str, seq: usize, n: usize) -> Result<bool, TestCaseError> {
        let rewind = EditCalls { check: Oracle::check_rewind, apply: |o, n| o.rewind(n).unwrap(), call: Cache::rewind };
        self.edit(what, seq, n, &rewind)
    }

    fn event(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Feed { n, step, repeat } => {
                self.note(if step { "step" } else { "append + attend" });
                self.feed(n.map(usize::from), step, repeat.into());
            }
            Event::Evict { seq, n } => {
                self.evict("evict", seq.into(), n.into())?;
            }
            Event::Rewind { seq, n } => {
                self.rewind("rewind", seq.into(), n.into())?;
            }
            Event::Reset { seq, start } => {
                self.note("reset");
                self.cache.reset(&[seq.into()], Some(&[start])).unwrap();
                for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
                    oracles[usize::from(seq)].reset();
                    plains[usize::from(seq)].follow(&oracles[usize::from(seq)]);
                }
            }
            Event::Fork { src, dst } => {
                let (src, dst) = (usize::from(src), usize::from(dst));
                let outcome = self.cache.fork(&[src as i32], &[dst as i32]);
                if src == dst {
                    assert_eq!(outcome.unwrap_err().status(), Status::InvalidArgument);
                    return Ok(());
                }
                outcome.unwrap();
                self.note("fork");
                for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
                    oracles[dst] = oracles[src].clone();
                    plains[dst] = plains[src].clone();
                }
            }
            Event::Poison { seq, n } => {
                let (seq, n) = (usize::from(seq), usize::from(n).min(self.config.max_rewind as usize));
                // Only drafts that can be rewound: a token that may become visible again must be valid.
                let rejectable = |o: &Oracle| {
                    let mut o = o.clone();
                    (0..n).for_each(|_| o.push(&[], &[]));
                    o.check_rewind(n).is_ok()
                };
                if n > 0 && self.oracles.iter().all(|l| rejectable(&l[seq])) {
                    self.poison(seq, n);
                    assert!(self.rewind("poisoned draft", seq, n)?);
                }
            }
            Event::PoisonEvicted { seq, n } => {
                let (seq, n) = (usize::from(seq), usize::from(n));
                let (first, others) = self.oracles.split_first().unwrap();
                // All layers must be able to evict the same number, and no poisoned token may be a sink.
                let after = |o: &Oracle| (o.window_len() + n).min(o.cfg.layer.window as usize);
                let same = others.iter().all(|l| after(&l[seq]) == after(&first[seq]));
                let past_sinks = self.oracles.iter().all(|l| l[seq].len() >= l[seq].cfg.layer.n_sink as usize);
                if same && past_sinks {
                    self.poison(seq, n);
                    let window = self.oracles[0][seq].window_len();
                    assert!(self.evict("poisoned window", seq, window)?);
                }
            }
            Event::Load { src, dst, other } => self.load(src.into(), dst.into(), other),
            Event::Move(other) => self.move_all(other),
        }
        Ok(())
    }

    fn finish(self) -> Result<Summary, TestCaseError> {
        let types = KvTypes::of(&self.config);
        check(types, &self.got, &self.want, Some(&self.rough)).map_err(TestCaseError::fail)?;
        let l = &self.config.layers[0];
        let capacity = (l.n_sink + l.window) as usize;
        let slots = capacity + self.config.max_chunk.max(self.config.max_rewind) as usize;
        Ok(Summary { length: self.longest, capacity, wrapped: self.longest > slots, counts: self.counts })
    }
}

fn replay(history: &History) -> Result<Summary, TestCaseError> {
    let mut run = Run::new(history);
    for event in &history.events {
        run.event(event)?;
    }
    run.finish()
}

/// The same with sequences that are saved and loaded. Those that come back to a cache of the same settings, by way of
/// one that keeps as much, go on with the same bits as a fork.
fn replay_with_snapshots(history: &History) -> Result<Summary, TestCaseError> {
    let summary = replay(history)?;
    let c = &history.config;
    let events: Vec<_> = history.events.iter().filter(|e| !matches!(e, Event::Move(_))).cloned().collect();
    let keeps = |o: &Other| u32::from(o.max_rewind) >= c.max_rewind && u32::from(o.max_chunk) >= c.max_chunk;
    if events.iter().any(|e| matches!(e, Event::Load { .. }))
        && events.iter().all(|e| !matches!(e, Event::Load { other, .. } if !keeps(other)))
    {
        let mut runs = [Run::new(history), Run::new(history)];
        runs[1].forks = true;
        for event in &events {
            for run in &mut runs {
                run.event(event)?;
            }
        }
        let bits = |run: &Run| run.got.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&runs[0]) == bits(&runs[1]), "a loaded sequence does not go on as a fork");
    }
    Ok(summary)
}

/// The histories are run in two halves, each with a seed of its own: they are the same for any number of cores.
const HALVES: u8 = 2;

/// The value of an environment variable that is a number.
fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok())
}

/// Runs so many histories, always the same ones unless `SKC_SEED` is set. `SKC_SHRINK`: tries to find a smaller history
/// that fails too (default 2,000).
fn run_all<S: Strategy<Value = History>>(
    cases: u32,
    histories: impl Fn() -> S + Sync,
    replay: impl Fn(&History) -> Result<Summary, TestCaseError> + Sync,
) -> Vec<Summary> {
    let half = |index: u8| {
        let mut seed = number("SKC_SEED").unwrap_or(1).to_le_bytes().repeat(8);
        seed[31] ^= index;
        let cases = (cases + u32::from(index)) / u32::from(HALVES);
        let max_shrink_iters = number("SKC_SHRINK").unwrap_or(2_000);
        let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let summaries = std::cell::RefCell::new(Vec::new());
        TestRunner::new_with_rng(config, rng)
            .run(&histories(), |history| {
                summaries.borrow_mut().push(replay(&history)?);
                Ok(())
            })
            .map(|()| summaries.into_inner())
            .map_err(|e| e.to_string())
    };
    // One thread at a time uses the device.
    let outcomes: Vec<_> = match common::device::backend() {
        BackendKind::Cpu => std::thread::scope(|scope| {
            let half = &half;
            let halves: Vec<_> = (0..HALVES).map(|index| scope.spawn(move || half(index))).collect();
            halves.into_iter().map(|half| half.join().unwrap()).collect()
        }),
        BackendKind::Cuda => (0..HALVES).map(half).collect(),
    };
    outcomes.into_iter().flat_map(|half| half.unwrap_or_else(|e| panic!("{e}"))).collect()
}

/// Runs `SKC_HISTORIES` histories (default 10,000).
#[test]
fn random_histories_match_the_definition() {
    report(&run_all(number("SKC_HISTORIES").unwrap_or(10_000), histories, replay), &[]);
}

/// Runs `SKC_SNAPSHOT_HISTORIES` histories (default 300).
#[test]
fn random_histories_with_snapshots_match_the_definition() {
    let cases = number("SKC_SNAPSHOT_HISTORIES").unwrap_or(300);
    report(&run_all(cases, histories_with_snapshots, replay_with_snapshots), &["load", "move"]);
}

/// Prints the distribution of events, and checks that no kind is rare.
fn report(summaries: &[Summary], more: &[&str]) {
    let n = summaries.len();
    let mut ratios: Vec<_> = summaries.iter().map(|s| s.length as f64 / s.capacity as f64).collect();
    ratios.sort_by(f64::total_cmp);
    let wrapped = summaries.iter().filter(|s| s.wrapped).count();
    println!(
        "{n} histories; length / capacity: median {:.1}, 10 % {:.1}, 90 % {:.1}",
        ratios[n / 2],
        ratios[n / 10],
        ratios[n * 9 / 10]
    );
    println!("wrapped: {:.1} %", 100.0 * wrapped as f64 / n as f64);
    assert!(ratios[n / 2] >= 3.0 && 2 * wrapped >= n);
    let kinds = [
        "append + attend",
        "step",
        "evict",
        "rewind",
        "reset",
        "fork",
        "poisoned draft",
        "poisoned window",
        "rejected",
    ];
    for kind in kinds.iter().chain(more) {
        let with = summaries.iter().filter(|s| s.counts.contains_key(*kind)).count();
        println!("with {kind}: {:.1} %", 100.0 * with as f64 / n as f64);
        // Chance has much to say in few, and those with snapshots have more kinds of events.
        let few = n < 200 && !more.is_empty();
        assert!(5 * with >= n || few, "too few histories with {kind}");
    }
}

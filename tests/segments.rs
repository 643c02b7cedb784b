//! Pins and evicted ranges that the small shapes of vectors and histories do not reach, on every instruction set: many
//! segments over several KV splits and key blocks, edits that move rows by any number of slots, the most segments.

mod common;

use common::oracle::{Oracle, OracleConfig, RangeEdit};
use common::plain::Plain;
use common::quantised::KvTypes;
use common::{Call, Rows, check, feed};
use sinkcache::{Batch, Cache, CacheConfig, Isa, LayerConfig, PositionMode, StorageType};

const N_SINK: u32 = 5;
const HEADS: (usize, usize) = (4, 2);

/// Multiples of 1/32 below 2, which are exact in every type.
fn draw(n: usize, seed: u64) -> Vec<f32> {
    let mut random = seed * 2 + 1;
    (0..n)
        .map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 58) as f32 / 16.0 - 2.0
        })
        .collect()
}

/// Three KV splits. `SKC_WINDOW` (default 1,300) is for emulated machines: it must be more than one split.
fn window() -> u32 {
    std::env::var("SKC_WINDOW").ok().and_then(|n| n.parse().ok()).unwrap_or(1300)
}

/// What happens to the sequence.
#[derive(Clone, Copy, Debug)]
enum Event {
    Feed(usize),
    /// Of a range whose first token is so many behind the end.
    Edit(RangeEdit, usize, usize),
}

/// A cache of one layer and sequence, and the rows that go in.
struct Stream {
    layer: LayerConfig,
    dims: (usize, usize),
    events: Vec<Event>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Stream {
    fn new(layer: LayerConfig, dims: (usize, usize), events: Vec<Event>) -> Self {
        let fed = |event: &Event| if let Event::Feed(n) = event { *n } else { 0 };
        let n: usize = events.iter().map(fed).sum();
        let rows = |heads: usize, dim: usize, seed: u64| draw(n * heads * dim, seed);
        let (q, k, v) = (rows(HEADS.0, dims.0, 1), rows(HEADS.1, dims.0, 2), rows(HEADS.1, dims.1, 3));
        Self { layer, dims, events, q, k, v }
    }

    fn rows<'a>(&self, [q, k, v]: [&'a [f32]; 3], at: usize, n: usize) -> Rows<'a> {
        let (nq, nk, nv) = (HEADS.0 * self.dims.0, HEADS.1 * self.dims.0, HEADS.1 * self.dims.1);
        Rows { q: &q[at * nq..][..n * nq], k: &k[at * nk..][..n * nk], v: &v[at * nv..][..n * nv] }
    }

    fn oracle(&self) -> Oracle {
        Oracle::new(OracleConfig {
            n_q_heads: HEADS.0,
            n_kv_heads: HEADS.1,
            head_dim: self.dims.0,
            head_dim_v: self.dims.1,
            max_rewind: 16,
            layer: self.layer.clone(),
        })
    }

    /// The last row of each call: by the definition, and by the plain implementation. And the most segments.
    fn reference(&self, types: KvTypes) -> (Vec<f32>, Vec<f32>, usize) {
        let (mut oracle, mut plain) = (self.oracle(), Plain::new(types));
        let (mut want, mut rough, mut at, mut most) = (vec![], vec![], 0, 0);
        for &event in &self.events {
            match event {
                Event::Feed(n) => {
                    for i in 0..n {
                        let rows = self.rows([&self.q, &self.k, &self.v], at + i, 1);
                        if i + 1 < n {
                            oracle.push(rows.k, rows.v);
                            plain.push(&oracle, rows.k, rows.v);
                        } else {
                            oracle.step(rows.q, rows.k, rows.v, &mut want, &mut vec![]);
                            plain.step(&oracle, rows, &mut rough);
                        }
                    }
                    at += n;
                }
                Event::Edit(edit, before, n) => {
                    assert!(oracle.edit_range(edit, (at - before) as u64, n as u64).unwrap());
                }
            }
            most = most.max(oracle.segments().len());
        }
        (want, rough, most)
    }

    /// Rows of all calls, and the last one of each.
    fn computed(&self, config: &CacheConfig, call: Call) -> (Vec<f32>, Vec<f32>) {
        let mut cache = Cache::new(config).unwrap();
        let cfg = self.oracle().cfg;
        let hosted = |x: &[f32], heads: usize| {
            let row = |(at, x): (usize, &[f32])| {
                let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
                cfg.rotate(&x, at as f64).into_iter().map(|x| x as f32).collect::<Vec<_>>()
            };
            match self.layer.position_mode {
                PositionMode::RopeApplied => x.chunks(heads * self.dims.0).enumerate().flat_map(row).collect(),
                _ => x.to_vec(),
            }
        };
        let (q, k) = (hosted(&self.q, HEADS.0), hosted(&self.k, HEADS.1));
        let (mut all, mut last, mut at) = (vec![], vec![], 0);
        for &event in &self.events {
            match event {
                Event::Feed(n) => {
                    let rows = self.rows([&q, &k, &self.v], at, n);
                    let (out, _) = feed(&mut cache, config, 0, Batch::new(&[0], &[n as i32]), rows, call);
                    last.extend_from_slice(&out[out.len() - HEADS.0 * self.dims.1..]);
                    all.extend(out);
                    at += n;
                }
                Event::Edit(edit, before, n) => {
                    let (first, n) = ([(at - before) as u64], [n as i32]);
                    match edit {
                        RangeEdit::Pin => cache.pin(&[0], &first, &n).unwrap(),
                        RangeEdit::Evict => cache.evict_range(&[0], &first, &n).unwrap(),
                    }
                }
            }
        }
        (all, last)
    }

    fn config(&self, types: KvTypes, isa: Isa, n_threads: u32) -> CacheConfig {
        types.config(CacheConfig {
            n_q_heads: HEADS.0 as u32,
            n_kv_heads: HEADS.1 as u32,
            head_dim: self.dims.0 as u32,
            head_dim_v: self.dims.1 as u32,
            max_chunk: 300,
            layers: vec![self.layer.clone()],
            isa: Some(isa),
            n_threads,
            ..CacheConfig::default()
        })
    }

    /// Compares every instruction set with the definition, and steps on threads with append and attend.
    fn hold(&self, types: KvTypes, least_segments: usize) {
        let (want, rough, most) = self.reference(types);
        assert!(most >= least_segments, "only {most} segments");
        let mode = self.layer.position_mode;
        for isa in Isa::all() {
            let (all, last) = self.computed(&self.config(types, isa, 1), Call::Two);
            check(types, &last, &want, Some(&rough))
                .unwrap_or_else(|e| panic!("{isa:?} {mode:?} {:?}: {e}", self.dims));
            let again = self.computed(&self.config(types, isa, 3), Call::Step).0;
            assert!(again == all, "{isa:?} {mode:?} {types:?} {:?}: a step on threads differs", self.dims);
        }
    }
}

fn layer(window: u32, position_mode: PositionMode) -> LayerConfig {
    let alibi_slopes = if position_mode == PositionMode::Alibi { vec![0.01, 0.003, 0.0, 0.001] } else { vec![] };
    let (max_pinned, max_segments) = (200, 64);
    LayerConfig {
        n_sink: N_SINK,
        window,
        position_mode,
        alibi_slopes,
        rope_mscale: 1.1,
        max_pinned,
        max_segments,
        ..LayerConfig::default()
    }
}

/// Chunks, then pins and evicted ranges of all lengths over the whole window, then single tokens, a few at a time and
/// chunks, with more edits between them, until the window has passed the first ones.
fn events(window: usize) -> Vec<Event> {
    let (pin, evict) = (RangeEdit::Pin, RangeEdit::Evict);
    let mut events = vec![Event::Feed(300); (window + 600).div_ceil(300)];
    let part = window / 24;
    // From the oldest to the newest: each moves all that is older, by 1 to 19 slots, two by whole groups.
    for i in 0..20 {
        let n = [1, 3, 16, 7, 19, 2, 5, 32, 11, 4][i % 10].min(part - 2);
        events.push(Event::Edit(if i % 3 == 1 { pin } else { evict }, window - 10 - i * part, n));
    }
    events.extend([Event::Feed(1), Event::Feed(1), Event::Feed(3), Event::Edit(evict, 2, 1), Event::Feed(299)]);
    // Of a pin, a range across an old one, and the newest tokens.
    events.extend([Event::Edit(evict, window + 304 - 10 - 7 * part + 1, 2), Event::Edit(evict, 100, 37)]);
    events.extend([Event::Edit(pin, 5, 5), Event::Feed(1), Event::Feed(7), Event::Edit(evict, 110, 60)]);
    events.extend([Event::Feed(1), Event::Feed(300)]);
    events.extend(vec![Event::Feed(300); window.div_ceil(300)]);
    events.extend([Event::Feed(1), Event::Feed(2)]);
    events
}

#[test]
fn many_segments_of_long_windows() {
    for types in StorageType::ALL {
        let layer = layer(window(), PositionMode::Rope);
        Stream::new(layer, (64, 64), events(window() as usize)).hold(types.into(), 12);
    }
}

#[test]
fn many_segments_of_keys_that_the_host_rotates() {
    let [f32, f16, _, q8, q4] = StorageType::ALL;
    for types in [KvTypes::from(f32), f16.into(), q8.into(), KvTypes::new(q4, q8)] {
        let layer = layer(window().min(600), PositionMode::RopeApplied);
        // Padded rows, and Hadamard blocks of 16.
        Stream::new(layer, (80, 40), events(window().min(600) as usize)).hold(types, 12);
    }
}

#[test]
fn many_segments_with_a_bias() {
    for types in [StorageType::F32, StorageType::Bf16] {
        let layer = layer(window().min(600), PositionMode::Alibi);
        Stream::new(layer, (64, 64), events(window().min(600) as usize)).hold(types.into(), 12);
    }
}

/// Every other token is evicted, or pinned, as often as `max_segments` allows.
#[test]
fn as_many_segments_as_there_can_be() {
    for edit in [RangeEdit::Evict, RangeEdit::Pin] {
        let most = 1024;
        let layer = LayerConfig { max_pinned: most, max_segments: most, ..layer(2300, PositionMode::Rope) };
        let mut events = vec![Event::Feed(300); 8];
        events.extend((0..most as usize).map(|i| Event::Edit(edit, 2 + 2 * i, 1)));
        events.extend([Event::Feed(1), Event::Feed(30)]);
        let stream = Stream::new(layer, (32, 32), events);
        let (want, rough, segments) = stream.reference(StorageType::F16.into());
        assert_eq!(segments, if edit == RangeEdit::Evict { 1026 } else { 2 });
        let config = stream.config(StorageType::F16.into(), *Isa::all().last().unwrap(), 1);
        let (_, last) = stream.computed(&config, Call::Two);
        check(StorageType::F16.into(), &last, &want, Some(&rough)).unwrap();
    }
}

//! The vectors, cut into chunks in every way, at every start position, in every storage type; and the oracle against
//! them.

mod common;

use std::collections::BTreeSet;

use common::oracle::{Oracle, OracleConfig, RangeEdit, Rejected};
use common::plain::Plain;
use common::quantised::KvTypes;
use common::share::Share;
use common::vectors::{Edit, Event, Vector, all};
use common::{Call, Rows, check, feed};
use serde_json::{Value, json};
use sinkcache::{BackendKind, Batch, Cache, CacheConfig, DType, Isa, LayerConfig, PositionMode, StorageType};

const STARTS: [u64; 4] = [0, 1 << 24, (1 << 32) + 7, 1 << 40];
const TYPES: [KvTypes; 7] = [
    KvTypes::new(StorageType::F32, StorageType::F32),
    KvTypes::new(StorageType::F16, StorageType::F16),
    KvTypes::new(StorageType::Bf16, StorageType::Bf16),
    KvTypes::new(StorageType::Q8, StorageType::Q8),
    KvTypes::new(StorageType::Q8, StorageType::Q4),
    KvTypes::new(StorageType::Q4, StorageType::Q4),
    KvTypes::new(StorageType::F16, StorageType::Q8),
];

/// How a stream is cut.
#[derive(Clone, Copy, Debug)]
struct Feed {
    /// Tokens per call.
    cut: usize,
    max_chunk: u32,
    call: Call,
}

const FEEDS: [Feed; 5] = [
    Feed { cut: usize::MAX, max_chunk: 128, call: Call::Two },
    Feed { cut: 1, max_chunk: 1, call: Call::Two },
    Feed { cut: 7, max_chunk: 7, call: Call::Two },
    Feed { cut: usize::MAX, max_chunk: 5, call: Call::Step },
    Feed { cut: 1, max_chunk: 512, call: Call::Step },
];

/// The instruction sets to test: all available ones, or for CUDA the default.
fn instruction_sets() -> Vec<Option<Isa>> {
    match common::device::backend() {
        BackendKind::Cpu => Isa::all().into_iter().map(Some).collect(),
        BackendKind::Cuda => vec![None],
    }
}

fn cache_config(vector: &Vector, feed: Feed, types: KvTypes, io_dtype: DType, mode: PositionMode) -> CacheConfig {
    let c = &vector.cfg;
    let mut layer = c.layer.clone();
    layer.position_mode = mode;
    CacheConfig {
        backend: common::device::backend(),
        n_q_heads: c.n_q_heads as u32,
        n_kv_heads: c.n_kv_heads as u32,
        head_dim: c.head_dim as u32,
        head_dim_v: c.head_dim_v as u32,
        in_dtype: io_dtype,
        out_dtype: io_dtype,
        k_dtype: Some(types.k),
        v_dtype: Some(types.v),
        max_chunk: feed.max_chunk,
        max_rewind: c.max_rewind as u32,
        layers: vec![layer],
        ..CacheConfig::default()
    }
}

/// Replays a vector; returns all rows of out and lse.
fn replay(vector: &Vector, config: &CacheConfig, how: Feed, start: u64) -> (Vec<f32>, Vec<f32>) {
    let c = &vector.cfg;
    let applied = config.layers[0].position_mode == PositionMode::RopeApplied;
    let (q, k) = if applied { ("q_rotated", "k_rotated") } else { ("q", "k") };
    let (q, k, v) = (&vector.tensors[q], &vector.tensors[k], &vector.tensors["v"]);
    let (nq, nk, nv) = (c.n_q_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim_v);
    let mut cache = common::new_cache(config);
    cache.reset(&[0], Some(&[start])).unwrap();
    // Of lengths alone.
    let mut oracle = Oracle::new(c.clone());
    let (mut out, mut lse, mut at) = (Vec::new(), Vec::new(), 0);
    for &event in &vector.events {
        let before = cache.seq_info(0, 0).unwrap();
        match event {
            Event::Chunk(n) => {
                let end = at + n;
                while at < end {
                    let to = end.min(at.saturating_add(how.cut));
                    let rows = Rows { q: &q[at * nq..to * nq], k: &k[at * nk..to * nk], v: &v[at * nv..to * nv] };
                    let n = [(to - at) as i32];
                    let (o, l) = feed(&mut cache, config, 0, Batch::new(&[0], &n), rows, how.call);
                    out.extend(o);
                    lse.extend(l);
                    (at..to).for_each(|_| oracle.push(&[], &[]));
                    at = to;
                }
            }
            Event::Edit(edit) => {
                cache_edit(&mut cache, edit, start).unwrap();
                oracle_edit(&mut oracle, edit).unwrap();
            }
            Event::Reject(edit) => {
                let status = oracle_edit(&mut oracle, edit).unwrap_err().status();
                assert_eq!(
                    cache_edit(&mut cache, edit, start).unwrap_err().status(),
                    status,
                    "{}: {edit:?}",
                    vector.name
                );
                assert_eq!(cache.seq_info(0, 0).unwrap(), before);
            }
        }
        assert_eq!(cache.seq_info(0, 0).unwrap(), oracle.info(start), "{}: after {event:?}", vector.name);
    }
    (out, lse)
}

fn cache_edit(cache: &mut Cache, edit: Edit, start: u64) -> sinkcache::Result<()> {
    match edit {
        Edit::Evict(n) => cache.evict(&[0], &[n as i32]),
        Edit::Rewind(n) => cache.rewind(&[0], &[n as i32]),
        Edit::Reset => cache.reset(&[0], Some(&[start])),
        Edit::Range(RangeEdit::Pin, first, n) => cache.pin(&[0], &[first], &[n as i32]),
        Edit::Range(RangeEdit::Evict, first, n) => cache.evict_range(&[0], &[first], &[n as i32]),
    }
}

/// Results of the oracle and of the plain implementation for a vector.
fn reference(vector: &Vector, types: impl Into<KvTypes>) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let c = &vector.cfg;
    let (nq, nk, nv) = (c.n_q_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim_v);
    let (q, k, v) = (&vector.tensors["q"], &vector.tensors["k"], &vector.tensors["v"]);
    let (mut oracle, mut plain) = (Oracle::new(c.clone()), Plain::new(types));
    let (mut out, mut lse, mut rough, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for &event in &vector.events {
        match event {
            Event::Chunk(n) => {
                for i in at..at + n {
                    let (q, k, v) = (&q[i * nq..(i + 1) * nq], &k[i * nk..(i + 1) * nk], &v[i * nv..(i + 1) * nv]);
                    oracle.step(q, k, v, &mut out, &mut lse);
                    plain.step(&oracle, Rows { q, k, v }, &mut rough);
                }
                at += n;
            }
            Event::Edit(edit) => oracle_edit(&mut oracle, edit).unwrap(),
            Event::Reject(edit) => {
                let held = oracle.held();
                assert!(oracle_edit(&mut oracle, edit).is_err(), "{}: {edit:?}", vector.name);
                assert_eq!(oracle.held(), held);
            }
        }
        plain.follow(&oracle);
    }
    (out, lse, rough)
}

fn oracle_edit(oracle: &mut Oracle, edit: Edit) -> Result<(), Rejected> {
    match edit {
        Edit::Evict(n) => oracle.evict(n),
        Edit::Rewind(n) => oracle.rewind(n),
        Edit::Range(edit, first, n) => oracle.edit_range(edit, first, n as u64).map(drop),
        Edit::Reset => {
            oracle.reset();
            Ok(())
        }
    }
}

fn check_lse(name: &str, got: &[f32], want: &[f32], types: KvTypes) {
    // Keys are rounded: the relative error of the type times the size of a score.
    let bound = match types.k {
        StorageType::F32 => 1e-5,
        StorageType::F16 => 1e-2,
        StorageType::Bf16 => 8e-2,
        StorageType::Q8 => 4e-2,
        StorageType::Q4 => 0.4,
    };
    let (_, max) = common::errors(got, want);
    assert!(max <= bound * want.iter().fold(1.0, |m, x| f64::from(x.abs()).max(m)), "{name}: lse off by {max:.3e}");
}

#[test]
fn the_oracle_is_the_definition() {
    let vectors = all();
    assert!(vectors.len() >= 44, "only {} vectors", vectors.len());
    for vector in &vectors {
        let (out, lse, _) = reference(vector, StorageType::F32);
        let (_, max) = common::errors(&out, &vector.tensors["out"]);
        let (_, max_lse) = common::errors(&lse, &vector.tensors["lse"]);
        assert!(max <= 1e-6 && max_lse <= 2e-6, "{}: {max:.3e} {max_lse:.3e}", vector.name);
    }
}

/// Which tokens are held after random edits, and which edits are refused, by the definition in NumPy.
#[test]
fn the_oracle_edits_as_the_definition() {
    let file: Value = serde_json::from_slice(&std::fs::read("tests/data/range_histories.json").unwrap()).unwrap();
    let number = |v: &Value| usize::try_from(v.as_u64().unwrap()).unwrap();
    let mut refused = BTreeSet::new();
    for (i, history) in file["histories"].as_array().unwrap().iter().enumerate() {
        let setting = |key: &str| number(&history[key]) as u32;
        let layer = LayerConfig {
            n_sink: setting("n_sink"),
            window: setting("window"),
            max_pinned: setting("max_pinned"),
            max_segments: setting("max_segments"),
            ..LayerConfig::default()
        };
        let heads = OracleConfig { n_q_heads: 1, n_kv_heads: 1, head_dim: 8, head_dim_v: 8, max_rewind: 0, layer };
        let mut oracle = Oracle::new(OracleConfig { max_rewind: setting("max_rewind") as usize, ..heads });
        for (j, event) in history["events"].as_array().unwrap().iter().enumerate() {
            let event = event.as_array().unwrap();
            let (call, after) = event.split_at(event.len() - 4);
            let (what, n) = (call[0].as_str().unwrap(), number(&call[call.len() - 1]));
            let range = |edit| Edit::Range(edit, call[1].as_u64().unwrap(), n);
            let outcome = match what {
                "append" => {
                    (0..n).for_each(|_| oracle.push(&[], &[]));
                    Ok(())
                }
                "evict" => oracle_edit(&mut oracle, Edit::Evict(n)),
                "rewind" => oracle_edit(&mut oracle, Edit::Rewind(n)),
                "reset" => oracle_edit(&mut oracle, Edit::Reset),
                "pin" => oracle_edit(&mut oracle, range(RangeEdit::Pin)),
                "evict_range" => oracle_edit(&mut oracle, range(RangeEdit::Evict)),
                other => panic!("event {other}"),
            };
            let name = outcome.map_or_else(|e| format!("{e:?}"), |()| "Ok".into());
            let runs: Vec<_> = oracle.segments().iter().map(|s| (s.first, s.end)).collect();
            let got = json!([name, runs, oracle.rewindable(), oracle.counted()]);
            assert_eq!(got, Value::from(after), "history {i}, event {j}: {call:?} in {history}");
            refused.extend(outcome.err().map(|e| format!("{what} {e:?}")));
        }
    }
    assert_eq!(refused.len(), 8, "{refused:?}");
}

#[test]
fn every_vector_every_way() {
    let [mut groups, mut share] = Share::of_groups_and_tests();
    for vector in all() {
        let modes = match vector.cfg.layer.position_mode {
            PositionMode::Rope => vec![PositionMode::Rope, PositionMode::RopeApplied],
            other => vec![other],
        };
        for types in TYPES {
            if !groups.take() {
                continue;
            }
            let plain = reference(&vector, types).2;
            let cuts = FEEDS.into_iter().flat_map(|how| STARTS.map(|start| (how, start)));
            for (how, start) in cuts {
                for (&mode, isa) in modes.iter().flat_map(|m| instruction_sets().into_iter().map(move |r| (m, r))) {
                    if !share.take() {
                        continue;
                    }
                    let mut config = cache_config(&vector, how, types, DType::F32, mode);
                    config.isa = isa;
                    let (out, lse) = replay(&vector, &config, how, start);
                    let name = format!("{} {how:?} start {start} {mode:?} {isa:?}", vector.name);
                    check(types, &out, &vector.tensors["out"], Some(&plain)).unwrap_or_else(|e| panic!("{name}: {e}"));
                    check_lse(&name, &lse, &vector.tensors["lse"], types);
                }
            }
        }
    }
    println!("of {groups} vectors and types {share} replays");
}

/// Inputs and outputs in 16 bits, as hosts like TensorRT-LLM have them; K and V in the same type, or quantised.
#[test]
fn half_inputs_and_outputs() {
    let [mut groups, mut share] = Share::of_groups_and_tests();
    for vector in all() {
        for (i, dtype) in [DType::F16, DType::Bf16].into_iter().enumerate() {
            for types in [dtype.into(), TYPES[3 + i], TYPES[5]] {
                if !groups.take() {
                    continue;
                }
                let plain = reference(&vector, types).2;
                for (how, isa) in FEEDS.into_iter().flat_map(|f| instruction_sets().into_iter().map(move |i| (f, i))) {
                    if !share.take() {
                        continue;
                    }
                    let mut config = cache_config(&vector, how, types, dtype, vector.cfg.layer.position_mode);
                    config.isa = isa;
                    let (out, _) = replay(&vector, &config, how, 0);
                    check(types, &out, &vector.tensors["out"], Some(&plain))
                        .unwrap_or_else(|e| panic!("{} {how:?} {isa:?}: {e}", vector.name));
                }
            }
        }
    }
}

/// The same cut into chunks gives the same bits for every start position, call and number of threads.
#[test]
fn one_cut_one_result() {
    for vector in all() {
        let two = Feed { cut: 6, max_chunk: 6, call: Call::Two };
        let mode = vector.cfg.layer.position_mode;
        let mut config = cache_config(&vector, two, StorageType::F16.into(), DType::F32, mode);
        let want = replay(&vector, &config, two, 0);
        assert_eq!(replay(&vector, &config, Feed { call: Call::Step, ..two }, 0), want, "{}: step", vector.name);
        config.n_threads = 3;
        assert_eq!(replay(&vector, &config, Feed { call: Call::Step, ..two }, 0), want, "{}: threads", vector.name);
    }
}

//! Snapshots: sequences that go on elsewhere, snapshots of earlier versions, and what no snapshot may do.

#[path = "../common/mod.rs"]
mod common;

mod changed;
mod parts;
mod ranges;

use common::{Call, Rows, feed, new_cache, transfer};
use parts::{Part, Parts, refused, saved};
use sinkcache::{Batch, Cache, CacheConfig, HostTag, LayerConfig, PositionMode, SeqInfo, Status, StorageType};
use twox_hash::XxHash3_64;

const TAG: HostTag = [7; 32];

/// Pairs of types that K and V are stored in.
const TYPES: [(StorageType, StorageType); 7] = [
    (StorageType::F32, StorageType::F32),
    (StorageType::F16, StorageType::F16),
    (StorageType::Bf16, StorageType::Bf16),
    (StorageType::Q8, StorageType::Q8),
    (StorageType::Q8, StorageType::Q4),
    (StorageType::Q4, StorageType::Q4),
    (StorageType::Bf16, StorageType::Q8),
];

/// A cache of two layers, of which the second has a longer window.
fn config((k, v): (StorageType, StorageType)) -> CacheConfig {
    let layer = LayerConfig { n_sink: 3, window: 40, ..LayerConfig::default() };
    CacheConfig {
        backend: common::device::backend(),
        n_layers: 2,
        n_seqs: 3,
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim: 48,
        head_dim_v: 40,
        kv_dtype: k,
        v_dtype: Some(v),
        max_chunk: 16,
        max_rewind: 8,
        layers: vec![layer.clone(), LayerConfig { window: 90, ..layer }],
        ..CacheConfig::default()
    }
}

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Steps of the next tokens of a sequence in every layer; their outputs.
fn step(cache: &mut Cache, config: &CacheConfig, seq: i32, n: usize, seed: u64) -> Vec<f32> {
    let (dim, dim_v) = (config.head_dim as usize, config.head_dim_v as usize);
    let (heads, kv_heads) = (config.n_q_heads as usize, config.n_kv_heads as usize);
    let mut all = vec![];
    for layer in 0..config.n_layers {
        let seed = 8 * seed + u64::from(layer);
        let q = noise(n * heads * dim, 3 * seed);
        let (k, v) = (noise(n * kv_heads * dim, 3 * seed + 1), noise(n * kv_heads * dim_v, 3 * seed + 2));
        let rows = Rows { q: &q, k: &k, v: &v };
        all.extend(feed(cache, config, layer, Batch::new(&[seq], &[n as i32]), rows, Call::Step).0);
    }
    all
}

fn save(cache: &mut Cache, seq: i32) -> Vec<u8> {
    let mut bytes = vec![0xAA; cache.snapshot_bytes(seq).unwrap()];
    assert_eq!(cache.save_sequence(seq, &TAG, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn infos(cache: &Cache, seq: i32) -> [SeqInfo; 2] {
    [0, 1].map(|layer| cache.seq_info(layer, seq).unwrap())
}

/// The pairs of types that the backend under test has.
fn types() -> impl Iterator<Item = (StorageType, StorageType)> {
    TYPES.into_iter().filter(|&types| {
        let config = config(types);
        // Without creating it.
        Cache::footprint(&config).is_ok()
    })
}

#[test]
fn a_loaded_sequence_goes_on_with_the_same_bits() {
    for types in types() {
        let config = config(types);
        // Of some tokens, all of the sinks, a part of the windows, and long streams.
        for tokens in [0, 2, 3, 30, 43, 130, 400] {
            let mut cache = new_cache(&config);
            cache.reset(&[0], Some(&[1 << 40])).unwrap();
            (0..tokens / 10).for_each(|i| drop(step(&mut cache, &config, 0, 10, i as u64)));
            step(&mut cache, &config, 0, tokens % 10, 99);
            let bytes = save(&mut cache, 0);
            let mut other = new_cache(&CacheConfig { n_seqs: 2, ..config.clone() });
            step(&mut other, &config, 1, 50, 77);
            other.load_sequence(1, &TAG, &bytes).unwrap();
            assert_eq!(infos(&other, 1), infos(&cache, 0));
            assert_eq!(save(&mut other, 1), bytes);
            for i in 0..12 {
                let n = [1, 16, 5, 40][i % 4];
                let want = step(&mut cache, &config, 0, n, 1000 + i as u64);
                assert!(step(&mut other, &config, 1, n, 1000 + i as u64) == want, "{types:?} {tokens} step {i}");
            }
        }
    }
}

/// Layers are divided among threads where they are large.
#[test]
fn threads_change_no_byte_and_find_every_damage() {
    let layer = LayerConfig { window: 300, ..LayerConfig::default() };
    let long = LayerConfig { window: 700, ..layer.clone() };
    let layers = vec![layer.clone(), long, layer.clone(), layer.clone(), layer];
    let one = config(TYPES[2]);
    let one = CacheConfig { n_layers: 5, head_dim: 128, head_dim_v: 128, max_chunk: 64, layers, ..one };
    let three = CacheConfig { n_threads: 3, ..one.clone() };
    let (mut alone, mut shared) = (new_cache(&one), new_cache(&three));
    (0..13).for_each(|i| drop(step(&mut alone, &one, 0, 60, i)));
    let bytes = save(&mut alone, 0);
    assert!(bytes.len() > 3 << 19);
    shared.load_sequence(2, &TAG, &bytes).unwrap();
    assert!(save(&mut shared, 2) == bytes);
    let mut parts = Parts::of(&bytes);
    let offset = |layer: usize| 64 + parts.sections[..2 + layer].iter().map(Part::len).sum::<usize>();
    for layer in 0..5 {
        let mut broken = bytes.clone();
        // The first and the last byte of the rows.
        for at in [offset(layer) + 24, offset(layer + 1) - 9] {
            broken[at] ^= 1;
            let error = shared.load_sequence(2, &TAG, &broken).unwrap_err();
            let text = format!("the checksum of section {} (ROWS) is wrong", 2 + layer);
            assert!(error.status() == Status::InvalidSnapshot && error.message().starts_with(&text), "{error}");
        }
    }
    // Layers of one length may not change places.
    parts.sections.swap(2, 4);
    let error = shared.load_sequence(2, &TAG, &parts.bytes()).unwrap_err();
    assert!(error.message().starts_with("the K and V of layer 0 are not in their place"), "{error}");
    assert!(save(&mut shared, 2) == bytes);
    for seed in 50..53 {
        assert!(step(&mut alone, &one, 0, 9, seed) == step(&mut shared, &three, 2, 9, seed));
    }
}

/// By way of caches of every other size, in one of which more drafts are appended and rejected.
#[test]
fn sizes_of_caches_on_the_way_change_no_bit() {
    for types in types() {
        let config = config(types);
        let mut cache = new_cache(&config);
        (0..30).for_each(|i| drop(step(&mut cache, &config, 0, 7, i)));
        let mut there = new_cache(&CacheConfig { max_chunk: 3, max_rewind: 30, n_seqs: 1, ..config.clone() });
        transfer(&mut cache, 0, &mut there, 0, false);
        step(&mut there, &config, 0, 25, 5);
        there.rewind(&[0], &[25]).unwrap();
        let mut small = new_cache(&CacheConfig { max_chunk: 1, max_rewind: 0, ..config.clone() });
        transfer(&mut there, 0, &mut small, 2, true);
        transfer(&mut small, 2, &mut cache, 1, false);
        for i in 0..10 {
            let want = step(&mut cache, &config, 0, 9, 100 + i);
            assert!(step(&mut cache, &config, 1, 9, 100 + i) == want, "{types:?} step {i}");
        }
    }
}

/// The cache whose sequence 0 is in the test files: 149 tokens from stream position 2^33 on, and one that was rejected.
fn of_file(types: (StorageType, StorageType)) -> (CacheConfig, Cache) {
    let config = config(types);
    let layers = config.layers.iter().map(|l| LayerConfig { window: l.window / 10, ..l.clone() }).collect();
    let config = CacheConfig { n_kv_heads: 1, head_dim: 16, head_dim_v: 8, layers, ..config };
    let mut cache = new_cache(&config);
    cache.reset(&[0], Some(&[1 << 33])).unwrap();
    (0..15).for_each(|i| drop(step(&mut cache, &config, 0, 10, i)));
    cache.rewind(&[0], &[1]).unwrap();
    (config, cache)
}

/// Snapshots of every version load for ever. `SKC_WRITE_SNAPSHOTS` writes those that are missing: of a new version or
/// new types, never in place of one.
#[test]
fn snapshots_of_all_versions_load() {
    let files = [("f16", (StorageType::F16, StorageType::F16)), ("q8_q4", (StorageType::Q8, StorageType::Q4))];
    for (name, of) in files.into_iter().filter(|(_, of)| types().any(|t| t == *of)) {
        let path = std::path::PathBuf::from(format!("tests/data/snapshot_1_{name}.skc"));
        let (config, mut cache) = of_file(of);
        if std::env::var_os("SKC_WRITE_SNAPSHOTS").is_some() && !path.exists() {
            std::fs::write(&path, save(&mut cache, 0)).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        let mut loaded = new_cache(&config);
        loaded.load_sequence(1, &TAG, &bytes).unwrap();
        assert_eq!(infos(&loaded, 1), infos(&cache, 0));
        assert_eq!(loaded.seq_info(0, 1).unwrap().rewindable, 7);
        assert_eq!(save(&mut loaded, 1), bytes, "{name} is not saved as it was");
        // The keys of the file were rotated by the processor that wrote it.
        for seed in 50..60 {
            let (got, want) = (step(&mut loaded, &config, 1, 3, seed), step(&mut cache, &config, 0, 3, seed));
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-2), "{name}: {got:?}, not {want:?}");
        }
    }
}

#[test]
fn wrong_counters_with_right_checksums_are_refused() {
    let (_, mut cache, parts) = saved();
    let mut refuse = |changes: &[(usize, u64)], text: &str| {
        let mut parts = parts.clone();
        changes.iter().for_each(|&(index, value)| parts.set(index, value));
        refused(&mut cache, &parts, text);
    };
    // The layer's highest length, floor and first window token.
    for (layer, at) in [(0, 2), (1, 5)] {
        let mut original = parts.clone();
        let (len, floor, from) = (original.number(1), original.number(at + 1), original.number(at + 2));
        assert_eq!((len, from), (131, 3 + floor));
        let of_layer = |text: &str| format!("layer {layer}: {text}");
        refuse(&[(at, len - 1)], &of_layer("the highest length is 130: 131 to"));
        refuse(&[(at + 1, u64::MAX)], &of_layer("18446744073709551615 tokens were evicted: 0 to 128"));
        refuse(&[(at + 1, len - 2)], &of_layer("129 tokens were evicted"));
        refuse(&[(at + 2, from + 1)], &of_layer("its window tokens begin at"));
        refuse(&[(at + 2, from - 1)], &of_layer("its window tokens begin at"));
        refuse(&[(at + 2, 0)], &of_layer("its window tokens begin at 0"));
        refuse(&[(at + 2, u64::MAX)], &of_layer("its window tokens begin at 18446744073709551615"));
        // Possible, but not with so many rows.
        refuse(&[(at + 1, floor - 1), (at + 2, from - 1)], "bytes are not the K and V of");
    }
    refuse(&[(0, u64::MAX - 130)], "131 tokens from stream position 18446744073709551485: that exceeds 2^64 - 1");
    refuse(&[(0, 1 << 63), (2, 1 << 63)], "layer 0: the highest length is 9223372036854775808");
    refuse(&[(1, 130)], "layer 0:");
    refuse(&[(1, u64::MAX)], "layer 0: the highest length is");
    refuse(&[(1, 1 << 40), (2, 1 << 40), (5, 1 << 40)], "layer 0: its window tokens begin at");
}

#[test]
fn sections_that_do_not_belong_are_refused() {
    let (_, mut cache, parts) = saved();
    let refuse = |cache: &mut Cache, text: &str, change: &dyn Fn(&mut Parts)| {
        let mut parts = parts.clone();
        change(&mut parts);
        refused(cache, &parts, text);
    };
    let c = &mut cache;
    refuse(c, "of version 2: this library reads version 1", &|p| p.version = 2);
    refuse(c, "of version 0", &|p| p.version = 0);
    refuse(c, "no settings (CONF) or no counters", &|p| p.sections.clear());
    refuse(c, "K and V of 1 layers: 2 are needed", &|p| drop(p.sections.pop()));
    refuse(c, "K and V of 3 layers", &|p| p.sections.push(p.sections[3].clone()));
    refuse(c, "K and V of layer 0 are not in their place", &|p| p.part(b"ROWS").content[0] = 1);
    refuse(c, "a section CONF of the snapshot is in the wrong place", &|p| p.sections.insert(1, p.sections[0].clone()));
    refuse(c, "a section SEQN of the snapshot is in the wrong place", &|p| p.sections.swap(0, 1));
    refuse(c, "a section ROWS of the snapshot is in the wrong place", &|p| p.sections.swap(1, 2));
    refuse(c, "flags 0x3: 1 or 0 is allowed", &|p| p.sections[0].flags = 3);
    refuse(c, "bytes of counters: 64 are needed", &|p| p.part(b"SEQN").content.extend([0; 24]));
    refuse(c, "follow the settings", &|p| p.part(b"CONF").content.extend([0; 8]));
    refuse(c, "too short: it ends", &|p| p.part(b"CONF").content.truncate(60));
    refuse(c, "settings of 3 layers: 1 or 2 are needed", &|p| p.part(b"CONF").content[28] = 3);
    refuse(c, "reserved word of the snapshot's settings is 1", &|p| p.part(b"CONF").content[32 + 28] = 1);
    refuse(c, "bytes are not the K and V of", &|p| p.part(b"ROWS").content.extend([0; 8]));
    let unknown = |flags| Part { tag: *b"NEW!", flags, content: vec![1, 2, 3] };
    refuse(c, "a section NEW! that this library does not know", &|p| p.sections.insert(2, unknown(1)));
    // More sections than there are, in a header whose checksum is right.
    let mut bytes = parts.bytes();
    bytes[12] += 1;
    let sum = XxHash3_64::oneshot(&bytes[..56]);
    bytes[56..64].copy_from_slice(&sum.to_le_bytes());
    let error = c.load_sequence(0, &TAG, &bytes).unwrap_err();
    assert_eq!(error.status(), Status::InvalidSnapshot);
    assert!(error.message().contains("section 4 of 5 begins 0 bytes before the end"), "{error}");
    // A section that an older library may leave out.
    let mut parts = parts.clone();
    for at in [0, 2, 5] {
        parts.sections.insert(at, unknown(0));
    }
    let mut bytes = parts.bytes();
    cache.load_sequence(1, &TAG, &bytes).unwrap();
    assert_eq!(infos(&cache, 1)[0].len_max, 131);
    // The first section, whose padding is not zero although its checksum is right.
    bytes[64 + 16 + 3] = 1;
    let sum = XxHash3_64::oneshot(&bytes[64..88]);
    bytes[88..96].copy_from_slice(&sum.to_le_bytes());
    let error = cache.load_sequence(1, &TAG, &bytes).unwrap_err();
    assert_eq!(error.status(), Status::InvalidSnapshot);
    assert!(error.message().contains("section 0 (NEW!) has padding that is not zero"), "{error}");
}

/// Copies need the same slopes and logits on both sides, to the bit.
#[test]
fn copies_between_other_slopes_or_logits_are_rejected() {
    let with = |slope: f32, logit: f32| {
        let mut config = config(TYPES[1]);
        for layer in &mut config.layers {
            layer.position_mode = PositionMode::Alibi;
            layer.alibi_slopes = vec![0.5, 0.25, 0.125, slope];
            layer.sink_logits = vec![1.0, 2.0, 3.0, logit];
        }
        let cache = new_cache(&config);
        (config, cache)
    };
    let (config, mut from) = with(0.0625, 4.0);
    step(&mut from, &config, 0, 12, 1);
    let (slope, logit) = (0.0625_f32.next_up(), 4.0_f32.next_down());
    for (other, text) in [((slope, 4.0), "alibi_slopes"), ((0.0625, logit), "sink_logits")] {
        let (_, mut to) = with(other.0, other.1);
        let error = to.copy_sequence(1, &mut from, 0).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(error.message().contains(text), "{error}");
        assert_eq!(infos(&to, 1)[0].len_max, 0);
    }
    let (_, mut same) = with(0.0625, 4.0);
    same.copy_sequence(1, &mut from, 0).unwrap();
    assert_eq!(infos(&same, 1)[0].len_max, 12);
}

/// One setting for all layers is the same as an equal one for each.
#[test]
fn equal_settings_may_be_given_once_or_for_each_layer() {
    let each = config(TYPES[1]);
    let each = CacheConfig { layers: vec![each.layers[0].clone(); 2], ..each };
    let once = CacheConfig { layers: vec![each.layers[0].clone()], ..each.clone() };
    let (mut a, mut b) = (new_cache(&each), new_cache(&once));
    step(&mut a, &each, 0, 12, 1);
    for copied in [false, true] {
        transfer(&mut a, 0, &mut b, 1, copied);
        transfer(&mut b, 1, &mut a, 2, copied);
        assert_eq!(infos(&a, 2)[1], SeqInfo { room: infos(&a, 0)[1].room, ..infos(&b, 1)[1] });
    }
    assert_eq!(infos(&b, 1), infos(&a, 2));
}

/// What is given once is compared with each layer that has settings of its own, and the other way round.
#[test]
fn a_layer_that_differs_from_the_only_setting_is_refused() {
    let uneven = config(TYPES[1]);
    let once = CacheConfig { layers: vec![uneven.layers[0].clone()], ..uneven.clone() };
    for (from, to) in [(&once, &uneven), (&uneven, &once)] {
        let (mut source, mut cache) = (new_cache(from), new_cache(to));
        step(&mut source, from, 0, 12, 1);
        step(&mut cache, to, 1, 5, 2);
        let before = save(&mut cache, 1);
        let error = cache.load_sequence(1, &TAG, &save(&mut source, 0)).unwrap_err();
        assert!(error.status() == Status::InvalidSnapshot && error.message().contains("layer 1: window"), "{error}");
        let error = cache.copy_sequence(1, &mut source, 0).unwrap_err();
        assert!(error.status() == Status::InvalidArgument && error.message().contains("layer 1: window"), "{error}");
        assert!(save(&mut cache, 1) == before);
    }
}

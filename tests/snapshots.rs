//! Snapshots: what is saved and loaded, in which caches, and what is refused.

mod common;

use common::{Call, Rows, feed, new_cache};
use sinkcache::{Batch, Cache, CacheConfig, HostTag, LayerConfig, Status, StorageType};

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

#[test]
fn a_loaded_sequence_goes_on_with_the_same_bits() {
    for types in TYPES {
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
            for layer in 0..2 {
                assert_eq!(other.seq_info(layer, 1).unwrap(), cache.seq_info(layer, 0).unwrap());
            }
            assert_eq!(save(&mut other, 1), bytes);
            for i in 0..12 {
                let n = [1, 16, 5, 40][i % 4];
                let want = step(&mut cache, &config, 0, n, 1000 + i as u64);
                assert!(step(&mut other, &config, 1, n, 1000 + i as u64) == want, "{types:?} {tokens} step {i}");
            }
        }
    }
}

#[test]
fn a_snapshot_of_another_tag_is_refused() {
    let config = config(TYPES[1]);
    let mut cache = new_cache(&config);
    step(&mut cache, &config, 0, 20, 1);
    let bytes = save(&mut cache, 0);
    let error = cache.load_sequence(0, &[0; 32], &bytes).unwrap_err();
    assert_eq!(error.status(), Status::InvalidSnapshot);
    assert!(error.message().starts_with("host_tag is 0000"), "{error}");
}

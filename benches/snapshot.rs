//! Save, load and copy of a full window of four layers, by storage type and threads.

mod common;

use common::{HEAD_DIM, N_KV_HEADS, N_Q_HEADS, N_SINK, rows};
use criterion::{BenchmarkId, Criterion, Throughput};
use sinkcache::{Batch, Cache, CacheConfig, LayerConfig, RowsIn, StorageType};

const N_LAYERS: u32 = 4;
const WINDOW: u32 = 2_044;

fn cache(kv_dtype: StorageType, n_threads: u32) -> Cache {
    Cache::new(&CacheConfig {
        n_layers: N_LAYERS,
        n_q_heads: N_Q_HEADS as u32,
        n_kv_heads: N_KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        kv_dtype,
        n_threads,
        layers: vec![LayerConfig { n_sink: N_SINK, window: WINDOW, ..LayerConfig::default() }],
        ..CacheConfig::default()
    })
    .unwrap()
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("snapshot");
    let x = rows(500, N_KV_HEADS);
    for (storage, n_threads) in StorageType::ALL.into_iter().flat_map(|storage| [(storage, 1), (storage, 2)]) {
        let (mut from, mut to) = (cache(storage, n_threads), cache(storage, n_threads));
        for layer in (0..N_LAYERS).flat_map(|layer| [layer; 10]) {
            from.append(layer, Batch::new(&[0], &[500]), RowsIn::packed(&x), RowsIn::packed(&x)).unwrap();
        }
        let mut bytes = vec![0; from.snapshot_bytes(0).unwrap()];
        let id = |what| BenchmarkId::new(what, format!("{storage:?}, {n_threads} threads"));
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(id("save"), |b| b.iter(|| from.save_sequence(0, &[0; 32], &mut bytes).unwrap()));
        group.bench_function(id("load"), |b| b.iter(|| to.load_sequence(0, &[0; 32], &bytes).unwrap()));
        group.bench_function(id("copy"), |b| b.iter(|| to.copy_sequence(0, &mut from, 0).unwrap()));
    }
    group.finish();
    c.final_summary();
}

//! Save, load and copy of a full window, by storage type.

mod common;

use common::{cache, fill};
use criterion::{BenchmarkId, Criterion, Throughput};
use sinkcache::StorageType;

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("snapshot");
    for (name, storage) in StorageType::ALL.iter().map(|storage| (format!("{storage:?}"), *storage)) {
        for n_threads in [1, 2] {
            let (mut from, mut to) = (cache(2_044, storage, n_threads), cache(2_044, storage, n_threads));
            fill(&mut from, 2_044, 1 << 20);
            let mut bytes = vec![0; from.snapshot_bytes(0).unwrap()];
            let id = |what| BenchmarkId::new(what, format!("{name}, {n_threads} threads"));
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            group.bench_function(id("save"), |b| b.iter(|| from.save_sequence(0, &[0; 32], &mut bytes).unwrap()));
            group.bench_function(id("load"), |b| b.iter(|| to.load_sequence(0, &[0; 32], &bytes).unwrap()));
            group.bench_function(id("copy"), |b| b.iter(|| to.copy_sequence(0, &mut from, 0).unwrap()));
        }
    }
    group.finish();
    c.final_summary();
}

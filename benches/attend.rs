//! Attention of one query (decode) and of a chunk, by window, stream position and storage type.

mod common;

use std::hint::black_box;

use common::{HEAD_DIM, N_KV_HEADS, N_Q_HEADS, append, attend, cache, fill, rows};
use criterion::{BenchmarkId, Criterion};
use sinkcache::StorageType;

fn main() {
    let mut c = Criterion::default().sample_size(20).configure_from_args();
    let mut group = c.benchmark_group("attend");
    for window in [256_u32, 2_048, 4_096] {
        for (name, position) in [("1e3", 1_000_u64), ("2^40", 1 << 40)] {
            for dtype in [StorageType::F32, StorageType::F16, StorageType::Bf16] {
                for n in [1, 128] {
                    // Chunks are measured with one storage type: they depend on it less than decode does.
                    if n > 1 && dtype != StorageType::F16 {
                        continue;
                    }
                    let mut cache = cache(window, dtype, 1);
                    fill(&mut cache, window, position);
                    append(&mut cache, n, &rows(n, N_KV_HEADS));
                    let (q, mut out) = (rows(n, N_Q_HEADS), vec![0.0; n * N_Q_HEADS * HEAD_DIM]);
                    let id =
                        BenchmarkId::new(format!("{dtype:?}, {n} queries"), format!("window {window} position {name}"));
                    group.bench_function(id, |b| b.iter(|| attend(&mut cache, n, black_box(&q), &mut out)));
                }
            }
        }
    }
    group.finish();
    c.final_summary();
}

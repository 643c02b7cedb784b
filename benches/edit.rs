//! Evict and rewind, by window and stream position. Both only change counters, so that their time depends on neither.

mod common;

use common::{N_KV_HEADS, append, cache, fill, rows};
use criterion::{BatchSize, BenchmarkId, Criterion};
use sinkcache::StorageType;

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("edit");
    let x = rows(1, N_KV_HEADS);
    for window in [256_u32, 4_096, 65_536] {
        for (name, position) in [("1e3", 1_000_u64), ("2^40", 1 << 40)] {
            let id = |what| BenchmarkId::new(what, format!("window {window} position {name}"));
            let cell = std::cell::RefCell::new(cache(window, StorageType::F16, 1));
            fill(&mut cell.borrow_mut(), window, position);
            group.bench_function(id("evict of one token"), |b| {
                // Before each evict a token is appended, untimed.
                let refill = || append(&mut cell.borrow_mut(), 1, &x);
                b.iter_batched(refill, |()| cell.borrow_mut().evict(&[0], &[1]).unwrap(), BatchSize::PerIteration);
            });
            fill(&mut cell.borrow_mut(), window, position);
            group.bench_function(id("rewind of one token"), |b| {
                let draft = || append(&mut cell.borrow_mut(), 1, &x);
                b.iter_batched(draft, |()| cell.borrow_mut().rewind(&[0], &[1]).unwrap(), BatchSize::PerIteration);
            });
        }
    }
    group.finish();
    c.final_summary();
}

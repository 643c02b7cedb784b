//! Append of one token, by window and stream position, and its lower bound: RoPE, and a memcpy of the same bytes into
//! the same ring.

mod common;

use std::hint::black_box;
use std::time::Instant;

use common::{HEAD_DIM, N_KV_HEADS, N_SINK, append, cache, fill, rows};
use criterion::{BenchmarkId, Criterion};
use sinkcache::ring::Ring;
use sinkcache::rope::Frequencies;
use sinkcache::{Cache, StorageType};

const WINDOWS: [u32; 3] = [256, 4_096, 65_536];
const POSITIONS: [(&str, u64); 2] = [("1e3", 1_000), ("2^40", 1 << 40)];

/// The lower bound: RoPE and memcpy into a ring of the cache's layout, f32.
struct LowerBound {
    ring: Ring,
    frequencies: Frequencies,
    k: Vec<f32>,
    v: Vec<f32>,
    t: u64,
    start: u64,
}

impl LowerBound {
    fn new(window: u32, start: u64) -> Self {
        let ring = Ring::new(N_SINK, window, 512, 16);
        let n = ring.slots() as usize * N_KV_HEADS * HEAD_DIM;
        let half = HEAD_DIM / 2;
        let frequencies =
            Frequencies::from_radians((0..half).map(|i| 10_000_f64.powf(-(i as f64) / half as f64))).unwrap();
        // Filled with ones and not zeros: every page is touched before the timing starts.
        Self { ring, frequencies, k: vec![1.0; n], v: vec![1.0; n], t: 0, start }
    }

    fn append(&mut self, x: &[f32]) {
        const HALF: usize = HEAD_DIM / 2;
        let (mut cos, mut sin, mut rotated) = ([0.0; HALF], [0.0; HALF], [0.0; HEAD_DIM]);
        self.frequencies.fill(self.start + self.t, 1.0, &mut cos, &mut sin);
        let slot = self.ring.slot(self.t) as usize;
        for (head, x) in x.chunks_exact(HEAD_DIM).enumerate() {
            for i in 0..HALF {
                rotated[i] = x[i] * cos[i] - x[i + HALF] * sin[i];
                rotated[i + HALF] = x[i + HALF] * cos[i] + x[i] * sin[i];
            }
            let begin = (head * self.ring.slots() as usize + slot) * HEAD_DIM;
            self.k[begin..begin + HEAD_DIM].copy_from_slice(&rotated);
            self.v[begin..begin + HEAD_DIM].copy_from_slice(x);
        }
        self.t += 1;
    }
}

fn filled(window: u32, position: u64, dtype: StorageType) -> Cache {
    let mut cache = cache(window, dtype, 1);
    fill(&mut cache, window, position);
    cache
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let x = rows(1, N_KV_HEADS);
    let mut group = c.benchmark_group("append");
    for window in WINDOWS {
        for (name, position) in POSITIONS {
            for dtype in [StorageType::F32, StorageType::F16, StorageType::Bf16] {
                let mut cache = filled(window, position, dtype);
                let id = BenchmarkId::new(format!("{dtype:?}"), format!("window {window} position {name}"));
                group.bench_function(id, |b| b.iter(|| append(&mut cache, 1, black_box(&x))));
            }
            let mut bound = LowerBound::new(window, position);
            let id = BenchmarkId::new("rotation and memcpy", format!("window {window} position {name}"));
            group.bench_function(id, |b| b.iter(|| bound.append(black_box(&x))));
        }
    }
    group.finish();
    if !std::env::args().any(|a| a == "--test") {
        ratios(&x);
    }
    c.final_summary();
}

/// Prints the median ratio of alternated pairs: a drift of the machine's speed affects both of a pair.
fn ratios(x: &[f32]) {
    println!("append of one token / rotation and memcpy as f32, median of 201 alternated pairs of 2,000 tokens");
    let cases = WINDOWS.iter().flat_map(|&w| POSITIONS.map(|p| (w, p)));
    for dtype in [StorageType::F32, StorageType::F16, StorageType::Bf16] {
        for (window, (name, position)) in cases.clone() {
            let (mut cache, mut bound) = (filled(window, position, dtype), LowerBound::new(window, position));
            let timed = |append: &mut dyn FnMut()| {
                let start = Instant::now();
                (0..2_000).for_each(|_| append());
                start.elapsed().as_secs_f64()
            };
            let mut ratios: Vec<_> = (0..201)
                .map(|_| {
                    let a = timed(&mut || append(&mut cache, 1, black_box(x)));
                    a / timed(&mut || bound.append(black_box(x)))
                })
                .collect();
            ratios.sort_by(f64::total_cmp);
            println!("{dtype:?} window {window:6} position {name:>5}: {:.3}", ratios[ratios.len() / 2]);
        }
    }
}

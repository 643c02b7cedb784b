//! What pins and evicted ranges cost: decodes over several segments beside a plain window, and edits beside a copy of
//! the rows that they move. Both sides are timed in alternated bursts of one process.
//!
//!     cargo bench --bench segments [-- TEXT]     only cases whose line contains the text
//!
//! Printed per case: the median of the pairs' ratios, and a 95 % bootstrap interval of it.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{HEAD_DIM, N_KV_HEADS, N_Q_HEADS, N_SINK, append, attend, fill, rows};
use sinkcache::{Cache, CacheConfig, LayerConfig, StorageType};

const PAIRS: usize = 25;
const BURST: Duration = Duration::from_millis(60);

/// Whether a case is asked for.
fn wanted(case: &str) -> bool {
    std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).all(|text| case.contains(&text))
}

/// A layer with a window, and room for so many segments.
fn cache(window: u32, kv_dtype: StorageType, n_q_heads: usize, max_segments: u32) -> Cache {
    let max_pinned = if max_segments > 0 { 512 } else { 0 };
    let layer = LayerConfig { n_sink: N_SINK, window, max_pinned, max_segments, ..LayerConfig::default() };
    let mut cache = Cache::new(&CacheConfig {
        n_q_heads: n_q_heads as u32,
        n_kv_heads: N_KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        kv_dtype,
        layers: vec![layer],
        ..CacheConfig::default()
    })
    .unwrap();
    fill(&mut cache, window, 100_000);
    cache
}

/// Drops `ranges` ranges of three tokens from the window, evenly, and fills it again: `ranges` + 2 segments.
fn divide(cache: &mut Cache, window: u32, ranges: u64) {
    let x = rows(500, N_KV_HEADS);
    let token = N_KV_HEADS * HEAD_DIM;
    let width = u64::from(window) / (ranges + 1);
    for _ in 0..ranges {
        let len = cache.seq_info(0, 0).unwrap().len_max;
        cache.evict_range(&[0], &[len - 3], &[3]).unwrap();
        for at in (0..width).step_by(500) {
            let n = (width - at).min(500) as usize;
            append(cache, n, &x[..n * token]);
        }
    }
    append(cache, 1, &x[..token]);
    let info = cache.seq_info(0, 0).unwrap();
    assert_eq!((info.segments, info.counted, info.room), (ranges + 2, ranges, 0), "{info:?}");
}

/// The lower quartile of the times of calls in a burst: other processes disturb it little.
fn burst(mut call: impl FnMut()) -> f64 {
    let (begin, mut times) = (Instant::now(), vec![]);
    while begin.elapsed() < BURST || times.len() < 3 {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median ratio `a / b` of alternated pairs, with the ends of its bootstrap interval.
fn ratio(mut a: impl FnMut() -> f64, mut b: impl FnMut() -> f64) -> [f64; 3] {
    let (mut seed, mut ratios) = (1_u64, vec![]);
    for pair in 0..PAIRS {
        let (x, y) = if pair % 2 == 0 {
            let x = a();
            (x, b())
        } else {
            let y = b();
            (a(), y)
        };
        ratios.push(x / y);
    }
    let mut medians: Vec<f64> = (0..2000)
        .map(|_| {
            let mut drawn: Vec<f64> = (0..PAIRS)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    ratios[(seed >> 33) as usize % PAIRS]
                })
                .collect();
            median(&mut drawn)
        })
        .collect();
    let middle = median(&mut ratios);
    medians.sort_by(f64::total_cmp);
    [middle, medians[50], medians[1949]]
}

fn decode(cache: &mut Cache, n_q_heads: usize) -> f64 {
    let (q, mut out) = (rows(1, n_q_heads), vec![0.0; n_q_heads * HEAD_DIM]);
    burst(|| attend(cache, 1, black_box(&q), &mut out))
}

fn decodes() {
    println!("decode beside a plain window of a cache without room for edits");
    for kv_dtype in [StorageType::F32, StorageType::F16, StorageType::Bf16, StorageType::Q8, StorageType::Q4] {
        for n_q_heads in [N_KV_HEADS, N_Q_HEADS] {
            for (window, ranges) in [(2_044, 0), (2_044, 4), (16_380, 0), (16_380, 62)] {
                let (cached, segments) = (window + N_SINK, ranges + 2);
                let case =
                    format!("{kv_dtype:?}, {n_q_heads}/{N_KV_HEADS} heads, {cached} cached, {segments} segments");
                if !wanted(&case) {
                    continue;
                }
                let x = rows(1, N_KV_HEADS);
                let mut plain = cache(window, kv_dtype, n_q_heads, 0);
                append(&mut plain, 1, &x);
                let mut edited = cache(window, kv_dtype, n_q_heads, 64);
                append(&mut edited, 1, &x);
                if ranges > 0 {
                    divide(&mut edited, window, ranges);
                }
                let [r, lo, hi] = ratio(|| decode(&mut edited, n_q_heads), || decode(&mut plain, n_q_heads));
                println!("  {case}: {r:.3} ({lo:.3} to {hi:.3})");
            }
        }
    }
}

/// Evicts `taken` tokens behind 15,360 others, which move up, and appends as many.
fn edits() {
    let (window, moved) = (16_380_u32, 15_360);
    println!("evict_range that moves {moved} rows of K and of V of {N_KV_HEADS} heads, beside memcpy of these rows");
    for kv_dtype in [StorageType::F32, StorageType::F16, StorageType::Bf16, StorageType::Q8, StorageType::Q4] {
        for taken in [32_usize, 16, 7, 20] {
            let case = format!("{kv_dtype:?}, by {taken}");
            if !wanted(&case) {
                continue;
            }
            let mut cache = cache(window, kv_dtype, N_KV_HEADS, 64);
            let x = rows(taken, N_KV_HEADS);
            let row = match kv_dtype {
                StorageType::F32 => 4 * HEAD_DIM,
                StorageType::Q8 => HEAD_DIM + 2,
                StorageType::Q4 => HEAD_DIM / 2 + 2 * HEAD_DIM / 32,
                _ => 2 * HEAD_DIM,
            };
            let bytes = 2 * N_KV_HEADS * moved * row;
            let (from, mut to) = (vec![1_u8; bytes], vec![0_u8; bytes]);
            let edit = || {
                let mut times: Vec<f64> = (0..5)
                    .map(|_| {
                        // The window is full: its oldest token has index len - window.
                        append(&mut cache, taken, &x);
                        let len = cache.seq_info(0, 0).unwrap().len_max;
                        let first = len - u64::from(window) + moved as u64;
                        let start = Instant::now();
                        cache.evict_range(&[0], &[first], &[taken as i32]).unwrap();
                        let time = start.elapsed().as_secs_f64();
                        // Its range is passed once the window has been filled anew.
                        fill(&mut cache, window, 100_000);
                        time
                    })
                    .collect();
                times.sort_by(f64::total_cmp);
                times[1]
            };
            let copy = || {
                burst(|| {
                    to.copy_from_slice(black_box(&from));
                    black_box(&mut to);
                })
            };
            let [r, lo, hi] = ratio(edit, copy);
            println!("  {case}: {r:.2} ({lo:.2} to {hi:.2})");
        }
    }
}

fn main() {
    // `cargo test --benches` runs benches with this argument: they are compiled only.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    if std::env::args().any(|arg| arg == "--help") {
        println!("cargo bench --bench segments [-- TEXT]: only cases whose line contains the text");
        return;
    }
    decodes();
    edits();
}

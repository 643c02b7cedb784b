//! Cases that the small shapes of vectors and histories do not reach, on every instruction set: windows of many KV
//! splits and key blocks, threads that share a head, infinities at the edges of tiles.

mod common;

use common::exact_scores::{Draw, ExactScores};
use common::oracle::{Oracle, OracleConfig};
use common::plain::Plain;
use common::quantised::KvTypes;
use common::share::share;
use common::{Call, Rows, check, feed, this_program};
use sinkcache::{Batch, Cache, CacheConfig, ISA_VARIABLE, Isa, LayerConfig, PositionMode, StorageType, TokenCall};

const DTYPES: [StorageType; 5] = StorageType::ALL;
/// Those that store small integers and powers of two as they are.
const NUMBERS: [StorageType; 3] = [StorageType::F32, StorageType::F16, StorageType::Bf16];

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

fn config(isa: Isa, kv_dtype: StorageType, dims: (u32, u32), window: u32) -> CacheConfig {
    CacheConfig {
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim: dims.0,
        head_dim_v: dims.1,
        kv_dtype,
        max_chunk: 300,
        layers: vec![LayerConfig { n_sink: 5, window, ..LayerConfig::default() }],
        isa: Some(isa),
        ..CacheConfig::default()
    }
}

/// Three KV splits. `SKC_WINDOW` (default 1,300) is for emulated machines: it must be more than one split.
fn window() -> u32 {
    std::env::var("SKC_WINDOW").ok().and_then(|n| n.parse().ok()).unwrap_or(1300)
}

#[test]
fn long_windows() {
    hold_long_windows((64, 64), window(), &DTYPES.map(KvTypes::from));
}

/// A head_dim_v whose rows are padded in the store.
#[test]
fn long_windows_of_padded_rows() {
    hold_long_windows((32, 40), window(), &DTYPES.map(KvTypes::from));
}

/// Hadamard blocks of 16 (80 dims), 32 (96) and of the whole row; a last scale of q4 for 16 dims (80).
#[test]
fn long_windows_of_codes() {
    let [q8, q4] = [StorageType::Q8, StorageType::Q4];
    hold_long_windows((80, 80), window().min(600), &[q8.into(), q4.into()]);
    hold_long_windows((96, 96), window().min(600), &[KvTypes::new(q8, q4)]);
    hold_long_windows((128, 256), window().min(600), &[q8.into(), q4.into()]);
}

/// Keys and values of different types, which kernels of different types read. Every type is there for both.
#[test]
fn long_windows_of_two_types() {
    let [f32, f16, bf16, q8, q4] = StorageType::ALL;
    let pairs = [(f32, f16), (f16, q8), (bf16, q4), (q8, f32), (q8, q4), (q4, bf16)];
    hold_long_windows((64, 32), window().min(600), &pairs.map(|(k, v)| KvTypes::new(k, v)));
}

/// Chunks, then single tokens, then a few at a time, over KV splits of a ring that has wrapped. The last row of each
/// call is compared with the oracle.
fn hold_long_windows(dims: (u32, u32), window: u32, types: &[KvTypes]) {
    // Where the machine is slow, shorter chunks: fewer tokens until the ring has wrapped.
    let slow = share() > 1;
    let chunk = if slow { 100 } else { 300 };
    let mut calls = vec![chunk; (window as usize + 2 * chunk).div_ceil(chunk)];
    calls.extend([1, 1, 3, chunk - 1]);
    let (nq, nk, nv) = (4 * dims.0 as usize, 2 * dims.0 as usize, 2 * dims.1 as usize);
    let total: usize = calls.iter().sum();
    let (q, k, v) = (draw(total * nq, 1), draw(total * nk, 2), draw(total * nv, 3));
    for &types in types {
        let base = config(Isa::Scalar, StorageType::F16, dims, window);
        let cfg = OracleConfig {
            n_q_heads: 4,
            n_kv_heads: 2,
            head_dim: dims.0 as usize,
            head_dim_v: dims.1 as usize,
            max_rewind: 16,
            layer: base.layers[0].clone(),
        };
        let (mut oracle, mut plain) = (Oracle::new(cfg), Plain::new(types));
        let (mut want, mut lse, mut rough, mut at) = (vec![], vec![], vec![], 0);
        for &n in &calls {
            for t in at..at + n {
                let rows = (&q[t * nq..][..nq], &k[t * nk..][..nk], &v[t * nv..][..nv]);
                if t + 1 == at + n {
                    oracle.step(rows.0, rows.1, rows.2, &mut want, &mut lse);
                    plain.step(&oracle, Rows { q: rows.0, k: rows.1, v: rows.2 }, &mut rough);
                } else {
                    oracle.push(rows.1, rows.2);
                    plain.push(&oracle, rows.1, rows.2);
                }
            }
            at += n;
        }
        for isa in Isa::all() {
            let run = |n_threads: u32, call: Call| {
                let config = types.config(CacheConfig { n_threads, ..config(isa, StorageType::F16, dims, window) });
                let mut cache = Cache::new(&config).unwrap();
                let (mut all, mut last, mut at) = (vec![], vec![], 0);
                for &n in &calls {
                    let rows =
                        Rows { q: &q[at * nq..][..n * nq], k: &k[at * nk..][..n * nk], v: &v[at * nv..][..n * nv] };
                    let (out, _) = feed(&mut cache, &config, 0, Batch::new(&[0], &[n as i32]), rows, call);
                    last.extend_from_slice(&out[out.len() - 4 * dims.1 as usize..]);
                    all.extend(out);
                    at += n;
                }
                (all, last)
            };
            let (all, last) = run(1, Call::Two);
            check(types, &last, &want, Some(&rough)).unwrap_or_else(|e| panic!("{isa:?} {dims:?}: {e}"));
            assert!(slow || run(1, Call::Step).0 == all, "{isa:?} {types:?} {dims:?}: a step differs");
            assert!(run(3, Call::Step).0 == all, "{isa:?} {types:?} {dims:?}: threads differ");
        }
    }
}

/// One channel of the queries is far larger than the others, and meets keys of zero: the Hadamard turn
/// keeps it to its block of dims, and the other blocks must keep their precision.
#[test]
fn large_channels_of_queries_stay_in_their_block() {
    for (types, dim) in [StorageType::Q8, StorageType::Q4].into_iter().flat_map(|t| [72, 80, 96].map(|d| (t, d))) {
        let base = config(Isa::Scalar, types, (dim, dim), 90);
        let mut layer = base.layers[0].clone();
        layer.position_mode = PositionMode::None;
        let (nq, nkv, d) = (4 * dim as usize, 2 * dim as usize, dim as usize);
        let cfg = OracleConfig {
            n_q_heads: 4,
            n_kv_heads: 2,
            head_dim: d,
            head_dim_v: d,
            max_rewind: 16,
            layer: layer.clone(),
        };
        let n = 160;
        let (mut q, mut k, v) = (draw(n * nq, 1), draw(n * nkv, 2), draw(n * nkv, 3));
        q.chunks_mut(d).for_each(|q| q[0] = 1e5);
        let block = 1 << dim.trailing_zeros();
        k.chunks_mut(d).for_each(|k| k[..block].fill(0.0));
        let (mut oracle, mut plain) = (Oracle::new(cfg), Plain::new(types));
        let (mut want, mut lse, mut rough) = (vec![], vec![], vec![]);
        for t in 0..n {
            let rows = Rows { q: &q[t * nq..][..nq], k: &k[t * nkv..][..nkv], v: &v[t * nkv..][..nkv] };
            oracle.step(rows.q, rows.k, rows.v, &mut want, &mut lse);
            plain.step(&oracle, rows, &mut rough);
        }
        for isa in Isa::all() {
            let config = CacheConfig { layers: vec![layer.clone()], ..config(isa, types, (dim, dim), 90) };
            let mut cache = Cache::new(&config).unwrap();
            let mut got = vec![];
            for t in 0..n {
                let rows = Rows { q: &q[t * nq..][..nq], k: &k[t * nkv..][..nkv], v: &v[t * nkv..][..nkv] };
                got.extend(feed(&mut cache, &config, 0, Batch::new(&[0], &[1]), rows, Call::Step).0);
            }
            check(types.into(), &got, &want, Some(&rough)).unwrap_or_else(|e| panic!("{isa:?} {dim} dims: {e}"));
        }
    }
}

/// One token of a chunk is infinite, overflows its storage type, or is NaN: it must not change a query that it is not
/// visible to.
#[test]
fn edges_keep_infinities_out() {
    const N: usize = 120;
    for (poison, kv_dtype) in [f32::NAN, f32::INFINITY, -1e9].into_iter().flat_map(|p| DTYPES.map(|d| (p, d))) {
        for isa in Isa::all() {
            let config = CacheConfig { n_q_heads: 4, n_kv_heads: 1, ..config(isa, kv_dtype, (32, 32), 40) };
            // In one chunk, and a few tokens at a time: the tiled path, and decode of several tokens.
            let run = |k: &[f32], v: &[f32], cut: usize| {
                let mut cache = Cache::new(&config).unwrap();
                let q = draw(N * 128, 4);
                let mut out = vec![];
                for at in (0..N).step_by(cut) {
                    let rows = Rows {
                        q: &q[at * 128..(at + cut) * 128],
                        k: &k[at * 32..(at + cut) * 32],
                        v: &v[at * 32..(at + cut) * 32],
                    };
                    out.extend(feed(&mut cache, &config, 0, Batch::new(&[0], &[cut as i32]), rows, Call::Two).0);
                }
                out
            };
            let (k, v) = (draw(N * 32, 5), draw(N * 32, 6));
            let clean = [N, 4].map(|cut| run(&k, &v, cut));
            for at in [0, 7, 30, 32, 61, 119] {
                for (values, few) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
                    let (mut k, mut v) = (k.clone(), v.clone());
                    let x = if values { &mut v } else { &mut k };
                    x[at * 32..(at + 1) * 32].fill(poison);
                    let (got, clean) = (run(&k, &v, [N, 4][few]), &clean[few]);
                    for row in 0..N {
                        // Sinks are visible to all queries after them, other tokens to 40.
                        let visible = row >= at && (at < 5 || row < at + 40);
                        let (got, want) = (&got[row * 128..(row + 1) * 128], &clean[row * 128..(row + 1) * 128]);
                        let what = format!("{isa:?} {kv_dtype:?} {poison} in token {at}, way {few}: row {row}");
                        if visible {
                            assert!(!values || got != want, "{what} hides it");
                            // A NaN score makes all probabilities NaN, a NaN value its sum.
                            assert!(!poison.is_nan() || got.iter().all(|x| x.is_nan()), "{what} hides some of it");
                        } else {
                            // Its key block may be computed by another path: close, not bit-identical.
                            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-2 * b.abs().max(1.0);
                            assert!(got.iter().zip(want).all(near), "{what} changed");
                        }
                    }
                }
            }
        }
    }
}

/// f16 ends at 65,504: a larger key or value is stored as infinity, and shows in the rows that see it. bf16 and f32
/// hold it.
#[test]
fn f16_has_an_end() {
    const N: usize = 40;
    for (beyond, values) in [(65_504.0_f32, true), (7e4, true), (65_504.0, false), (7e4, false)] {
        for (isa, kv_dtype) in Isa::all().into_iter().flat_map(|isa| DTYPES.map(|d| (isa, d))) {
            for cut in [1, N] {
                let mut config = config(isa, kv_dtype, (32, 32), 90);
                config.layers[0].position_mode = PositionMode::None;
                let mut cache = Cache::new(&config).unwrap();
                let (q, mut k, mut v) = (vec![1.0; N * 128], vec![1.0; N * 64], vec![1.0; N * 64]);
                (if values { &mut v } else { &mut k })[17 * 64..][..64].fill(beyond);
                for at in (0..N).step_by(cut) {
                    let rows = Rows { q: &q[..cut * 128], k: &k[at * 64..][..cut * 64], v: &v[at * 64..][..cut * 64] };
                    let (out, _) = feed(&mut cache, &config, 0, Batch::new(&[0], &[cut as i32]), rows, Call::Step);
                    for (t, row) in out.chunks(128).enumerate() {
                        let shows = kv_dtype == StorageType::F16 && beyond > 65_520.0 && at + t >= 17;
                        let what = format!("{isa:?} {kv_dtype:?}, {beyond}, values {values}, in calls of {cut}");
                        assert!(row.iter().all(|x| x.is_finite() != shows), "{what}: token {}: {row:?}", at + t);
                    }
                }
            }
        }
    }
}

/// Large and small keys and values whose products are of ordinary size: they must not overflow or vanish in a narrow
/// type.
#[test]
fn every_size_of_numbers() {
    const N: usize = 200;
    let (q, k, v) = (draw(N * 128, 7), draw(N * 64, 8), draw(N * 64, 9));
    for (key, value) in [1.0, 3e3, 1e-4].into_iter().flat_map(|k| [1.0, 5e3, 1e-4].map(|v| (k, v))) {
        let times = |x: &[f32], by: f32| x.iter().map(|x| x * by).collect::<Vec<_>>();
        let (q, k, v) = (times(&q, 1.0 / key), times(&k, key), times(&v, value));
        for kv_dtype in [StorageType::F32, StorageType::Bf16] {
            let run = |isa: Isa| {
                let config = config(isa, kv_dtype, (32, 32), 90);
                let mut cache = Cache::new(&config).unwrap();
                let rows = Rows { q: &q, k: &k, v: &v };
                feed(&mut cache, &config, 0, Batch::new(&[0], &[N as i32]), rows, Call::Two).0
            };
            let want = run(Isa::Scalar);
            for isa in Isa::all() {
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-2 * value;
                assert!(run(isa).iter().zip(&want).all(near), "{isa:?} {kv_dtype:?}: keys of {key}, values of {value}");
            }
        }
    }
}

/// A sink that takes nearly all of the softmax, and dims of very different sizes: the small rest must keep its
/// precision.
#[test]
fn little_beside_a_heavy_sink() {
    const N: usize = 200;
    let (q, k) = (draw(N * 128, 10), draw(N * 64, 11));
    let v: Vec<f32> = (0..N * 64).map(|i| if i % 2 == 0 { 1.0 } else { 2_f32.powi(-10) }).collect();
    for (logit, kv_dtype) in [4.0, 12.0, 18.0].into_iter().flat_map(|l| DTYPES.map(|d| (l, d))) {
        let run = |isa: Isa| {
            let mut config = config(isa, kv_dtype, (32, 32), 90);
            config.layers[0].sink_logits = vec![logit; 4];
            config.layers[0].scale = 0.01;
            let mut cache = Cache::new(&config).unwrap();
            let rows = Rows { q: &q, k: &k, v: &v };
            feed(&mut cache, &config, 0, Batch::new(&[0], &[N as i32]), rows, Call::Two).0
        };
        let want = run(Isa::Scalar);
        for isa in Isa::all() {
            for (i, (got, want)) in run(isa).iter().zip(&want).enumerate() {
                assert!(
                    (got - want).abs() <= 1e-2 * want,
                    "{isa:?} {kv_dtype:?} logit {logit}, {i}: {got}, not {want}"
                );
            }
        }
    }
}

/// Values of one sign and nearly one size, with nearly equal probabilities: rounding errors of the sums do not cancel.
#[test]
fn values_of_one_sign() {
    const N: usize = 300;
    let (q, k) = (draw(N * 128, 12), draw(N * 64, 13).iter().map(|x| x.signum()).collect::<Vec<_>>());
    for value in [1.015_625, 1.5, 1.968_75, 1.992_187_5] {
        let v = vec![value; N * 64];
        for kv_dtype in DTYPES {
            let run = |isa: Isa| {
                let mut config = config(isa, kv_dtype, (32, 32), 280);
                config.layers[0].scale = 0.01;
                let mut cache = Cache::new(&config).unwrap();
                let rows = Rows { q: &q, k: &k, v: &v };
                feed(&mut cache, &config, 0, Batch::new(&[0], &[N as i32]), rows, Call::Two).0
            };
            for isa in Isa::all() {
                let worst = run(isa).iter().map(|x| (x / value - 1.0).abs()).fold(0.0, f32::max);
                assert!(worst <= 5e-3, "{isa:?} {kv_dtype:?}: {worst} beside {value}");
            }
        }
    }
}

/// Scores far beyond the range of narrow types, before the softmax subtracts their maximum.
#[test]
fn large_scores() {
    const N: usize = 200;
    for (scale, size) in [(0.1_f32, 1e7_f32), (0.088_388_3, 3e8), (0.37, 3e8), (0.37, 1e10), (0.088_388_3, 3e29)] {
        let q = vec![size / (32.0 * 1000.0 * scale); N * 128];
        let (k, v) = (vec![1000.0; N * 64], vec![1.984_375; N * 64]);
        for kv_dtype in DTYPES {
            let run = |isa: Isa| {
                let mut config = config(isa, kv_dtype, (32, 32), 90);
                config.layers[0].scale = f64::from(scale);
                config.layers[0].position_mode = PositionMode::None;
                let mut cache = Cache::new(&config).unwrap();
                let rows = Rows { q: &q, k: &k, v: &v };
                feed(&mut cache, &config, 0, Batch::new(&[0], &[N as i32]), rows, Call::Two).0
            };
            for isa in Isa::all() {
                let worst = run(isa).iter().map(|x| (x / 1.984_375 - 1.0).abs()).fold(0.0, f32::max);
                assert!(worst <= 5e-3, "{isa:?} {kv_dtype:?}: {worst}, scores of {size} by {scale}");
            }
        }
    }
}

/// How many random streams; `SKC_SEEDS` is for emulated machines.
fn seeds() -> u64 {
    std::env::var("SKC_SEEDS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(24)
}

/// Scores of every size up to 1e32 whose largest is unique or tied: results and lse are the definition's on every path,
/// wherever the largest key is. Decode, KV splits (with one thread and several) and chunks; masks, softcap, ALiBi and
/// learned sink logits.
#[test]
fn the_largest_key_wins() {
    for (seed, kv_dtype) in (0..seeds()).flat_map(|seed| NUMBERS.map(|d| (seed, d))) {
        let exponent = Draw::new(seed + 1000).below(98) as i32;
        let stream = ExactScores::new(seed, exponent, seed % 6 == 1, kv_dtype);
        let (want, want_lse) = stream.defined();
        for (isa, cut) in Isa::all().into_iter().flat_map(|isa| [1, 7, stream.tail].map(|cut| (isa, cut))) {
            let n_threads = if cut == 1 { 1 } else { 2 };
            let (got, lse) = stream.computed(isa, kv_dtype, cut, n_threads);
            let what = format!("{isa:?} {kv_dtype:?} in calls of {cut}: {}", stream.what);
            let bound = if kv_dtype == StorageType::F32 { 2e-5 } else { 1e-2 };
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((got - want).abs() <= bound, "{what}: {got}, not {want}, at {i}");
            }
            for (i, (got, want)) in lse.iter().zip(&want_lse).enumerate() {
                let bound = bound.max(3e-7 * want.abs());
                assert!((got - want).abs() <= bound, "{what}: lse {got}, not {want}, at {i}");
            }
        }
    }
}

/// Rounded scores of any size, with RoPE: which key wins is a matter of rounding, but results are means of values.
#[test]
fn results_stay_among_the_values() {
    const N: usize = 140;
    for (round, kv_dtype) in
        (0..31).step_by((48 / seeds() as usize).max(1)).flat_map(|round| DTYPES.map(|d| (round, d)))
    {
        let size = 10_f32.powi(round as i32);
        let q: Vec<f32> = draw(N * 256, round + 20).iter().map(|x| x * size).collect();
        let (k, v) = (draw(N * 128, round + 60), draw(N * 128, round + 100));
        for (isa, cut) in Isa::all().into_iter().flat_map(|isa| [1, 5, N].map(|cut| (isa, cut))) {
            let config = config(isa, kv_dtype, (64, 64), 90);
            let mut cache = Cache::new(&config).unwrap();
            for at in (0..N).step_by(cut) {
                let rows = Rows {
                    q: &q[at * 256..][..cut * 256],
                    k: &k[at * 128..][..cut * 128],
                    v: &v[at * 128..][..cut * 128],
                };
                let (out, lse) = feed(&mut cache, &config, 0, Batch::new(&[0], &[cut as i32]), rows, Call::Step);
                let what = format!("{isa:?} {kv_dtype:?} in calls of {cut}, queries of {size}, token {at}");
                assert!(out.iter().all(|x| x.abs() <= 2.02), "{what}: {out:?}");
                // |q| |k| / 8 bounds all scores.
                assert!(lse.iter().all(|x| x.abs() <= 2.0 * 16.0 * 16.0 / 8.0 * size + 5.0), "{what}: lse {lse:?}");
            }
        }
    }
}

/// A score that overflows f32, and a query that is not finite: NaN, as of an infinite score, in that row alone.
#[test]
fn an_infinite_score_is_nan_in_its_row() {
    const N: usize = 60;
    for (bad, kv_dtype) in [1e38_f32, f32::INFINITY, f32::NAN].into_iter().flat_map(|bad| DTYPES.map(|d| (bad, d))) {
        let (k, v) = (vec![100.0; N * 64], draw(N * 64, 15));
        for (isa, cut) in Isa::all().into_iter().flat_map(|isa| [1, N].map(|cut| (isa, cut))) {
            let mut config = config(isa, kv_dtype, (32, 32), 40);
            config.layers[0].position_mode = PositionMode::None;
            let mut cache = Cache::new(&config).unwrap();
            for at in (0..N).step_by(cut) {
                let mut q = vec![0.5; cut * 128];
                q.chunks_mut(128).enumerate().filter(|(t, _)| (at + t) % 3 == 1).for_each(|(_, row)| row.fill(bad));
                let rows = Rows { q: &q, k: &k[at * 64..][..cut * 64], v: &v[at * 64..][..cut * 64] };
                let (out, lse) = feed(&mut cache, &config, 0, Batch::new(&[0], &[cut as i32]), rows, Call::Step);
                for (t, (out, lse)) in out.chunks(128).zip(lse.chunks(4)).enumerate() {
                    let what = format!("{isa:?} {kv_dtype:?} {bad} in calls of {cut}, token {}", at + t);
                    let is_bad = (at + t) % 3 == 1;
                    let shows = |x: &f32| if is_bad { x.is_nan() } else { x.is_finite() };
                    assert!(out.iter().chain(lse).all(shows), "{what}: {out:?}, lse {lse:?}");
                }
            }
        }
    }
}

/// Runs in a process of its own: the environment variable must not affect other tests.
#[test]
#[ignore = "run by the_variable_chooses"]
fn with_the_variable() {
    let message = Cache::new(&CacheConfig { isa: None, ..config(Isa::Scalar, StorageType::F16, (32, 32), 8) })
        .map_or_else(|e| e.message().to_owned(), |_| "made".to_owned());
    println!("<{message}>");
}

#[test]
fn the_variable_chooses() {
    let create = |value: &str| {
        let child = this_program()
            .args(["--ignored", "--exact", "with_the_variable", "--nocapture"])
            .env(ISA_VARIABLE, value)
            .output()
            .unwrap();
        String::from_utf8(child.stdout).unwrap()
    };
    for isa in Isa::all() {
        assert!(create(isa.name()).contains("<made>"), "{isa:?}");
    }
    assert!(create("").contains("<made>"));
    assert!(create("sse9").contains("<SINKCACHE_CPU is sse9: scalar, avx2, avx512, amx or neon is allowed>"));
    let best = Isa::all().last().unwrap().name();
    for isa in [Isa::Avx2, Isa::Avx512, Isa::Amx, Isa::Neon].into_iter().filter(|r| !r.available()) {
        let (name, message) = (isa.name(), create(isa.name()));
        assert!(
            message.contains(&format!("SINKCACHE_CPU is {name}: this processor has no {name}, {best} is its best")),
            "{message}"
        );
    }
}

/// AMX serves chunks of shapes and types that it has kernels for; AVX-512 does the rest.
#[test]
fn kernels_are_named_after_what_runs() {
    for isa in Isa::all() {
        let plain = if isa == Isa::Amx { Isa::Avx512 } else { isa };
        for (dtype, dims, chunks) in [
            (StorageType::F16, (64, 32), isa),
            (StorageType::Bf16, (32, 64), isa),
            (StorageType::F32, (64, 64), plain),
            (StorageType::F16, (40, 64), plain),
            (StorageType::F16, (64, 40), plain),
        ] {
            let cache = Cache::new(&config(isa, dtype, dims, 64)).unwrap();
            let kernel = |call, n| cache.kernel_choice(0, call, 1, n).unwrap().kernel;
            assert_eq!(kernel(TokenCall::Append, 200), format!("cpu_append_{}", plain.name()));
            assert_eq!(kernel(TokenCall::Attend, 1), format!("cpu_decode_{}", plain.name()));
            for (call, n) in [(TokenCall::Attend, 200), (TokenCall::Step, 1000)] {
                assert_eq!(kernel(call, n), format!("cpu_chunk_{}", chunks.name()), "{dtype:?}, {dims:?}");
            }
        }
    }
}

/// Instruction sets that every processor of the architecture has are available, those of other architectures are not.
#[test]
fn instruction_sets_of_the_architecture() {
    let all = Isa::all();
    assert_eq!(all[0], Isa::Scalar);
    assert_eq!(all.contains(&Isa::Neon), cfg!(target_arch = "aarch64"));
    if cfg!(target_arch = "aarch64") {
        assert_eq!(all, [Isa::Scalar, Isa::Neon]);
    }
}

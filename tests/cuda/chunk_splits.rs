//! Chunks whose keys are split among blocks: they give what unsplit ones give, whatever block comes last, and as
//! captured launches; where the blocks are clusters, which merge in shared memory, and where they merge through device
//! memory. `SKC_SHAPE`: only this case; `SKC_SHARE`: few of them.

use half::{bf16, f16};
use sinkcache::{
    Batch, Cache, CacheConfig, DType, DeviceBatch, Element, LayerConfig, PositionMode, StepTensors, StorageType,
    TokenCall,
};

use crate::common::device::{Buf, with_host};
use crate::common::new_cache;
use crate::common::quantised::KvTypes;
use crate::common::share::share;
use crate::differential::{Pair, Tally};
use crate::support::{Graph, KV, Random, Tensors, config, cuda, stand_in_function, to_bf16};

/// How the blocks that share the keys of a query tile merge. The stand-in can be told what its device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    /// As the device has it.
    Device,
    Cluster,
    Memory,
}

impl Merge {
    /// Those that the device has; with the variable that switches clusters off, that of device memory.
    fn all() -> &'static [Self] {
        // This loads the driver, which the stand-in is or is not.
        match with_host(|host| host.compute_capability()) {
            9.. if std::env::var_os("SINKCACHE_CUDA_CLUSTERS").is_some() => &[Self::Memory],
            9.. if stand_in_function(c"skc_shim_set_cluster").is_some() => &[Self::Cluster, Self::Memory],
            _ => &[Self::Device],
        }
    }

    /// Calls `body`, which creates its caches, and checks that they have merged so. `possible`: whether a cluster's
    /// shared memory has room for partial results.
    fn run(self, possible: bool, body: impl FnOnce()) {
        let functions = [c"skc_shim_set_cluster", c"skc_shim_count_clustered"].map(stand_in_function);
        let (Self::Cluster | Self::Memory, [Some(set), Some(count)]) = (self, functions) else { return body() };
        // Switched off by the variable, clusters stay possible for the stand-in.
        let most = if self == Self::Cluster || std::env::var_os("SINKCACHE_CUDA_CLUSTERS").is_some() { 8 } else { 0 };
        // SAFETY: the functions of tools/cuda_shim/api_test.cpp have these types.
        let (set, count) = unsafe {
            let set = std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn(i32)>(set);
            (set, std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn() -> u64>(count))
        };
        // SAFETY: as above.
        let before = unsafe {
            set(most);
            count()
        };
        body();
        // SAFETY: as above.
        let clustered = unsafe {
            set(8);
            count() - before
        };
        assert_eq!(clustered > 0, self == Self::Cluster && possible, "{clustered} launches of clusters, {self:?}");
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    head_dim: u32,
    n_q_heads: u32,
    n_kv_heads: u32,
    dtype: DType,
    /// Of K and V; `None`: as rows.
    types: Option<KvTypes>,
    mode: PositionMode,
    softcap: f64,
    sink_logits: bool,
    segments: bool,
}

const fn case(head_dim: u32, heads: (u32, u32), dtype: DType) -> Case {
    let (n_q_heads, n_kv_heads) = heads;
    let mode = PositionMode::Rope;
    Case {
        head_dim,
        n_q_heads,
        n_kv_heads,
        dtype,
        types: None,
        mode,
        softcap: 0.0,
        sink_logits: false,
        segments: false,
    }
}

impl Case {
    const fn stored(self, k: StorageType, v: StorageType) -> Self {
        Self { types: Some(KvTypes::new(k, v)), ..self }
    }

    /// Whether a cluster's shared memory has room for partial results.
    fn fits_a_cluster(self) -> bool {
        self.head_dim <= 128 || self.types.is_none()
    }
}

const CASES: [Case; 9] = [
    case(64, (4, 2), DType::Bf16),
    Case { softcap: 5.0, ..case(128, (4, 1), DType::F16) },
    Case { sink_logits: true, ..case(256, (8, 1), DType::Bf16) },
    Case { mode: PositionMode::Alibi, ..case(96, (3, 3), DType::F16) },
    case(80, (6, 2), DType::F16).stored(StorageType::Q4, StorageType::Q4),
    Case { sink_logits: true, ..case(128, (4, 1), DType::Bf16).stored(StorageType::Q8, StorageType::Q4) },
    Case { segments: true, ..case(128, (7, 1), DType::Bf16) },
    Case { segments: true, mode: PositionMode::Alibi, ..case(64, (4, 2), DType::F16) },
    Case { segments: true, ..case(256, (2, 2), DType::F16).stored(StorageType::Q8, StorageType::Q8) },
];
/// Where a share is wanted: rows, codes, segments.
const FEW: [usize; 3] = [1, 5, 6];
const WINDOW: u32 = 500;
const MAX_CHUNK: u32 = 96;

fn config_of(case: Case) -> CacheConfig {
    let Case { head_dim, n_q_heads, n_kv_heads, dtype, mode, softcap, .. } = case;
    let per_head = |wanted: bool, f: fn(f32) -> f32| -> Vec<f32> {
        if wanted { (0..n_q_heads).map(|h| f(h as f32)).collect() } else { vec![] }
    };
    let layer = LayerConfig {
        n_sink: 5,
        window: WINDOW,
        position_mode: mode,
        softcap,
        alibi_slopes: per_head(mode == PositionMode::Alibi, |h| 0.02 / (h + 1.0)),
        sink_logits: per_head(case.sink_logits, |h| h / 2.0 - 1.0),
        max_pinned: if case.segments { 40 } else { 0 },
        max_segments: if case.segments { 12 } else { 0 },
        ..LayerConfig::default()
    };
    let base = config(1, 2, 5, WINDOW);
    let shaped = CacheConfig { n_q_heads, n_kv_heads, head_dim, in_dtype: dtype, max_chunk: MAX_CHUNK, ..base };
    case.types.unwrap_or(dtype.into()).config(CacheConfig { layers: vec![layer], ..shaped })
}

/// Rows of one call, on the device.
struct Rows<T> {
    q: Buf<T>,
    k: Buf<T>,
    v: Buf<T>,
    out: Buf<f32>,
    lse: Buf<f32>,
}

impl<T: Element> Rows<T> {
    /// The rows that [`Pair::step`] draws.
    fn draw(config: &CacheConfig, random: &mut Random, rows: usize, to: fn(f32) -> T) -> Self {
        let (wq, wk) = ((config.n_q_heads * config.head_dim) as usize, (config.n_kv_heads * config.head_dim) as usize);
        let mut draw = |width: usize| Buf::new(&random.rows(rows * width).into_iter().map(to).collect::<Vec<T>>());
        let (q, k, v) = (draw(wq), draw(wk), draw(wk));
        let heads = config.n_q_heads as usize;
        Self { q, k, v, out: Buf::new(&vec![f32::NAN; rows * wq]), lse: Buf::new(&vec![f32::NAN; rows * heads]) }
    }

    /// Results of a step: rows and lse.
    fn step(&mut self, cache: &mut Cache, batch: Batch<'_>) -> [Vec<f32>; 2] {
        let (q, k, v) = (self.q.rows(), self.k.rows(), self.v.rows());
        let tensors = StepTensors { k, v, q, out: self.out.rows_out(), lse: Some(self.lse.rows_out()) };
        cache.step(0, batch, tensors).unwrap();
        let results = [self.out.read(), self.lse.read()];
        self.out.write(&vec![f32::NAN; self.out.len]);
        self.lse.write(&vec![f32::NAN; self.lse.len]);
        results
    }
}

fn bits(results: &[Vec<f32>; 2]) -> Vec<u32> {
    results.iter().flatten().map(|x| x.to_bits()).collect()
}

fn splits(cache: &Cache, n_entries: u32, n_tokens: usize) -> u32 {
    let choice = cache.kernel_choice(0, TokenCall::Attend, n_entries, n_tokens as u32).unwrap();
    if choice.kernel == "skc_attend_chunk" { choice.n_splits } else { 0 }
}

/// More than two, but on a stand-in with few multiprocessors.
fn enough_splits() -> u32 {
    if with_host(|host| host.multiprocessors()) < 24 { 2 } else { 3 }
}

/// The same stream in a pair of a device and a CPU cache, in another device cache, and in a third one, of which padding
/// fills the device, so that nothing is split.
fn compare<T: Element>(case: Case, to: fn(f32) -> T) {
    let mut pair = Pair::new(config_of(case));
    let config = pair.config.clone();
    let (mut twin, mut whole) = (new_cache(&config), new_cache(&config));
    // More entries than half of what is resident.
    let n_padding = with_host(|host| host.multiprocessors()) as usize + 1;
    let mut ids = vec![-1; n_padding];
    ids[..2].copy_from_slice(&[1, 0]);
    let mut random = Random(31);
    let mut most = 0;
    let mut tally = Tally::default();
    // At first most splits are empty: they are planned for a full window. Later the second sequence is short, or has no
    // tokens, and the last splits of a long chunk hold tokens that its first rows do not see.
    for (round, n) in [[40, 0], [9, 6], [96, 0], [96, 3], [96, 0], [61, 20], [17, 1], [96, 40], [33, 0], [12, 12]]
        .into_iter()
        .enumerate()
    {
        let seed = random.below(u64::MAX) | 1;
        pair.step(&mut Random(seed), n, true, to, &mut tally);
        let mut rows = Rows::draw(&config, &mut Random(seed), n[0] + n[1], to);
        let mut counts = vec![0; n_padding];
        counts[..2].copy_from_slice(&n.map(|n| n as i32));
        let split = rows.step(&mut twin, Batch::new(&[1, 0], &counts[..2]));
        let unsplit = rows.step(&mut whole, Batch::new(&ids, &counts));
        most = most.max(splits(&twin, 2, n[0]));
        assert_eq!(splits(&whole, n_padding as u32, n[0]), 1, "{case:?}");
        // The other cache of the pair has had the same call.
        let again = [&mut pair.device, &mut twin].map(|cache| attend_again(cache, &config, n, seed, to));
        assert_eq!(again[0], again[1], "round {round} of {case:?}: blocks came in another order");
        let ulp = if KvTypes::of(&config).k == StorageType::F16 { 1e-3 } else { 8e-3 };
        let largest = unsplit[0].iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in split[0].iter().zip(&unsplit[0]).enumerate() {
            assert!((a - b).abs() <= 2.0 * ulp * largest, "round {round}, {i}: {a}, not {b}, {case:?}");
        }
        for (a, b) in split[1].iter().zip(&unsplit[1]) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "round {round}: lse {a}, not {b}, {case:?}");
        }
        for cache in [&mut pair.device, &mut pair.cpu, &mut twin, &mut whole] {
            edit(cache, case, round);
        }
    }
    assert!(most >= enough_splits(), "{most} splits of {case:?}");
    for cache in [&mut pair.device, &mut twin, &mut whole] {
        assert_eq!(cache.take_error().unwrap(), None);
    }
}

/// The bits of the latest queries' results, asked for once more.
fn attend_again<T: Element>(
    cache: &mut Cache,
    config: &CacheConfig,
    n: [usize; 2],
    seed: u64,
    to: fn(f32) -> T,
) -> Vec<u32> {
    let mut rows = Rows::draw(config, &mut Random(seed), n[0] + n[1], to);
    let counts = n.map(|n| n as i32);
    let (out, lse) = (rows.out.rows_out(), Some(rows.lse.rows_out()));
    let tensors = sinkcache::AttendTensors { q: rows.q.rows(), out, lse };
    cache.attend(0, Batch::new(&[1, 0], &counts), tensors).unwrap();
    bits(&[rows.out.read(), rows.lse.read()])
}

/// What lies between two rounds: sequences become shorter, and have holes and pinned tokens.
fn edit(cache: &mut Cache, case: Case, round: usize) {
    match round {
        3 if case.segments => {
            for (first, n) in [(60, 7), (150, 20)] {
                cache.pin(&[1], &[first], &[n]).unwrap();
            }
            for (first, n) in [(100, 33), (200, 1)] {
                cache.evict_range(&[1], &[first], &[n]).unwrap();
            }
        }
        5 if case.segments => cache.evict_range(&[1, 0], &[260, 8], &[64, 3]).unwrap(),
        4 => cache.rewind(&[1], &[5]).unwrap(),
        // All but the newest tokens of the first sequence.
        7 => cache.evict(&[1, 0], &[300, 2]).unwrap(),
        _ => {}
    }
}

#[test]
fn split_chunks_agree_with_unsplit_ones() {
    let Some(_turn) = cuda() else { return };
    let shape = std::env::var("SKC_SHAPE").ok().and_then(|n| n.parse::<usize>().ok());
    for (i, case) in CASES.into_iter().enumerate() {
        let wanted = shape.map_or(share() == 1 || FEW.contains(&i), |shape| shape % CASES.len() == i);
        if !wanted {
            continue;
        }
        for merge in Merge::all() {
            merge.run(case.fits_a_cluster(), || match case.dtype {
                DType::F16 => compare(case, f16::from_f32),
                _ => compare(case, bf16::from_f32),
            });
        }
    }
}

/// One graph, from an empty sequence on, whose counts are in device memory, against eager calls with the same arrays:
/// bit for bit, although the splits' keys follow from lengths that change.
#[test]
fn a_replayed_split_chunk_equals_eager_calls() {
    let Some(_turn) = cuda() else { return };
    let plain = config(1, 2, 4, 600);
    let layer = LayerConfig { max_pinned: 8, max_segments: 4, ..plain.layers[0].clone() };
    let segments = CacheConfig { layers: vec![layer], ..plain.clone() };
    let quantised = KvTypes::new(StorageType::Q8, StorageType::Q4).config(plain.clone());
    for config in [plain, segments, quantised] {
        for merge in Merge::all() {
            merge.run(true, || replay_chunks(&config));
        }
    }
}

fn replay_chunks(config: &CacheConfig) {
    let (mut replayed, mut eager) = (new_cache(config), new_cache(config));
    let rows = 32;
    let (mut a, mut b) = (Tensors::new(rows), Tensors::new(rows));
    let (ids, counts) = (Buf::new(&[1_i32, 0]), Buf::new(&[0_i32; 2]));
    let device = DeviceBatch {
        seq_ids: ids.address,
        n_tokens: counts.address,
        n_entries: 2,
        max_tokens: 16,
        n_rows: rows as u64,
    };
    assert!(splits(&replayed, 2, 16) >= enough_splits());
    with_host(|host| {
        // SAFETY: the host's stream, and arrays that outlive the graph.
        let graph = Graph::capture(host, || unsafe {
            replayed.set_stream(host.stream.cast()).unwrap();
            a.feed(&mut replayed, 0, Batch::on_device(device));
        });
        let mut random = Random(23);
        for i in 0..25 {
            if i == 10 {
                // So that the window passes.
                let [k, v] = [0, 1].map(|_| Buf::new(&to_bf16(&random.rows(16 * KV))));
                for cache in [&mut replayed, &mut eager] {
                    for _ in 0..35 {
                        cache.append(0, Batch::new(&[1], &[16]), k.rows(), v.rows()).unwrap();
                    }
                }
                host.wait();
            }
            // Now and then one of them, or both, have no tokens.
            let n = [16, 1 + random.below(16) as i32, 0][random.below(3).min(i) as usize];
            counts.write(&[n, random.below(17) as i32]);
            let seed = random.below(u64::MAX) | 1;
            a.draw(&mut Random(seed), rows);
            b.draw(&mut Random(seed), rows);
            graph.launch(host);
            // SAFETY: as above.
            b.feed(&mut eager, 0, unsafe { Batch::on_device(device) });
            let bits = |t: &Tensors| t.out.read().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&a), bits(&b), "replay {i}");
        }
        // SAFETY: the host's stream lives as long as the thread.
        unsafe { replayed.set_stream(host.stream.cast()) }.unwrap();
        for cache in [&mut replayed, &mut eager] {
            cache.read_back(1).unwrap();
            assert_eq!(cache.take_error().unwrap(), None);
        }
        let info = replayed.seq_info(0, 1).unwrap();
        assert!(info.len_min > 604, "{info:?}");
        assert_eq!(info, eager.seq_info(0, 1).unwrap());
    });
}

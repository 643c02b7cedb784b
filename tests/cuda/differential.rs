//! Random streams on the device compared with the CPU backend, in shapes that have specialised kernels, at lengths at
//! which they split, wrap and mask. `SKC_STREAMS`: how many; `SKC_SHAPE`: only this shape.

use half::{bf16, f16};
use sinkcache::{
    AttendTensors, BackendKind, Batch, Cache, CacheConfig, DType, Element, LayerConfig, PositionMode, RopeStyle,
    RowsIn, RowsOut, StepTensors, StorageType, TokenCall,
};

use crate::common::device::{Buf, with_host};
use crate::common::new_cache;
use crate::common::quantised::KvTypes;
use crate::support::{Random, cuda};

#[derive(Clone, Copy)]
pub struct Shape {
    head_dim: u32,
    n_q_heads: u32,
    n_kv_heads: u32,
    /// Of rows, and of K and V where they are not quantised.
    pub dtype: DType,
}

/// Quantised types of K and V that have specialised kernels.
const QUANTISED: [KvTypes; 3] = [
    KvTypes::new(StorageType::Q8, StorageType::Q8),
    KvTypes::new(StorageType::Q8, StorageType::Q4),
    KvTypes::new(StorageType::Q4, StorageType::Q4),
];

const fn shape(head_dim: u32, n_q_heads: u32, n_kv_heads: u32, dtype: DType) -> Shape {
    Shape { head_dim, n_q_heads, n_kv_heads, dtype }
}

/// Every head_dim and group size that has specialised kernels, both types, and one shape that has none.
pub const SHAPES: [Shape; 11] = [
    shape(64, 4, 4, DType::F16),
    shape(64, 16, 2, DType::Bf16),
    shape(80, 4, 2, DType::Bf16),
    shape(80, 6, 2, DType::F16),
    shape(96, 8, 2, DType::Bf16),
    shape(96, 5, 1, DType::F16),
    shape(128, 12, 2, DType::F16),
    shape(128, 7, 1, DType::Bf16),
    shape(256, 2, 2, DType::Bf16),
    shape(256, 8, 2, DType::F16),
    shape(40, 6, 2, DType::Bf16),
];

/// Half of them quantised.
pub fn draw_types(random: &mut Random, dtype: DType) -> KvTypes {
    QUANTISED.get(random.below(6) as usize).copied().unwrap_or(dtype.into())
}

pub fn draw_config(random: &mut Random, shape: Shape) -> CacheConfig {
    let Shape { head_dim, n_q_heads, n_kv_heads, dtype } = shape;
    let mode = [PositionMode::Rope, PositionMode::Rope, PositionMode::RopeApplied, PositionMode::Alibi]
        [random.below(4) as usize];
    let rope = matches!(mode, PositionMode::Rope | PositionMode::RopeApplied);
    let alibi = mode == PositionMode::Alibi;
    let per_head = |f: fn(f32) -> f32| (0..n_q_heads).map(|h| f(h as f32)).collect::<Vec<_>>();
    let layer = LayerConfig {
        n_sink: [0, 1, 4, 17, 40][random.below(5) as usize],
        window: 1 + random.below(300) as u32,
        position_mode: mode,
        rope_style: if random.below(2) == 0 { RopeStyle::Neox } else { RopeStyle::Interleaved },
        rope_dim: if rope && random.below(3) == 0 { head_dim / 2 } else { 0 },
        alibi_slopes: if alibi { per_head(|h| 0.1 / (h + 1.0)) } else { vec![] },
        softcap: if random.below(3) == 0 && !alibi { 5.0 } else { 0.0 },
        sink_logits: if random.below(3) == 0 { per_head(|h| h / 2.0 - 1.0) } else { vec![] },
        ..LayerConfig::default()
    };
    CacheConfig {
        backend: BackendKind::Cuda,
        n_seqs: 2,
        n_q_heads,
        n_kv_heads,
        head_dim,
        in_dtype: dtype,
        out_dtype: DType::F32,
        kv_dtype: dtype.into(),
        max_chunk: 96,
        max_rewind: 8,
        layers: vec![layer],
        ..CacheConfig::default()
    }
}

/// The same cache on both backends.
pub struct Pair {
    pub config: CacheConfig,
    pub device: Cache,
    pub cpu: Cache,
}

/// Statistics of compared elements: their number, and the sums of squares of values and differences.
#[derive(Default)]
pub struct Tally {
    n: usize,
    values: f64,
    errors: f64,
}

impl Tally {
    /// The root mean square of differences over that of values.
    pub fn relative(&self) -> f64 {
        (self.errors / self.values.max(1e-30)).sqrt()
    }
}

impl Pair {
    pub fn new(config: CacheConfig) -> Self {
        let cpu = CacheConfig { backend: BackendKind::Cpu, ..config.clone() };
        Self { device: new_cache(&config), cpu: Cache::new(&cpu).unwrap(), config }
    }

    /// One call on both caches; compares every row.
    pub fn step<T: Element>(
        &mut self,
        random: &mut Random,
        n: [usize; 2],
        one_call: bool,
        to: fn(f32) -> T,
        tally: &mut Tally,
    ) {
        let c = &self.config;
        let (wq, wk) = ((c.n_q_heads * c.head_dim) as usize, (c.n_kv_heads * c.head_dim) as usize);
        let rows = n[0] + n[1];
        let mut draw = |width| random.rows(rows * width).into_iter().map(to).collect::<Vec<T>>();
        let (q, k, v) = (draw(wq), draw(wk), draw(wk));
        let (ids, counts) = ([1, 0], n.map(|n| n as i32));
        let batch = Batch::new(&ids, &counts);
        let mut want = vec![f32::NAN; rows * wq];
        let (mut lse, heads) = (vec![f32::NAN; rows * c.n_q_heads as usize], c.n_q_heads as usize);
        let (rq, rk, rv) = (RowsIn::packed(&q), RowsIn::packed(&k), RowsIn::packed(&v));
        let (o, l) = (RowsOut::packed(&mut want), Some(RowsOut::packed(&mut lse)));
        self.cpu.step(0, batch, StepTensors { k: rk, v: rv, q: rq, out: o, lse: l }).unwrap();
        let (dq, dk, dv) = (Buf::new(&q), Buf::new(&k), Buf::new(&v));
        let (mut out, mut dlse) = (Buf::new(&vec![f32::NAN; rows * wq]), Buf::new(&vec![f32::NAN; rows * heads]));
        if one_call {
            let (o, l) = (out.rows_out(), Some(dlse.rows_out()));
            let tensors = StepTensors { k: dk.rows(), v: dv.rows(), q: dq.rows(), out: o, lse: l };
            self.device.step(0, batch, tensors).unwrap();
        } else {
            self.device.append(0, batch, dk.rows(), dv.rows()).unwrap();
            let tensors = AttendTensors { q: dq.rows(), out: out.rows_out(), lse: Some(dlse.rows_out()) };
            self.device.attend(0, batch, tensors).unwrap();
        }
        let got = out.read();
        let largest = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        // The device rounds q and the probabilities to the half type, or to bf16 where K is quantised. The CPU computes
        // in f32, or rounds queries to 8 bits.
        let ulp = if KvTypes::of(c).k == StorageType::F16 { 1e-3 } else { 8e-3 };
        for (i, (a, b)) in got.iter().zip(&want).enumerate() {
            let difference = (a - b).abs();
            assert!(difference <= 6.0 * ulp * largest, "{i}: {a}, not {b}, {:?}", self.config);
            tally.errors += f64::from(difference).powi(2);
            tally.values += f64::from(*b).powi(2);
        }
        tally.n += got.len();
        for (a, b) in dlse.read().iter().zip(&lse) {
            assert!((a - b).abs() <= 8.0 * ulp * b.abs().max(1.0), "lse {a}, not {b}, {:?}", self.config);
        }
    }
}

#[test]
fn streams_agree_with_the_cpu() {
    let Some(_turn) = cuda() else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok());
    let (streams, shape) = (number("SKC_STREAMS").unwrap_or(44), number("SKC_SHAPE"));
    let mut random = Random(2 * number("SKC_SEED").unwrap_or(1) as u64 + 1);
    let mut tallies: [Tally; 3] = Default::default();
    for stream in 0..streams {
        let shape = SHAPES[shape.unwrap_or(stream) % SHAPES.len()];
        let types = draw_types(&mut random, shape.dtype);
        let config = types.config(draw_config(&mut random, shape));
        let mut pair = Pair::new(config);
        let start = [0, (1 << 24) - 5, (1 << 32) + 7, 1 << 40][random.below(4) as usize];
        pair.device.reset(&[0, 1], Some(&[start, start])).unwrap();
        pair.cpu.reset(&[0, 1], Some(&[start, start])).unwrap();
        for _ in 0..8 {
            // Single steps, short drafts, chunks, prompts of many chunks.
            let n = match random.below(6) {
                0..3 => [1, 1],
                3 => [1 + random.below(8) as usize, random.below(3) as usize],
                4 => [random.below(96) as usize, 1 + random.below(90) as usize],
                _ => [random.below(250) as usize, random.below(40) as usize],
            };
            let one_call = n.iter().any(|&n| n > 96) || random.below(2) == 0;
            let tally = &mut tallies[match types.k {
                StorageType::F16 => 0,
                StorageType::Bf16 => 1,
                _ => 2,
            }];
            match pair.config.in_dtype {
                DType::F16 => pair.step(&mut random, n, one_call, f16::from_f32, tally),
                _ => pair.step(&mut random, n, one_call, bf16::from_f32, tally),
            }
            let cut = random.below(3) as i32;
            let room = pair.cpu.seq_info(0, 1).unwrap().rewindable;
            if room >= cut as u64 {
                pair.device.rewind(&[1], &[cut]).unwrap();
                pair.cpu.rewind(&[1], &[cut]).unwrap();
            }
        }
        with_host(|host| host.wait());
        assert_eq!(pair.device.take_error().unwrap(), None);
    }
    for (tally, (name, bound)) in tallies.iter().zip([("f16", 1.5e-3), ("bf16", 1.2e-2), ("quantised", 1.5e-2)]) {
        let relative = tally.relative();
        println!("{streams} streams, {name}: {} elements, relative rms difference {relative:.2e}", tally.n);
        assert!(relative <= bound, "{name}: {relative}");
    }
}

/// A shape without kernels of its own, in every pair of types.
#[test]
fn every_pair_of_types_agrees_with_the_cpu() {
    let Some(_turn) = cuda() else { return };
    for (k, v) in StorageType::ALL.into_iter().flat_map(|k| StorageType::ALL.map(|v| (k, v))) {
        let mut config = KvTypes::new(k, v).config(draw_config(&mut Random(77), SHAPES[10]));
        config.layers[0] = LayerConfig { n_sink: 4, window: 20, ..LayerConfig::default() };
        let mut pair = Pair::new(config);
        assert_eq!(pair.device.kernel_choice(0, TokenCall::Attend, 2, 1).unwrap().kernel, "skc_attend_generic");
        let mut tally = Tally::default();
        for n in [[30, 3], [1, 1], [1, 20]] {
            pair.step(&mut Random(5 + n[0] as u64), n, true, bf16::from_f32, &mut tally);
        }
        let relative = (tally.errors / tally.values).sqrt();
        // Both compute in f32, but for queries and probabilities of the CPU beside quantised K or V, and bf16.
        assert!(relative <= 6e-3, "{k:?}/{v:?}: {relative}");
        assert_eq!(pair.device.take_error().unwrap(), None);
    }
}

/// Rows of magnitudes at which an f16 of a turned query, or of a probability times a scale, would overflow or vanish.
#[test]
fn magnitudes_do_not_matter_to_codes() {
    let Some(_turn) = cuda() else { return };
    for types in QUANTISED {
        let relative = |magnitude: f32, in_dtype: DType| {
            let mut config = types.config(draw_config(&mut Random(77), SHAPES[7]));
            let scale = f64::from(magnitude).powi(-2) / 12.0;
            config.layers[0] = LayerConfig { n_sink: 4, window: 50, scale, ..LayerConfig::default() };
            config.in_dtype = in_dtype;
            let mut pair = Pair::new(config);
            let mut tally = Tally::default();
            for n in [[90, 3], [1, 1], [1, 1], [2, 40]] {
                let random = &mut Random(5 + n[0] as u64);
                match in_dtype {
                    DType::F16 => pair.step(random, n, true, |x| f16::from_f32(x * HUGE), &mut tally),
                    _ => pair.step(random, n, true, |x| x * TINY, &mut tally),
                }
            }
            (tally.errors / tally.values).sqrt()
        };
        let (huge, tiny) = (relative(HUGE, DType::F16), relative(TINY, DType::F32));
        println!("{types:?}: relative rms difference {huge:.2e} of huge rows, {tiny:.2e} of tiny ones");
        assert!(huge < 6e-3 && tiny < 6e-3, "{types:?}: {huge} {tiny}");
    }
}

const HUGE: f32 = 3e4;
const TINY: f32 = 1e-9;

/// Enough rows to fill the device, whatever its size: then it uses the larger tiles.
#[test]
fn large_tiles_agree_with_the_cpu() {
    let Some(_turn) = cuda() else { return };
    let shape = SHAPES[1];
    let multiprocessors = with_host(|host| host.multiprocessors());
    // Two sequences and two KV heads; 16 tokens of 8 heads each to a tile.
    let tiles = multiprocessors.div_ceil(4);
    let n = 16 * tiles as usize;
    let mut config = draw_config(&mut Random(77), shape);
    config.max_chunk = n as u32;
    config.layers[0] = LayerConfig { n_sink: 4, window: 50, ..LayerConfig::default() };
    let mut pair = Pair::new(config);
    let choice = pair.device.kernel_choice(0, TokenCall::Attend, 2, n as u32).unwrap();
    assert_eq!((choice.kernel, choice.grid), ("skc_attend_chunk", [2, 2, tiles]));
    let fewer = pair.device.kernel_choice(0, TokenCall::Attend, 1, 16).unwrap();
    assert_eq!(fewer.grid, [1, 2, 2], "two tiles of 64 rows");
    let mut tally = Tally::default();
    for n in [[n, n], [n - 5, 9], [3, n]] {
        pair.step(&mut Random(5 + n[0] as u64), n, true, bf16::from_f32, &mut tally);
    }
    assert_eq!(pair.device.take_error().unwrap(), None);
}

/// The same rows give the same results at every start position, up to the rounding of sines and cosines.
#[test]
fn far_positions_change_nothing() {
    let Some(_turn) = cuda() else { return };
    for shape in [SHAPES[6], SHAPES[10]] {
        let mut config = draw_config(&mut Random(77), shape);
        config.layers[0] = LayerConfig { n_sink: 4, window: 50, ..LayerConfig::default() };
        let run = |start: u64| {
            let mut random = Random(13);
            let mut cache = new_cache(&config);
            cache.reset(&[0], Some(&[start])).unwrap();
            let (wq, wk) =
                ((config.n_q_heads * config.head_dim) as usize, (config.n_kv_heads * config.head_dim) as usize);
            let mut all = vec![];
            for n in [70_usize, 1, 1, 40, 1, 3] {
                let mut draw = |width: usize| random.rows(n * width);
                let [q, k, v] = [draw(wq), draw(wk), draw(wk)];
                let mut out = vec![f32::NAN; n * wq];
                let (ids, counts) = ([0], [n as i32]);
                let batch = Batch::new(&ids, &counts);
                match config.in_dtype {
                    DType::F16 => device_step(&mut cache, batch, [&q, &k, &v], &mut out, f16::from_f32),
                    _ => device_step(&mut cache, batch, [&q, &k, &v], &mut out, bf16::from_f32),
                }
                all.extend(out);
            }
            all
        };
        let near = run(0);
        for start in [1 << 24, (1 << 32) + 7, 1 << 40, u64::MAX - 1_000] {
            crate::support::close(&run(start), &near);
        }
    }
}

fn device_step<T: Element>(cache: &mut Cache, batch: Batch<'_>, rows: [&[f32]; 3], out: &mut [f32], to: fn(f32) -> T) {
    let [q, k, v] = rows.map(|x| Buf::new(&x.iter().map(|&x| to(x)).collect::<Vec<T>>()));
    let mut o = Buf::new(out);
    let tensors = StepTensors { k: k.rows(), v: v.rows(), q: q.rows(), out: o.rows_out(), lse: None };
    cache.step(0, batch, tensors).unwrap();
    out.copy_from_slice(&o.read());
}

/// The same in two calls.
fn device_append_and_attend<T: Element>(
    cache: &mut Cache,
    batch: Batch<'_>,
    rows: [&[f32]; 3],
    out: &mut [f32],
    to: fn(f32) -> T,
) {
    let [q, k, v] = rows.map(|x| Buf::new(&x.iter().map(|&x| to(x)).collect::<Vec<T>>()));
    let mut o = Buf::new(out);
    cache.append(0, batch, k.rows(), v.rows()).unwrap();
    let tensors = AttendTensors { q: q.rows(), out: o.rows_out(), lse: None };
    cache.attend(0, batch, tensors).unwrap();
    out.copy_from_slice(&o.read());
}

/// `n` tokens of a sequence of `SHAPES[shape]`, in one call or in two, and the kernel that attends with their queries.
struct MaskedCase {
    types: Option<KvTypes>,
    shape: usize,
    n: usize,
    call: TokenCall,
    kernel: &'static str,
}

/// A last token of infinities, which earlier queries of the same call do not see: masked is not multiplied by zero.
#[test]
fn masked_infinities_do_not_reach_a_query() {
    let Some(_turn) = cuda() else { return };
    let case = |shape, n, call, kernel| MaskedCase { types: None, shape, n, call, kernel };
    let (step, attend) = (TokenCall::Step, TokenCall::Attend);
    let cases = [
        case(7, 2, step, "skc_attend_chunk"),
        case(7, 40, step, "skc_attend_chunk"),
        case(8, 2, step, "skc_step_decode"),
        case(8, 4, step, "skc_step_decode"),
        case(2, 2, step, "skc_step_decode"),
        case(2, 4, step, "skc_step_decode"),
        case(8, 2, attend, "skc_attend_decode"),
        case(2, 3, attend, "skc_attend_decode"),
        case(2, 4, attend, "skc_attend_decode"),
        case(10, 2, attend, "skc_attend_generic"),
    ];
    let of_types = |types| cases.iter().map(move |case| MaskedCase { types, ..*case });
    let all = of_types(None).chain(QUANTISED.into_iter().flat_map(|types| of_types(Some(types))));
    for MaskedCase { types, shape, n, call, kernel } in all {
        let types = types.unwrap_or(SHAPES[shape].dtype.into());
        let mut config = types.config(draw_config(&mut Random(77), SHAPES[shape]));
        config.layers[0] = LayerConfig { n_sink: 4, window: 50, ..LayerConfig::default() };
        let (wq, wk) = ((config.n_q_heads * config.head_dim) as usize, (config.n_kv_heads * config.head_dim) as usize);
        let mut caches = [new_cache(&config), new_cache(&config)];
        let choice = caches[0].kernel_choice(0, call, 1, n as u32).unwrap();
        assert_eq!(choice.kernel, kernel, "shape {shape}, {n} tokens, {types:?}");
        let run = if call == TokenCall::Step { device_step } else { device_append_and_attend };
        let mut random = Random(5);
        let rows = [random.rows(20 * wq), random.rows(20 * wk), random.rows(20 * wk)];
        let [q, k, v] = [random.rows(n * wq), random.rows(n * wk), random.rows(n * wk)];
        let (mut bad_k, mut bad_v) = (k.clone(), v.clone());
        bad_k[(n - 1) * wk..].fill(f32::NAN);
        bad_v[(n - 1) * wk..].fill(f32::INFINITY);
        let calls = [[&q, &k, &v], [&q, &bad_k, &bad_v]].map(|rows| rows.map(|x| x.as_slice()));
        let mut results = vec![];
        for (cache, rows_of_call) in caches.iter_mut().zip(calls) {
            let mut out = vec![f32::NAN; 20 * wq];
            device_step(cache, Batch::new(&[0], &[20]), [&rows[0], &rows[1], &rows[2]], &mut out, bf16::from_f32);
            let mut out = vec![f32::NAN; n * wq];
            run(cache, Batch::new(&[0], &[n as i32]), rows_of_call, &mut out, bf16::from_f32);
            results.push(out);
        }
        // All but the last query's rows: the same, but for the order of sums.
        crate::support::close(&results[1][..(n - 1) * wq], &results[0][..(n - 1) * wq]);
        let last = &results[1][(n - 1) * wq..];
        assert!(last.iter().any(|x| !x.is_finite()), "the last query sees them: shape {shape}, {n} tokens, {types:?}");
    }
}

//! Codes and scales of q8 and q4 as they lie in a cache, read back with snapshots: to the bit those of the definition
//! where nothing is rotated, and those of the CPU but for ties where rows are.

use half::bf16;
use sinkcache::{
    BackendKind, Batch, Cache, CacheConfig, DType, LayerConfig, PositionMode, RopeStyle, StorageType, TokenCall,
};

use crate::common::quantised::KvTypes;
use crate::common::{Call, Rows, feed, new_cache};
use crate::support::{Random, cuda};

const TYPES: [KvTypes; 6] = [
    KvTypes::new(StorageType::Q8, StorageType::Q8),
    KvTypes::new(StorageType::Q8, StorageType::Q4),
    KvTypes::new(StorageType::Q4, StorageType::Q4),
    KvTypes::new(StorageType::Q4, StorageType::Q8),
    KvTypes::new(StorageType::F16, StorageType::Q8),
    KvTypes::new(StorageType::Q4, StorageType::F32),
];

/// Dims of K and of V: with and without kernels of their own, groups of 32 that are not whole, blocks of the Hadamard
/// matrix from 8 to 512.
const DIMS: [(u32, u32); 9] =
    [(8, 8), (24, 40), (64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (512, 136), (48, 16)];

fn config(types: KvTypes, (head_dim, head_dim_v): (u32, u32), layer: LayerConfig) -> CacheConfig {
    types.config(CacheConfig {
        backend: BackendKind::Cuda,
        n_seqs: 2,
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim,
        head_dim_v,
        max_chunk: 16,
        layers: vec![LayerConfig { n_sink: 3, window: 100, ..layer }],
        ..CacheConfig::default()
    })
}

/// A stored row of codes.
struct Codes {
    codes: Vec<i8>,
    scales: Vec<bf16>,
}

impl Codes {
    fn of(stored: StorageType, dim: usize, row: &[u8]) -> Self {
        let (codes, scales) = row.split_at(stored.code_bytes(dim));
        let codes: Vec<i8> = match stored {
            StorageType::Q8 => codes.iter().map(|&c| c as i8).collect(),
            StorageType::Q4 => codes.iter().flat_map(|&c| [(c << 4) as i8 >> 4, c as i8 >> 4]).collect(),
            _ => panic!("{stored:?} has no codes"),
        };
        let scales = scales.chunks(2).map(|s| bf16::from_le_bytes([s[0], s[1]])).collect();
        Self { codes, scales }
    }

    /// What the row stands for.
    fn values(&self) -> Vec<f32> {
        let scale = |i: usize| self.scales[if self.scales.len() == 1 { 0 } else { i / 32 }].to_f32();
        self.codes.iter().enumerate().map(|(i, &c)| f32::from(c) * scale(i)).collect()
    }
}

/// K and V of a sequence of a cache of one layer, head by head and token by token.
fn stored_rows(cache: &mut Cache, config: &CacheConfig, seq: i32, tokens: usize) -> [Vec<Vec<u8>>; 2] {
    let mut bytes = vec![0; cache.snapshot_bytes(seq).unwrap()];
    cache.save_sequence(seq, &[0; 32], &mut bytes).unwrap();
    let types = KvTypes::of(config);
    let row_bytes = [(types.k, config.head_dim), (types.v, config.head_dim_v)].map(|(t, d)| t.row_bytes(d as usize));
    let heads = config.n_kv_heads as usize;
    let content = heads * tokens * (row_bytes[0] + row_bytes[1]);
    // The last section: padded content, a checksum.
    let end = bytes.len() - 8;
    let begin = (0..8).map(|padding| end - padding - content).find(|at| {
        let n = u64::from_le_bytes(bytes[at - 16..at - 8].try_into().unwrap());
        &bytes[at - 24..at - 20] == b"ROWS" && n == 8 + content as u64
    });
    let mut at = begin.expect("rows of all tokens");
    row_bytes.map(|row| {
        let rows = bytes[at..at + heads * tokens * row].chunks(row).map(<[u8]>::to_vec).collect();
        at += heads * tokens * row;
        rows
    })
}

/// K and V of `tokens` tokens.
struct Stream {
    k: Vec<f32>,
    v: Vec<f32>,
    tokens: usize,
}

impl Stream {
    fn draw(config: &CacheConfig, seed: u64, tokens: usize) -> Self {
        let mut random = Random(2 * seed + 1);
        let mut rows = |dim: u32| {
            let mut rows = random.rows(tokens * (config.n_kv_heads * dim) as usize);
            // Of every 40 numbers one is large.
            rows.iter_mut().for_each(|x| *x *= if random.below(40) == 0 { 17.3 } else { 0.37 });
            rows
        };
        Self { k: rows(config.head_dim), v: rows(config.head_dim_v), tokens }
    }

    /// What is stored of all tokens in a new cache. A call takes `n` of them.
    fn stored(&self, config: &CacheConfig, n: usize, call: Call) -> [Vec<Vec<u8>>; 2] {
        let mut cache = new_cache(config);
        self.append(&mut cache, config, n, call);
        stored_rows(&mut cache, config, 0, self.tokens)
    }

    /// Appends all tokens to sequence 0.
    fn append(&self, cache: &mut Cache, config: &CacheConfig, n: usize, call: Call) {
        cache.reset(&[0], Some(&[1 << 33])).unwrap();
        let [wk, wv] = [config.head_dim, config.head_dim_v].map(|dim| (config.n_kv_heads * dim) as usize);
        // Of q nothing is kept.
        let q = vec![0.5; n * (config.n_q_heads * config.head_dim) as usize];
        for at in (0..self.tokens).step_by(n) {
            let to = self.tokens.min(at + n);
            let q = &q[..(to - at) * q.len() / n];
            let rows = Rows { q, k: &self.k[at * wk..to * wk], v: &self.v[at * wv..to * wv] };
            feed(cache, config, 0, Batch::new(&[0], &[(to - at) as i32]), rows, call);
        }
    }
}

/// How many codes are compared, and how many of them differ.
#[derive(Default)]
struct Tally {
    codes: usize,
    off_by_one: usize,
}

impl Tally {
    fn compare(&mut self, stored: StorageType, dim: u32, got: &[u8], want: &[u8]) {
        let (got, want) = (Codes::of(stored, dim as usize, got), Codes::of(stored, dim as usize, want));
        for (a, b) in got.scales.iter().zip(&want.scales) {
            assert!((i32::from(a.to_bits()) - i32::from(b.to_bits())).abs() <= 1, "scale {a}, not {b}");
        }
        for (a, b) in got.codes.iter().zip(&want.codes) {
            assert!(i32::from(*a).abs_diff(i32::from(*b)) <= 1, "code {a}, not {b}, of {stored:?}");
            self.off_by_one += usize::from(a != b);
        }
        self.codes += got.codes.len();
    }
}

/// Rotated rows in every pair of types, by appends and, where there are such, by steps in one launch.
#[test]
fn codes_are_those_of_the_cpu_but_for_ties() {
    let Some(_turn) = cuda() else { return };
    let mut tally = Tally::default();
    for (i, (types, dims)) in TYPES.into_iter().flat_map(|t| DIMS.map(|d| (t, d))).enumerate() {
        let rope_style = if i % 2 == 0 { RopeStyle::Neox } else { RopeStyle::Interleaved };
        let rope_dim = if i % 3 == 0 { dims.0 / 2 } else { 0 };
        let mut config = config(types, dims, LayerConfig { rope_style, rope_dim, ..LayerConfig::default() });
        let io_dtype = if i / 2 % 2 == 0 { DType::F32 } else { DType::F16 };
        (config.in_dtype, config.out_dtype) = (io_dtype, io_dtype);
        let cpu = CacheConfig { backend: BackendKind::Cpu, ..config.clone() };
        let stream = Stream::draw(&config, i as u64, 40);
        let (got, want) = (stream.stored(&config, 11, Call::Two), stream.stored(&cpu, 11, Call::Two));
        for (which, (stored, dim)) in [(types.k, dims.0), (types.v, dims.1)].into_iter().enumerate() {
            for (got, want) in got[which].iter().zip(&want[which]).filter(|_| stored.is_quantised()) {
                tally.compare(stored, dim, got, want);
            }
        }
        let choice = new_cache(&config).kernel_choice(0, TokenCall::Step, 1, 2).unwrap();
        let specialised = dims.0 == dims.1 && [64, 80, 96, 128, 256].contains(&dims.0) && TYPES[..3].contains(&types);
        assert_eq!(choice.kernel == "skc_step_decode", specialised, "{types:?} {dims:?}");
        let stepped = stream.stored(&config, 2, Call::Step);
        assert!(stepped == got, "{types:?} {dims:?}: steps store other bits than appends");
    }
    println!("{} codes, {} of them off by one", tally.codes, tally.off_by_one);
    assert!(tally.codes > 100_000 && 1000 * tally.off_by_one <= tally.codes, "{} are off by one", tally.off_by_one);
}

/// Rows of every magnitude, of zeros, and with what is not finite, as the definition stores them.
#[test]
fn rows_that_are_not_rotated_are_those_of_the_definition() {
    let Some(_turn) = cuda() else { return };
    for (types, dims) in TYPES[..4].iter().flat_map(|&t| DIMS.map(|d| (t, d))) {
        let layer = LayerConfig { position_mode: PositionMode::None, ..LayerConfig::default() };
        let config = config(types, dims, layer);
        let mut stream = Stream::draw(&config, 5, 30);
        for (rows, dim) in [(&mut stream.k, dims.0 as usize), (&mut stream.v, dims.1 as usize)] {
            for (i, row) in rows.chunks_mut(dim).enumerate() {
                let scale = [1.0, 1e-30, 1e30, 1e-42, 3e-39, 1e37, -1.0, 1.0, 1.0, 1.0][i % 10];
                row.iter_mut().for_each(|x| *x *= scale);
                match i % 10 {
                    6 => row.fill(0.0),
                    7 => row[dim - 1] = f32::NAN,
                    8 => row[i % dim] = f32::NEG_INFINITY,
                    // Two of the same magnitude: of q4 the first one's sign decides.
                    9 => (row[1], row[4]) = (-50.0, 50.0),
                    _ => {}
                }
            }
        }
        let got = stream.stored(&config, 7, Call::Two);
        let rows = [(&stream.k, types.k, dims.0 as usize), (&stream.v, types.v, dims.1 as usize)];
        for (which, (rows, stored, dim)) in rows.into_iter().enumerate() {
            let heads = config.n_kv_heads as usize;
            for (i, got) in got[which].iter().enumerate() {
                // Stored rows are in the order of heads, then tokens.
                let row = &rows[(i % stream.tokens * heads + i / stream.tokens) * dim..][..dim];
                let want = if which == 0 { types.key(row) } else { types.value(row) };
                let got = Codes::of(stored, dim, got).values();
                let same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
                assert!(got.iter().zip(&want).all(same), "{stored:?} of {row:?}: {got:?}, not {want:?}");
            }
        }
    }
}

/// Sinks, and a ring that has wrapped; also where a head's codes are not a multiple of 16 bytes.
#[test]
fn a_fork_has_the_codes_and_scales_of_its_source() {
    let Some(_turn) = cuda() else { return };
    for (types, dims) in TYPES[..3].iter().flat_map(|&t| [(8, 24), (64, 64), (80, 80)].map(|d| (t, d))) {
        let mut config = config(types, dims, LayerConfig::default());
        (config.layers[0].window, config.max_rewind) = (20, 0);
        let mut cache = new_cache(&config);
        Stream::draw(&config, 3, 70).append(&mut cache, &config, 9, Call::Two);
        cache.fork(&[0], &[1]).unwrap();
        let [source, fork] = [0, 1].map(|seq| stored_rows(&mut cache, &config, seq, 23));
        assert!(source == fork, "{types:?} {dims:?}");
    }
}

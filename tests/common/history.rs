//! Random histories: a small cache, and events on its sequences.

use proptest::prelude::*;
use sinkcache::{BackendKind, CacheConfig, DType, Isa, LayerConfig, PositionMode, RopeStyle, StorageType};

use super::device::backend;
use super::oracle::OracleConfig;
use super::quantised::KvTypes;

/// Sequences of every history.
pub const N_SEQS: usize = 3;

/// A cache and its events.
#[derive(Clone, Debug)]
pub struct History {
    pub config: CacheConfig,
    pub events: Vec<Event>,
    pub seed: u64,
}

/// One event. Counts are drawn without regard to what is allowed: the cache must reject what the oracle rejects.
#[derive(Clone, Debug)]
pub enum Event {
    /// New tokens per sequence, in one ragged batch. `step` = one call, else append and attend; then `repeat` of the
    /// last queries are passed again.
    Feed { n: [u8; N_SEQS], step: bool, repeat: u8 },
    /// Evicts tokens of a sequence.
    Evict { seq: u8, n: u8 },
    /// Rewinds a sequence.
    Rewind { seq: u8, n: u8 },
    /// Resets a sequence to a start position.
    Reset { seq: u8, start: u64 },
    /// Copies a sequence to another.
    Fork { src: u8, dst: u8 },
    /// Appends drafts of NaN and infinity, and rewinds them.
    Poison { seq: u8, n: u8 },
    /// Appends tokens of NaN and infinity, and evicts them with the whole window.
    PoisonEvicted { seq: u8, n: u8 },
    /// Saves a sequence, loads it into another cache, saves it there, and loads it into a sequence of this cache.
    Load { src: u8, dst: u8, other: Other },
    /// Replaces the cache by another, into which all sequences are loaded.
    Move(Other),
}

/// How another cache differs from the one that a sequence is saved from.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    pub max_chunk: u8,
    pub max_rewind: u8,
    pub n_seqs: u8,
    pub n_threads: u8,
    /// On the other backend, if there is one.
    pub elsewhere: bool,
    /// By `copy_sequence`, without bytes.
    pub copied: bool,
}

impl History {
    /// The oracle's settings of a layer.
    pub fn oracle(&self, layer: usize) -> OracleConfig {
        let c = &self.config;
        OracleConfig {
            n_q_heads: c.n_q_heads as usize,
            n_kv_heads: c.n_kv_heads as usize,
            head_dim: c.head_dim as usize,
            head_dim_v: c.head_dim_v as usize,
            max_rewind: c.max_rewind as usize,
            max_pinned: 0,
            max_segments: 0,
            layer: c.layers[layer].clone(),
        }
    }
}

pub fn histories() -> impl Strategy<Value = History> {
    histories_of(|max_chunk, window| event(max_chunk, window).boxed())
}

/// Histories in which sequences are saved and loaded, too.
pub fn histories_with_snapshots() -> impl Strategy<Value = History> {
    histories_of(|max_chunk, window| {
        let seq = || 0..N_SEQS as u8;
        let load = (seq(), seq(), other(1)).prop_map(|(src, dst, other)| Event::Load { src, dst, other });
        // What is appended at a time must fit the new cache, too.
        let moved = other(max_chunk).prop_map(Event::Move);
        prop_oneof![24 => event(max_chunk, window), 1 => load, 1 => moved].boxed()
    })
}

fn other(least_chunk: u8) -> impl Strategy<Value = Other> {
    let sizes = (least_chunk..least_chunk + 20, 0..14_u8);
    (sizes, N_SEQS as u8..6, 1..3_u8, any::<bool>(), any::<bool>()).prop_map(
        |((max_chunk, max_rewind), n_seqs, n_threads, elsewhere, copied)| Other {
            max_chunk,
            max_rewind,
            n_seqs,
            n_threads,
            elsewhere,
            copied,
        },
    )
}

fn histories_of(events: impl Fn(u8, u8) -> BoxedStrategy<Event> + Clone) -> impl Strategy<Value = History> {
    let caches = match backend() {
        // Some in shapes that AMX tiles fit.
        BackendKind::Cpu => prop_oneof![6 => cache(), 1 => wide_cache()].boxed(),
        // Half of them in shapes that have specialised CUDA kernels.
        BackendKind::Cuda => prop_oneof![cache(), special_cache()].boxed(),
    };
    (caches, any::<prop::sample::Index>()).prop_flat_map(move |(mut config, isa)| {
        config.backend = backend();
        config.isa = (config.backend == BackendKind::Cpu).then(|| isa.get(&Isa::all()).to_owned());
        let wide = config.head_dim >= 32 && config.backend == BackendKind::Cpu;
        let most = config.max_chunk.min(if wide { 60 } else { 9 }) as u8;
        let window = config.layers.iter().map(|l| l.window).max().unwrap() as u8;
        let n = if wide { 6..12_usize } else { 12..30 };
        (Just(config), prop::collection::vec(events(most, window), n), any::<u64>())
            .prop_map(|(config, events, seed)| History { config, events, seed })
    })
}

fn event(max_chunk: u8, window: u8) -> impl Strategy<Value = Event> {
    let seq = prop_oneof![3 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
    let start = prop_oneof![Just(0), Just(1_u64 << 24), Just((1_u64 << 32) + 7), Just(1_u64 << 40), 0..u64::MAX / 2];
    let feed = (1..=max_chunk, 0..=max_chunk, 0..=max_chunk, 0_u8..4).prop_map(|(a, b, c, repeat)| Event::Feed {
        n: [a, b / 2, c / 3],
        step: false,
        repeat,
    });
    let step = (1..3 * window + 4, 0..4_u8, 0..window).prop_map(|(a, b, c)| Event::Feed {
        n: [a, b, c],
        step: true,
        repeat: 0,
    });
    prop_oneof![
        10 => feed,
        4 => step,
        3 => (seq.clone(), 0..window + 2).prop_map(|(seq, n)| Event::Evict { seq, n }),
        3 => (seq.clone(), 0..12_u8).prop_map(|(seq, n)| Event::Rewind { seq, n }),
        1 => (seq.clone(), start).prop_map(|(seq, start)| Event::Reset { seq, start }),
        1 => (seq.clone(), 0..N_SEQS as u8).prop_map(|(src, dst)| Event::Fork { src, dst }),
        2 => (seq.clone(), 1..=max_chunk).prop_map(|(seq, n)| Event::Poison { seq, n }),
        1 => (seq, 1..=max_chunk).prop_map(|(seq, n)| Event::PoisonEvicted { seq, n }),
    ]
}

/// Types of K and V: f32 for both with a weight of `f32` in about 12, 16-bit and quantised ones, and any pair.
fn types(f32: u32) -> impl Strategy<Value = KvTypes> {
    let one = prop::sample::select(StorageType::ALL.to_vec());
    prop_oneof![
        f32 => Just(StorageType::F32.into()),
        2 => Just(StorageType::F16.into()),
        2 => Just(StorageType::Bf16.into()),
        2 => Just(StorageType::Q8.into()),
        1 => Just(KvTypes::new(StorageType::Q8, StorageType::Q4)),
        1 => Just(StorageType::Q4.into()),
        2 => (one.clone(), one).prop_map(|(k, v)| KvTypes::new(k, v)),
    ]
}

fn cache() -> impl Strategy<Value = CacheConfig> {
    let heads = prop_oneof![Just((1, 1)), Just((2, 1)), Just((2, 2)), Just((6, 2)), Just((3, 3))];
    let dims = (prop_oneof![Just(8_u32), Just(16), Just(24)], prop_oneof![Just(8_u32), Just(16)]);
    let kv = types(8);
    let sizes = (1..10_u32, 0..9_u32, 1..4_u32);
    (heads, dims, kv, sizes).prop_flat_map(|((n_q_heads, n_kv_heads), (head_dim, head_dim_v), types, sizes)| {
        let (max_chunk, max_rewind, n_threads) = sizes;
        prop::collection::vec(layer(n_q_heads, head_dim), 1..3).prop_map(move |layers| CacheConfig {
            n_layers: layers.len() as u32,
            n_seqs: N_SEQS as u32,
            n_q_heads,
            n_kv_heads,
            head_dim,
            head_dim_v,
            k_dtype: Some(types.k),
            v_dtype: Some(types.v),
            max_chunk,
            max_rewind,
            // A thread pool is slow to start: one history in three has one.
            n_threads: if n_threads == 3 { 2 } else { 1 },
            layers,
            ..CacheConfig::default()
        })
    })
}

/// Caches with many query heads per KV head, and head dims that are multiples of 32.
fn wide_cache() -> impl Strategy<Value = CacheConfig> {
    let heads = prop_oneof![Just((4, 1)), Just((6, 2)), Just((2, 2)), Just((9, 1))];
    let dims = prop_oneof![Just((32_u32, 32_u32)), Just((64, 32)), Just((32, 40)), Just((40, 64))];
    let kv = types(2);
    let sizes = (20..60_u32, 0..9_u32, 1..4_u32, 12..70_u32);
    (heads, dims, kv, sizes).prop_flat_map(|((n_q_heads, n_kv_heads), (head_dim, head_dim_v), types, sizes)| {
        let (max_chunk, max_rewind, n_threads, window) = sizes;
        layer(n_q_heads, head_dim).prop_map(move |layer| CacheConfig {
            n_seqs: N_SEQS as u32,
            n_q_heads,
            n_kv_heads,
            head_dim,
            head_dim_v,
            k_dtype: Some(types.k),
            v_dtype: Some(types.v),
            max_chunk,
            max_rewind,
            n_threads: if n_threads == 3 { 2 } else { 1 },
            layers: vec![LayerConfig { window, ..layer }],
            ..CacheConfig::default()
        })
    })
}

/// Shapes of specialised CUDA kernels: (head_dim, n_q_heads, n_kv_heads, type). Few, because each is compiled.
const SPECIAL: [(u32, u32, u32, DType); 10] = [
    (64, 2, 2, DType::F16),
    (64, 8, 1, DType::Bf16),
    (80, 2, 1, DType::F16),
    (80, 3, 3, DType::Bf16),
    (96, 6, 2, DType::F16),
    (96, 5, 1, DType::Bf16),
    (128, 8, 2, DType::Bf16),
    (128, 7, 1, DType::F16),
    (256, 2, 1, DType::Bf16),
    (256, 6, 1, DType::F16),
];

fn special_cache() -> impl Strategy<Value = CacheConfig> {
    let sizes = (1..10_u32, 0..9_u32);
    (prop::sample::select(SPECIAL.to_vec()), sizes).prop_flat_map(
        |((head_dim, n_q_heads, n_kv_heads, dtype), sizes)| {
            let (max_chunk, max_rewind) = sizes;
            prop::collection::vec(layer(n_q_heads, head_dim), 1..3).prop_map(move |layers| CacheConfig {
                n_layers: layers.len() as u32,
                n_seqs: N_SEQS as u32,
                n_q_heads,
                n_kv_heads,
                head_dim,
                head_dim_v: head_dim,
                in_dtype: dtype,
                out_dtype: dtype,
                kv_dtype: dtype.into(),
                max_chunk,
                max_rewind,
                layers,
                ..CacheConfig::default()
            })
        },
    )
}

fn layer(n_q_heads: u32, head_dim: u32) -> impl Strategy<Value = LayerConfig> {
    let mode = prop_oneof![
        3 => Just(PositionMode::Rope),
        2 => Just(PositionMode::RopeApplied),
        2 => Just(PositionMode::Alibi),
        1 => Just(PositionMode::None)
    ];
    let style = prop_oneof![Just(RopeStyle::Neox), Just(RopeStyle::Interleaved)];
    let rope = (
        style,
        0..=head_dim / 2,
        prop_oneof![Just(1.0), Just(1.25)],
        prop_oneof![Just(1.0), Just(0.25)],
        any::<bool>(),
    );
    let score = (prop_oneof![Just(0.0), Just(0.4)], prop_oneof![2 => Just(0.0), 1 => Just(3.0)], any::<bool>());
    (0..6_u32, 1..12_u32, mode, rope, score).prop_map(move |(n_sink, window, position_mode, rope, score)| {
        let (rope_style, half, rope_mscale, rope_scale, explicit) = rope;
        let (scale, softcap, learned) = score;
        let rotates = matches!(position_mode, PositionMode::Rope | PositionMode::RopeApplied);
        let pairs = if half == 0 { head_dim / 2 } else { half };
        let inv_freq = if rotates && explicit { (0..pairs).map(|i| 0.9 / (i as f32 + 1.0)).collect() } else { vec![] };
        let per_head = |f: &dyn Fn(f32) -> f32| (0..n_q_heads).map(|h| f(h as f32)).collect::<Vec<_>>();
        LayerConfig {
            n_sink,
            window,
            position_mode,
            rope_style,
            rope_dim: 2 * half,
            rope_base: 1000.0,
            rope_scale,
            rope_mscale,
            inv_freq,
            alibi_slopes: if position_mode == PositionMode::Alibi { per_head(&|h| 0.5 / (h + 1.0)) } else { vec![] },
            scale,
            softcap,
            sink_logits: if learned { per_head(&|h| h - 1.0) } else { vec![] },
        }
    })
}

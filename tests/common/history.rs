//! Random histories: a small cache, and events on its sequences.

use proptest::prelude::*;
use sinkcache::{BackendKind, CacheConfig, DType, Isa, LayerConfig, PositionMode, RopeStyle, StorageType};

use super::device::backend;
use super::oracle::{OracleConfig, RangeEdit};
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
    /// Rewinds a sequence to a length close to one from which on rewinds are refused.
    RewindTo { seq: u8, layer: u8, limit: Limit, offset: i8 },
    /// Pins, or evicts, ranges of two sequences (or one, if they are the same) in one batch.
    Ranges { edit: RangeEdit, ranges: [TokenRange; 2] },
    /// Resets a sequence to a start position.
    Reset { seq: u8, start: u64 },
    /// Copies a sequence to another.
    Fork { src: u8, dst: u8 },
    /// Appends drafts of NaN and infinity, and rewinds them.
    Poison { seq: u8, n: u8 },
    /// Appends tokens of NaN and infinity, and evicts them with the whole window.
    PoisonEvicted { seq: u8, n: u8 },
    /// Appends tokens of NaN and infinity between others, and evicts these alone; `pinned`: pins them before.
    PoisonRange { seq: u8, n: [u8; 3], pinned: bool },
    /// Appends tokens of NaN and infinity to the first of two layers, and aborts the step.
    Abort { seq: u8, n: u8 },
    /// Saves a sequence, loads it into another cache, saves it there, and loads it into a sequence of this cache.
    Load { src: u8, dst: u8, other: Other },
    /// Replaces the cache by another, into which all sequences are loaded.
    Move(Other),
}

/// A range of a sequence's tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenRange {
    pub seq: u8,
    /// The layer whose window, pins and holes `from` names, modulo their number.
    pub layer: u8,
    pub from: Anchor,
    pub n: u8,
    /// Cut to what lies behind all sinks and ends within the sequence.
    pub cut: bool,
}

/// Where a range begins: mostly beside the edge of something.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// So that it ends so many tokens before the sequence's end.
    End(i8),
    /// Beside the oldest token of the window.
    Window(i8),
    /// Beside one end of a pinned run.
    Pin(u8, i8),
    /// Beside one end of an evicted range.
    Hole(u8, i8),
    /// Beside the last sink.
    Sinks(i8),
    /// Anywhere: so many 256ths of the length.
    Any(u8),
    /// So many below 2^64.
    Huge(u8),
}

/// A length from which on rewinds are refused.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Below what was edited.
    Edited,
    /// By any rule.
    Rewindable,
}

/// How another cache differs from the one that a sequence is saved from.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    pub max_chunk: u8,
    pub max_rewind: u8,
    pub n_seqs: u8,
    pub n_threads: u8,
    /// Room for so many more pinned tokens and segments in each layer.
    pub spare: u8,
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
            layer: c.layers[layer].clone(),
        }
    }
}

pub fn histories() -> impl Strategy<Value = History> {
    histories_of(|config| event(config).boxed())
}

/// Histories in which sequences are saved and loaded, too.
pub fn histories_with_snapshots() -> impl Strategy<Value = History> {
    histories_of(|config| {
        let seq = || 0..N_SEQS as u8;
        let load = (seq(), seq(), other(1)).prop_map(|(src, dst, other)| Event::Load { src, dst, other });
        // What is appended at a time must fit the new cache, too.
        let moved = other(longest_chunk(config)).prop_map(Event::Move);
        prop_oneof![24 => event(config), 1 => load, 1 => moved].boxed()
    })
}

fn other(least_chunk: u8) -> impl Strategy<Value = Other> {
    let sizes = (least_chunk..least_chunk + 20, 0..14_u8, 0..3_u8);
    (sizes, N_SEQS as u8..6, 1..3_u8, any::<bool>(), any::<bool>()).prop_map(
        |((max_chunk, max_rewind, spare), n_seqs, n_threads, elsewhere, copied)| Other {
            max_chunk,
            max_rewind,
            n_seqs,
            n_threads,
            spare,
            elsewhere,
            copied,
        },
    )
}

fn histories_of(events: impl Fn(&CacheConfig) -> BoxedStrategy<Event> + Clone) -> impl Strategy<Value = History> {
    let caches = match backend() {
        // Some in shapes that AMX tiles fit.
        BackendKind::Cpu => prop_oneof![6 => cache(), 1 => wide_cache()].boxed(),
        // Half of them in shapes that have specialised CUDA kernels.
        BackendKind::Cuda => prop_oneof![cache(), special_cache()].boxed(),
    };
    // One in ten has no room for pins and ranges in any layer.
    let caches = (caches, prop::bool::weighted(0.1)).prop_map(|(mut config, none)| {
        for layer in config.layers.iter_mut().filter(|_| none) {
            (layer.max_pinned, layer.max_segments) = (0, 0);
        }
        config
    });
    (caches, any::<prop::sample::Index>()).prop_flat_map(move |(mut config, isa)| {
        config.backend = backend();
        config.isa = (config.backend == BackendKind::Cpu).then(|| isa.get(&Isa::all()).to_owned());
        let n = if is_wide(&config) { 10..20_usize } else { 16..40 };
        let window = config.layers.iter().map(|l| l.window).max().unwrap() as u8;
        // Edits have something to edit from the beginning on.
        let first = (window..2 * window + 8, 0..window + 6, 0..window + 6).prop_map(|(a, b, c)| Event::Feed {
            n: [a, b, c],
            step: true,
            repeat: 0,
        });
        let events = prop::collection::vec(events(&config), n);
        (Just(config), first, events, any::<u64>()).prop_map(|(config, first, mut events, seed)| {
            events.insert(0, first);
            History { config, events, seed }
        })
    })
}

fn is_wide(config: &CacheConfig) -> bool {
    config.head_dim >= 32 && config.backend == BackendKind::Cpu
}

/// The most tokens that an event appends in one call of `append`.
fn longest_chunk(config: &CacheConfig) -> u8 {
    config.max_chunk.min(if is_wide(config) { 60 } else { 9 }) as u8
}

fn event(config: &CacheConfig) -> impl Strategy<Value = Event> + use<> {
    let (max_chunk, window) = (longest_chunk(config), config.layers.iter().map(|l| l.window).max().unwrap() as u8);
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
    let rewind = prop_oneof![
        (seq.clone(), 0..12_u8).prop_map(|(seq, n)| Event::Rewind { seq, n }),
        (seq.clone(), any::<u8>(), prop_oneof![Just(Limit::Edited), Just(Limit::Rewindable)], -2..=2_i8)
            .prop_map(|(seq, layer, limit, offset)| Event::RewindTo { seq, layer, limit, offset }),
    ];
    let ranges = |edit: RangeEdit, near_end: u32| {
        let seq = prop_oneof![5 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
        let range = token_range(seq.boxed(), window, near_end);
        // The second one is mostly left out.
        let ranges = (range.clone(), range, prop::bool::weighted(0.8));
        ranges.prop_map(move |(a, b, one)| Event::Ranges { edit, ranges: [a, if one { a } else { b }] })
    };
    let poison_range = (seq.clone(), 0..=max_chunk, 1..=max_chunk.min(5), 0..=window.min(6), any::<bool>())
        .prop_map(|(seq, before, n, after, pinned)| Event::PoisonRange { seq, n: [before, n, after], pinned });
    let abort = (seq.clone(), 1..=max_chunk).prop_map(|(seq, n)| Event::Abort { seq, n });
    prop_oneof![
        10 => feed,
        4 => step,
        3 => (seq.clone(), 0..window + 2).prop_map(|(seq, n)| Event::Evict { seq, n }),
        4 => rewind,
        // Only what is held can be pinned.
        14 => ranges(RangeEdit::Pin, 12),
        9 => ranges(RangeEdit::Evict, 5),
        1 => (seq.clone(), start).prop_map(|(seq, start)| Event::Reset { seq, start }),
        1 => (seq.clone(), 0..N_SEQS as u8).prop_map(|(src, dst)| Event::Fork { src, dst }),
        2 => (seq.clone(), 1..=max_chunk).prop_map(|(seq, n)| Event::Poison { seq, n }),
        2 => (seq, 1..=max_chunk).prop_map(|(seq, n)| Event::PoisonEvicted { seq, n }),
        2 => poison_range,
        2 => abort,
    ]
}

fn token_range(seq: BoxedStrategy<u8>, window: u8, near_end: u32) -> impl Strategy<Value = TokenRange> + Clone {
    let from = prop_oneof![
        1 => (-1..window as i8 + 3).prop_map(Anchor::End),
        near_end => (0..4_i8).prop_map(Anchor::End),
        4 => (-2..=3_i8).prop_map(Anchor::Window),
        3 => (any::<u8>(), -3..=2_i8).prop_map(|(which, offset)| Anchor::Pin(which, offset)),
        3 => (any::<u8>(), -3..=2_i8).prop_map(|(which, offset)| Anchor::Hole(which, offset)),
        1 => (-2..=2_i8).prop_map(Anchor::Sinks),
        1 => any::<u8>().prop_map(Anchor::Any),
    ];
    // Seldom: it is never allowed.
    let from = prop_oneof![60 => from, 1 => any::<u8>().prop_map(Anchor::Huge)];
    let n = prop_oneof![1 => Just(0), 40 => 1..4_u8, 10 => 1..9_u8, 5 => 1..=window + 2];
    (seq, any::<u8>(), from, n, prop::bool::weighted(0.8)).prop_map(|(seq, layer, from, n, cut)| TokenRange {
        seq,
        layer,
        from,
        n,
        cut,
    })
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
    // Some layers ignore pins; in others there is little room.
    let room = (
        prop_oneof![2 => Just(0), 2 => 1..5_u32, 10 => 5..20_u32],
        prop_oneof![1 => Just(0), 4 => 1..3_u32, 15 => 3..9_u32],
    );
    let sizes = (0..6_u32, prop_oneof![1 => 1..5_u32, 2 => 5..14_u32], room);
    (sizes, mode, rope, score).prop_map(move |((n_sink, window, room), position_mode, rope, score)| {
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
            max_pinned: room.0,
            max_segments: room.1,
        }
    })
}

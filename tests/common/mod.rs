//! Shared by the integration tests: the oracle in f64, the reference for error bounds, the vectors, a CUDA host.
#![allow(dead_code, reason = "each test program uses some of it")]

pub mod device;
pub mod exact_scores;
pub mod history;
pub mod oracle;
pub mod plain;
pub mod quantised;
pub mod share;
pub mod vectors;

use std::process::Command;

use half::{bf16, f16};
use quantised::KvTypes;
use sinkcache::{
    AttendTensors, Batch, Cache, CacheConfig, DType, Element, HostTag, RowsIn, RowsOut, StepTensors, StorageType,
};

/// A cache. A CUDA cache puts its work into the stream of the thread's [`device::Host`].
pub fn new_cache(config: &CacheConfig) -> Cache {
    let mut cache = Cache::new(config).unwrap();
    if cache.is_on_device() {
        // SAFETY: the stream belongs to the primary context, as the cache does, and lives as long as the thread.
        device::with_host(|host| unsafe { cache.set_stream(host.stream.cast()) }).unwrap();
    }
    cache
}

/// Saves a sequence of one cache and loads it into another, or copies it.
pub fn transfer(from: &mut Cache, src: i32, to: &mut Cache, dst: i32, copied: bool) {
    if copied {
        to.copy_sequence(dst, from, src).unwrap();
        return;
    }
    let tag: HostTag = [src as u8; 32];
    let mut bytes = vec![0; from.snapshot_bytes(src).unwrap()];
    assert_eq!(from.save_sequence(src, &tag, &mut bytes).unwrap(), bytes.len());
    to.load_sequence(dst, &tag, &bytes).unwrap();
}

/// A command that starts this test program again, through cargo's runner for AArch64 if one is set.
pub fn this_program() -> Command {
    let program = std::env::current_exe().unwrap();
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").unwrap_or_default();
    let runner = if cfg!(target_arch = "aarch64") { runner } else { String::new() };
    let mut words = runner.split_whitespace();
    let Some(first) = words.next() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(words).arg(program);
    command
}

/// Tensors of one call, in f32.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// How tokens are appended and attended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `append` and `attend`.
    Two,
    /// `step`.
    Step,
}

/// An element type of tensors, with its conversions.
pub trait Float: Element {
    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
}

macro_rules! float {
    ($($type:ty),*) => {$(
        impl Float for $type {
            fn from_f32(x: f32) -> Self {
                <$type>::from_f32(x)
            }

            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }
        }
    )*};
}
float!(f16, bf16);

impl Float for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }
}

fn converted<T: Float>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from_f32(x)).collect()
}

fn to_f32<T: Float>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Elements of the output of a batch.
fn out_len(config: &CacheConfig, batch: Batch<'_>) -> usize {
    let dim_v = if config.head_dim_v == 0 { config.head_dim } else { config.head_dim_v };
    usize::try_from(batch.rows()).unwrap() * (config.n_q_heads * dim_v) as usize
}

/// Appends and attends in one layer, with tensors of the configured type. Returns out and lse.
pub fn feed(
    cache: &mut Cache,
    config: &CacheConfig,
    layer: u32,
    batch: Batch<'_>,
    rows: Rows<'_>,
    call: Call,
) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(config.in_dtype, config.out_dtype);
    match config.in_dtype {
        DType::F32 => feed_typed::<f32>(cache, config, layer, batch, rows, call),
        DType::F16 => feed_typed::<f16>(cache, config, layer, batch, rows, call),
        DType::Bf16 => feed_typed::<bf16>(cache, config, layer, batch, rows, call),
    }
}

fn feed_typed<T: Float>(
    cache: &mut Cache,
    config: &CacheConfig,
    layer: u32,
    batch: Batch<'_>,
    rows: Rows<'_>,
    call: Call,
) -> (Vec<f32>, Vec<f32>) {
    let [q, k, v] = [rows.q, rows.k, rows.v].map(converted::<T>);
    let mut out = vec![T::from_f32(f32::NAN); out_len(config, batch)];
    let mut lse = vec![f32::NAN; usize::try_from(batch.rows()).unwrap() * config.n_q_heads as usize];
    if cache.is_on_device() {
        let tensors = device::HostTensors { q: &q, k: &k, v: &v, out: &mut out, lse: &mut lse };
        device::feed_on_device(cache, layer, batch, tensors, call);
    } else {
        let (q, k, v) = (RowsIn::packed(&q), RowsIn::packed(&k), RowsIn::packed(&v));
        let (o, l) = (RowsOut::packed(&mut out), Some(RowsOut::packed(&mut lse)));
        match call {
            Call::Two => {
                cache.append(layer, batch, k, v).unwrap();
                cache.attend(layer, batch, AttendTensors { q, out: o, lse: l }).unwrap();
            }
            Call::Step => cache.step(layer, batch, StepTensors { k, v, q, out: o, lse: l }).unwrap(),
        }
    }
    (to_f32(&out), lse)
}

/// Attends in one layer; as [`feed`], without lse.
pub fn attend(cache: &mut Cache, config: &CacheConfig, layer: u32, batch: Batch<'_>, q: &[f32]) -> Vec<f32> {
    match config.in_dtype {
        DType::F32 => attend_typed::<f32>(cache, config, layer, batch, q),
        DType::F16 => attend_typed::<f16>(cache, config, layer, batch, q),
        DType::Bf16 => attend_typed::<bf16>(cache, config, layer, batch, q),
    }
}

fn attend_typed<T: Float>(
    cache: &mut Cache,
    config: &CacheConfig,
    layer: u32,
    batch: Batch<'_>,
    q: &[f32],
) -> Vec<f32> {
    let q: Vec<T> = converted(q);
    let mut out = vec![T::from_f32(f32::NAN); out_len(config, batch)];
    if cache.is_on_device() {
        let (q, mut o) = (device::Buf::new(&q), device::Buf::new(&out));
        cache.attend(layer, batch, AttendTensors { q: q.rows(), out: o.rows_out(), lse: None }).unwrap();
        return to_f32(&o.read());
    }
    let tensors = AttendTensors { q: RowsIn::packed(&q), out: RowsOut::packed(&mut out), lse: None };
    cache.attend(layer, batch, tensors).unwrap();
    to_f32(&out)
}

/// Root mean square and largest absolute value of `a - b`; NaN if any value is not finite.
pub fn errors(a: &[f32], b: &[f32]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let (mut sum, mut max) = (0.0_f64, 0.0_f64);
    for (&a, &b) in a.iter().zip(b) {
        let e = f64::from(a) - f64::from(b);
        sum += e * e;
        max = if e.is_finite() { max.max(e.abs()) } else { f64::NAN };
        if max.is_nan() {
            return (f64::NAN, f64::NAN);
        }
    }
    ((sum / a.len().max(1) as f64).sqrt(), max)
}

/// Whether results are within tolerance of the oracle's: f32 within 1e-5 of the largest value; other types within 1.5
/// times (rms) and 3 times (max) the errors of the plain implementation.
pub fn check(types: KvTypes, got: &[f32], want: &[f32], plain: Option<&[f32]>) -> Result<(), String> {
    let (rms, max) = errors(got, want);
    let largest = want.iter().fold(0.0_f64, |m, &x| m.max(f64::from(x).abs()));
    let (rms_bound, max_bound) = if types == StorageType::F32.into() {
        (f64::INFINITY, 1e-5 * largest + 1e-30)
    } else {
        let (rms, max) = errors(plain.expect("types other than f32 need the plain results"), want);
        (1.5 * rms + 1e-6, 3.0 * max + 1e-6)
    };
    // A comparison with NaN is false, so NaN fails.
    if rms <= rms_bound && max <= max_bound {
        return Ok(());
    }
    Err(format!("{types:?}: rms {rms:.3e} (bound {rms_bound:.3e}), max {max:.3e} (bound {max_bound:.3e})"))
}

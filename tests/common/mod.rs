//! What the integration tests share: the definition in f64, the half-precision yardstick, the vectors.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod device;
pub mod history;
pub mod oracle;
pub mod plain;
pub mod vectors;

use std::process::Command;

use half::{bf16, f16};
use sinkcache::{Batch, Cache, CacheConfig, DType, RowsIn, RowsOut};

/// f32 values in the given type and back.
pub fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// A cache; on a device, with its work in the stream of the thread's host.
pub fn new_cache(config: &CacheConfig) -> Cache {
    let mut cache = Cache::new(config).unwrap();
    if cache.is_on_device() {
        // SAFETY: a stream of the primary context, alive as long as the thread.
        device::with_host(|host| unsafe { cache.set_stream(host.stream.cast()) }).unwrap();
    }
    cache
}

/// This test program, to be started again: through what cargo was told to run programs for AArch64 with, if it was told.
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

/// Rows of f32 tensors of one call.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// How tokens go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `append` and `attend`.
    Two,
    /// `step`.
    Step,
}

/// Appends and attends in one layer; rows of the caller's type are made from f32, and results come back as f32.
pub fn feed(
    cache: &mut Cache,
    config: &CacheConfig,
    layer: u32,
    batch: Batch<'_>,
    rows: Rows<'_>,
    call: Call,
) -> (Vec<f32>, Vec<f32>) {
    let n = usize::try_from(batch.rows()).unwrap();
    let heads = config.n_q_heads as usize;
    let dim_v = if config.head_dim_v == 0 { config.head_dim } else { config.head_dim_v } as usize;
    let mut lse = vec![f32::NAN; n * heads];
    assert_eq!(config.in_dtype, config.out_dtype);
    let out = match config.in_dtype {
        DType::F32 => typed(cache, layer, batch, rows, &mut lse, call, n * heads * dim_v, |x| x, |x: f32| x),
        DType::F16 => typed(cache, layer, batch, rows, &mut lse, call, n * heads * dim_v, f16::from_f32, f16::to_f32),
        DType::Bf16 => {
            typed(cache, layer, batch, rows, &mut lse, call, n * heads * dim_v, bf16::from_f32, bf16::to_f32)
        }
    };
    (out, lse)
}

#[expect(clippy::too_many_arguments)]
fn typed<T: sinkcache::Element>(
    cache: &mut Cache,
    layer: u32,
    batch: Batch<'_>,
    rows: Rows<'_>,
    lse: &mut [f32],
    call: Call,
    n_out: usize,
    to: impl Fn(f32) -> T,
    from: impl Fn(T) -> f32,
) -> Vec<f32> {
    let [q, k, v] = [rows.q, rows.k, rows.v].map(|x| x.iter().map(|&x| to(x)).collect::<Vec<T>>());
    let mut out = vec![to(f32::NAN); n_out];
    if cache.is_on_device() {
        device::feed_on_device(cache, layer, batch, [&q, &k, &v], &mut out, lse, call);
        return out.into_iter().map(from).collect();
    }
    let (q, k, v) = (RowsIn::packed(&q), RowsIn::packed(&k), RowsIn::packed(&v));
    let (o, l) = (RowsOut::packed(&mut out), Some(RowsOut::packed(lse)));
    match call {
        Call::Two => {
            cache.append(layer, batch, k, v).unwrap();
            cache.attend(layer, batch, q, o, l).unwrap();
        }
        Call::Step => cache.step(layer, batch, k, v, q, o, l).unwrap(),
    }
    out.into_iter().map(from).collect()
}

/// Attends in one layer; as [`feed`], without lse.
pub fn attend(cache: &mut Cache, config: &CacheConfig, layer: u32, batch: Batch<'_>, q: &[f32]) -> Vec<f32> {
    match config.in_dtype {
        DType::F32 => attend_typed(cache, config, layer, batch, q, |x| x, |x: f32| x),
        DType::F16 => attend_typed(cache, config, layer, batch, q, f16::from_f32, f16::to_f32),
        DType::Bf16 => attend_typed(cache, config, layer, batch, q, bf16::from_f32, bf16::to_f32),
    }
}

fn attend_typed<T: sinkcache::Element>(
    cache: &mut Cache,
    config: &CacheConfig,
    layer: u32,
    batch: Batch<'_>,
    q: &[f32],
    to: impl Fn(f32) -> T,
    from: impl Fn(T) -> f32,
) -> Vec<f32> {
    let dim_v = if config.head_dim_v == 0 { config.head_dim } else { config.head_dim_v };
    let n = usize::try_from(batch.rows()).unwrap() * (config.n_q_heads * dim_v) as usize;
    let q: Vec<T> = q.iter().map(|&x| to(x)).collect();
    let mut out = vec![to(f32::NAN); n];
    if cache.is_on_device() {
        let (q, mut o) = (device::Buf::new(&q), device::Buf::new(&out));
        cache.attend(layer, batch, q.rows(), o.rows_out(), None).unwrap();
        return o.read().into_iter().map(from).collect();
    }
    cache.attend(layer, batch, RowsIn::packed(&q), RowsOut::packed(&mut out), None).unwrap();
    out.into_iter().map(from).collect()
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

/// Whether results are close enough to the definition: f32 within 1e-5 of the largest value, halves within 1.5x (rms) and
/// 3x (max) of the plain implementation's errors.
pub fn check(dtype: DType, got: &[f32], want: &[f32], plain: Option<&[f32]>) -> Result<(), String> {
    let (rms, max) = errors(got, want);
    let largest = want.iter().fold(0.0_f64, |m, &x| m.max(f64::from(x).abs()));
    let (rms_bound, max_bound) = match dtype {
        DType::F32 => (f64::INFINITY, 1e-5 * largest + 1e-30),
        _ => {
            let (rms, max) = errors(plain.expect("halves need the yardstick"), want);
            (1.5 * rms + 1e-6, 3.0 * max + 1e-6)
        }
    };
    // Written so that NaN fails.
    if rms <= rms_bound && max <= max_bound {
        return Ok(());
    }
    Err(format!("{dtype:?}: rms {rms:.3e} (bound {rms_bound:.3e}), max {max:.3e} (bound {max_bound:.3e})"))
}

//! What a cache allocates and loads when it is created.

use std::sync::Arc;

use super::device_layout::{self, Rest};
use super::device_memory::{DeviceBuffer, Mapped, Setup};
use super::driver::Current;
use super::jit;
use super::jit::program::Variant;
use super::modules::{Common, Fast, variant_of};
use super::params::{SkcError, SkcLayer, SkcStore};
use crate::config::{CudaConfig, Layer, Shape};
use crate::error::{Error, Result, Status, bail};
use crate::ring::Seq;

/// What is given back while the context is current.
#[derive(Debug, Default)]
pub struct Parts {
    pub kv: Option<DeviceBuffer>,
    pub rest: Option<DeviceBuffer>,
    pub error: Option<Mapped<SkcError>>,
    pub common: Option<Common>,
    pub fast: Vec<Fast>,
}

impl Parts {
    pub fn free(&mut self, current: &Current<'_>) {
        self.fast.drain(..).for_each(|f| f.unload(current));
        self.common.take().into_iter().for_each(|c| c.unload(current));
        self.error.take().into_iter().for_each(|e| e.free(current));
        [self.kv.take(), self.rest.take()].into_iter().flatten().for_each(|b| b.free(current));
    }
}

/// What [`build`] makes beside the parts.
pub struct Built {
    pub settings: Vec<SkcLayer>,
    pub fast_of: Vec<Option<usize>>,
    pub rest: Rest,
    pub multiprocessors: u32,
    pub warnings: Vec<String>,
}

pub fn build(
    current: &Current<'_>,
    shape: &Shape,
    layers: &[Arc<Layer>],
    n_seqs: u32,
    config: &CudaConfig,
    parts: &mut Parts,
) -> Result<Built> {
    let context = current.context();
    let (arch, multiprocessors) = (context.arch()?, context.multiprocessors()?);
    if config.programmatic && arch < 90 {
        let (major, minor) = (arch / 10, arch % 10);
        bail!(InvalidConfig, "programmatic launches need compute capability 9.0: the device has {major}.{minor}");
    }
    let shared = context.shared_limit()?;
    let plain = || layers.iter().map(Arc::as_ref);
    let (kv, kv_bytes) = device_layout::kv(shape, plain(), n_seqs)?;
    let rest = Rest::new(shape, plain(), n_seqs, multiprocessors);
    // Memory first: a cache too large for the device is refused before anything is compiled.
    let kv_block = parts.kv.insert(DeviceBuffer::new(current, config.memory, kv_bytes, "K and V")?).address();
    let block = parts.rest.insert(DeviceBuffer::new(current, config.memory, rest.bytes, "counters and scratch")?);
    let error = parts.error.insert(Mapped::new(current)?).address();
    let base = block.address();

    let mut settings = Vec::with_capacity(layers.len());
    let setup = Setup::new(current)?;
    block.zero(&setup)?;
    for (i, layer) in plain().enumerate() {
        let [frequencies, alibi, logits] = rest.tables[i];
        block.write(&setup, frequencies as usize, layer.frequencies.fixed())?;
        block.write(&setup, alibi as usize, &layer.alibi_slopes)?;
        block.write(&setup, logits as usize, &layer.sink_logits)?;
        let ring = &layer.ring;
        let numbers = [ring.n_sink, ring.window, ring.ring_slots, ring.max_rewind];
        block.write(&setup, rest.rings as usize + i * size_of_val(&numbers), &numbers)?;
        let [k, v] = kv[i].map(|offset| kv_block + offset);
        let size = shape.kv_dtype.size();
        let (k_slot, v_slot) = ((shape.head_dim * size) as u64, (shape.head_dim_v * size) as u64);
        let store = SkcStore { k, v, k_slot, v_slot, slots: ring.slots() };
        block.write(&setup, rest.stores as usize + i * size_of::<SkcStore>(), &[store])?;
        let or_null = |empty: bool, offset: u64| if empty { 0 } else { base + offset };
        settings.push(SkcLayer {
            k,
            v,
            seqs: base + rest.seqs + (i * n_seqs as usize * size_of::<Seq>()) as u64,
            starts: base + rest.starts,
            frequencies: base + frequencies,
            alibi: or_null(layer.alibi_slopes.is_empty(), alibi),
            sink_logits: or_null(layer.sink_logits.is_empty(), logits),
            error,
            arrivals: base + rest.arrivals,
            ..SkcLayer::new(i, layer, shape)
        });
    }
    setup.finish()?;

    parts.common = Some(Common::load(current, arch, config.disk_cache)?);
    let mut fast_of = Vec::with_capacity(layers.len());
    let mut missing = Vec::new();
    let mut warnings = Vec::new();
    for layer in plain() {
        let variant = variant_of(shape, layer, arch, shared).filter(|variant| !missing.contains(variant));
        fast_of.push(match variant {
            None => None,
            Some(variant) => match parts.fast.iter().position(|f| f.variant == variant) {
                Some(at) => Some(at),
                None => match Fast::load(current, arch, variant, config.disk_cache) {
                    Ok(fast) => {
                        parts.fast.push(fast);
                        Some(parts.fast.len() - 1)
                    }
                    // The kernels for every shape were built in, these were not, and there is no compiler.
                    Err(error) if error.status() == Status::BackendUnavailable => {
                        warnings.push(slow(variant, arch, &error));
                        missing.push(variant);
                        None
                    }
                    Err(error) => return Err(error),
                },
            },
        });
    }
    Ok(Built { settings, fast_of, rest, multiprocessors, warnings })
}

/// What a host is told that gets the kernel of every shape where there is a faster one.
fn slow(variant: Variant, arch: u32, why: &Error) -> String {
    let arch = jit::program::arch_name(arch);
    format!(
        "attention of {variant} (head dim x query heads per KV head : type) runs on the kernel for every shape, which is much \
         slower than its own: that is not built in for {arch}, and cannot be compiled. Build with {variant} in {}, or let \
         libnvrtc be found. {why}",
        jit::program::SHAPES_VARIABLE
    )
}

//! K, V and counters in an NVIDIA GPU's memory, and kernels in the host's stream.

mod device_layout;
mod device_memory;
mod driver;
mod heuristics;
mod jit;
mod launch_config;
mod modules;
mod params;
mod submit;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use self::device_layout::Rest;
use self::device_memory::{DeviceBuffer, Mapped, Setup};
use self::driver::{Context, Current, Kernel, Relaxed, To};
use self::heuristics::{Chooser, Which};
use self::jit::program::Variant;
use self::modules::{Common, Fast, variant_of};
use self::params::{SkcError, SkcLayer, SkcStore};
use super::{Device, DeviceCall, DeviceError, Edit, KernelChoice, Stream, TokenCall};
use crate::config::{CudaConfig, Layer, Shape};
use crate::error::{Error, Result, Status, bail};
use crate::ring::Seq;

/// Whether a CUDA cache can be made now: a driver, a device, and a compiler or kernels that are built in for it.
pub(crate) fn available() -> bool {
    let devices = driver::device_count();
    devices > 0 && (jit::nvrtc::nvrtc().is_ok() || (0..devices).filter_map(driver::arch_of).any(jit::embedded::serves))
}

/// A cache's part on the device.
#[derive(Debug)]
pub(crate) struct Cuda {
    context: Context,
    shape: Shape,
    layers: Vec<Arc<Layer>>,
    /// Settings and addresses of each layer, as kernels get them.
    settings: Vec<SkcLayer>,
    /// Index in `parts.fast` of each layer's variant.
    fast_of: Vec<Option<usize>>,
    rest: Rest,
    n_seqs: u32,
    multiprocessors: u32,
    programmatic: bool,
    /// What the host should know about how it was made.
    warnings: Vec<String>,
    /// Everything that needs the context to be given back; `None` only in drop.
    parts: Parts,
}

/// What is given back while the context is current.
#[derive(Debug, Default)]
struct Parts {
    kv: Option<DeviceBuffer>,
    rest: Option<DeviceBuffer>,
    error: Option<Mapped<SkcError>>,
    common: Option<Common>,
    fast: Vec<Fast>,
}

impl Parts {
    fn free(&mut self, current: &Current<'_>) {
        self.fast.drain(..).for_each(|f| f.unload(current));
        self.common.take().into_iter().for_each(|c| c.unload(current));
        self.error.take().into_iter().for_each(|e| e.free(current));
        [self.kv.take(), self.rest.take()].into_iter().flatten().for_each(|b| b.free(current));
    }
}

impl Cuda {
    /// Bytes of device memory. Scratch grows with the device's multiprocessors: without a device, an estimate.
    pub fn bytes(shape: &Shape, layers: &[Arc<Layer>], n_seqs: u32, config: &CudaConfig) -> Result<u64> {
        let context = Context::new(config.device, config.context)?;
        let (_, kv) = device_layout::kv(shape, layers.iter().map(Arc::as_ref), n_seqs)?;
        let rest = Rest::new(shape, layers.iter().map(Arc::as_ref), n_seqs, context.multiprocessors()?);
        kv.checked_add(rest.bytes).ok_or_else(|| Error::new(Status::OutOfMemory, "device memory exceeds 2^64 bytes"))
    }

    /// Compiles, allocates and waits until the memory is ready. The only call that does.
    pub fn new(shape: &Shape, layers: &[Arc<Layer>], n_seqs: u32, config: &CudaConfig) -> Result<Self> {
        let context = Context::new(config.device, config.context)?;
        let mut parts = Parts::default();
        let built = {
            let current = context.enter()?;
            let _relaxed = Relaxed::new()?;
            let built = build(&current, shape, layers, n_seqs, config, &mut parts);
            if built.is_err() {
                parts.free(&current);
            }
            built?
        };
        let Built { settings, fast_of, rest, multiprocessors, warnings } = built;
        Ok(Self {
            context,
            shape: *shape,
            layers: layers.to_vec(),
            settings,
            fast_of,
            rest,
            n_seqs,
            multiprocessors,
            programmatic: config.programmatic,
            warnings,
            parts,
        })
    }

    fn chooser(&self, layer: usize) -> Chooser<'_> {
        let fast = self.fast_of[layer].and_then(|i| self.parts.fast.get(i));
        let (shape, multiprocessors) = (&self.shape, self.multiprocessors);
        Chooser { shape, layer: &self.layers[layer], fast, multiprocessors }
    }

    fn kernel(&self, layer: usize, which: Which) -> Result<Kernel> {
        let fast = || self.fast_of[layer].and_then(|i| self.parts.fast.get(i)).ok_or_else(gone);
        Ok(match which {
            Which::Append => self.common()?.append,
            Which::Generic => self.common()?.attend,
            Which::Decode => fast()?.decode.kernel,
            Which::Step => fast()?.step.kernel,
            Which::Chunk => fast()?.chunk,
        })
    }

    fn to(&self, stream: Stream) -> To {
        To { stream, programmatic: self.programmatic }
    }

    /// What the host should know about how it was made: lines of text.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn common(&self) -> Result<&Common> {
        self.parts.common.as_ref().ok_or_else(gone)
    }

    fn base(&self) -> Result<u64> {
        Ok(self.parts.rest.as_ref().ok_or_else(gone)?.address())
    }
}

fn gone() -> Error {
    Error::new(Status::Internal, "a CUDA cache without its parts")
}

/// What [`build`] makes beside the parts.
struct Built {
    settings: Vec<SkcLayer>,
    fast_of: Vec<Option<usize>>,
    rest: Rest,
    multiprocessors: u32,
    warnings: Vec<String>,
}

fn build(
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

impl Device for Cuda {
    fn run(&self, job: &DeviceCall<'_>) -> Result<()> {
        submit::run(self, &self.context.enter()?, job)
    }

    fn edit(&self, edit: &Edit<'_>) -> Result<()> {
        submit::edit(self, &self.context.enter()?, edit)
    }

    fn choice(&self, layer: usize, call: TokenCall, n_entries: u32, n_tokens: u32) -> Result<KernelChoice> {
        let chooser = self.chooser(layer);
        // A call of many chunks is as many times the launches of one, and those of the rest.
        let chunk = self.shape.max_chunk as u32;
        let (first, rest) = (n_tokens.min(chunk), n_tokens % chunk);
        let of = |n: u32| chooser.launches(call, n_entries, n, true);
        let launches =
            u64::from(n_tokens / chunk) * of(first).len() as u64 + if rest > 0 { of(rest).len() as u64 } else { 0 };
        let Some(&choice) = of(first).last() else { bail!(Internal, "a call without launches") };
        let kernel = self.kernel(layer, choice.which)?;
        Ok(KernelChoice {
            kernel: kernel.name.to_owned(),
            launches,
            grid: choice.size.grid,
            threads: kernel.threads,
            shared_bytes: choice.size.shared,
            n_splits: choice.n_splits,
        })
    }

    fn capturing(&self, stream: Stream) -> Result<bool> {
        self.context.enter()?.capturing(stream)
    }

    fn read_back(&self, stream: Stream, seq: usize, states: &mut [Seq]) -> Result<u64> {
        let current = self.context.enter()?;
        if current.capturing(stream)? {
            bail!(InvalidArgument, "the stream is being captured: its work cannot be waited for");
        }
        for (state, layer) in states.iter_mut().zip(&self.settings) {
            let at = layer.seqs + (seq * size_of::<Seq>()) as u64;
            current.read(stream, at, std::slice::from_mut(state))?;
        }
        let mut start = [0_u64];
        current.read(stream, self.base()? + self.rest.starts + 8 * seq as u64, &mut start)?;
        Ok(start[0])
    }

    fn take_error(&self) -> Option<DeviceError> {
        let at = self.parts.error.as_ref()?.host();
        // SAFETY: mapped memory, alive as long as `self`; the device writes these two words atomically.
        let (status, count) =
            unsafe { (AtomicI32::from_ptr(&raw mut (*at).status), AtomicU32::from_ptr(&raw mut (*at).count)) };
        if status.load(Ordering::Acquire) == 0 {
            return None;
        }
        // SAFETY: complete, since the status is written last; nobody writes it again before `count` is 0.
        let record = unsafe { at.read_volatile() };
        status.store(0, Ordering::Relaxed);
        Some(DeviceError {
            count: count.swap(0, Ordering::AcqRel),
            status: record.status,
            call: record.call,
            layer: record.layer,
            entry: record.entry,
            seq_id: record.seq,
            value: record.value,
        })
    }

    fn finish(&self) -> Result<()> {
        let current = self.context.enter()?;
        let _relaxed = Relaxed::new()?;
        current.wait_all()
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A context that is gone has taken everything with it.
        let Ok(current) = self.context.enter() else { return };
        let _relaxed = Relaxed::new();
        let _ = current.wait_all();
        self.parts.free(&current);
    }
}

//! What a cache allocates and loads when it is created.

use super::device_layout::{AuxLayout, KvLayout, SplitScratch};
use super::device_memory::{DeviceBuffer, MappedHost, SetupStream};
use super::driver::{Context, CurrentContext};
use super::jit::program::{SHAPES_VARIABLE, Variant, arch_name};
use super::modules::{CommonKernels, Loaded, VariantKernels, load_common, load_variant, variant_of};
use super::params::{SkcErrorLog, SkcErrorPage, SkcLayer, SkcRing, SkcStore};
use crate::config::{CudaConfig, Layer, Layers, Shape};
use crate::error::{Error, Result, Status, bail};
use crate::ring::Seq;

/// What a cache is created from.
#[derive(Clone, Copy, Debug)]
pub struct Blueprint<'a> {
    pub shape: &'a Shape,
    pub layers: &'a Layers,
    pub n_seqs: u32,
    pub config: &'a CudaConfig,
}

impl<'a> Blueprint<'a> {
    fn layers(&self) -> impl ExactSizeIterator<Item = &'a Layer> + use<'a> {
        self.layers.iter()
    }

    pub fn kv_layout(&self) -> Result<KvLayout> {
        KvLayout::new(self.shape, self.layers(), self.n_seqs)
    }

    pub fn aux_layout(&self, context: &Context) -> Result<AuxLayout> {
        let multiprocessors = context.multiprocessors()?;
        let (arch, shared_limit) = (context.arch()?, context.shared_limit()?);
        let specialised = |layer: &Layer| variant_of(self.shape, layer, arch, shared_limit).is_some();
        let scratch = SplitScratch::new(self.shape, multiprocessors, self.layers.iter().any(specialised));
        Ok(AuxLayout::new(self.layers(), self.n_seqs, scratch))
    }
}

/// What a cache owns on the device. Freeing it needs the current context, so that it is not done by drop; fields are
/// `None` before they are created and after they are freed.
#[derive(Debug, Default)]
pub struct Resources {
    pub kv: Option<DeviceBuffer>,
    pub aux: Option<DeviceBuffer>,
    pub errors: Option<MappedHost<SkcErrorPage>>,
    pub common: Option<Loaded<CommonKernels>>,
    pub variants: Vec<Loaded<VariantKernels>>,
}

impl Resources {
    pub fn free(&mut self, current: &CurrentContext<'_>) {
        self.variants.drain(..).for_each(|v| v.unload(current));
        self.common.take().into_iter().for_each(|c| c.unload(current));
        self.errors.take().into_iter().for_each(|e| e.free(current));
        [self.kv.take(), self.aux.take()].into_iter().flatten().for_each(|b| b.free(current));
    }
}

/// What [`build`] makes beside the resources.
#[derive(Debug)]
pub struct Built {
    /// Settings and addresses of each layer, as kernels get them.
    pub settings: Vec<SkcLayer>,
    /// Index in [`Resources::variants`] of each layer's variant, if it has one.
    pub variant_of_layer: Vec<Option<usize>>,
    pub aux: AuxLayout,
    pub multiprocessors: u32,
    /// What the host should know: lines of text.
    pub warnings: Vec<String>,
}

/// Allocates and initialises a cache's memory and loads its kernels. What was created before an error is left in
/// `resources` for the caller to free.
pub fn build(current: &CurrentContext<'_>, blueprint: Blueprint<'_>, resources: &mut Resources) -> Result<Built> {
    let context = current.context();
    let arch = context.arch()?;
    if blueprint.config.programmatic && arch < 90 {
        let (major, minor) = (arch / 10, arch % 10);
        bail!(InvalidConfig, "programmatic launches need compute capability 9.0: the device has {major}.{minor}");
    }
    let multiprocessors = context.multiprocessors()?;
    let aux = blueprint.aux_layout(context)?;
    // Memory first: a cache too large for the device is rejected before anything is compiled.
    let settings = allocate(current, blueprint, &aux, resources)?;
    let mut warnings = Vec::new();
    let variant_of_layer = load_kernels(current, blueprint, resources, &mut warnings)?;
    Ok(Built { settings, variant_of_layer, aux, multiprocessors, warnings })
}

/// Allocates all memory, initialises it, and waits until that is done.
fn allocate(
    current: &CurrentContext<'_>,
    blueprint: Blueprint<'_>,
    layout: &AuxLayout,
    resources: &mut Resources,
) -> Result<Vec<SkcLayer>> {
    let Blueprint { shape, n_seqs, config, .. } = blueprint;
    let kv = blueprint.kv_layout()?;
    let kv_base = resources.kv.insert(DeviceBuffer::new(current, config.memory, kv.bytes, "K and V")?).address();
    let aux = resources.aux.insert(DeviceBuffer::new(current, config.memory, layout.bytes, "counters and scratch")?);
    let page = resources.errors.insert(MappedHost::new(current)?).address();
    let base = aux.address();

    let mut settings = Vec::with_capacity(blueprint.layers.len());
    let setup = SetupStream::new(current)?;
    aux.zero(&setup)?;
    aux.write(&setup, layout.errors as usize, &[SkcErrorLog { page, ..SkcErrorLog::default() }])?;
    for (i, layer) in blueprint.layers().enumerate() {
        let tables = layout.tables[i];
        aux.write(&setup, tables.frequencies as usize, layer.frequencies.fixed())?;
        aux.write(&setup, tables.alibi_slopes as usize, &layer.alibi_slopes)?;
        aux.write(&setup, tables.sink_logits as usize, &layer.sink_logits)?;
        let [k, v] = kv.layers[i].map(|layout| layout.store(kv_base));
        aux.write(&setup, layout.stores as usize + i * size_of::<[SkcStore; 2]>(), &[k, v])?;
        let or_null = |empty: bool, offset: u64| if empty { 0 } else { base + offset };
        let ranges = or_null(layer.ring.max_segments == 0, tables.ranges);
        aux.write(&setup, layout.rings as usize + i * size_of::<SkcRing>(), &[SkcRing::new(&layer.ring, ranges)])?;
        settings.push(SkcLayer {
            k,
            v,
            seqs: base + layout.seqs + (i * n_seqs as usize * size_of::<Seq>()) as u64,
            ranges,
            starts: base + layout.starts,
            frequencies: base + tables.frequencies,
            alibi_slopes: or_null(layer.alibi_slopes.is_empty(), tables.alibi_slopes),
            sink_logits: or_null(layer.sink_logits.is_empty(), tables.sink_logits),
            errors: base + layout.errors,
            append_arrivals: base + layout.append_arrivals,
            ..SkcLayer::new(i, layer, shape)
        });
    }
    setup.finish()?;
    Ok(settings)
}

/// Loads the common kernels and each layer's variant, once for all layers that share it. Returns the index of each
/// layer's variant. A variant that is neither built in nor can be compiled leaves its layers on the common kernels,
/// with a warning.
fn load_kernels(
    current: &CurrentContext<'_>,
    blueprint: Blueprint<'_>,
    resources: &mut Resources,
    warnings: &mut Vec<String>,
) -> Result<Vec<Option<usize>>> {
    let context = current.context();
    let arch = context.arch()?;
    let shared_limit = context.shared_limit()?;
    let disk_cache = blueprint.config.disk_cache;
    resources.common = Some(load_common(current, arch, disk_cache)?);
    let mut variant_of_layer = Vec::with_capacity(blueprint.layers.len());
    let mut missing = Vec::new();
    for layer in blueprint.layers() {
        let variant = variant_of(blueprint.shape, layer, arch, shared_limit).filter(|v| !missing.contains(v));
        let Some(variant) = variant else {
            variant_of_layer.push(None);
            continue;
        };
        let mut index = resources.variants.iter().position(|v| v.kernels.variant == variant);
        if index.is_none() {
            match load_variant(current, arch, variant, disk_cache) {
                Ok(loaded) => {
                    index = Some(resources.variants.len());
                    resources.variants.push(loaded);
                }
                Err(error) if error.status() == Status::BackendUnavailable => {
                    warnings.push(slow_kernel_warning(variant, arch, &error));
                    missing.push(variant);
                }
                Err(error) => return Err(error),
            }
        }
        variant_of_layer.push(index);
    }
    Ok(variant_of_layer)
}

/// For a host whose layers run on the kernel for every shape although there is a faster one.
fn slow_kernel_warning(variant: Variant, arch: u32, why: &Error) -> String {
    let arch = arch_name(arch);
    format!(
        "attention of {variant} (head dim x query heads per KV head : type) runs on the kernel for every shape, which \
         is much slower than its own: that is not built in for {arch}, and cannot be compiled. Build with {variant} in \
         {SHAPES_VARIABLE}, or let libnvrtc be found. {why}"
    )
}

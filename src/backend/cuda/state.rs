//! A cache's state on the device: its context, its memory and its kernels.

use super::create::{Blueprint, Built, Resources, build};
use super::device_layout::AuxLayout;
use super::driver::{Context, Kernel, LaunchTarget, RelaxedCapture};
use super::heuristics::{Heuristics, TokenKernel};
use super::modules::{CommonKernels, VariantKernels};
use super::params::SkcLayer;
use crate::backend::Stream;
use crate::config::{CudaConfig, Layers, Shape};
use crate::error::{Error, Result, Status};

/// The part of a cache that lives on a device.
#[derive(Debug)]
pub(crate) struct Cuda {
    pub(super) context: Context,
    pub(super) shape: Shape,
    layers: Layers,
    /// Settings and addresses of each layer, as kernels get them.
    pub(super) settings: Vec<SkcLayer>,
    /// Index in `resources.variants` of each layer's variant, if it has one.
    variant_of_layer: Vec<Option<usize>>,
    /// What lies where in `resources.aux`.
    pub(super) aux: AuxLayout,
    pub(super) n_seqs: u32,
    multiprocessors: u32,
    programmatic: bool,
    /// What the host should know about the cache: lines of text.
    warnings: Vec<String>,
    pub(super) resources: Resources,
}

impl Cuda {
    /// Bytes of device memory that a cache needs. Scratch grows with the device's multiprocessors.
    pub fn bytes(shape: &Shape, layers: &Layers, n_seqs: u32, config: &CudaConfig) -> Result<u64> {
        let context = Context::new(config.device, config.context)?;
        let blueprint = Blueprint { shape, layers, n_seqs, config };
        let kv = blueprint.kv_layout()?;
        let aux = blueprint.aux_layout(&context)?;
        let bytes = kv.bytes.checked_add(aux.bytes);
        bytes.ok_or_else(|| Error::new(Status::OutOfMemory, "device memory exceeds 2^64 bytes"))
    }

    /// Allocates, compiles and waits until the memory is initialised. No other call does any of this.
    pub fn new(shape: &Shape, layers: &Layers, n_seqs: u32, config: &CudaConfig) -> Result<Self> {
        let context = Context::new(config.device, config.context)?;
        let mut resources = Resources::default();
        let built = {
            let current = context.enter()?;
            let _relaxed = RelaxedCapture::new()?;
            let built = build(&current, Blueprint { shape, layers, n_seqs, config }, &mut resources);
            if built.is_err() {
                resources.free(&current);
            }
            built?
        };
        let Built { settings, variant_of_layer, aux, multiprocessors, warnings } = built;
        Ok(Self {
            context,
            shape: *shape,
            layers: layers.copied()?,
            settings,
            variant_of_layer,
            aux,
            n_seqs,
            multiprocessors,
            programmatic: config.programmatic,
            warnings,
            resources,
        })
    }

    /// Takes what the host should know about the cache: lines of text.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    pub(super) fn heuristics(&self, layer: usize) -> Heuristics<'_> {
        Heuristics {
            shape: &self.shape,
            layer: &self.layers[layer],
            specialised: self.specialised(layer),
            multiprocessors: self.multiprocessors,
        }
    }

    pub(super) fn kernel(&self, layer: usize, kernel: TokenKernel) -> Result<Kernel> {
        let specialised = || self.specialised(layer).ok_or_else(missing);
        Ok(match kernel {
            TokenKernel::Append if self.shape.k_type.is_quantised() || self.shape.v_type.is_quantised() => {
                self.common()?.append_quantised
            }
            TokenKernel::Append => self.common()?.append,
            TokenKernel::Generic => self.common()?.attend,
            TokenKernel::Decode => specialised()?.decode.kernel,
            TokenKernel::Step => specialised()?.step.kernel,
            TokenKernel::Chunk => specialised()?.chunk.kernel,
        })
    }

    fn specialised(&self, layer: usize) -> Option<&VariantKernels> {
        let variant = self.resources.variants.get(self.variant_of_layer[layer]?)?;
        Some(&variant.kernels)
    }

    pub(super) fn common(&self) -> Result<&CommonKernels> {
        self.resources.common.as_ref().map(|c| &c.kernels).ok_or_else(missing)
    }

    pub(super) fn launch_target(&self, stream: Stream) -> LaunchTarget {
        LaunchTarget { stream, programmatic: self.programmatic }
    }

    /// Address of the buffer that `aux` describes.
    pub(super) fn aux_base(&self) -> Result<u64> {
        Ok(self.resources.aux.as_ref().ok_or_else(missing)?.address())
    }
}

fn missing() -> Error {
    Error::new(Status::Internal, "a CUDA cache without its resources")
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A context that the host has destroyed has freed everything.
        let Ok(current) = self.context.enter() else { return };
        let _relaxed = RelaxedCapture::new();
        let _ = current.wait_all();
        self.resources.free(&current);
    }
}

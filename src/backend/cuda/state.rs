//! A cache's state on the device: its context, its memory and its loaded kernels.

use std::sync::Arc;

use super::create::{Built, Parts, build};
use super::device_layout::{self, Rest};
use super::driver::{Context, Kernel, Relaxed, To};
use super::heuristics::{Chooser, Which};
use super::modules::Common;
use super::params::SkcLayer;
use crate::backend::Stream;
use crate::config::{CudaConfig, Layer, Shape};
use crate::error::{Error, Result, Status};

/// A cache's part on the device.
#[derive(Debug)]
pub(crate) struct Cuda {
    pub(super) context: Context,
    pub(super) shape: Shape,
    pub(super) layers: Vec<Arc<Layer>>,
    /// Settings and addresses of each layer, as kernels get them.
    pub(super) settings: Vec<SkcLayer>,
    /// Index in `parts.fast` of each layer's variant.
    pub(super) fast_of: Vec<Option<usize>>,
    pub(super) rest: Rest,
    pub(super) n_seqs: u32,
    pub(super) multiprocessors: u32,
    pub(super) programmatic: bool,
    /// What the host should know about how it was made.
    pub(super) warnings: Vec<String>,
    /// What only a current context can free.
    pub(super) parts: Parts,
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

    pub(super) fn chooser(&self, layer: usize) -> Chooser<'_> {
        let fast = self.fast_of[layer].and_then(|i| self.parts.fast.get(i));
        let (shape, multiprocessors) = (&self.shape, self.multiprocessors);
        Chooser { shape, layer: &self.layers[layer], fast, multiprocessors }
    }

    pub(super) fn kernel(&self, layer: usize, which: Which) -> Result<Kernel> {
        let fast = || self.fast_of[layer].and_then(|i| self.parts.fast.get(i)).ok_or_else(gone);
        Ok(match which {
            Which::Append => self.common()?.append,
            Which::Generic => self.common()?.attend,
            Which::Decode => fast()?.decode.kernel,
            Which::Step => fast()?.step.kernel,
            Which::Chunk => fast()?.chunk,
        })
    }

    pub(super) fn to(&self, stream: Stream) -> To {
        To { stream, programmatic: self.programmatic }
    }

    /// What the host should know about how it was made: lines of text.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    pub(super) fn common(&self) -> Result<&Common> {
        self.parts.common.as_ref().ok_or_else(gone)
    }

    pub(super) fn base(&self) -> Result<u64> {
        Ok(self.parts.rest.as_ref().ok_or_else(gone)?.address())
    }
}

fn gone() -> Error {
    Error::new(Status::Internal, "a CUDA cache without its parts")
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

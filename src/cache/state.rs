//! What a cache consists of, and how it is made.

use std::sync::Arc;

use super::counters::Mirror;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Device, Stream};
use crate::batch::{Entry, Seen};
use crate::config::{BackendKind, CacheConfig, Footprint, Layer, Shape};
use crate::error::{Error, Result, Status, bail};
use crate::exec::Executor;
use crate::memory::{filled, with_room};

/// KV cache of all layers and sequences of one model on one device.
///
/// After any error the cache is as it was.
#[derive(Debug)]
pub struct Cache {
    pub(super) shape: Shape,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) mirror: Mirror,
    pub(super) place: Place,
    /// Where a device's work goes.
    pub(super) stream: Stream,
    /// Whether the stream records work for later.
    pub(super) capturing: bool,
    /// The batch at hand; room for every sequence.
    pub(super) entries: Vec<Entry>,
    /// An edit at hand: index and amount; room for every sequence.
    pub(super) edits: Vec<(usize, u64)>,
    pub(super) seen: Seen,
    /// What the host should know about how the cache was made.
    pub(super) warnings: Vec<String>,
    /// Why no call but drop works any more, if so.
    pub(super) dead: Option<Status>,
}

/// Who does the work.
#[derive(Debug)]
pub(super) enum Place {
    /// Kernels on threads of this process, while the call lasts.
    Host { backend: Box<dyn Backend>, exec: Executor },
    /// Kernels in a stream, later.
    Device(Box<dyn Device>),
}

impl Cache {
    /// Validates a configuration and allocates everything the cache will ever use.
    ///
    /// # Errors
    /// `InvalidConfig`, `BackendUnavailable`, `OutOfMemory`.
    pub fn new(config: &CacheConfig) -> Result<Self> {
        let (shape, layers) = validate(config)?;
        let n_seqs = config.n_seqs as usize;
        let mut warnings = Vec::new();
        let place = match config.backend {
            BackendKind::Cpu => {
                let layers = layers.iter().map(Arc::as_ref);
                let cpu = Cpu::new(&shape, layers, config.n_seqs, config.n_threads, config.isa, config.memory)?;
                Place::Host { backend: Box::new(cpu), exec: Executor::new(config.n_threads, config.parallel_for)? }
            }
            BackendKind::Cuda => {
                let mut cuda = Cuda::new(&shape, &layers, config.n_seqs, &config.cuda)?;
                warnings = cuda.take_warnings();
                Place::Device(Box::new(cuda))
            }
        };
        Ok(Self {
            shape,
            mirror: Mirror::new(layers.len(), n_seqs, matches!(place, Place::Device(_)))?,
            layers,
            place,
            stream: Stream::default(),
            capturing: false,
            entries: with_room(n_seqs, "batch entries")?,
            edits: with_room(n_seqs, "batch edits")?,
            seen: Seen::new(filled(n_seqs, 0, "batch marks")?),
            warnings,
            dead: None,
        })
    }

    /// What [`Cache::new`] would allocate, without allocating it.
    ///
    /// # Errors
    /// As [`Cache::new`], but for memory that cannot be had.
    pub fn footprint(config: &CacheConfig) -> Result<Footprint> {
        let (shape, layers) = validate(config)?;
        let n_seqs = u64::from(config.n_seqs);
        let cuda = config.backend == BackendKind::Cuda;
        let (kernels, device) = if cuda {
            (0, Cuda::bytes(&shape, &layers, config.n_seqs, &config.cuda)?)
        } else {
            (Cpu::bytes(&shape, layers.iter().map(Arc::as_ref), config.n_seqs, config.n_threads)?, 0)
        };
        let per_seq = size_of::<Entry>() + size_of::<(usize, u64)>() + size_of::<u64>();
        let counters = Mirror::bytes(layers.len() as u64, n_seqs, cuda);
        // At most 2^16 layers x 2^24 sequences x 40 bytes: no overflow but in the sum.
        let Some(host) = kernels.checked_add(per_seq as u64 * n_seqs + counters) else {
            bail!(OutOfMemory, "K, V and counters exceed 2^64 bytes");
        };
        Ok(Footprint { host, device })
    }

    /// Layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Sequences.
    #[must_use]
    pub fn n_seqs(&self) -> usize {
        self.mirror.n_seqs()
    }

    /// No further call but drop.
    pub(crate) fn poison(&mut self) {
        self.dead.get_or_insert(Status::Internal);
    }

    pub(super) fn alive(&self) -> Result<()> {
        match self.dead {
            None => Ok(()),
            Some(Status::DeviceLost) => {
                bail!(DeviceLost, "the device failed in an earlier call; only destroy works now")
            }
            Some(_) => bail!(Internal, "an earlier call failed inside; only destroy works now"),
        }
    }
}

/// Checks a whole configuration.
fn validate(config: &CacheConfig) -> Result<(Shape, Vec<Arc<Layer>>)> {
    let shape = config.shape()?;
    let n = config.n_layers as usize;
    if let [one] = config.layers.as_slice() {
        return Ok((shape, filled(n, Arc::new(config.layer(one)?), "layers")?));
    }
    let mut layers = with_room(n, "layers")?;
    for (i, layer) in config.layers.iter().enumerate() {
        let layer = config.layer(layer).map_err(|e| Error::new(e.status(), format!("layer {i}: {}", e.message())))?;
        layers.push(Arc::new(layer));
    }
    Ok((shape, layers))
}

//! What a cache consists of, and how it is made.

use super::counters::HostCounters;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Device, Stream};
use crate::batch::{Entry, SeqIdSet};
use crate::config::{BackendKind, CacheConfig, Footprint, Layers, Shape};
use crate::error::{Result, Status, bail};
use crate::exec::Executor;
use crate::memory::{boxed, filled, with_room};

/// KV cache of all layers and sequences of one model on one device.
///
/// After any error the cache is as it was.
#[derive(Debug)]
pub struct Cache {
    pub(super) shape: Shape,
    pub(super) layers: Layers,
    pub(super) counters: HostCounters,
    pub(super) place: Place,
    /// The stream that a CUDA cache's calls put their work into.
    pub(super) stream: Stream,
    /// Whether that stream is being captured into a graph: its work is recorded, not run.
    pub(super) capturing: bool,
    /// Entries of the current call; has capacity for every sequence.
    pub(super) entries: Vec<Entry>,
    /// Sequences of the current edit, each with its amount; has capacity for every sequence.
    pub(super) edits: Vec<SeqEdit>,
    /// Finds sequences that appear twice in the current call.
    pub(super) seq_ids: SeqIdSet,
    /// See [`Cache::warnings`].
    pub(super) warnings: Vec<String>,
    /// Set by a failure after which the cache can only be dropped.
    pub(super) failed: Option<Status>,
}

/// What an edit does to one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeqEdit {
    pub seq: usize,
    /// Index of its entry in the batch.
    pub index: usize,
    /// Tokens of an evict, a pin or an evict_range, the length after a rewind or an abort, the start position of a
    /// reset, the source of a fork.
    pub amount: u64,
}

/// Where a cache's memory is and its kernels run.
#[derive(Debug)]
pub(super) enum Place {
    /// On the CPU: a call returns when its work is done.
    Host { backend: Box<dyn Backend>, exec: Executor },
    /// On a GPU: a call puts its work into a stream and returns.
    Device(Box<dyn Device>),
}

impl Cache {
    /// Validates a configuration and allocates everything the cache will ever use.
    ///
    /// # Errors
    /// `InvalidConfig`, `BackendUnavailable`, `OutOfMemory`.
    pub fn new(config: &CacheConfig) -> Result<Self> {
        let (shape, layers) = config.validate()?;
        let n_seqs = config.n_seqs as usize;
        let mut warnings = Vec::new();
        let place = match config.backend {
            BackendKind::Cpu => {
                let cpu = Cpu::new(&shape, layers.iter(), config.n_seqs, config.n_threads, config.isa, config.memory)?;
                Place::Host {
                    backend: boxed(cpu, "the backend")?,
                    exec: Executor::new(config.n_threads, config.parallel_for)?,
                }
            }
            BackendKind::Cuda => {
                let mut cuda = Cuda::new(&shape, &layers, config.n_seqs, &config.cuda)?;
                warnings = cuda.take_warnings();
                Place::Device(boxed(cuda, "the backend")?)
            }
        };
        Ok(Self {
            shape,
            counters: HostCounters::new(&layers, n_seqs, matches!(place, Place::Device(_)))?,
            layers,
            place,
            stream: Stream::default(),
            capturing: false,
            entries: with_room(n_seqs, "batch entries")?,
            edits: with_room(n_seqs, "batch edits")?,
            seq_ids: SeqIdSet::new(filled(n_seqs, 0, "batch marks")?),
            warnings,
            failed: None,
        })
    }

    /// What [`Cache::new`] would allocate, without allocating it.
    ///
    /// # Errors
    /// As [`Cache::new`], except for failed allocations.
    pub fn footprint(config: &CacheConfig) -> Result<Footprint> {
        let (shape, layers) = config.validate()?;
        let n_seqs = u64::from(config.n_seqs);
        let cuda = config.backend == BackendKind::Cuda;
        let (kernels, device) = if cuda {
            (0, Cuda::bytes(&shape, &layers, config.n_seqs, &config.cuda)?)
        } else {
            (Cpu::bytes(&shape, layers.iter(), config.n_seqs, config.n_threads)?, 0)
        };
        let per_seq = size_of::<Entry>() + size_of::<SeqEdit>() + size_of::<u64>();
        let counters = HostCounters::bytes(&layers, n_seqs, cuda);
        // At most 2^16 layers x 2^24 sequences x 2^10 ranges of 32 bytes: only the sum can overflow.
        let Some(host) = kernels.checked_add(per_seq as u64 * n_seqs + counters) else {
            bail!(OutOfMemory, "K, V and counters exceed 2^64 bytes");
        };
        Ok(Footprint { host, device })
    }

    /// Number of layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of sequences.
    #[must_use]
    pub fn n_seqs(&self) -> usize {
        self.counters.n_seqs()
    }

    /// Makes every further call fail with `Internal`: a call has failed part way, so that the contents are undefined.
    pub(crate) fn poison(&mut self) {
        self.failed.get_or_insert(Status::Internal);
    }

    /// Fails if an earlier failure has made the cache unusable.
    pub(super) fn check_usable(&self) -> Result<()> {
        match self.failed {
            None => Ok(()),
            Some(Status::DeviceLost) => {
                bail!(DeviceLost, "the device failed in an earlier call; the cache can only be destroyed")
            }
            Some(_) => {
                bail!(Internal, "an earlier call failed with an internal error; the cache can only be destroyed")
            }
        }
    }
}

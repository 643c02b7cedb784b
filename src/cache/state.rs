//! The cache: sequences x layers over one backend. The only place where a call becomes work.

mod counters;
mod device;
mod edit;
mod info;

use std::sync::Arc;

use self::counters::Mirror;
pub use self::device::DeviceEdit;
pub use self::info::SeqInfo;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::{AppendRows, AttendRows, Backend, Device, Job, Stream};
use crate::batch::{Batch, BatchEntry, Entries, Entry, Seen};
use crate::config::{BackendKind, CacheConfig, DType, Footprint, Layer, Shape};
use crate::error::{Error, Result, Status, bail};
use crate::exec::Executor;
use crate::memory::{filled, with_room};
use crate::tensor::{RowsIn, RowsOut};

/// KV cache of all layers and sequences of one model on one device.
///
/// After any error the cache is as it was.
#[derive(Debug)]
pub struct Cache {
    shape: Shape,
    layers: Vec<Arc<Layer>>,
    mirror: Mirror,
    place: Place,
    /// Where a device's work goes.
    stream: Stream,
    /// Whether the stream records work for later.
    capturing: bool,
    /// The batch at hand; room for every sequence.
    entries: Vec<Entry>,
    /// An edit at hand: index and amount; room for every sequence.
    edits: Vec<(usize, u64)>,
    seen: Seen,
    /// What the host should know about how the cache was made.
    warnings: Vec<String>,
    /// Why no call but drop works any more, if so.
    dead: Option<Status>,
}

/// Who does the work.
#[derive(Debug)]
enum Place {
    /// Kernels on threads of this process, while the call lasts.
    Host { backend: Box<dyn Backend>, exec: Executor },
    /// Kernels in a stream, later.
    Device(Box<dyn Device>),
}

/// What a call works on, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    layer: usize,
    append: Option<AppendRows>,
    attend: Option<AttendRows>,
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

    /// Rotates and stores the next tokens of each sequence of a batch in one layer. K is `[rows, n_kv_heads, head_dim]`,
    /// V `[rows, n_kv_heads, head_dim_v]`.
    ///
    /// # Errors
    /// `ChunkTooLong` above `max_chunk` tokens of one sequence; argument errors.
    pub fn append(&mut self, layer: u32, batch: Batch<'_>, k: RowsIn<'_>, v: RowsIn<'_>) -> Result<()> {
        let layer = self.check_layer(layer)?;
        let rows = self.plan_append(layer, batch, Some(self.shape.max_chunk))?;
        let work = Work { layer, append: Some(self.append_rows(rows, k, v)?), attend: None };
        self.execute(work, batch)?;
        self.commit(work);
        Ok(())
    }

    /// Attention of the queries of the last tokens appended. Q is `[rows, n_q_heads, head_dim]`, out
    /// `[rows, n_q_heads, head_dim_v]`, lse f32 `[rows, n_q_heads]`: the natural log of the softmax denominator.
    ///
    /// # Errors
    /// `OutOfRange` for more queries than the latest append; argument errors.
    pub fn attend(
        &mut self,
        layer: u32,
        batch: Batch<'_>,
        q: RowsIn<'_>,
        out: RowsOut<'_>,
        lse: Option<RowsOut<'_>>,
    ) -> Result<()> {
        let layer = self.check_layer(layer)?;
        let rows = self.plan(batch, |cache, e, seq| {
            if cache.in_doubt(layer, seq) {
                return Ok(Entry::unchecked(e, seq));
            }
            let (state, start) = (cache.mirror.seq(layer, seq), cache.mirror.starts[seq]);
            Entry::attend(e, seq, state, start, &cache.layers[layer].ring)
        })?;
        let work = Work { layer, append: None, attend: Some(self.attend_rows(rows, q, out, lse)?) };
        self.execute(work, batch)
    }

    /// Append and attend in one call, any number of tokens.
    ///
    /// # Errors
    /// Argument errors.
    #[expect(clippy::too_many_arguments, reason = "the tensors of an attention layer")]
    pub fn step(
        &mut self,
        layer: u32,
        batch: Batch<'_>,
        k: RowsIn<'_>,
        v: RowsIn<'_>,
        q: RowsIn<'_>,
        out: RowsOut<'_>,
        lse: Option<RowsOut<'_>>,
    ) -> Result<()> {
        let work = self.plan_step(layer, batch, k, v, q, out, lse)?;
        self.execute(work, batch)?;
        self.commit(work);
        Ok(())
    }

    /// Checks a step and keeps its batch until [`Cache::commit`].
    #[expect(clippy::too_many_arguments, reason = "the tensors of an attention layer")]
    pub(crate) fn plan_step(
        &mut self,
        layer: u32,
        batch: Batch<'_>,
        k: RowsIn<'_>,
        v: RowsIn<'_>,
        q: RowsIn<'_>,
        out: RowsOut<'_>,
        lse: Option<RowsOut<'_>>,
    ) -> Result<Work> {
        let layer = self.check_layer(layer)?;
        let rows = self.plan_append(layer, batch, None)?;
        let append = Some(self.append_rows(rows, k, v)?);
        Ok(Work { layer, append, attend: Some(self.attend_rows(rows, q, out, lse)?) })
    }

    /// Does part `ith` of `nth` of planned work. Parts may run at the same time, one `ith` only once.
    ///
    /// # Errors
    /// `InvalidArgument` on a device, which divides its work itself.
    pub(crate) fn run_part(&self, work: Work, ith: u32, nth: u32) -> Result<()> {
        match &self.place {
            Place::Host { backend, .. } => {
                backend.run_part(&self.job(work), ith, nth);
                Ok(())
            }
            Place::Device(_) => bail!(InvalidArgument, "a thread team cannot do the work of a CUDA cache"),
        }
    }

    fn job(&self, work: Work) -> Job<'_> {
        Job {
            layer_index: work.layer,
            layer: &self.layers[work.layer],
            shape: &self.shape,
            entries: &self.entries,
            append: work.append,
            attend: work.attend,
        }
    }

    /// Marks the slots of planned work as overwritten: from here on the tokens they held are gone, commit or not.
    pub(crate) fn begin(&mut self, work: Work) {
        for e in &self.entries {
            let seq = self.mirror.seq_mut(work.layer, e.seq);
            seq.highest = seq.highest.max(e.first + e.n);
            // What queries of an earlier append still see may be overwritten too.
            seq.attendable = 0;
        }
    }

    /// Makes the tokens of finished work count.
    pub(crate) fn commit(&mut self, work: Work) {
        if self.capturing {
            return;
        }
        for e in &self.entries {
            let seq = self.mirror.seq_mut(work.layer, e.seq);
            // In doubt the count is only a part of what the host will be told: it may not wrap.
            seq.append(e.n.min(u64::MAX - seq.len));
            // After a step of many chunks only the last one's queries can still be asked.
            seq.attendable = e.n.min(self.shape.max_chunk);
        }
    }

    /// No further call but drop.
    pub(crate) fn poison(&mut self) {
        self.dead.get_or_insert(Status::Internal);
    }

    /// The most parts a step may be divided into.
    pub(crate) fn width(&self) -> u32 {
        match &self.place {
            Place::Host { exec, .. } => exec.width(),
            Place::Device(_) => 1,
        }
    }

    fn alive(&self) -> Result<()> {
        match self.dead {
            None => Ok(()),
            Some(Status::DeviceLost) => {
                bail!(DeviceLost, "the device failed in an earlier call; only destroy works now")
            }
            Some(_) => bail!(Internal, "an earlier call failed inside; only destroy works now"),
        }
    }

    fn check_layer(&self, layer: u32) -> Result<usize> {
        self.alive()?;
        if (layer as usize) < self.layers.len() {
            return Ok(layer as usize);
        }
        bail!(OutOfRange, "layer is {layer}: 0 to {} is allowed", self.layers.len() - 1)
    }

    fn check_seq_id(&self, seq_id: i32) -> Result<usize> {
        match usize::try_from(seq_id) {
            Ok(seq) if seq < self.n_seqs() => Ok(seq),
            _ => bail!(OutOfRange, "seq_id is {seq_id}: 0 to {} is allowed", self.n_seqs() - 1),
        }
    }

    /// Whether what a call may do to a sequence must be found out on the device.
    fn in_doubt(&self, layer: usize, seq: usize) -> bool {
        self.capturing || !self.mirror.sure(layer, seq)
    }

    /// Fills `entries` from a batch; returns its rows, padding included.
    fn plan(&mut self, batch: Batch<'_>, entry: impl Fn(&Self, &BatchEntry, usize) -> Result<Entry>) -> Result<u64> {
        self.entries.clear();
        let batch = match batch.place() {
            Entries::Host(batch) => batch,
            Entries::Device(batch) => return self.plan_on_device(&batch),
        };
        batch.check()?;
        self.seen.clear();
        for e in batch.entries() {
            let seq = self.seen.insert("seq_ids", e.index, e.seq)?;
            let entry = entry(self, &e, seq)?;
            self.entries.push(entry);
        }
        Ok(batch.rows())
    }

    fn plan_append(&mut self, layer: usize, batch: Batch<'_>, max_chunk: Option<u64>) -> Result<u64> {
        if let (Entries::Device(b), Some(most)) = (batch.place(), max_chunk)
            && u64::from(b.max_tokens) > most
        {
            bail!(ChunkTooLong, "max_tokens is {}: max_chunk is {most}", b.max_tokens);
        }
        self.plan(batch, |cache, e, seq| {
            if let Some(most) = max_chunk.filter(|&most| e.n > most) {
                bail!(ChunkTooLong, "n_tokens[{}] is {}: max_chunk is {most}", e.index, e.n);
            }
            if cache.in_doubt(layer, seq) {
                return Ok(Entry::unchecked(e, seq));
            }
            let (state, start) = (cache.mirror.seq(layer, seq), cache.mirror.starts[seq]);
            Entry::append(e, seq, state, start, &cache.layers[layer].ring)
        })
    }

    fn append_rows(&self, rows: u64, k: RowsIn<'_>, v: RowsIn<'_>) -> Result<AppendRows> {
        let s = &self.shape;
        self.check_place(&[("k", k.in_host_memory()), ("v", v.in_host_memory())])?;
        Ok(AppendRows {
            k: k.resolve("k", rows, s.n_kv_heads, s.head_dim, s.in_dtype)?,
            v: v.resolve("v", rows, s.n_kv_heads, s.head_dim_v, s.in_dtype)?,
        })
    }

    fn attend_rows(&self, rows: u64, q: RowsIn<'_>, out: RowsOut<'_>, lse: Option<RowsOut<'_>>) -> Result<AttendRows> {
        let s = &self.shape;
        let lse_on_host = lse.as_ref().is_some_and(RowsOut::in_host_memory);
        self.check_place(&[("q", q.in_host_memory()), ("out", out.in_host_memory()), ("lse", lse_on_host)])?;
        Ok(AttendRows {
            q: q.resolve("q", rows, s.n_q_heads, s.head_dim, s.in_dtype)?,
            out: out.resolve("out", rows, s.n_q_heads, s.head_dim_v, s.out_dtype)?,
            lse: lse.map(|lse| lse.resolve("lse", rows, s.n_q_heads, 1, DType::F32)).transpose()?,
        })
    }

    /// Runs planned work. A failure inside poisons the cache.
    fn execute(&mut self, work: Work, batch: Batch<'_>) -> Result<()> {
        match &self.place {
            Place::Host { backend, exec } => {
                let outcome = backend.run(&self.job(work), exec);
                if outcome.is_err() {
                    self.poison();
                }
                outcome
            }
            Place::Device(_) => self.enqueue(work, batch),
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

//! The CPU backend: kernels for the processor's instruction set over host memory.

mod append;
mod chunk;
mod decode;
mod element;
mod kv_layout;
mod kv_store;
mod query_tile;
mod rope_cache;
mod schedule;
mod scratch;
mod simd;
mod split_kv;
mod visibility;
mod worker;

use half::{bf16, f16};

use self::kv_store::Store;
use self::schedule::Kind;
use self::schedule::Round;
use self::schedule::share;
use self::scratch::ScratchPool;
use self::simd::Kernels;
use self::split_kv::Spans;
use self::worker::Worker;
use super::{Backend, KernelChoice, LayerCall, TokenCall};
use crate::batch::Entry;
use crate::config::{DType, Layer, Shape};
use crate::cpu_features::Isa;
use crate::error::{Error, Result, Status};
use crate::exec::Executor;
use crate::memory::Memory;

/// Below this many stored elements the cost of waking threads exceeds that of an append.
const PARALLEL_APPEND: u64 = 1 << 16;

/// K and V of all layers in host memory.
#[derive(Debug)]
pub(crate) struct Cpu {
    store: Store,
    scratch: ScratchPool,
    spans: Spans,
    kernels: Kernels,
    isa: Isa,
}

impl Cpu {
    /// Bytes of K, V and scratch.
    pub fn bytes<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer> + Clone,
        n_seqs: u32,
        n_threads: u32,
    ) -> Result<u64> {
        let too_large = || Error::new(Status::OutOfMemory, "K, V and scratch exceed 2^64 bytes");
        let spans = Spans::bytes(shape, layers.clone(), n_seqs, n_threads).ok_or_else(too_large)?;
        let kv = Store::bytes(shape, layers, n_seqs)?;
        let scratch = ScratchPool::bytes(shape, n_threads) as u64;
        kv.checked_add(scratch).and_then(|b| b.checked_add(spans)).ok_or_else(too_large)
    }

    /// Allocates everything the cache will ever use.
    pub fn new<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer> + Clone,
        n_seqs: u32,
        n_threads: u32,
        isa: Option<Isa>,
        memory: Memory,
    ) -> Result<Self> {
        let isa = Isa::choose(isa)?;
        Ok(Self {
            scratch: ScratchPool::new(shape, n_threads, memory)?,
            spans: Spans::new(shape, layers.clone(), n_seqs, n_threads, memory)?,
            store: Store::new(shape, layers, n_seqs, memory)?,
            kernels: Kernels::new(isa, shape.kv_dtype),
            isa,
        })
    }

    /// # Safety
    /// Nobody else may be worker `ith` meanwhile.
    unsafe fn worker<'a>(&'a self, job: &'a LayerCall<'a>, ith: u32) -> Worker<'a> {
        // SAFETY: the caller's contract.
        let scratch = unsafe { self.scratch.part(job.shape, ith) };
        Worker::new(job, &self.store, &self.kernels, self.isa, scratch)
    }

    /// Calls `unit` with a worker and every number below `n`, on as many threads as there are or units to do.
    fn share_out(
        &self,
        job: &LayerCall<'_>,
        exec: &Executor,
        n: u64,
        unit: impl Fn(&mut Worker<'_>, u64) + Sync,
    ) -> Result<()> {
        let next = std::sync::atomic::AtomicU64::new(0);
        let threads = u32::try_from(n).unwrap_or(u32::MAX).clamp(1, exec.width());
        exec.run(threads, &|ith| {
            // SAFETY: the executor runs each `ith` once at a time.
            let mut worker = unsafe { self.worker(job, ith) };
            loop {
                let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if at >= n {
                    break;
                }
                unit(&mut worker, at);
            }
        })
    }

    fn append_all<T: element::Stored>(&self, job: &LayerCall<'_>, exec: &Executor, round: Round) -> Result<()> {
        let shape = job.shape;
        let heads = shape.n_kv_heads as u64;
        let rows: u64 = job.entries.iter().map(|e| round.tokens(e).end - round.tokens(e).start).sum();
        let elements = rows.saturating_mul(heads * (shape.head_dim + shape.head_dim_v) as u64);
        if elements < PARALLEL_APPEND || exec.width() == 1 {
            // SAFETY: this call has all workers.
            let mut worker = unsafe { self.worker(job, 0) };
            for entry in job.entries {
                worker.append::<T>(entry, &round.tokens(entry), &(0..shape.n_kv_heads));
            }
            return Ok(());
        }
        // Each thread has a share of each entry's heads.
        let shares = heads.min(u64::from(exec.width()));
        self.share_out(job, exec, job.entries.len() as u64 * shares, |worker, at| {
            let (entry, share) = (&job.entries[(at / shares) as usize], at % shares);
            let heads = (heads * share / shares) as usize..(heads * (share + 1) / shares) as usize;
            worker.append::<T>(entry, &round.tokens(entry), &heads);
        })
    }

    fn attend_all(&self, job: &LayerCall<'_>, exec: &Executor, round: Round) -> Result<()> {
        let heads = job.shape.n_kv_heads as u64;
        let kind = |e: &Entry| Kind::new(job.shape, &round.tokens(e));
        let units: u64 = job.entries.iter().map(|e| kind(e).units() * heads).sum();
        if exec.width() > 1 && units < 4 * u64::from(exec.width()) && self.spans.fits(job, |e| kind(e) == Kind::Decode)
        {
            return self.attend_spans(job, exec, round);
        }
        self.share_out(job, exec, units, |worker, at| {
            let (entry, before) = worker.entry_of(at, |e| kind(e).units() * heads);
            let (units, at) = (kind(entry).units(), at - before);
            // Tiles of a head together: its keys stay in the cache.
            worker.attend(entry, &round.tokens(entry), (at / units) as usize, at % units);
        })
    }

    /// Too few heads for the threads there are: spans of one head are computed by different threads, and merged in order
    /// by whoever is last.
    fn attend_spans(&self, job: &LayerCall<'_>, exec: &Executor, round: Round) -> Result<()> {
        let heads = job.shape.n_kv_heads as u64;
        let count = |e: &Entry| schedule::span_count(job, e, &round.tokens(e));
        let begun = self.spans.begin(job, |e| count(e));
        self.share_out(job, exec, begun, |worker, at| {
            let (entry, before) = worker.entry_of(at, |e| count(e) * heads);
            let (n, at) = (count(entry), at - before);
            let unit = worker.entry_index() as u64 * heads + at / n;
            worker.attend_span(entry, &round.tokens(entry), (at / n) as usize, at % n, &self.spans, unit as usize);
        })
    }

    fn run_typed<T: element::Stored>(&self, job: &LayerCall<'_>, exec: &Executor) -> Result<()> {
        for round in Round::all(job) {
            if job.append.is_some() {
                self.append_all::<T>(job, exec, round)?;
            }
            if job.attend.is_some() {
                self.attend_all(job, exec, round)?;
            }
        }
        Ok(())
    }

    fn part_typed<T: element::Stored>(&self, job: &LayerCall<'_>, ith: u32, nth: u32) {
        // SAFETY: the trait's contract: one `ith` runs only once at a time.
        let mut worker = unsafe { self.worker(job, ith) };
        for (entry, heads) in share(job.entries, job.shape.n_kv_heads, ith, nth) {
            // One head's chunk is stored and attended before its next chunk may overwrite what the queries still see.
            for round in Round::all(job) {
                let tokens = round.tokens(entry);
                if tokens.is_empty() {
                    break;
                }
                if job.append.is_some() {
                    worker.append::<T>(entry, &tokens, &heads);
                }
                for head in heads.clone() {
                    if job.attend.is_some() {
                        let units = Kind::new(job.shape, &tokens).units();
                        (0..units).for_each(|unit| worker.attend(entry, &tokens, head, unit));
                    }
                }
            }
        }
    }
}

impl Backend for Cpu {
    fn run(&self, job: &LayerCall<'_>, exec: &Executor) -> Result<()> {
        match job.shape.kv_dtype {
            DType::F32 => self.run_typed::<f32>(job, exec),
            DType::F16 => self.run_typed::<f16>(job, exec),
            DType::Bf16 => self.run_typed::<bf16>(job, exec),
        }
    }

    fn run_part(&self, job: &LayerCall<'_>, ith: u32, nth: u32) {
        match job.shape.kv_dtype {
            DType::F32 => self.part_typed::<f32>(job, ith, nth),
            DType::F16 => self.part_typed::<f16>(job, ith, nth),
            DType::Bf16 => self.part_typed::<bf16>(job, ith, nth),
        }
    }

    fn choice(&self, shape: &Shape, call: TokenCall, n_tokens: u64) -> KernelChoice {
        // AMX serves chunks alone.
        let plain = if self.isa == Isa::Amx { Isa::Avx512 } else { self.isa };
        let (kernel, isa) = match (call, Kind::new(shape, &(0..n_tokens))) {
            (TokenCall::Append, _) | (_, Kind::Nothing) => ("append", plain),
            (_, Kind::Decode) => ("decode", plain),
            (_, Kind::Tiles(_)) => ("chunk", chunk::isa_for_chunks(shape, self.isa)),
        };
        let kernel = format!("cpu_{kernel}_{}", isa.name());
        KernelChoice { kernel, launches: 0, grid: [0; 3], threads: 0, shared_bytes: 0, n_splits: 0 }
    }

    fn copy_sequence(&self, layer: usize, settings: &Layer, src: usize, dst: usize, slots: u64) {
        self.store.copy_sequence(layer, &settings.ring, src, dst, slots);
    }
}

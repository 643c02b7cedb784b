//! The CPU backend: kernels for the processor's instruction set over host memory.

mod append;
mod chunk;
mod code_store;
mod decode;
mod decode_integers;
mod element;
mod kv_layout;
mod kv_rows;
mod kv_store;
mod query_tile;
mod rope_cache;
mod rounded_queries;
mod row_moves;
mod schedule;
mod scratch;
mod segments;
mod simd;
mod split_kv;
mod turn_cache;
mod turned_queries;
mod visibility;
mod worker;

use self::kv_store::KvStore;
use self::schedule::AttendPath;
use self::schedule::ChunkRange;
use self::schedule::share;
use self::scratch::ScratchPool;
use self::simd::Kernels;
use self::split_kv::SplitPartials;
use self::worker::{SplitUnit, Worker};
use super::{Backend, KernelChoice, LayerCall, RowMove, SlotRun, TokenCall};
use crate::batch::Entry;
use crate::config::{Layer, Shape};
use crate::cpu_features::Isa;
use crate::error::{Error, Result, Status};
use crate::exec::Executor;
use crate::memory::Memory;

/// The name of a kernel and an instruction set.
macro_rules! kernel_name {
    ($kernel:literal, $isa:expr) => {
        match $isa {
            Isa::Scalar => concat!("cpu_", $kernel, "_scalar"),
            Isa::Avx2 => concat!("cpu_", $kernel, "_avx2"),
            Isa::Avx512 => concat!("cpu_", $kernel, "_avx512"),
            Isa::Amx => concat!("cpu_", $kernel, "_amx"),
            Isa::Neon => concat!("cpu_", $kernel, "_neon"),
        }
    };
}

/// Below this many stored elements, waking threads costs more than the append.
const PARALLEL_APPEND: u64 = 1 << 16;

/// K and V of all layers in host memory.
#[derive(Debug)]
pub(crate) struct Cpu {
    store: KvStore,
    scratch: ScratchPool,
    splits: SplitPartials,
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
        let splits = SplitPartials::bytes(shape, layers.clone(), n_seqs, n_threads).ok_or_else(too_large)?;
        let kv = KvStore::bytes(shape, layers, n_seqs)?;
        let scratch = ScratchPool::bytes(shape, n_threads) as u64;
        kv.checked_add(scratch).and_then(|b| b.checked_add(splits)).ok_or_else(too_large)
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
            splits: SplitPartials::new(shape, layers.clone(), n_seqs, n_threads, memory)?,
            store: KvStore::new(shape, layers, n_seqs, memory)?,
            kernels: Kernels::new(isa, shape.k_type, shape.v_type),
            isa,
        })
    }

    /// # Safety
    /// Nobody else may be worker `ith` at the same time.
    unsafe fn worker<'a>(&'a self, call: &'a LayerCall<'a>, ith: u32) -> Worker<'a> {
        // SAFETY: nobody else is worker `ith`.
        let scratch = unsafe { self.scratch.part(call.shape, ith) };
        Worker::new(call, &self.store, &self.kernels, self.isa, scratch)
    }

    /// Calls `unit` with a worker and every number below `n`, on as many threads as there are, at most `n`.
    fn share_out(
        &self,
        call: &LayerCall<'_>,
        exec: &Executor,
        n: u64,
        unit: impl Fn(&mut Worker<'_>, u64) + Sync,
    ) -> Result<()> {
        let next = std::sync::atomic::AtomicU64::new(0);
        let threads = u32::try_from(n).unwrap_or(u32::MAX).clamp(1, exec.width());
        exec.run(threads, &|ith| {
            // SAFETY: the executor runs each `ith` at most once at a time.
            let mut worker = unsafe { self.worker(call, ith) };
            loop {
                let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if at >= n {
                    break;
                }
                unit(&mut worker, at);
            }
        })
    }

    fn append_all(&self, call: &LayerCall<'_>, exec: &Executor, range: ChunkRange) -> Result<()> {
        let shape = call.shape;
        let heads = shape.n_kv_heads as u64;
        let rows: u64 = call.entries.iter().map(|e| range.tokens(e).end - range.tokens(e).start).sum();
        let elements = rows.saturating_mul(heads * (shape.head_dim + shape.head_dim_v) as u64);
        if elements < PARALLEL_APPEND || exec.width() == 1 {
            // SAFETY: this call alone uses the cache, and no other thread is at work.
            let mut worker = unsafe { self.worker(call, 0) };
            for entry in call.entries {
                worker.append(entry, &range.tokens(entry), &(0..shape.n_kv_heads));
            }
            return Ok(());
        }
        // Each unit is a share of an entry's heads.
        let shares = heads.min(u64::from(exec.width()));
        self.share_out(call, exec, call.entries.len() as u64 * shares, |worker, at| {
            let (entry, share) = (&call.entries[(at / shares) as usize], at % shares);
            let heads = (heads * share / shares) as usize..(heads * (share + 1) / shares) as usize;
            worker.append(entry, &range.tokens(entry), &heads);
        })
    }

    fn attend_all(&self, call: &LayerCall<'_>, exec: &Executor, range: ChunkRange) -> Result<()> {
        let heads = call.shape.n_kv_heads as u64;
        let path = |e: &Entry| AttendPath::new(call.shape, &range.tokens(e));
        let units: u64 = call.entries.iter().map(|e| path(e).units() * heads).sum();
        if exec.width() > 1
            && units < 4 * u64::from(exec.width())
            && self.splits.fits(call, |e| path(e) == AttendPath::Decode)
        {
            return self.attend_splits(call, exec, range);
        }
        self.share_out(call, exec, units, |worker, at| {
            let (entry, before) = worker.entry_of(at, |e| path(e).units() * heads);
            let (units, at) = (path(entry).units(), at - before);
            // All tiles of a head follow one another: its keys stay in the processor's cache.
            worker.attend(entry, &range.tokens(entry), (at / units) as usize, at % units);
        })
    }

    /// For fewer heads than keep the threads busy: different threads compute the KV splits of one head, and the last of
    /// them merges them in order.
    fn attend_splits(&self, call: &LayerCall<'_>, exec: &Executor, range: ChunkRange) -> Result<()> {
        let heads = call.shape.n_kv_heads as u64;
        let count = |e: &Entry| schedule::split_count(call, e, &range.tokens(e));
        let begun = self.splits.begin(call, |e| count(e));
        self.share_out(call, exec, begun, |worker, at| {
            let (entry, before) = worker.entry_of(at, |e| count(e) * heads);
            let (n, at) = (count(entry), at - before);
            let (head, split) = ((at / n) as usize, at % n);
            let unit = SplitUnit { head, split, index: worker.entry_index() * heads as usize + head };
            worker.attend_split(entry, &range.tokens(entry), &unit, &self.splits);
        })
    }
}

impl Backend for Cpu {
    fn run(&self, call: &LayerCall<'_>, exec: &Executor) -> Result<()> {
        for range in ChunkRange::all(call) {
            if call.append.is_some() {
                self.append_all(call, exec, range)?;
            }
            if call.attend.is_some() {
                self.attend_all(call, exec, range)?;
            }
        }
        Ok(())
    }

    fn run_part(&self, call: &LayerCall<'_>, ith: u32, nth: u32) {
        // SAFETY: by the trait's contract, each `ith` runs at most once at a time.
        let mut worker = unsafe { self.worker(call, ith) };
        for (entry, heads) in share(call.entries, call.shape.n_kv_heads, ith, nth) {
            // A chunk is stored and attended before the next chunk may overwrite what its queries still see.
            for range in ChunkRange::all(call) {
                let tokens = range.tokens(entry);
                if tokens.is_empty() {
                    break;
                }
                if call.append.is_some() {
                    worker.append(entry, &tokens, &heads);
                }
                for head in heads.clone() {
                    if call.attend.is_some() {
                        let units = AttendPath::new(call.shape, &tokens).units();
                        (0..units).for_each(|unit| worker.attend(entry, &tokens, head, unit));
                    }
                }
            }
        }
    }

    fn choice(&self, shape: &Shape, call: TokenCall, n_tokens: u64) -> KernelChoice {
        // AMX serves chunks alone.
        let plain = if self.isa == Isa::Amx { Isa::Avx512 } else { self.isa };
        let kernel = match (call, AttendPath::new(shape, &(0..n_tokens))) {
            (TokenCall::Append, _) | (_, AttendPath::Nothing) => kernel_name!("append", plain),
            (_, AttendPath::Decode) => kernel_name!("decode", plain),
            (_, AttendPath::Tiles(_)) => kernel_name!("chunk", chunk::isa_for_chunks(shape, self.isa)),
        };
        KernelChoice { kernel, launches: 0, grid: [0; 3], threads: 0, shared_bytes: 0, n_splits: 0 }
    }

    fn copy_sequence(&self, layer: usize, settings: &Layer, src: usize, dst: usize, used: [u64; 2]) {
        self.store.copy_sequence(layer, &settings.ring, (src, dst), used);
    }

    fn move_rows(&self, layer: usize, settings: &Layer, seq: usize, rows: RowMove) {
        self.store.move_rows(layer, &settings.ring, seq, rows);
    }

    fn read_rows(&self, run: &SlotRun<'_>, out: &mut [u8]) {
        self.store.read_rows(run, out);
    }

    fn write_rows(&self, run: &SlotRun<'_>, rows: &[u8]) {
        self.store.write_rows(run, rows);
    }
}

//! The interface between cache and backends.
//!
//! A `Backend` (CPU) works in host memory and has finished when a call returns. The cache resolves slots and
//! positions before the call. A `Device` (CUDA) works asynchronously in the host's stream and has counters of its own
//! in device memory: its kernels resolve slots and positions by the same arithmetic, and the cache's host counters are
//! a copy.

pub mod cpu;
pub(crate) mod cuda;

use crate::batch::{BatchArrays, DeviceEdit, Entry};
use crate::config::{Layer, Shape, Which};
use crate::error::Result;
use crate::exec::Executor;
use crate::ranges::EditedRange;
use crate::ring::Seq;
use crate::tensor::Strided;

/// K and V in host memory, and kernels on CPU threads.
pub(crate) trait Backend: Send + Sync + std::fmt::Debug {
    /// Runs a call on the executor's threads.
    ///
    /// # Errors
    /// `Internal` when a thread panicked.
    fn run(&self, call: &LayerCall<'_>, exec: &Executor) -> Result<()>;

    /// Runs part `ith` of `nth` of a call. Parts may run concurrently and in any order; each `ith` must run once.
    fn run_part(&self, call: &LayerCall<'_>, ith: u32, nth: u32);

    /// Copies the used slots of every head of sequence `src` to `dst`, in one layer: the first ones of sinks and pinned
    /// tokens, and the first ones of the ring.
    fn copy_sequence(&self, layer: usize, settings: &Layer, src: usize, dst: usize, used: [u64; 2]);

    /// Moves the rows of `n` slots of every head of a sequence in one layer, which may overlap.
    fn move_rows(&self, layer: usize, settings: &Layer, seq: usize, rows: RowMove);

    /// Reads the stored rows of a run of slots in canonical order, one after the other.
    fn read_rows(&self, run: &SlotRun<'_>, out: &mut [u8]);

    /// Writes what [`Self::read_rows`] reads.
    fn write_rows(&self, run: &SlotRun<'_>, rows: &[u8]);

    /// The kernel that a call on `n_tokens` tokens of each sequence runs.
    fn choice(&self, shape: &Shape, call: TokenCall, n_tokens: u64) -> KernelChoice;
}

/// Consecutive slots of one region (sinks or ring) of a sequence in a layer, of which K or V of one head is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotRun<'a> {
    pub shape: &'a Shape,
    pub layer: usize,
    pub settings: &'a Layer,
    pub seq: usize,
    pub which: Which,
    pub head: usize,
    pub slot: u64,
    pub n: u64,
}

/// A move of the rows in `n` slots from slot `from` on to those from slot `to` on. Neither crosses the end of its
/// region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowMove {
    pub from: u64,
    pub to: u64,
    pub n: u64,
}

impl SlotRun<'_> {
    /// Bytes of one stored row in canonical order.
    pub fn row_bytes(&self) -> usize {
        self.shape.row_bytes(self.which)
    }
}

/// Where a run of slots lies in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DevicePlace {
    /// The context (`CUcontext`) as a number.
    pub context: usize,
    /// Addresses of codes (or numbers) and of scales.
    pub codes: u64,
    pub scales: u64,
}

/// A call on tokens, as opposed to an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenCall {
    /// Rotates and stores keys and values.
    Append,
    /// Computes attention for tokens appended before.
    Attend,
    /// Append and attend.
    Step,
}

/// The kernel that a call runs, and its launch. For a call of several chunks: that of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// The kernel's name. If a step runs an append kernel and an attention kernel, that of the latter.
    pub kernel: &'static str,
    /// Kernel launches of the whole call; 0 on the CPU. Launches that copy a batch of more than 64 entries to device
    /// memory are not counted.
    pub launches: u64,
    /// Thread blocks of the launch in x, y and z. This and the following fields are 0 on the CPU.
    pub grid: [u32; 3],
    /// Threads per block.
    pub threads: u32,
    /// Bytes of shared memory per block.
    pub shared_bytes: u32,
    /// KV splits: thread blocks that divide the keys of one KV head of one sequence among them.
    pub n_splits: u32,
}

/// A checked call on one layer of a CPU cache: append, attend, or both in turn for each chunk.
#[derive(Debug)]
pub(crate) struct LayerCall<'a> {
    pub layer_index: usize,
    pub layer: &'a Layer,
    pub shape: &'a Shape,
    pub entries: &'a [Entry],
    /// Room for the ranges of the layer's sequences: `[sequence][max_segments]`.
    pub ranges: &'a [EditedRange],
    pub append: Option<AppendRows>,
    pub attend: Option<AttendRows>,
}

impl LayerCall<'_> {
    /// The pinned and evicted ranges of an entry's sequence.
    pub fn ranges_of(&self, entry: &Entry) -> &[EditedRange] {
        &self.ranges[entry.seq * self.layer.ring.max_segments as usize..][..entry.n_ranges as usize]
    }
}

/// Keys and values to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AppendRows {
    pub k: Strided,
    pub v: Strided,
}

/// Queries, and the tensors that results are written to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttendRows {
    pub q: Strided,
    pub out: Strided,
    pub lse: Option<Strided>,
}

/// A CUDA stream of the host as a number; 0 is the legacy default stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream(pub(crate) usize);

/// K, V and counters in device memory, and kernels in a stream. Only methods that say so wait for the device.
pub(crate) trait Device: Send + Sync + std::fmt::Debug {
    /// Puts append, attend, or both into the stream.
    fn run(&self, call: &DeviceCall<'_>) -> Result<()>;

    /// Puts an edit of sequences, in all layers, into the stream.
    fn edit(&self, edit: &Edit<'_>) -> Result<()>;

    /// The kernel that a call runs on `n_tokens >= 1` tokens of each of `n_entries` sequences, if their rows begin at
    /// multiples of 16 bytes.
    fn choice(&self, layer: usize, call: TokenCall, n_entries: u32, n_tokens: u32) -> Result<KernelChoice>;

    /// Whether the stream is being captured: work is recorded into a graph instead of run.
    fn capturing(&self, stream: Stream) -> Result<bool>;

    /// Waits for the stream and reads a sequence's counters in every layer, and its start position.
    fn read_back(&self, stream: Stream, seq: usize, states: &mut [Seq]) -> Result<u64>;

    /// Waits for the stream and reads the first ranges of a sequence's list in a layer: as many as `out` has room for.
    fn read_ranges(&self, stream: Stream, layer: usize, seq: usize, out: &mut [EditedRange]) -> Result<()>;

    /// Puts a copy of stored rows to the host into the stream: as [`Backend::read_rows`]. `out` may be read after
    /// [`Self::wait`].
    fn read_rows(&self, stream: Stream, run: &SlotRun<'_>, out: &mut [u8]) -> Result<()>;

    /// Puts a copy of rows from the host into the stream: as [`Backend::write_rows`]. Rows in pinned memory must stay
    /// as they are until the stream's work has finished.
    fn write_rows(&self, stream: Stream, run: &SlotRun<'_>, rows: &[u8]) -> Result<()>;

    /// Puts a copy of rows from another cache of the same context into the stream; `false` if `other` is in another
    /// context.
    fn copy_rows(&self, stream: Stream, to: &SlotRun<'_>, other: &dyn Device, from: &SlotRun<'_>) -> Result<bool>;

    /// Where a run of slots lies.
    fn place_of(&self, run: &SlotRun<'_>) -> Result<DevicePlace>;

    /// Puts a write of a sequence's counters and ranges in every layer, and of its start position, into the stream.
    fn write_counters(
        &self,
        stream: Stream,
        seq: usize,
        states: &mut dyn Iterator<Item = (Seq, &[EditedRange])>,
        start: u64,
    ) -> Result<()>;

    /// Waits for the stream.
    fn wait(&self, stream: Stream) -> Result<()>;

    /// Returns and clears the record of invalid entries that completed work has skipped.
    fn take_error(&self) -> Option<DeviceError>;

    /// Waits for all work, before the cache is dropped.
    fn finish(&self) -> Result<()>;
}

/// A call on one layer of a CUDA cache: append, attend, or both.
#[derive(Debug)]
pub(crate) struct DeviceCall<'a> {
    pub layer: usize,
    pub batch: BatchArrays<'a>,
    pub append: Option<AppendRows>,
    pub attend: Option<AttendRows>,
    pub stream: Stream,
}

/// Which edit. The numbers are those of the kernels, and of `SKC_CALL_` in the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum EditCall {
    Evict = 3,
    Rewind = 4,
    Reset = 5,
    Fork = 6,
    Abort = 7,
    // 8 is SKC_CALL_STEP.
    Pin = 9,
    EvictRange = 10,
}

/// An edit of sequences.
#[derive(Debug)]
pub(crate) struct Edit<'a> {
    pub call: EditCall,
    pub entries: EditEntries<'a>,
    pub stream: Stream,
}

/// The entries of an edit: for each a sequence (in a fork: the destination) and, depending on the call, a token count
/// (in a fork: the source) or a start position.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EditEntries<'a> {
    /// Arrays in host memory, empty where the call has none.
    Host { ids: &'a [i32], tokens: &'a [i32], positions: &'a [u64] },
    /// Arrays in device memory.
    Device(DeviceEdit),
    /// All sequences.
    All,
}

/// The invalid batch entries that a device has skipped: their number, and the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceError {
    /// Number of entries skipped; the other fields describe the first of them.
    pub count: u32,
    /// The status that the call would have returned for a batch in host memory, as a number of the C ABI.
    pub status: i32,
    /// The call, one of `SKC_CALL_` of the C ABI.
    pub call: u32,
    /// The layer; 2^32 - 1 for edits, which concern all layers.
    pub layer: u32,
    /// Index of the entry in its batch.
    pub entry: u32,
    /// Sequence id as the caller gave it.
    pub seq_id: i32,
    /// The entry's token count as the caller gave it (in a fork: its source), sign-extended; 0 for reset and abort.
    pub value: u64,
}

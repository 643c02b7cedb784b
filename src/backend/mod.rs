//! What a device must do.
//!
//! A `Backend` works while it is called, in host memory: which slots and positions a call means is decided before it
//! gets here. A `Device` works later, in a host's stream, and keeps the counters itself: it decides by the same
//! arithmetic, and the host's counters are a mirror.

pub mod cpu;
pub(crate) mod cuda;

use crate::batch::{DeviceBatch, Entry, HostBatch};
use crate::config::{Layer, Shape};
use crate::error::Result;
use crate::exec::Executor;
use crate::ring::Seq;
use crate::tensor::Strided;

/// Memory and kernels in host memory.
pub(crate) trait Backend: Send + Sync + std::fmt::Debug {
    /// Does a job, on the executor's threads.
    ///
    /// # Errors
    /// `Internal` when something panicked.
    fn run(&self, job: &Job<'_>, exec: &Executor) -> Result<()>;

    /// Does part `ith` of `nth` of a job; all parts together do it once. Parts need no order among them and may run at
    /// the same time, but one `ith` only once.
    fn run_part(&self, job: &Job<'_>, ith: u32, nth: u32);

    /// Copies the first `slots` slots of every head of one sequence over another's, in one layer.
    fn copy_sequence(&self, layer: usize, settings: &Layer, src: usize, dst: usize, slots: u64);

    /// The kernel for a call on `n_tokens` tokens of each sequence.
    fn choice(&self, shape: &Shape, call: TokenCall, n_tokens: u64) -> KernelChoice;
}

/// A call on the tokens of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenCall {
    /// Rotate and store.
    Append,
    /// Attention of tokens appended before.
    Attend,
    /// Both.
    Step,
}

/// Which kernel does a call's work, and how it is launched; of a call of several chunks, for the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// The kernel's name; of a step that takes several, that of its attention.
    pub kernel: String,
    /// Launches that the call takes; 0 on the CPU. Those that write a batch of more than 64 entries to device memory are
    /// not counted.
    pub launches: u64,
    /// Blocks of the launch in x, y and z; 0 on the CPU, as all that follows.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks that share the keys of one KV head of one sequence.
    pub n_splits: u32,
}

/// Rotate and store, attend, or one after the other for each chunk.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub layer_index: usize,
    pub layer: &'a Layer,
    pub shape: &'a Shape,
    pub entries: &'a [Entry],
    pub append: Option<AppendRows>,
    pub attend: Option<AttendRows>,
}

/// Rows to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AppendRows {
    pub k: Strided,
    pub v: Strided,
}

/// Queries, and where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttendRows {
    pub q: Strided,
    pub out: Strided,
    pub lse: Option<Strided>,
}

/// A host's stream as a number; 0 is the default stream. The CPU has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream(pub(crate) usize);

/// Memory, counters and kernels of a device with streams. Work is put into the stream; only what says so waits.
pub(crate) trait Device: Send + Sync + std::fmt::Debug {
    /// Append, attend, or both.
    fn run(&self, job: &DeviceJob<'_>) -> Result<()>;

    /// Edits sequences, all layers at once.
    fn edit(&self, edit: &Edit<'_>) -> Result<()>;

    /// The kernel for a call on `n_tokens` tokens, at least one, of each of `n_entries` sequences, whose rows begin at
    /// multiples of 16 bytes.
    fn choice(&self, layer: usize, call: TokenCall, n_entries: u32, n_tokens: u32) -> Result<KernelChoice>;

    /// Whether work put into the stream is recorded for later instead of done.
    fn capturing(&self, stream: Stream) -> Result<bool>;

    /// Waits for the stream and reads a sequence's counters in every layer, and its start position.
    fn read_back(&self, stream: Stream, seq: usize, states: &mut [Seq]) -> Result<u64>;

    /// Takes the record of what the device has refused so far, of work that is done.
    fn take_error(&self) -> Option<DeviceError>;

    /// Waits for all work: what comes next is the end.
    fn finish(&self) -> Result<()>;
}

/// Work for a device.
#[derive(Debug)]
pub(crate) struct DeviceJob<'a> {
    pub layer: usize,
    pub batch: JobBatch<'a>,
    pub append: Option<AppendRows>,
    pub attend: Option<AttendRows>,
    pub stream: Stream,
}

/// The entries of a device's job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum JobBatch<'a> {
    Host(HostBatch<'a>),
    Device(DeviceBatch),
}

/// Which edit. The numbers are those of the kernels and of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum EditCall {
    Evict = 3,
    Rewind = 4,
    Reset = 5,
    Fork = 6,
    Abort = 7,
}

/// An edit of sequences.
#[derive(Debug)]
pub(crate) struct Edit<'a> {
    pub call: EditCall,
    pub entries: EditEntries<'a>,
    pub stream: Stream,
}

/// The sequences of an edit (of a fork: the destinations), and with each its tokens (of a fork: its source) or position.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EditEntries<'a> {
    /// Empty where the call has none.
    Host { ids: &'a [i32], tokens: &'a [i32], positions: &'a [u64] },
    /// 0 where the call has none.
    Device { ids: u64, tokens: u64, positions: u64, n: u32 },
    /// Every sequence.
    All,
}

/// What a device has refused: how many entries, and the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceError {
    /// Entries skipped; the rest describes the first.
    pub count: u32,
    /// The status a host that knew the counts would have got, as a number of the C ABI.
    pub status: i32,
    /// Which call: one of `SKC_CALL_` of the C ABI.
    pub call: u32,
    /// Layer; 2^32 - 1 for edits.
    pub layer: u32,
    /// Index in its batch.
    pub entry: u32,
    /// Sequence id as given.
    pub seq_id: i32,
    /// The count that was refused.
    pub value: u64,
}

//! Ragged batches: for each entry a sequence and a token count. Rows are packed in the order of the entries.

use crate::error::{Result, bail};
use crate::ring::{Ring, Seq};

/// A ragged batch. Entry i is `n_tokens[i]` consecutive rows of sequence `seq_ids[i]`, after the rows of entries 0..i.
/// Sequence -1 is padding: its rows are skipped.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    arrays: BatchArrays<'a>,
    in_step: bool,
}

/// A batch's arrays, in host or device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BatchArrays<'a> {
    Host(HostBatch<'a>),
    Device(DeviceBatch),
}

/// A batch in host memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostBatch<'a> {
    pub seq_ids: &'a [i32],
    pub n_tokens: &'a [i32],
}

/// A batch whose arrays are in device memory: the host does not read them.
#[derive(Clone, Copy, Debug)]
pub struct DeviceBatch {
    /// Device address of the sequence ids, -1 for padding.
    pub seq_ids: u64,
    /// Device address of the tokens per entry.
    pub n_tokens: u64,
    /// Elements of both.
    pub n_entries: u32,
    /// The most tokens an entry may have: the device skips an entry with more.
    pub max_tokens: u32,
    /// Rows of the tensors: the device skips an entry that reaches beyond.
    pub n_rows: u64,
}

/// The arrays of an edit in device memory, as device addresses.
#[derive(Clone, Copy, Debug)]
pub struct DeviceEdit {
    /// Sequence ids; of a fork, the destinations. -1 is padding.
    pub seq_ids: u64,
    /// Tokens per entry; of a fork, the sources. Unused by reset.
    pub n_tokens: u64,
    /// Index of each range's first token (u64 each), of pin and `evict_range`; 0 where the call has none.
    pub first: u64,
    /// Start positions (u64 each) of a reset; address 0 = every sequence starts at position 0.
    pub positions: u64,
    /// Elements of each array.
    pub n_entries: u32,
}

impl<'a> Batch<'a> {
    /// A batch in host memory: entry i is `n_tokens[i]` tokens of sequence `seq_ids[i]`.
    #[must_use]
    pub fn new(seq_ids: &'a [i32], n_tokens: &'a [i32]) -> Self {
        Self { arrays: BatchArrays::Host(HostBatch { seq_ids, n_tokens }), in_step: false }
    }

    /// A batch whose arrays are in device memory; for the CUDA backend.
    ///
    /// # Safety
    /// Both arrays must be readable on the device, for `n_entries` elements, whenever the work runs: at every
    /// replay if it is captured into a graph.
    #[must_use]
    pub unsafe fn on_device(batch: DeviceBatch) -> Self {
        Self { arrays: BatchArrays::Device(batch), in_step: false }
    }

    /// Appends are refused where layers are not as a forward pass in order leaves them: the layers before it have the
    /// batch's tokens already, those after it have not. Not checked where the host does not know the lengths.
    #[must_use]
    pub fn in_step(self) -> Self {
        Self { in_step: true, ..self }
    }

    /// Rows of the batch's tensors, padding included.
    #[must_use]
    pub fn rows(self) -> u64 {
        match self.arrays {
            BatchArrays::Host(batch) => batch.rows(),
            BatchArrays::Device(batch) => batch.n_rows,
        }
    }

    pub(crate) fn arrays(self) -> BatchArrays<'a> {
        self.arrays
    }

    pub(crate) fn is_in_step(self) -> bool {
        self.in_step
    }
}

impl<'a> HostBatch<'a> {
    /// # Errors
    /// `InvalidArgument` for a negative count, or slices of different lengths.
    pub fn check(self) -> Result<()> {
        if self.seq_ids.len() != self.n_tokens.len() {
            bail!(InvalidArgument, "{} sequence ids but {} token counts", self.seq_ids.len(), self.n_tokens.len());
        }
        if let Some(i) = self.n_tokens.iter().position(|&n| n < 0) {
            bail!(InvalidArgument, "n_tokens[{i}] is {}: at least 0 is needed", self.n_tokens[i]);
        }
        Ok(())
    }

    /// The entries of a checked batch, each with its first row; padding is left out.
    pub fn entries(self) -> impl Iterator<Item = RawEntry> + use<'a> {
        let mut row = 0_u64;
        self.seq_ids.iter().zip(self.n_tokens).enumerate().filter_map(move |(index, (&seq, &n))| {
            let n = u64::from(n.unsigned_abs());
            let entry = RawEntry { index, seq, row, n };
            row += n;
            (seq != -1 && n > 0).then_some(entry)
        })
    }

    /// Rows of the whole batch, padding included; the batch must be checked.
    pub fn rows(self) -> u64 {
        self.n_tokens.iter().map(|&n| u64::from(n.unsigned_abs())).sum()
    }
}

/// One entry as the caller gave it: its sequence id is not checked.
#[derive(Clone, Copy, Debug)]
pub struct RawEntry {
    /// Its index in the batch, for error texts.
    pub index: usize,
    pub seq: i32,
    /// Its first row in the caller's tensors.
    pub row: u64,
    /// Rows.
    pub n: u64,
}

/// One entry as a backend gets it: checked, with its place in the stream.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The sequence, in range.
    pub seq: usize,
    /// Its first row in the caller's tensors.
    pub row: u64,
    /// Rows.
    pub n: u64,
    /// Index of the first row's token in its sequence.
    pub first: u64,
    /// Stream position of token 0.
    pub start: u64,
    /// Lower bound on the evicted tokens (see [`Seq`]).
    pub floor: u64,
    /// Ranges in the sequence's list, and pinned tokens.
    pub n_ranges: u32,
    pub n_pinned: u32,
}

impl Entry {
    /// An entry whose sequence's counters are stale: the device checks what depends on them.
    pub fn unchecked(e: &RawEntry, seq: usize) -> Self {
        Self { seq, row: e.row, n: e.n, first: 0, start: 0, floor: 0, n_ranges: 0, n_pinned: 0 }
    }

    /// Tokens to append, after those that the sequence holds.
    pub fn append(e: &RawEntry, seq: usize, state: &Seq, start: u64, ring: &Ring) -> Result<Self> {
        let held = state.len;
        if start.checked_add(held).and_then(|p| p.checked_add(e.n)).is_none() {
            bail!(
                OutOfRange,
                "sequence {seq}: {} more tokens from stream position {} exceed 2^64 - 1",
                e.n,
                start.saturating_add(held)
            );
        }
        if !ring.intact(held, state) {
            bail!(TokensGone, "sequence {seq}: an aborted step has overwritten tokens of its window; reset it");
        }
        Ok(Self::of(e, seq, state, start, held))
    }

    /// Queries of the last tokens appended.
    pub fn attend(e: &RawEntry, seq: usize, state: &Seq, start: u64, ring: &Ring) -> Result<Self> {
        if e.n > state.attendable {
            bail!(
                OutOfRange,
                "sequence {seq}: {} queries, the latest append allows {} (0 after an edit)",
                e.n,
                state.attendable
            );
        }
        let first = state.len - e.n;
        // `attendable` implies it; checked again because overwritten slots must never be read.
        if ring.window_start(first + 1, state.floor) < ring.intact_from(state.highest) {
            bail!(TokensGone, "sequence {seq}: tokens that query {first} attends to have been overwritten");
        }
        Ok(Self::of(e, seq, state, start, first))
    }

    /// The tokens from index `first` on.
    fn of(e: &RawEntry, seq: usize, state: &Seq, start: u64, first: u64) -> Self {
        let Seq { floor, n_ranges, n_pinned, .. } = *state;
        Self { seq, row: e.row, n: e.n, first, start, floor, n_ranges, n_pinned }
    }
}

/// A set of sequence ids, to find duplicates in a call. It allocates nothing and is cleared in O(1): a sequence is in
/// the set if its stamp is the current epoch.
#[derive(Debug)]
pub struct SeqIdSet {
    stamps: Vec<u64>,
    epoch: u64,
}

impl SeqIdSet {
    /// An empty set for `stamps.len()` sequences; stamps must be 0.
    pub fn new(stamps: Vec<u64>) -> Self {
        Self { stamps, epoch: 0 }
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.epoch += 1;
    }

    /// Adds the id of entry `index` of the array `name` and returns it as an index.
    ///
    /// # Errors
    /// `OutOfRange` if there is no such sequence, `InvalidArgument` if it is in the set already.
    pub fn insert(&mut self, name: &str, index: usize, id: i32) -> Result<usize> {
        let seq = check_seq(name, index, id, self.stamps.len())?;
        if self.stamps[seq] == self.epoch {
            bail!(InvalidArgument, "{name}[{index}] is {id}: a sequence may appear once in a batch");
        }
        self.stamps[seq] = self.epoch;
        Ok(seq)
    }

    /// Whether a sequence is in the set.
    pub fn contains(&self, seq: usize) -> bool {
        self.stamps[seq] == self.epoch
    }
}

/// Entry `index` of the array `name` as an index below `n_seqs`.
pub fn check_seq(name: &str, index: usize, id: i32, n_seqs: usize) -> Result<usize> {
    match usize::try_from(id) {
        Ok(seq) if seq < n_seqs => Ok(seq),
        _ => bail!(OutOfRange, "{name}[{index}] is {id}: 0 to {} or -1 for padding", n_seqs - 1),
    }
}

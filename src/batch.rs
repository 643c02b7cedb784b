//! Ragged batches: which sequences, how many tokens each, rows packed in that order.

use crate::error::{Result, bail};
use crate::ring::{Ring, Seq};

/// A ragged batch. Entry i is `n_tokens[i]` consecutive rows of sequence `seq_ids[i]`, after the rows of entries 0..i.
/// Sequence -1 is padding: its rows are skipped.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a>(Entries<'a>);

/// Where a batch's arrays are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entries<'a> {
    Host(HostBatch<'a>),
    Device(DeviceBatch),
}

/// A batch in host memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostBatch<'a> {
    pub seq_ids: &'a [i32],
    pub n_tokens: &'a [i32],
}

/// A batch in device memory, which the device alone can read.
#[derive(Clone, Copy, Debug)]
pub struct DeviceBatch {
    /// Device address of the sequence ids, -1 for padding.
    pub seq_ids: u64,
    /// Device address of the tokens per entry.
    pub n_tokens: u64,
    /// Elements of both.
    pub n_entries: u32,
    /// Most tokens an entry may have: one with more is refused on the device.
    pub max_tokens: u32,
    /// Rows the tensors have: an entry that reaches beyond is refused on the device.
    pub n_rows: u64,
}

/// The arrays of an edit in device memory, as addresses.
#[derive(Clone, Copy, Debug)]
pub struct DeviceEdit {
    /// Sequence ids; of a fork, the destinations. -1 is padding.
    pub seq_ids: u64,
    /// Tokens per entry; of a fork, the sources. Unused by reset.
    pub n_tokens: u64,
    /// Start positions (u64) of a reset, or 0 for 0.
    pub positions: u64,
    /// Elements of each.
    pub n_entries: u32,
}

impl<'a> Batch<'a> {
    /// A batch of one entry per pair.
    #[must_use]
    pub fn new(seq_ids: &'a [i32], n_tokens: &'a [i32]) -> Self {
        Self(Entries::Host(HostBatch { seq_ids, n_tokens }))
    }

    /// A batch whose arrays lie in device memory; for the CUDA backend.
    ///
    /// # Safety
    /// Both arrays must be readable on the device, for as many elements as stated, whenever the work runs: at every
    /// replay if it is captured into a graph.
    #[must_use]
    pub unsafe fn on_device(batch: DeviceBatch) -> Self {
        Self(Entries::Device(batch))
    }

    /// Rows of the batch's tensors, padding included.
    #[must_use]
    pub fn rows(self) -> u64 {
        match self.0 {
            Entries::Host(batch) => batch.rows(),
            Entries::Device(batch) => batch.n_rows,
        }
    }

    pub(crate) fn place(self) -> Entries<'a> {
        self.0
    }
}

impl<'a> HostBatch<'a> {
    /// # Errors
    /// A negative count, or slices of different lengths.
    pub fn check(self) -> Result<()> {
        if self.seq_ids.len() != self.n_tokens.len() {
            bail!(InvalidArgument, "{} sequence ids but {} token counts", self.seq_ids.len(), self.n_tokens.len());
        }
        if let Some(i) = self.n_tokens.iter().position(|&n| n < 0) {
            bail!(InvalidArgument, "n_tokens[{i}] is {}: at least 0 is needed", self.n_tokens[i]);
        }
        Ok(())
    }

    /// Entries with their first row, padding left out, of a checked batch.
    pub fn entries(self) -> impl Iterator<Item = BatchEntry> + use<'a> {
        let mut row = 0_u64;
        self.seq_ids.iter().zip(self.n_tokens).enumerate().filter_map(move |(index, (&seq, &n))| {
            let n = u64::from(n.unsigned_abs());
            let entry = BatchEntry { index, seq, row, n };
            row += n;
            (seq != -1 && n > 0).then_some(entry)
        })
    }

    /// Rows of the whole batch, padding included. Counts must not be negative.
    pub fn rows(self) -> u64 {
        self.n_tokens.iter().map(|&n| u64::from(n.unsigned_abs())).sum()
    }
}

/// One entry as the caller gave it.
#[derive(Clone, Copy, Debug)]
pub struct BatchEntry {
    pub index: usize,
    pub seq: i32,
    pub row: u64,
    pub n: u64,
}

/// One entry as a backend works on it.
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
    /// Lower bound on the dropped tokens.
    pub floor: u64,
}

impl Entry {
    /// An entry whose sequence the device alone knows: it checks there what depends on the sequence's state.
    pub fn unchecked(e: &BatchEntry, seq: usize) -> Self {
        Self { seq, row: e.row, n: e.n, first: 0, start: 0, floor: 0 }
    }

    /// Tokens to append: they follow what the sequence holds.
    pub fn append(e: &BatchEntry, seq: usize, state: &Seq, start: u64, ring: &Ring) -> Result<Self> {
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
        Ok(Self { seq, row: e.row, n: e.n, first: held, start, floor: state.floor })
    }

    /// Queries of the last tokens appended.
    pub fn attend(e: &BatchEntry, seq: usize, state: &Seq, start: u64, ring: &Ring) -> Result<Self> {
        if e.n > state.attendable {
            bail!(
                OutOfRange,
                "sequence {seq}: {} queries, the latest append allows {} (edits end it)",
                e.n,
                state.attendable
            );
        }
        let first = state.len - e.n;
        // Follows from `attendable`; what is overwritten must not be read even where that is wrong.
        if ring.window_start(first + 1, state.floor) < ring.intact_from(state.highest) {
            bail!(TokensGone, "sequence {seq}: tokens that query {first} sees have been overwritten");
        }
        Ok(Self { seq, row: e.row, n: e.n, first, start, floor: state.floor })
    }
}

/// Finds duplicates in a list of sequence ids without allocating: a stamp per sequence.
#[derive(Debug)]
pub struct Seen {
    stamps: Vec<u64>,
    epoch: u64,
}

impl Seen {
    /// For `stamps.len()` sequences, all zero.
    pub fn new(stamps: Vec<u64>) -> Self {
        Self { stamps, epoch: 0 }
    }

    /// Starts a new list.
    pub fn clear(&mut self) {
        self.epoch += 1;
    }

    /// Marks entry `index`'s sequence `id` as seen and returns it as an index.
    ///
    /// # Errors
    /// Out of range, or seen before in this list.
    pub fn insert(&mut self, name: &str, index: usize, id: i32) -> Result<usize> {
        let seq = check_seq(name, index, id, self.stamps.len())?;
        if self.stamps[seq] == self.epoch {
            bail!(InvalidArgument, "{name}[{index}] is {id}: a sequence may appear once in a batch");
        }
        self.stamps[seq] = self.epoch;
        Ok(seq)
    }

    /// Whether `seq` is in this list.
    pub fn contains(&self, seq: usize) -> bool {
        self.stamps[seq] == self.epoch
    }
}

/// A sequence id as an index below `n_seqs`.
pub fn check_seq(name: &str, index: usize, id: i32, n_seqs: usize) -> Result<usize> {
    match usize::try_from(id) {
        Ok(seq) if seq < n_seqs => Ok(seq),
        _ => bail!(OutOfRange, "{name}[{index}] is {id}: 0 to {} or -1 for padding", n_seqs - 1),
    }
}

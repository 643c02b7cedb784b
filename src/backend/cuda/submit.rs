//! Calls as launches. Nothing here waits, allocates or reads device memory, so that all of it can be captured.

use super::device_layout;
use super::driver::{CurrentContext, LaunchSize};
use super::heuristics::{CallSize, LaunchChoice, grid};
use super::launch_config::EDIT_SHARED;
use super::params::{INLINE_ENTRIES, SkcAppend, SkcAttend, SkcBatch, SkcEdit, SkcRowEdit, SkcRows, SkcStage, SkcStep};
use super::state::Cuda;
use crate::backend::{AttendRows, DeviceCall, Edit, EditCall, EditEntries, Stream};
use crate::batch::BatchArrays;
use crate::error::{Result, bail};

/// A call's arrays as kernels get them: in their parameters, or as addresses of device memory.
struct KernelBatch {
    batch: SkcBatch,
    positions: u64,
    inline_positions: [u64; INLINE_ENTRIES],
}

/// A call's arrays in host memory. An array is empty where the call has none.
#[derive(Clone, Copy)]
struct HostArrays<'a> {
    ids: &'a [i32],
    tokens: &'a [i32],
    positions: &'a [u64],
    n_rows: u64,
}

/// Where one call's launches go.
struct Submission<'a> {
    cuda: &'a Cuda,
    current: &'a CurrentContext<'a>,
    stream: Stream,
}

/// Append and attend, for one chunk after the other.
pub fn run(cuda: &Cuda, current: &CurrentContext<'_>, job: &DeviceCall<'_>) -> Result<()> {
    let submission = Submission { cuda, current, stream: job.stream };
    let max_chunk = cuda.shape.max_chunk as u32;
    let mut batch = match job.batch {
        BatchArrays::Host(b) => {
            let max_tokens = b.entries().map(|e| e.n).max().unwrap_or(0) as u32;
            let arrays = HostArrays { ids: b.seq_ids, tokens: b.n_tokens, positions: &[], n_rows: b.rows() };
            SkcBatch { max_tokens, ..submission.stage(arrays)?.batch }
        }
        BatchArrays::Device(b) => SkcBatch {
            seq_ids: b.seq_ids,
            n_tokens: b.n_tokens,
            max_tokens: b.max_tokens,
            ..empty_batch(cuda, b.n_entries, b.n_rows)
        },
    };
    batch.chunk_len = max_chunk;
    if batch.n_entries == 0 || batch.max_tokens == 0 {
        return Ok(());
    }
    for chunk_begin in (0..batch.max_tokens).step_by(max_chunk as usize) {
        batch.chunk_begin = chunk_begin;
        submission.chunk(job, batch)?;
    }
    Ok(())
}

/// An edit of sequences, in all layers.
pub fn edit(cuda: &Cuda, current: &CurrentContext<'_>, edit: &Edit<'_>) -> Result<()> {
    let submission = Submission { cuda, current, stream: edit.stream };
    let given = match edit.entries {
        EditEntries::Host { ids, tokens, positions } => {
            submission.stage(HostArrays { ids, tokens, positions, n_rows: 0 })?
        }
        EditEntries::Device(e) => {
            let batch = SkcBatch { seq_ids: e.seq_ids, n_tokens: e.n_tokens, ..empty_batch(cuda, e.n_entries, 0) };
            // A call has either.
            let positions = if e.first != 0 { e.first } else { e.positions };
            KernelBatch { batch, positions, inline_positions: [0; INLINE_ENTRIES] }
        }
        EditEntries::All => {
            let batch = SkcBatch { all: 1, ..empty_batch(cuda, cuda.n_seqs, 0) };
            KernelBatch { batch, positions: 0, inline_positions: [0; INLINE_ENTRIES] }
        }
    };
    let n = given.batch.n_entries;
    if n == 0 {
        return Ok(());
    }
    let base = cuda.aux_base()?;
    let common = cuda.common()?;
    let n_layers = cuda.settings.len() as u32;
    let params = SkcEdit {
        seqs: base + cuda.aux.seqs,
        starts: base + cuda.aux.starts,
        rings: base + cuda.aux.rings,
        errors: cuda.settings[0].errors,
        positions: given.positions,
        n_layers,
        call: edit.call as u32,
        batch: given.batch,
        inline_positions: given.inline_positions,
        can_pin: cuda.settings.iter().any(|layer| layer.max_pinned > 0).into(),
        reserved: 0,
    };
    let target = cuda.launch_target(edit.stream);
    let n_kv_heads = cuda.shape.n_kv_heads as u32;
    // Rows first: their kernel checks the state that the edit's will change.
    let rows = match edit.call {
        EditCall::Fork => Some((&common.fork, 32)),
        EditCall::Pin | EditCall::EvictRange => Some((&common.move_rows, 2 * u64::from(n_kv_heads))),
        _ => None,
    };
    if let Some((kernel, blocks)) = rows {
        let rows = SkcRowEdit { edit: params, stores: base + cuda.aux.stores, n_kv_heads, reserved: 0 };
        let size = LaunchSize::new(grid(n, n_layers.into(), blocks), EDIT_SHARED);
        current.launch(kernel, size, target, &rows)?;
    }
    let size = LaunchSize::new([n, 1, 1], EDIT_SHARED);
    current.launch(&common.edit, size, target, &params)
}

impl Submission<'_> {
    /// The launches of one chunk.
    fn chunk(&self, job: &DeviceCall<'_>, batch: SkcBatch) -> Result<()> {
        let heuristics = self.cuda.heuristics(job.layer);
        let n_tokens = (batch.max_tokens - batch.chunk_begin).min(batch.chunk_len);
        let size = |rows: &[SkcRows]| CallSize { n_entries: batch.n_entries, n_tokens, aligned: aligned(rows) };
        if let (Some(append), Some(attend)) = (&job.append, &job.attend) {
            let (k, v) = (append.k.into(), append.v.into());
            if let Some(choice) = heuristics.step(size(&[k, v, attend.q.into(), attend.out.into()])) {
                let params = SkcStep { attend: self.attend_params(job, attend, batch, choice)?, k, v };
                return self.launch(job, choice, &params);
            }
        }
        if let Some(rows) = &job.append {
            let params = SkcAppend { layer: self.cuda.settings[job.layer], batch, k: rows.k.into(), v: rows.v.into() };
            self.launch(job, heuristics.append(size(&[params.k, params.v])), &params)?;
        }
        if let Some(rows) = &job.attend {
            let choice = heuristics.attend(size(&[rows.q.into(), rows.out.into()]));
            self.launch(job, choice, &self.attend_params(job, rows, batch, choice)?)?;
        }
        Ok(())
    }

    /// Launches what has been chosen. `params` are those of its kernel.
    fn launch<P>(&self, job: &DeviceCall<'_>, choice: LaunchChoice, params: &P) -> Result<()> {
        let kernel = self.cuda.kernel(job.layer, choice.kernel)?;
        self.current.launch(&kernel, choice.size, self.cuda.launch_target(self.stream), params)
    }

    fn attend_params(
        &self,
        job: &DeviceCall<'_>,
        rows: &AttendRows,
        batch: SkcBatch,
        choice: LaunchChoice,
    ) -> Result<SkcAttend> {
        let base = self.cuda.aux_base()?;
        Ok(SkcAttend {
            layer: self.cuda.settings[job.layer],
            batch,
            q: rows.q.into(),
            out: rows.out.into(),
            lse: rows.lse.map_or_else(SkcRows::default, SkcRows::from),
            partials: base + self.cuda.aux.partials,
            split_arrivals: base + self.cuda.aux.split_arrivals,
            n_splits: choice.n_splits,
            small_tiles: choice.small_tiles.into(),
        })
    }

    /// Host arrays as kernels get them: in their parameters, or, where they are too long, written to device memory by
    /// launches of their own. A copy would not do: a graph reads the host's arrays again at every replay.
    fn stage(&self, arrays: HostArrays<'_>) -> Result<KernelBatch> {
        let cuda = self.cuda;
        let n = arrays.ids.len();
        let max_entries = device_layout::max_entries(cuda.n_seqs);
        let Some(n_entries) = u32::try_from(n).ok().filter(|&n| n <= max_entries) else {
            let n_seqs = cuda.n_seqs;
            bail!(OutOfRange, "n_entries is {n}: at most {max_entries} for a CUDA cache of {n_seqs} sequences");
        };
        let batch = empty_batch(cuda, n_entries, arrays.n_rows);
        let mut staged = KernelBatch { batch, positions: 0, inline_positions: [0; INLINE_ENTRIES] };
        if n <= INLINE_ENTRIES {
            fill(&mut staged.batch.inline_ids, arrays.ids);
            fill(&mut staged.batch.inline_tokens, arrays.tokens);
            fill(&mut staged.inline_positions, arrays.positions);
            return Ok(staged);
        }
        let base = cuda.aux_base()?;
        let or_null = |empty: bool, offset: u64| if empty { 0 } else { base + offset };
        staged.batch.seq_ids = base + cuda.aux.stage_ids;
        staged.batch.n_tokens = or_null(arrays.tokens.is_empty(), cuda.aux.stage_tokens);
        staged.positions = or_null(arrays.positions.is_empty(), cuda.aux.stage_positions);
        for first in (0..n).step_by(INLINE_ENTRIES) {
            let part = first..n.min(first + INLINE_ENTRIES);
            let mut params = SkcStage {
                seq_ids: staged.batch.seq_ids,
                n_tokens: staged.batch.n_tokens,
                positions: staged.positions,
                first: first as u32,
                n: part.len() as u32,
                ids: [0; INLINE_ENTRIES],
                tokens: [0; INLINE_ENTRIES],
                values: [0; INLINE_ENTRIES],
            };
            fill(&mut params.ids, &arrays.ids[part.clone()]);
            // Empty where the call has none.
            fill(&mut params.tokens, arrays.tokens.get(part.clone()).unwrap_or_default());
            fill(&mut params.values, arrays.positions.get(part).unwrap_or_default());
            let size = LaunchSize::new([1, 1, 1], 0);
            self.current.launch(&cuda.common()?.stage, size, cuda.launch_target(self.stream), &params)?;
        }
        Ok(staged)
    }
}

/// Copies `from` to the front of `to`, which is at least as long.
fn fill<T: Copy>(to: &mut [T], from: &[T]) {
    to[..from.len()].copy_from_slice(from);
}

/// Whether all rows begin at multiples of 16 bytes.
fn aligned(rows: &[SkcRows]) -> bool {
    rows.iter().all(|r| (r.ptr | r.token_stride as u64 | r.head_stride as u64).is_multiple_of(16))
}

/// A batch of `n` entries without arrays.
fn empty_batch(cuda: &Cuda, n: u32, n_rows: u64) -> SkcBatch {
    SkcBatch {
        seq_ids: 0,
        n_tokens: 0,
        n_rows,
        n_entries: n,
        n_seqs: cuda.n_seqs,
        max_tokens: i32::MAX as u32,
        chunk_begin: 0,
        chunk_len: 0,
        all: 0,
        inline_ids: [0; INLINE_ENTRIES],
        inline_tokens: [0; INLINE_ENTRIES],
    }
}

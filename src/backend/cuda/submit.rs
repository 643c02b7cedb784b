//! Calls as launches. Nothing here waits, allocates or reads device memory, so that all of it can be captured.

use super::device_layout;
use super::driver::{Current, Size};
use super::heuristics::{Choice, grid};
use super::launch_config::EDIT_SHARED;
use super::params::{INLINE, SkcAppend, SkcAttend, SkcBatch, SkcEdit, SkcFork, SkcRows, SkcStage, SkcStep};
use super::state::Cuda;
use crate::backend::{AttendRows, DeviceJob, Edit, EditCall, EditEntries, JobBatch, Stream};
use crate::error::{Result, bail};

/// A call's arrays as kernels get them, and the largest count among them.
struct Given {
    batch: SkcBatch,
    positions: u64,
    inline_positions: [u64; INLINE],
}

/// Append and attend, each chunk's one after the other.
pub fn run(cuda: &Cuda, current: &Current<'_>, job: &DeviceJob<'_>) -> Result<()> {
    let max_chunk = cuda.shape.max_chunk as u32;
    let (mut given, max_tokens) = match job.batch {
        JobBatch::Host(b) => {
            let most = b.entries().map(|e| e.n).max().unwrap_or(0) as u32;
            (stage(cuda, current, job.stream, b.seq_ids, b.n_tokens, &[], b.rows())?, most)
        }
        JobBatch::Device(b) => {
            let batch = blank(cuda, b.n_entries, b.n_rows);
            (
                Given {
                    batch: SkcBatch { seq_ids: b.seq_ids, n_tokens: b.n_tokens, ..batch },
                    positions: 0,
                    inline_positions: [0; INLINE],
                },
                b.max_tokens,
            )
        }
    };
    given.batch.max_tokens = max_tokens;
    given.batch.step = max_chunk;
    if given.batch.n_entries == 0 || max_tokens == 0 {
        return Ok(());
    }
    let chooser = cuda.chooser(job.layer);
    let n = given.batch.n_entries;
    for at in (0..max_tokens).step_by(max_chunk as usize) {
        given.batch.at = at;
        let most = (max_tokens - at).min(max_chunk);
        let batch = given.batch;
        if let (Some(append), Some(attend)) = (&job.append, &job.attend) {
            let rows = [append.k.into(), append.v.into(), attend.q.into(), attend.out.into()];
            if let Some(choice) = chooser.step(n, most, aligned(&rows)) {
                let params = SkcStep { attend: attention(cuda, job, attend, batch, choice)?, k: rows[0], v: rows[1] };
                launch(cuda, current, job, choice, &params)?;
                continue;
            }
        }
        if let Some(rows) = &job.append {
            let params = SkcAppend { layer: cuda.settings[job.layer], batch, k: rows.k.into(), v: rows.v.into() };
            launch(cuda, current, job, chooser.append(n, most), &params)?;
        }
        if let Some(rows) = &job.attend {
            let choice = chooser.attend(n, most, aligned(&[rows.q.into(), rows.out.into()]));
            launch(cuda, current, job, choice, &attention(cuda, job, rows, batch, choice)?)?;
        }
    }
    Ok(())
}

/// Whether all rows begin at multiples of 16 bytes.
fn aligned(rows: &[SkcRows]) -> bool {
    rows.iter().all(|r| (r.ptr | r.token as u64 | r.head as u64).is_multiple_of(16))
}

/// Launches what has been chosen; `params` must be those of its kernel.
fn launch<P>(cuda: &Cuda, current: &Current<'_>, job: &DeviceJob<'_>, choice: Choice, params: &P) -> Result<()> {
    let kernel = cuda.kernel(job.layer, choice.which)?;
    current.launch(&kernel, choice.size, cuda.to(job.stream), params)
}

fn attention(
    cuda: &Cuda,
    job: &DeviceJob<'_>,
    rows: &AttendRows,
    batch: SkcBatch,
    choice: Choice,
) -> Result<SkcAttend> {
    let base = cuda.base()?;
    Ok(SkcAttend {
        layer: cuda.settings[job.layer],
        batch,
        q: rows.q.into(),
        out: rows.out.into(),
        lse: rows.lse.map_or_else(SkcRows::default, SkcRows::from),
        partials: base + cuda.rest.partials,
        counters: base + cuda.rest.counters,
        n_splits: choice.n_splits,
        small_tiles: choice.small_tiles.into(),
    })
}

/// An edit of sequences, all layers at once.
pub fn edit(cuda: &Cuda, current: &Current<'_>, edit: &Edit<'_>) -> Result<()> {
    let given = match edit.entries {
        EditEntries::Host { ids, tokens, positions } => stage(cuda, current, edit.stream, ids, tokens, positions, 0)?,
        EditEntries::Device { ids, tokens, positions, n } => {
            let batch = SkcBatch { seq_ids: ids, n_tokens: tokens, ..blank(cuda, n, 0) };
            Given { batch, positions, inline_positions: [0; INLINE] }
        }
        EditEntries::All => {
            let batch = SkcBatch { all: 1, ..blank(cuda, cuda.n_seqs, 0) };
            Given { batch, positions: 0, inline_positions: [0; INLINE] }
        }
    };
    let n = given.batch.n_entries;
    if n == 0 {
        return Ok(());
    }
    let base = cuda.base()?;
    let common = cuda.common()?;
    let n_layers = cuda.settings.len() as u32;
    let params = SkcEdit {
        seqs: base + cuda.rest.seqs,
        starts: base + cuda.rest.starts,
        rings: base + cuda.rest.rings,
        error: cuda.settings[0].error,
        positions: given.positions,
        n_layers,
        call: edit.call as u32,
        batch: given.batch,
        inline_positions: given.inline_positions,
    };
    if edit.call == EditCall::Fork {
        let stores = base + cuda.rest.stores;
        let fork = SkcFork { edit: params, stores, n_kv_heads: cuda.shape.n_kv_heads as u32, reserved: 0 };
        let size = Size { grid: grid(n, n_layers.into(), 32), shared: EDIT_SHARED };
        current.launch(&common.fork, size, cuda.to(edit.stream), &fork)?;
    }
    let size = Size { grid: [n, 1, 1], shared: EDIT_SHARED };
    current.launch(&common.edit, size, cuda.to(edit.stream), &params)
}

/// A batch of `n` entries without arrays.
fn blank(cuda: &Cuda, n: u32, n_rows: u64) -> SkcBatch {
    SkcBatch {
        seq_ids: 0,
        n_tokens: 0,
        n_rows,
        n_entries: n,
        n_seqs: cuda.n_seqs,
        max_tokens: i32::MAX as u32,
        at: 0,
        step: 0,
        all: 0,
        inline_ids: [0; INLINE],
        inline_tokens: [0; INLINE],
    }
}

/// Host arrays as kernels get them: inside the launch, or by launches of their own that write them to device memory. A
/// copy would make a captured graph read the host's arrays again at every replay.
fn stage(
    cuda: &Cuda,
    current: &Current<'_>,
    stream: Stream,
    ids: &[i32],
    tokens: &[i32],
    positions: &[u64],
    n_rows: u64,
) -> Result<Given> {
    let most = device_layout::max_entries(cuda.n_seqs);
    let Some(n) = u32::try_from(ids.len()).ok().filter(|&n| n <= most) else {
        bail!(OutOfRange, "n_entries is {}: at most {most} for a CUDA cache of {} sequences", ids.len(), cuda.n_seqs);
    };
    let mut given = Given { batch: blank(cuda, n, n_rows), positions: 0, inline_positions: [0; INLINE] };
    if ids.len() <= INLINE {
        given.batch.inline_ids[..ids.len()].copy_from_slice(ids);
        given.batch.inline_tokens[..tokens.len()].copy_from_slice(tokens);
        given.inline_positions[..positions.len()].copy_from_slice(positions);
        return Ok(given);
    }
    let base = cuda.base()?;
    let address = |empty: bool, offset: u64| if empty { 0 } else { base + offset };
    given.batch.seq_ids = base + cuda.rest.stage_ids;
    given.batch.n_tokens = address(tokens.is_empty(), cuda.rest.stage_tokens);
    given.positions = address(positions.is_empty(), cuda.rest.stage_positions);
    for (part, ids) in ids.chunks(INLINE).enumerate() {
        let first = part * INLINE;
        let mut params = SkcStage {
            seq_ids: given.batch.seq_ids,
            n_tokens: given.batch.n_tokens,
            positions: given.positions,
            first: first as u32,
            n: ids.len() as u32,
            ids: [0; INLINE],
            tokens: [0; INLINE],
            values: [0; INLINE],
        };
        params.ids[..ids.len()].copy_from_slice(ids);
        let part_of = |from: usize| from..from + ids.len();
        if !tokens.is_empty() {
            params.tokens[..ids.len()].copy_from_slice(&tokens[part_of(first)]);
        }
        if !positions.is_empty() {
            params.values[..ids.len()].copy_from_slice(&positions[part_of(first)]);
        }
        let size = Size { grid: [1, 1, 1], shared: 0 };
        current.launch(&cuda.common()?.stage, size, cuda.to(stream), &params)?;
    }
    Ok(given)
}

//! Append, attend and step: plan, run, commit.

use super::plan::Work;
use super::state::{Cache, Place};
use crate::backend::Job;
use crate::batch::{Batch, Entry};
use crate::error::{Result, bail};
use crate::tensor::{RowsIn, RowsOut};

impl Cache {
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

    /// The most parts a step may be divided into.
    pub(crate) fn width(&self) -> u32 {
        match &self.place {
            Place::Host { exec, .. } => exec.width(),
            Place::Device(_) => 1,
        }
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

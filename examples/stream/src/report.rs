//! The results of all modes, and how sink compares with recompute.

use crate::modes::{Mode, Setting};
use crate::pass::ModeRun;
use crate::stats::{Paired, paired};

/// Everything that a table or a line of JSON is made from.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The setting of all runs.
    pub setting: &'a Setting,
    /// Length of the stream.
    pub tokens: u64,
    /// Bytes of the text before the stream.
    pub skipped: u64,
    /// Trained length of the model.
    pub trained_length: usize,
    /// The modes that have run.
    pub runs: &'a [ModeRun],
}

impl<'a> Report<'a> {
    /// The run of a mode, if it has run.
    #[must_use]
    pub fn run(&self, mode: Mode) -> Option<&'a ModeRun> {
        self.runs.iter().find(|run| run.mode == mode)
    }

    /// Perplexity in the last tenth of the stream.
    #[must_use]
    pub fn ppl_last_tenth(&self, run: &ModeRun) -> Option<f64> {
        run.scores.perplexity(self.tokens - self.tokens / 10..self.tokens)
    }

    /// Perplexity at the beginning of the stream, as far as the model was trained to go.
    #[must_use]
    pub fn ppl_trained(&self, run: &ModeRun) -> Option<f64> {
        run.beginning.perplexity(0..self.trained_length as u64)
    }

    /// Perplexity behind the trained length, up to where dense stops.
    #[must_use]
    pub fn ppl_past_trained(&self, run: &ModeRun) -> Option<f64> {
        run.beginning.perplexity(self.trained_length as u64..run.beginning.positions.end)
    }

    /// Sink beside recompute, if both have run.
    #[must_use]
    pub fn comparison(&self) -> Option<Comparison<'a>> {
        let (sink, recompute) = (self.run(Mode::Sink)?, self.run(Mode::Recompute)?);
        Some(Comparison { sink, recompute, pairs: paired(&sink.scores.nlls, &recompute.scores.nlls)? })
    }
}

/// Sink beside recompute, on the same scored positions.
#[derive(Debug)]
pub struct Comparison<'a> {
    sink: &'a ModeRun,
    recompute: &'a ModeRun,
    /// Sink's negative log-likelihoods minus recompute's, in nats.
    pub pairs: Paired,
}

impl Comparison<'_> {
    /// How much higher sink's perplexity is than recompute's, in percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        self.pairs.mean.exp_m1() * 100.0
    }

    /// The standard error of [`Self::percent`].
    #[must_use]
    pub fn percent_standard_error(&self) -> f64 {
        self.pairs.mean.exp() * self.pairs.standard_error * 100.0
    }

    /// Recompute's time per scored token over sink's time per token in chunks.
    #[must_use]
    pub fn speed_up(&self) -> f64 {
        self.recompute.ms_per_token / self.sink.ms_per_token
    }

    /// Recompute's time per scored token over sink's time per token when tokens come one by one.
    #[must_use]
    pub fn speed_up_one_by_one(&self) -> Option<f64> {
        self.sink.ms_one_by_one.map(|ms| self.recompute.ms_per_token / ms)
    }
}

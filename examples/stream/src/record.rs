//! The results of one mode as a line of JSON, for programs.

use serde::Serialize;

use crate::modes::Mode;
use crate::pass::ModeRun;
use crate::report::{Comparison, Report};

/// A line of JSON. Keys that do not apply to a mode are null.
#[derive(Serialize, Debug)]
struct Record {
    mode: Mode,
    tokens: u64,
    /// Bytes of the text before the first token.
    skipped: u64,
    scored: u64,
    ppl: Option<f64>,
    ppl_last_tenth: Option<f64>,
    /// At the beginning of the stream, below the trained length and from there on.
    ppl_beginning_trained: Option<f64>,
    ppl_beginning_past_trained: Option<f64>,
    /// Of recompute: scored tokens per second. Each costs a whole context.
    tokens_per_s: f64,
    cache_bytes: u64,
    peak_rss_bytes: Option<u64>,
    sink: u32,
    window: u32,
    chunk: u32,
    stride: u64,
    threads: u32,
    kv_dtype: String,
    ms_per_token: f64,
    ms_per_token_second_tenth: Option<f64>,
    ms_per_token_last_tenth: Option<f64>,
    ms_per_token_one_by_one: Option<f64>,
    /// In the line of recompute, if sink has run too.
    #[serde(flatten)]
    comparison: Option<ComparisonRecord>,
}

#[derive(Serialize, Debug)]
struct ComparisonRecord {
    sink_minus_recompute_nats: f64,
    sink_minus_recompute_nats_se: f64,
    sink_over_recompute_ppl_percent: f64,
    sink_over_recompute_ppl_percent_se: f64,
    sink_speed_up: f64,
    sink_speed_up_one_by_one: Option<f64>,
}

impl From<&Comparison<'_>> for ComparisonRecord {
    fn from(comparison: &Comparison<'_>) -> Self {
        Self {
            sink_minus_recompute_nats: comparison.pairs.mean,
            sink_minus_recompute_nats_se: comparison.pairs.standard_error,
            sink_over_recompute_ppl_percent: comparison.percent(),
            sink_over_recompute_ppl_percent_se: comparison.percent_standard_error(),
            sink_speed_up: comparison.speed_up(),
            sink_speed_up_one_by_one: comparison.speed_up_one_by_one(),
        }
    }
}

impl Report<'_> {
    /// The line of JSON of a run.
    ///
    /// # Errors
    /// None in practice: all values can be written.
    pub fn json(&self, run: &ModeRun) -> serde_json::Result<String> {
        let comparison = if run.mode == Mode::Recompute { self.comparison() } else { None };
        serde_json::to_string(&Record {
            mode: run.mode,
            tokens: run.tokens,
            skipped: self.skipped,
            scored: run.scores.positions.count(),
            ppl: run.scores.perplexity(0..run.tokens),
            ppl_last_tenth: self.ppl_last_tenth(run),
            ppl_beginning_trained: self.ppl_trained(run),
            ppl_beginning_past_trained: self.ppl_past_trained(run),
            tokens_per_s: 1e3 / run.ms_per_token,
            cache_bytes: run.cache_bytes,
            peak_rss_bytes: run.peak_rss_bytes,
            sink: run.shape.n_sink,
            window: run.shape.window,
            chunk: run.shape.max_chunk,
            stride: run.scores.positions.stride,
            threads: self.setting.threads,
            kv_dtype: self.setting.kv_dtype.to_string(),
            ms_per_token: run.ms_per_token,
            ms_per_token_second_tenth: run.tenths.map(|ms| ms.second),
            ms_per_token_last_tenth: run.tenths.map(|ms| ms.last),
            ms_per_token_one_by_one: run.ms_one_by_one,
            comparison: comparison.as_ref().map(ComparisonRecord::from),
        })
    }
}

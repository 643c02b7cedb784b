//! What a run says at its end: a table for people, or a line of JSON per mode for programs.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::modes::{DENSE_REACH, Mode, ModeRun, Setting};
use crate::stats::{Paired, last_tenth, paired, perplexity};

/// All that is known when modes have run.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// What was asked for.
    pub setting: &'a Setting,
    /// Length of the stream.
    pub tokens: u64,
    /// Trained length of the model.
    pub trained_length: usize,
    /// The modes that have run.
    pub runs: &'a [ModeRun],
}

/// sink next to recompute.
struct Comparison<'a> {
    sink: &'a ModeRun,
    recompute: &'a ModeRun,
    pairs: Paired,
}

impl Comparison<'_> {
    /// How far the ratio of perplexities is from 1, and its standard error.
    fn percent(&self) -> (f64, f64) {
        (self.pairs.mean.exp_m1() * 100.0, self.pairs.mean.exp() * self.pairs.standard_error * 100.0)
    }

    fn speed_up(&self) -> f64 {
        self.recompute.ms_per_token / self.sink.ms_per_token
    }

    fn speed_up_one_by_one(&self) -> Option<f64> {
        self.sink.ms_one_by_one.map(|ms| self.recompute.ms_per_token / ms)
    }
}

/// A line of JSON. Keys that do not apply are null.
#[derive(Serialize, Debug)]
struct Record {
    mode: Mode,
    tokens: u64,
    scored: u64,
    ppl: Option<f64>,
    ppl_last_tenth: Option<f64>,
    /// Tokens of the stream; of recompute scored tokens, each of which costs a whole context.
    tokens_per_s: f64,
    cache_bytes: u64,
    peak_rss_bytes: Option<u64>,
    sink: u32,
    window: u32,
    chunk: u32,
    stride: u64,
    threads: u32,
    kv_dtype: &'static str,
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
        let (percent, percent_se) = comparison.percent();
        Self {
            sink_minus_recompute_nats: comparison.pairs.mean,
            sink_minus_recompute_nats_se: comparison.pairs.standard_error,
            sink_over_recompute_ppl_percent: percent,
            sink_over_recompute_ppl_percent_se: percent_se,
            sink_speed_up: comparison.speed_up(),
            sink_speed_up_one_by_one: comparison.speed_up_one_by_one(),
        }
    }
}

impl<'a> Report<'a> {
    fn run(&self, mode: Mode) -> Option<&'a ModeRun> {
        self.runs.iter().find(|run| run.mode == mode)
    }

    fn comparison(&self) -> Option<Comparison<'a>> {
        let (sink, recompute) = (self.run(Mode::Sink)?, self.run(Mode::Recompute)?);
        Some(Comparison { sink, recompute, pairs: paired(&sink.nlls, &recompute.nlls)? })
    }

    fn ppl_last_tenth(&self, run: &ModeRun) -> Option<f64> {
        perplexity(last_tenth(run.scored, &run.nlls, self.tokens))
    }

    /// The line of JSON of a run.
    ///
    /// # Errors
    /// None that is known of.
    pub fn json(&self, run: &ModeRun) -> serde_json::Result<String> {
        let comparison = self.comparison().filter(|_| run.mode == Mode::Recompute);
        serde_json::to_string(&Record {
            mode: run.mode,
            tokens: run.tokens,
            scored: run.scored.count(),
            ppl: perplexity(&run.nlls),
            ppl_last_tenth: self.ppl_last_tenth(run),
            tokens_per_s: 1e3 / run.ms_per_token,
            cache_bytes: run.cache_bytes,
            peak_rss_bytes: run.peak_rss_bytes,
            sink: run.cache.0,
            window: run.cache.1,
            chunk: run.chunk,
            stride: run.scored.stride,
            threads: self.setting.threads,
            kv_dtype: self.setting.kv_dtype.name(),
            ms_per_token: run.ms_per_token,
            ms_per_token_second_tenth: run.ms_second_and_last_tenth.map(|ms| ms.0),
            ms_per_token_last_tenth: run.ms_second_and_last_tenth.map(|ms| ms.1),
            ms_per_token_one_by_one: run.ms_one_by_one,
            comparison: comparison.as_ref().map(ComparisonRecord::from),
        })
    }

    fn table(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let header =
            ["mode", "cache", "tokens", "scored", "ppl", "last 1/10", "tokens/s", "ms/token", "cache KiB", "peak MiB"];
        row(f, header.map(str::to_owned))?;
        for run in self.runs {
            let cells = [
                run.mode.name().to_owned(),
                format!("{} + {}", run.cache.0, run.cache.1),
                run.tokens.to_string(),
                run.scored.count().to_string(),
                number(perplexity(&run.nlls), 4),
                number(self.ppl_last_tenth(run), 4),
                number(Some(1e3 / run.ms_per_token), usize::from(run.ms_per_token > 10.0)),
                number(Some(run.ms_per_token), 3),
                number(Some(run.cache_bytes as f64 / 1024.0), 0),
                number(run.peak_rss_bytes.map(|bytes| bytes as f64 / (1 << 20) as f64), 1),
            ];
            row(f, cells)?;
        }
        Ok(())
    }

    fn notes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Setting { chunk, scored, threads, .. } = self.setting;
        let kv_dtype = self.setting.kv_dtype.name();
        writeln!(
            f,
            "scored: every {} tokens from {} on; {threads} threads; K and V in {kv_dtype}",
            scored.stride, scored.start
        )?;
        if let Some(run) = self.run(Mode::Dense).filter(|run| run.tokens < self.tokens) {
            let (n, all) = (run.scored.count(), scored.count());
            let reach = format!("{DENSE_REACH} x the trained length of {}", self.trained_length);
            writeln!(f, "dense: stops at {reach} tokens, so it has only the first {n} of the {all} scored positions")?;
        }
        if self.run(Mode::Recompute).is_some() {
            let last = self.setting.context() - 1;
            writeln!(
                f,
                "recompute: <s> and the last {last} tokens afresh for each scored token, and no others; per scored token"
            )?;
        }
        if let Some(run) = self.run(Mode::Sink) {
            if let Some((second, last)) = run.ms_second_and_last_tenth {
                let ratio = last / second;
                writeln!(
                    f,
                    "sink: {last:.4} ms/token (median chunk) in the last tenth, {second:.4} in the second tenth: x {ratio:.3}"
                )?;
            }
            if let Some(ms) = run.ms_one_by_one {
                writeln!(
                    f,
                    "sink: {ms:.3} ms/token (median) when tokens come one by one rather than {chunk} at a time"
                )?;
            }
        }
        if let Some(comparison) = self.comparison() {
            self.compare(f, &comparison)?;
        }
        Ok(())
    }

    fn compare(&self, f: &mut Formatter<'_>, comparison: &Comparison<'_>) -> fmt::Result {
        let Paired { n, mean, standard_error } = comparison.pairs;
        let (percent, percent_se) = comparison.percent();
        writeln!(
            f,
            "sink - recompute, paired over {n} tokens: {mean:+.5} +- {standard_error:.5} nats per token, \
             perplexity {percent:+.3} % +- {percent_se:.3} % (standard errors)"
        )?;
        write!(f, "sink is {:.0} x as fast per token as recompute", comparison.speed_up())?;
        match comparison.speed_up_one_by_one() {
            Some(speed_up) => writeln!(f, " in chunks of {}, {speed_up:.1} x one by one", self.setting.chunk),
            None => writeln!(f),
        }
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.table(f)?;
        writeln!(f)?;
        self.notes(f)
    }
}

const WIDTHS: [usize; 10] = [9, 9, 9, 7, 9, 9, 9, 9, 9, 9];

fn row(f: &mut Formatter<'_>, cells: [String; 10]) -> fmt::Result {
    for (i, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        match i {
            0 => write!(f, "{cell:width$}")?,
            _ => write!(f, "  {cell:>width$}")?,
        }
    }
    writeln!(f)
}

fn number(x: Option<f64>, decimals: usize) -> String {
    x.map_or_else(|| "-".to_owned(), |x| format!("{x:.decimals$}"))
}

//! Storage types of K and V beside one another: perplexity and memory of mode sink with each of them.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::cache::KvTypes;
use crate::modes::Setting;
use crate::pass::ModeRun;
use crate::stats::{Paired, paired};

/// A run of mode sink.
#[derive(Debug, Clone)]
pub struct TypeRun {
    /// What it stored K and V in.
    pub types: KvTypes,
    /// Its results.
    pub run: ModeRun,
}

/// The runs of all types, on the same scored positions. The first is what the others are compared with.
#[derive(Debug, Clone, Copy)]
pub struct TypesReport<'a> {
    /// What the runs have in common.
    pub setting: &'a Setting,
    /// The types that have run.
    pub runs: &'a [TypeRun],
}

/// A line of JSON. `ratio` is the perplexity beside that of the first type.
#[derive(Serialize, Debug)]
struct Record {
    kv_dtype: String,
    tokens: u64,
    scored: u64,
    ppl: Option<f64>,
    ratio: Option<f64>,
    ratio_standard_error: Option<f64>,
    bytes_per_token: u64,
    cache_bytes: u64,
    ms_per_token: f64,
}

impl TypesReport<'_> {
    /// The perplexity of a run beside that of the first, and its standard error: token by token.
    fn ratio(&self, run: &TypeRun) -> Option<(f64, f64)> {
        let Paired { mean, standard_error, .. } = paired(&run.run.scores.nlls, &self.runs.first()?.run.scores.nlls)?;
        Some((mean.exp(), mean.exp() * standard_error))
    }

    fn record(&self, run: &TypeRun) -> Record {
        let ratio = self.ratio(run);
        Record {
            kv_dtype: run.types.to_string(),
            tokens: run.run.tokens,
            scored: run.run.scores.positions.count(),
            ppl: run.run.scores.perplexity(0..run.run.tokens),
            ratio: ratio.map(|r| r.0),
            ratio_standard_error: ratio.map(|r| r.1),
            bytes_per_token: run.types.bytes_per_token(&run.run.shape),
            cache_bytes: run.run.cache_bytes,
            ms_per_token: run.run.ms_per_token,
        }
    }

    /// The last run as a line of JSON.
    ///
    /// # Errors
    /// None is expected.
    pub fn last_as_json(&self) -> serde_json::Result<String> {
        self.runs.last().map_or_else(|| Ok(String::new()), |run| serde_json::to_string(&self.record(run)))
    }
}

impl Display for TypesReport<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let beside = self.runs.first().map_or_else(String::new, |run| format!("beside {}", run.types));
        writeln!(
            f,
            "{:9}  {:>7}  {:>9}  {:>20}  {:>11}  {:>9}",
            "K/V", "scored", "ppl", beside, "bytes/token", "cache KiB"
        )?;
        for run in self.runs {
            let record = self.record(run);
            let ratio = match (record.ratio, record.ratio_standard_error) {
                (Some(ratio), Some(error)) => format!("{ratio:.5} +- {error:.5}"),
                _ => "-".to_owned(),
            };
            writeln!(
                f,
                "{:9}  {:>7}  {:>9.5}  {ratio:>20}  {:>11}  {:>9.0}",
                record.kv_dtype,
                record.scored,
                record.ppl.unwrap_or(f64::NAN),
                record.bytes_per_token,
                record.cache_bytes as f64 / 1024.0
            )?;
        }
        let Setting { sink, window, scored, threads, .. } = self.setting;
        write!(
            f,
            "\nsink: {sink} + {window}; scored: every {} tokens from {} on; threads: {threads}\n\
             beside: perplexity over that of the first type, paired token by token, +- standard error",
            scored.stride, scored.start
        )
    }
}

//! The results of all modes as text, for people.

use std::fmt::{self, Display, Formatter};

use crate::modes::{DENSE_REACH, Mode, Setting};
use crate::pass::ModeRun;
use crate::report::{Comparison, Report};
use crate::stats::Paired;

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.table(f)?;
        writeln!(f)?;
        self.notes(f)?;
        writeln!(f)?;
        self.beginning(f)
    }
}

impl Report<'_> {
    fn table(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let header =
            ["mode", "cache", "tokens", "scored", "ppl", "last 1/10", "tokens/s", "ms/token", "cache KiB", "peak MiB"];
        row(f, WIDTHS, header.map(str::to_owned))?;
        for run in self.runs {
            let cells = [
                run.mode.name().to_owned(),
                format!("{} + {}", run.shape.n_sink, run.shape.window),
                run.tokens.to_string(),
                run.scores.positions.count().to_string(),
                number(run.scores.perplexity(0..run.tokens), 4),
                number(self.ppl_last_tenth(run), 4),
                number(Some(1e3 / run.ms_per_token), usize::from(run.ms_per_token > 10.0)),
                number(Some(run.ms_per_token), 3),
                number(Some(run.cache_bytes as f64 / 1024.0), 0),
                number(run.peak_rss_bytes.map(|bytes| bytes as f64 / (1 << 20) as f64), 1),
            ];
            row(f, WIDTHS, cells)?;
        }
        Ok(())
    }

    fn notes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Setting { scored, threads, .. } = self.setting;
        let kv_dtype = self.setting.kv_dtype;
        let thread = if *threads == 1 { "thread" } else { "threads" };
        writeln!(
            f,
            "scored: every {} tokens from {} on; {threads} {thread}; K and V in {kv_dtype}",
            scored.stride, scored.start
        )?;
        if self.skipped > 0 {
            writeln!(f, "text: without its first {} bytes", self.skipped)?;
        }
        if let Some(run) = self.run(Mode::Dense).filter(|run| run.tokens < self.tokens) {
            let (n, all) = (run.scores.positions.count(), scored.count());
            let reach = format!("{DENSE_REACH} x the trained length of {}", self.trained_length);
            writeln!(f, "dense: stops at {reach} tokens and has only the first {n} of the {all} scored positions")?;
        }
        if self.run(Mode::Recompute).is_some() {
            let last = self.setting.context() - 1;
            writeln!(
                f,
                "recompute: runs <s> and the last {last} tokens again for each scored token; times are per scored token"
            )?;
        }
        if let Some(run) = self.run(Mode::Sink) {
            self.sink_times(f, run)?;
        }
        match self.comparison() {
            Some(comparison) => self.compare(f, &comparison),
            None => Ok(()),
        }
    }

    fn sink_times(&self, f: &mut Formatter<'_>, run: &ModeRun) -> fmt::Result {
        if let Some(tenths) = run.tenths {
            let (second, last) = (tenths.second, tenths.last);
            let ratio = last / second;
            writeln!(
                f,
                "sink: {last:.4} ms/token (median chunk) in the last tenth, {second:.4} in the second tenth: \
                 x {ratio:.3}"
            )?;
        }
        if let Some(ms) = run.ms_one_by_one {
            let chunk = self.setting.chunk;
            writeln!(f, "sink: {ms:.3} ms/token (median) when tokens come one by one rather than {chunk} at a time")?;
        }
        Ok(())
    }

    fn compare(&self, f: &mut Formatter<'_>, comparison: &Comparison<'_>) -> fmt::Result {
        let Paired { n, mean, standard_error } = comparison.pairs;
        let (percent, percent_se) = (comparison.percent(), comparison.percent_standard_error());
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

    /// A table of its own for the tokens that dense can reach, where all modes have the same scored positions.
    fn beginning(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let positions = self.setting.beginning;
        let trained = self.trained_length;
        writeln!(f, "perplexity at the beginning, every {} tokens scored:", positions.stride)?;
        let header = ["mode".to_owned(), format!("below {trained}"), format!("{trained} to {}", positions.end)];
        row(f, BEGINNING_WIDTHS, header)?;
        for run in self.runs {
            let cells =
                [run.mode.name().to_owned(), number(self.ppl_trained(run), 4), number(self.ppl_past_trained(run), 4)];
            row(f, BEGINNING_WIDTHS, cells)?;
        }
        Ok(())
    }
}

const WIDTHS: [usize; 10] = [9, 9, 9, 7, 9, 9, 9, 9, 9, 9];
const BEGINNING_WIDTHS: [usize; 3] = [9, 12, 14];

fn row<const N: usize>(f: &mut Formatter<'_>, widths: [usize; N], cells: [String; N]) -> fmt::Result {
    for (i, (cell, width)) in cells.iter().zip(widths).enumerate() {
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

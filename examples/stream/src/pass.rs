//! Runs a stream through one of the four caches.

use std::time::Instant;

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cache::{CacheShape, KvCache};
use crate::model::{Llama, VOCABULARY};
use crate::modes::{Mode, Setting};
use crate::ops::nll;
use crate::pace::{Pace, TenthTimes};
use crate::rss;
use crate::scores::{ScoredPositions, Scores};
use crate::stats::median;
use crate::text::{START, Stream};

/// Tokens that are run one by one after the end of the stream, for the time per token of generation.
const SINGLE_STEPS: u64 = 128;

/// The results of one mode.
#[derive(Debug, Clone)]
pub struct ModeRun {
    /// The mode.
    pub mode: Mode,
    /// Its cache.
    pub shape: CacheShape,
    /// Tokens of the stream that it ran.
    pub tokens: u64,
    /// Scores in the whole stream.
    pub scores: Scores,
    /// Scores at the beginning of the stream, from a run of its own.
    pub beginning: Scores,
    /// Time per token of the stream, in ms. For recompute: per scored token.
    pub ms_per_token: f64,
    /// The same, of the median chunk. For recompute: of the median scored token.
    pub tenths: Option<TenthTimes>,
    /// Time per token when tokens come one by one, in ms. Only for sink.
    pub ms_one_by_one: Option<f64>,
    /// Memory of the cache.
    pub cache_bytes: u64,
    /// Peak memory of the process so far.
    pub peak_rss_bytes: Option<u64>,
}

/// Runs one mode through `stream`.
///
/// # Errors
/// Whatever candle or sinkcache reports, and a model that predicts NaN.
pub fn run_mode(mode: Mode, setting: &Setting, llama: &Llama, stream: &Stream) -> Result<ModeRun> {
    let shape = setting.cache_shape(mode, llama);
    let reach = setting.reach(mode, llama).min(stream.len());
    let pass = |positions: ScoredPositions, tokens: u64| -> Result<Pass<'_>> {
        Ok(Pass {
            mode,
            chunk: setting.chunk,
            context: setting.context(),
            llama,
            stream,
            cache: KvCache::new(shape)?,
            end: tokens,
            positions: positions.below(tokens),
            tokens: Vec::new(),
            keep: Vec::new(),
            nlls: Vec::with_capacity(positions.below(tokens).count() as usize),
            pace: Pace::new(tokens),
        })
    };

    let mut beginning = pass(setting.beginning, reach.min(setting.beginning.end))?;
    beginning.run()?;
    let beginning = beginning.into_scores()?;

    let mut whole = pass(setting.scored, reach)?;
    let begin = Instant::now();
    let n = whole.run()?;
    let ms_per_token = begin.elapsed().as_secs_f64() * 1e3 / n.max(1) as f64;
    let ms_one_by_one = if mode == Mode::Sink { Some(whole.one_by_one()?) } else { None };
    let tenths = whole.pace.medians();
    Ok(ModeRun {
        mode,
        shape,
        tokens: reach,
        scores: whole.into_scores()?,
        beginning,
        ms_per_token,
        tenths,
        ms_one_by_one,
        cache_bytes: shape.bytes()?,
        peak_rss_bytes: rss::peak_bytes(),
    })
}

/// One mode's pass through the stream. Of its memory only `nlls` and `pace` grow with the stream.
struct Pass<'a> {
    mode: Mode,
    chunk: u32,
    context: u32,
    llama: &'a Llama,
    stream: &'a Stream,
    cache: KvCache,
    /// The pass ends before this position.
    end: u64,
    positions: ScoredPositions,
    tokens: Vec<u32>,
    keep: Vec<u32>,
    nlls: Vec<f32>,
    pace: Pace,
}

impl Pass<'_> {
    /// Scores all positions. Returns the number of tokens of the stream, or for recompute of scored tokens.
    fn run(&mut self) -> Result<u64> {
        match self.mode {
            Mode::Recompute => self.recompute(),
            _ => self.stream(),
        }
    }

    /// Feeds the stream in chunks.
    fn stream(&mut self) -> Result<u64> {
        let bar = progress(self.mode, self.end);
        let chunk = u64::from(self.chunk);
        let mut from = 0;
        while from < self.end {
            let to = self.end.min(from + chunk);
            let begin = Instant::now();
            self.stream.fill(from..to, &mut self.tokens);
            self.keep.clear();
            self.keep.extend(self.positions.within(from..to).map(|p| (p - from) as u32));
            let logits = self.llama.forward(&self.tokens, &self.keep, &mut self.cache)?;
            for (logits, i) in logits.chunks_exact(VOCABULARY).zip(&self.keep) {
                self.nlls.push(nll(logits, self.stream.token(from + u64::from(*i) + 1)));
            }
            // The last chunk may be short: its time per token does not compare.
            if to - from == chunk {
                self.pace.add(from..to, begin.elapsed());
            }
            bar.set_position(to);
            from = to;
        }
        bar.finish_and_clear();
        Ok(self.end)
    }

    /// Empties the cache for every scored position and runs `<s>` and the last `context` - 1 tokens through it, or as
    /// many as there are.
    fn recompute(&mut self) -> Result<u64> {
        let context = u64::from(self.context);
        let bar = progress(self.mode, self.positions.count());
        for position in self.positions.iter() {
            let begin = Instant::now();
            let from = (position + 1).saturating_sub(context - 1).max(1);
            self.stream.fill(from..position + 1, &mut self.tokens);
            self.tokens.insert(0, START);
            self.cache.reset()?;
            let last = self.tokens.len() as u32 - 1;
            let logits = self.llama.forward(&self.tokens, &[last], &mut self.cache)?;
            self.nlls.push(nll(&logits, self.stream.token(position + 1)));
            self.pace.add(position..position + 1, begin.elapsed());
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(self.positions.count())
    }

    /// Continues with a few single tokens, as a host that generates text does. Returns the median time in ms.
    fn one_by_one(&mut self) -> Result<f64> {
        let mut times = Vec::new();
        for i in 0..SINGLE_STEPS {
            let token = self.stream.token(1 + i % self.stream.len());
            let begin = Instant::now();
            self.llama.forward(&[token], &[0], &mut self.cache)?;
            times.push(begin.elapsed().as_secs_f32() * 1e3);
        }
        Ok(median(&mut times).unwrap_or_default())
    }

    fn into_scores(self) -> Result<Scores> {
        ensure!(self.nlls.iter().all(|nll| nll.is_finite()), "{}: a prediction is not a number", self.mode.name());
        Ok(Scores { positions: self.positions, nlls: self.nlls })
    }
}

/// A progress bar on stderr with speed and remaining time; not shown where stderr is no terminal.
fn progress(mode: Mode, length: u64) -> ProgressBar {
    let style = "{prefix:9} {wide_bar} {human_pos}/{human_len} tokens  {per_sec}  {eta} left";
    let bar = ProgressBar::new(length).with_prefix(mode.name());
    bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

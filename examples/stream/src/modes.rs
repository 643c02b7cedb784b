//! Running a stream through one of the four caches.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cache::{CacheShape, KvCache, KvDtype};
use crate::model::{Llama, VOCABULARY};
use crate::ops::nll;
use crate::rss;
use crate::stats::median;
use crate::text::{START, Scored, Stream};

/// Dense attention goes this many times the trained length, then stops.
pub const DENSE_REACH: u32 = 8;

/// Tokens fed one by one behind the stream, to time what a generating host sees.
const SINGLE_STEPS: u64 = 128;

/// What happens to old tokens.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The first ones stay for ever, the others leave a rolling window.
    Sink,
    /// All leave a rolling window.
    Window,
    /// All stay, up to [`DENSE_REACH`] times the trained length.
    Dense,
    /// The last ones are computed afresh behind `<s>` for every scored token.
    Recompute,
}

impl Mode {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Sink, Self::Window, Self::Dense, Self::Recompute];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sink => "sink",
            Self::Window => "window",
            Self::Dense => "dense",
            Self::Recompute => "recompute",
        }
    }
}

/// What all modes of a run share.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Pinned first tokens.
    pub sink: u32,
    /// Rolling window.
    pub window: u32,
    /// Tokens fed at a time.
    pub chunk: u32,
    /// Stored type.
    pub kv_dtype: KvDtype,
    /// Threads.
    pub threads: u32,
    /// Positions scored.
    pub scored: Scored,
}

impl Setting {
    /// Tokens a query sees: sinks and window.
    #[must_use]
    pub fn context(&self) -> u32 {
        self.sink.saturating_add(self.window)
    }

    /// Tokens a mode can stream: all of them, but for dense.
    #[must_use]
    pub fn reach(&self, mode: Mode, llama: &Llama) -> u64 {
        match mode {
            Mode::Dense => (llama.config().trained_length as u64) * u64::from(DENSE_REACH),
            _ => u64::MAX,
        }
    }

    /// The cache of a mode.
    #[must_use]
    pub fn cache_shape(&self, mode: Mode, llama: &Llama) -> CacheShape {
        let (sink, window, chunk) = match mode {
            Mode::Sink => (self.sink, self.window, self.chunk),
            Mode::Window => (0, self.context(), self.chunk),
            Mode::Dense => (0, u32::try_from(self.reach(mode, llama)).unwrap_or(u32::MAX), self.chunk),
            Mode::Recompute => (self.sink, self.window, self.context()),
        };
        llama.cache_shape(sink, window, chunk, self.kv_dtype, self.threads)
    }
}

/// What a run of one mode gave.
#[derive(Debug, Clone)]
pub struct ModeRun {
    /// Which one.
    pub mode: Mode,
    /// Sinks and window of its cache.
    pub cache: (u32, u32),
    /// Tokens fed at a time.
    pub chunk: u32,
    /// Tokens of the stream it went through.
    pub tokens: u64,
    /// Positions it scored: the first ones of the setting's.
    pub scored: Scored,
    /// -log p of the next byte at each of them, in nats.
    pub nlls: Vec<f32>,
    /// Time per token of the stream, or for recompute per scored token, in ms.
    pub ms_per_token: f64,
    /// The same, of the median chunk (recompute: scored token) in the second tenth of the stream and in the last.
    pub ms_second_and_last_tenth: Option<(f64, f64)>,
    /// Time per token when tokens come one by one, in ms. Of sink only.
    pub ms_one_by_one: Option<f64>,
    /// Memory of the cache.
    pub cache_bytes: u64,
    /// Peak memory of the process so far.
    pub peak_rss_bytes: Option<u64>,
}

/// Runs one mode. `stream` is as long as the run is to be.
///
/// # Errors
/// What candle or sinkcache refuses, and a model that predicts NaN.
pub fn run(mode: Mode, setting: &Setting, llama: &Llama, stream: &Stream) -> Result<ModeRun> {
    let tokens = stream.len().min(setting.reach(mode, llama));
    let shape = setting.cache_shape(mode, llama);
    let mut pass = Pass {
        mode,
        llama,
        stream,
        cache: KvCache::new(shape)?,
        scored: setting.scored.before(tokens),
        tokens: Vec::new(),
        keep: Vec::new(),
        nlls: Vec::new(),
        pace: Pace::new(tokens),
    };
    pass.nlls.reserve_exact(pass.scored.count() as usize);
    let begin = Instant::now();
    let n = match mode {
        Mode::Recompute => pass.recompute(setting.context())?,
        _ => pass.stream(tokens, setting.chunk)?,
    };
    let ms_per_token = begin.elapsed().as_secs_f64() * 1e3 / n.max(1) as f64;
    let ms_one_by_one = if mode == Mode::Sink { Some(pass.one_by_one()?) } else { None };
    ensure!(pass.nlls.iter().all(|nll| nll.is_finite()), "{}: a prediction is not a number", mode.name());
    Ok(ModeRun {
        mode,
        cache: (shape.n_sink, shape.window),
        chunk: shape.max_chunk,
        tokens,
        scored: pass.scored,
        nlls: pass.nlls,
        ms_per_token,
        ms_second_and_last_tenth: pass.pace.medians(),
        ms_one_by_one,
        cache_bytes: shape.bytes()?,
        peak_rss_bytes: rss::peak_bytes(),
    })
}

/// One mode at work. Memory is what is here: it does not grow with the stream but by the scores.
struct Pass<'a> {
    mode: Mode,
    llama: &'a Llama,
    stream: &'a Stream,
    cache: KvCache,
    scored: Scored,
    tokens: Vec<u32>,
    keep: Vec<u32>,
    nlls: Vec<f32>,
    pace: Pace,
}

impl Pass<'_> {
    /// Feeds the stream in chunks and returns its tokens.
    fn stream(&mut self, tokens: u64, chunk: u32) -> Result<u64> {
        let bar = progress(self.mode, tokens);
        let mut from = 0;
        while from < tokens {
            let to = tokens.min(from + u64::from(chunk));
            let begin = Instant::now();
            self.stream.fill(from..to, &mut self.tokens);
            self.keep.clear();
            self.keep.extend(self.scored.within(from..to).map(|p| (p - from) as u32));
            let logits = self.llama.forward(&self.tokens, &self.keep, &mut self.cache)?;
            for (logits, i) in logits.chunks_exact(VOCABULARY).zip(&self.keep) {
                self.nlls.push(nll(logits, self.stream.token(from + u64::from(*i) + 1)));
            }
            if to - from == u64::from(chunk) {
                self.pace.note(from..to, begin.elapsed());
            }
            bar.set_position(to);
            from = to;
        }
        bar.finish_and_clear();
        Ok(tokens)
    }

    /// Starts afresh for every scored position and returns how many there are. The sequence is `<s>` and the last
    /// `context` - 1 tokens, or as many as there have been.
    fn recompute(&mut self, context: u32) -> Result<u64> {
        let bar = progress(self.mode, self.scored.count());
        for position in self.scored.positions() {
            let begin = Instant::now();
            let from = (position + 1).saturating_sub(u64::from(context) - 1).max(1);
            self.stream.fill(from..position + 1, &mut self.tokens);
            self.tokens.insert(0, START);
            self.cache.reset()?;
            let last = self.tokens.len() as u32 - 1;
            let logits = self.llama.forward(&self.tokens, &[last], &mut self.cache)?;
            self.nlls.push(nll(&logits, self.stream.token(position + 1)));
            self.pace.note(position..position + 1, begin.elapsed());
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(self.scored.count())
    }

    /// Goes on with a few tokens one by one, as a generating host does, and returns the median time in ms.
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
}

/// Times of the second and of the last tenth of a stream.
struct Pace {
    second: Range<u64>,
    last: Range<u64>,
    times: [Vec<f32>; 2],
}

impl Pace {
    fn new(tokens: u64) -> Self {
        Self { second: tokens / 10..tokens / 5, last: tokens - tokens / 10..tokens, times: Default::default() }
    }

    /// Notes what the tokens at `positions` took, if all of them are in one of the tenths.
    fn note(&mut self, positions: Range<u64>, time: Duration) {
        let ms = time.as_secs_f32() * 1e3 / (positions.end - positions.start) as f32;
        for (tenth, times) in [&self.second, &self.last].into_iter().zip(&mut self.times) {
            if tenth.start <= positions.start && positions.end <= tenth.end {
                times.push(ms);
            }
        }
    }

    fn medians(&mut self) -> Option<(f64, f64)> {
        let [second, last] = &mut self.times;
        Some((median(second)?, median(last)?))
    }
}

/// A bar on stderr with speed and time left; silent where stderr is no terminal.
fn progress(mode: Mode, length: u64) -> ProgressBar {
    let style = "{prefix:9} {wide_bar} {human_pos}/{human_len} tokens  {per_sec}  {eta} left";
    let bar = ProgressBar::new(length).with_prefix(mode.name());
    bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

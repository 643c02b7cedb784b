//! The four caches that are compared, and what their runs have in common.

use serde::{Deserialize, Serialize};

use crate::cache::{CacheShape, KvTypes};
use crate::model::Llama;
use crate::scores::ScoredPositions;

/// Dense attention stops at this many times the trained length. All modes score the tokens before that densely.
pub const DENSE_REACH: u32 = 8;

/// What happens to old tokens.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The first tokens stay, all others are evicted when they leave a rolling window.
    Sink,
    /// All tokens are evicted when they leave a rolling window.
    Window,
    /// All tokens stay. Stops at [`DENSE_REACH`] times the trained length.
    Dense,
    /// For every scored token the last tokens are computed again, in an empty cache behind `<s>`.
    Recompute,
}

impl Mode {
    /// All modes, in the order in which they run.
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

/// What the runs of all modes have in common.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Sinks of mode sink.
    pub sink: u32,
    /// Rolling window of mode sink.
    pub window: u32,
    /// Tokens in one forward pass.
    pub chunk: u32,
    /// Stored types.
    pub kv_dtype: KvTypes,
    /// Threads.
    pub threads: u32,
    /// Positions scored in the whole stream.
    pub scored: ScoredPositions,
    /// Positions scored at the beginning, up to where dense stops. They lie closer together than those of `scored`.
    pub beginning: ScoredPositions,
}

impl Setting {
    /// Tokens that a query sees: sinks and window.
    #[must_use]
    pub fn context(&self) -> u32 {
        self.sink.saturating_add(self.window)
    }

    /// The most tokens that a mode can stream.
    #[must_use]
    pub fn reach(&self, mode: Mode, llama: &Llama) -> u64 {
        match mode {
            Mode::Dense => dense_reach(llama.config().trained_length),
            _ => u64::MAX,
        }
    }

    /// The shape of a mode's cache.
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

/// The tokens after which dense stops.
#[must_use]
pub fn dense_reach(trained_length: usize) -> u64 {
    trained_length as u64 * u64::from(DENSE_REACH)
}

//! The data file: all scores of a run, as JSON. The plot is drawn from it, so that it can be drawn again without a run.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::modes::Mode;
use crate::pass::ModeRun;
use crate::scores::Scores;

/// A hundred times the scores of a stream of 4,000,000 tokens.
const MAX_BYTES: u64 = 1 << 28;

/// The scores of all modes that ran.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct RunData {
    /// Length of the stream.
    pub tokens: u64,
    /// Trained length of the model.
    pub trained_length: u64,
    /// One entry per mode.
    pub modes: Vec<ModeData>,
}

/// The scores of one mode.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct ModeData {
    /// The mode.
    pub mode: Mode,
    /// Sinks of its cache.
    pub sink: u32,
    /// Window of its cache.
    pub window: u32,
    /// Scores at the beginning of the stream, closer together.
    pub beginning: Scores,
    /// Scores in the whole stream.
    pub stream: Scores,
}

impl RunData {
    /// The scores of runs, rounded as a file holds them, so that a file gives the same plot as its run.
    #[must_use]
    pub fn new(tokens: u64, trained_length: usize, runs: &[ModeRun]) -> Self {
        let modes = runs.iter().map(|run| ModeData {
            mode: run.mode,
            sink: run.shape.n_sink,
            window: run.shape.window,
            beginning: run.beginning.rounded(),
            stream: run.scores.rounded(),
        });
        Self { tokens, trained_length: trained_length as u64, modes: modes.collect() }
    }

    /// Reads a data file.
    ///
    /// # Errors
    /// A file that cannot be read, or does not hold what [`Self::write`] writes.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mut text = String::new();
        // The limit is for devices, which have no end.
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
        let bytes = read.with_context(|| format!("cannot read data '{shown}'"))?;
        ensure!((bytes as u64) < MAX_BYTES, "data '{shown}' has {MAX_BYTES} bytes or more");
        let data: Self = serde_json::from_str(&text).with_context(|| format!("data '{shown}'"))?;
        data.check().with_context(|| format!("data '{shown}'"))?;
        Ok(data)
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [("tokens", self.tokens), ("trained_length", self.trained_length)] {
            ensure!((1..=1 << 40).contains(&value), "{name} is {value}: 1 to 2^40 is allowed");
        }
        ensure!(!self.modes.is_empty(), "has no modes");
        for (i, mode) in self.modes.iter().enumerate() {
            let earlier = self.modes[..i].iter().any(|earlier| earlier.mode == mode.mode);
            ensure!(!earlier, "{}: stands twice", mode.mode.name());
            for scores in [&mode.beginning, &mode.stream] {
                let (name, positions, n) = (mode.mode.name(), scores.positions, scores.nlls.len());
                ensure!(positions.stride > 0, "{name}: stride must be above 0");
                ensure!(positions.end <= self.tokens, "{name}: end must be at most {} tokens", self.tokens);
                ensure!(
                    positions.count() == n as u64,
                    "{name}: {n} scores of {} positions: their numbers must be equal",
                    positions.count()
                );
                ensure!(scores.nlls.iter().all(|nll| nll.is_finite()), "{name}: a score is not a number");
            }
        }
        Ok(())
    }

    /// Writes a data file, one line per mode.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("{{\"tokens\":{},\"trained_length\":{},\"modes\":[", self.tokens, self.trained_length);
        for (i, mode) in self.modes.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(text, "{comma}\n{}", serde_json::to_string(mode)?)?;
        }
        text.push_str("\n]}\n");
        std::fs::write(path, text).with_context(|| format!("cannot write data '{}'", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::ScoredPositions;

    fn scores(nlls: &[f32]) -> Scores {
        let positions = ScoredPositions { start: 10, stride: 5, end: 10 + 5 * nlls.len() as u64 };
        Scores { positions, nlls: nlls.to_vec() }
    }

    fn data() -> RunData {
        let mode = |mode, first: f32| ModeData {
            mode,
            sink: 4,
            window: 252,
            beginning: scores(&[first, 1.2346]),
            stream: scores(&[0.0001, 22.5, 3.0]),
        };
        RunData { tokens: 100, trained_length: 256, modes: vec![mode(Mode::Sink, 0.5), mode(Mode::Recompute, 0.25)] }
    }

    #[test]
    fn a_file_holds_what_was_written() {
        let path = std::env::temp_dir().join(format!("stream-data-{}.json", std::process::id()));
        data().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let read = RunData::open(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), data());
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("1.2346") && text.contains("0.0001"), "{text}");
    }

    #[test]
    fn data_that_would_mislead_is_rejected() {
        data().check().unwrap();
        let rejected = |change: fn(&mut RunData), part: &str| {
            let mut data = data();
            change(&mut data);
            let error = data.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error:?} should contain {part:?}");
        };
        rejected(|data| data.tokens = 0, "tokens");
        rejected(|data| data.trained_length = 0, "trained_length");
        rejected(|data| data.tokens = 1 << 63, "2^40");
        rejected(|data| data.modes.clear(), "no modes");
        rejected(|data| data.modes[1].stream.positions.stride = 0, "recompute: stride");
        rejected(|data| data.modes[0].stream.positions.end = 101, "at most 100");
        rejected(|data| data.modes[0].beginning.nlls.push(1.0), "sink: 3 scores of 2 positions");
        rejected(|data| data.modes[0].stream.nlls[1] = f32::INFINITY, "not a number");
        rejected(|data| data.modes[1].mode = Mode::Sink, "sink: stands twice");
    }
}

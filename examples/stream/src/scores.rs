//! Which positions of a stream are scored, and what they scored.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::stats::perplexity;

/// Positions whose prediction is scored: every `stride`-th from `start` on, below `end`.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoredPositions {
    /// The first position.
    pub start: u64,
    /// Distance between neighbours.
    pub stride: u64,
    /// All positions are below this one.
    pub end: u64,
}

impl ScoredPositions {
    /// The first scored position that is not below `position`.
    fn first_from(self, position: u64) -> u64 {
        self.start + position.saturating_sub(self.start).div_ceil(self.stride) * self.stride
    }

    /// The scored positions in `range`, ascending.
    pub fn within(self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let end = range.end.min(self.end);
        (self.first_from(range.start)..end.max(self.start)).step_by(self.stride as usize).filter(move |&p| p < end)
    }

    /// All scored positions, ascending.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        self.within(0..self.end)
    }

    /// The number of scored positions.
    #[must_use]
    pub fn count(self) -> u64 {
        self.end.saturating_sub(self.start).div_ceil(self.stride)
    }

    /// The scored positions below `end`.
    #[must_use]
    pub fn below(self, end: u64) -> Self {
        Self { end: self.end.min(end), ..self }
    }
}

/// The negative log-likelihood of the next token at each scored position.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Scores {
    /// The scored positions.
    #[serde(flatten)]
    pub positions: ScoredPositions,
    /// One negative log-likelihood per position, in nats.
    pub nlls: Vec<f32>,
}

impl Scores {
    /// The negative log-likelihoods of the positions in `range`.
    #[must_use]
    pub fn within(&self, range: Range<u64>) -> &[f32] {
        let from = self.positions.below(range.start).count() as usize;
        let to = self.positions.below(range.end).count() as usize;
        self.nlls.get(from..to).unwrap_or_default()
    }

    /// The same scores with at most four decimals, which makes files small. The rounding by up to 0.00005 nats is far
    /// below the standard error of any mean.
    #[must_use]
    pub fn rounded(&self) -> Self {
        let round = |nll: &f32| ((f64::from(*nll) * 1e4).round() / 1e4) as f32;
        Self { positions: self.positions, nlls: self.nlls.iter().map(round).collect() }
    }

    /// The perplexity of the positions in `range`; `None` if none of them is scored.
    #[must_use]
    pub fn perplexity(&self, range: Range<u64>) -> Option<f64> {
        perplexity(self.within(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_divide_the_scored_positions() {
        for (start, stride, end) in [(0, 1, 10), (3, 4, 50), (7, 40, 47), (7, 40, 48), (9, 5, 9), (20, 3, 10)] {
            let scored = ScoredPositions { start, stride, end };
            let all: Vec<_> = (0..end).filter(|p| *p >= start && (p - start) % stride == 0).collect();
            assert_eq!(scored.iter().collect::<Vec<_>>(), all);
            assert_eq!(scored.count(), all.len() as u64);
            for chunk in 1..=end {
                let cut: Vec<_> =
                    (0..end).step_by(chunk as usize).flat_map(|from| scored.within(from..from + chunk)).collect();
                assert_eq!(cut, all);
            }
        }
    }

    #[test]
    fn a_range_selects_the_scores_of_its_positions() {
        let positions = ScoredPositions { start: 10, stride: 10, end: 100 };
        let scores = Scores { positions, nlls: positions.iter().map(|p| p as f32).collect() };
        assert_eq!(scores.within(90..100), [90.0]);
        assert_eq!(scores.within(21..41), [30.0, 40.0]);
        assert_eq!(scores.within(0..20), [10.0]);
        assert_eq!(scores.within(91..100), [0.0; 0]);
        // A mode that stopped early has no scores at the end of the stream.
        let stopped = Scores { positions: positions.below(50), nlls: scores.nlls[..4].to_vec() };
        assert_eq!(stopped.within(90..100), [0.0; 0]);
        assert_eq!(stopped.perplexity(90..100), None);
        assert_eq!(stopped.perplexity(10..20), Some(10_f64.exp()));
    }
}

//! Time per token in the second and the last tenth of a stream: equal times show that the cost does not grow.

use std::ops::Range;
use std::time::Duration;

use crate::stats::median;

/// Median times per token, in ms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TenthTimes {
    /// In the second tenth of the stream. The first tenth is left out as warm-up.
    pub second: f64,
    /// In the last tenth.
    pub last: f64,
}

/// Collects the times of chunks.
pub struct Pace {
    second: Range<u64>,
    last: Range<u64>,
    times: [Vec<f32>; 2],
}

impl Pace {
    /// For a stream of `tokens`.
    #[must_use]
    pub fn new(tokens: u64) -> Self {
        Self { second: tokens / 10..tokens / 5, last: tokens - tokens / 10..tokens, times: Default::default() }
    }

    /// Adds the time of the tokens at `positions` if all of them lie in one of the two tenths.
    pub fn add(&mut self, positions: Range<u64>, time: Duration) {
        let ms = time.as_secs_f32() * 1e3 / (positions.end - positions.start) as f32;
        for (tenth, times) in [&self.second, &self.last].into_iter().zip(&mut self.times) {
            if tenth.start <= positions.start && positions.end <= tenth.end {
                times.push(ms);
            }
        }
    }

    /// The medians; `None` if a tenth has no time.
    pub fn medians(&mut self) -> Option<TenthTimes> {
        let [second, last] = &mut self.times;
        Some(TenthTimes { second: median(second)?, last: median(last)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_the_two_tenths_are_left_out() {
        let mut pace = Pace::new(100);
        let ms = Duration::from_millis;
        for (positions, time) in [(0..10, ms(1)), (10..20, ms(20)), (15..25, ms(1)), (90..100, ms(30))] {
            pace.add(positions, time);
        }
        let TenthTimes { second, last } = pace.medians().unwrap();
        assert!((second - 2.0).abs() < 1e-6 && (last - 3.0).abs() < 1e-6, "{second} {last}");
        assert_eq!(Pace::new(100).medians(), None);
    }
}

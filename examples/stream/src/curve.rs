//! A curve of perplexity over position: means over bins that hold equally many scores, with their standard errors.

use crate::scores::Scores;
use crate::stats::mean;

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Middle between the first and the last position.
    pub position: f64,
    /// Number of scores.
    pub n: usize,
    /// Mean negative log-likelihood, in nats.
    pub nll: f64,
    /// Standard error of that mean, as if the scores were independent.
    pub standard_error: f64,
}

impl Bin {
    /// Perplexity.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }

    /// Perplexity at one standard error below the mean.
    #[must_use]
    pub fn low(&self) -> f64 {
        (self.nll - self.standard_error).exp()
    }

    /// Perplexity at one standard error above the mean.
    #[must_use]
    pub fn high(&self) -> f64 {
        (self.nll + self.standard_error).exp()
    }
}

/// Divides scores into at most `max_bins` bins of at least `min_scores`. Their counts differ by 1 at most. Fewer than
/// `min_scores` make one bin; fewer than 2 make none, because they have no standard error.
#[must_use]
pub fn bins(scores: &Scores, max_bins: usize, min_scores: usize) -> Vec<Bin> {
    let n = scores.nlls.len();
    if n < 2 {
        return Vec::new();
    }
    let count = (n / min_scores.max(2)).clamp(1, max_bins.max(1));
    let positions = scores.positions;
    let position = |i: usize| positions.start as f64 + i as f64 * positions.stride as f64;
    let bin = |i: usize| {
        let (from, to) = (i * n / count, (i + 1) * n / count);
        let nlls = &scores.nlls[from..to];
        let (nll, standard_error) = mean_and_error(nlls);
        Bin { position: (position(from) + position(to - 1)) / 2.0, n: nlls.len(), nll, standard_error }
    };
    (0..count).map(bin).collect()
}

/// Mean and standard error of two or more values.
fn mean_and_error(values: &[f32]) -> (f64, f64) {
    let values = || values.iter().map(|&x| f64::from(x));
    let n = values().count() as f64;
    let mean = mean(values()).unwrap_or_default();
    let squares: f64 = values().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0) / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::ScoredPositions;

    fn scores(nlls: Vec<f32>) -> Scores {
        let positions = ScoredPositions { start: 100, stride: 10, end: 100 + 10 * nlls.len() as u64 };
        Scores { positions, nlls }
    }

    #[test]
    fn bins_have_equal_counts_and_hold_every_score_once() {
        for n in [2, 63, 64, 127, 128, 987, 4988, 7999] {
            // The score is its index: the mean of a bin tells which scores it holds.
            let bins = bins(&scores((0..n).map(|i| i as f32).collect()), 40, 64);
            let (least, most) = (bins.iter().map(|b| b.n).min().unwrap(), bins.iter().map(|b| b.n).max().unwrap());
            assert!(most - least <= 1, "{n}: {least} to {most}");
            assert!(bins.len() <= 40 && (least >= 64 || bins.len() == 1), "{n}: {} of {least}", bins.len());
            let mut from = 0;
            for bin in &bins {
                let middle = from as f64 + (bin.n - 1) as f64 / 2.0;
                assert!((bin.nll - middle).abs() < 1e-9, "{n}: {bin:?}");
                assert!((bin.position - (100.0 + 10.0 * middle)).abs() < 1e-9, "{n}: {bin:?}");
                from += bin.n;
            }
            assert_eq!(from, n);
        }
        assert_eq!(bins(&scores((0..7999).map(|i| i as f32).collect()), 40, 64).len(), 40);
    }

    #[test]
    fn the_band_is_one_standard_error_wide() {
        let [bin] = bins(&scores(vec![1.0, 2.0, 3.0, 6.0]), 40, 64)[..] else { panic!("one bin") };
        // Mean 3, variance 14 / 3, standard error sqrt(14 / 3 / 4).
        let error = (14_f64 / 12.0).sqrt();
        for (got, want) in [(bin.perplexity(), 3.0), (bin.low(), 3.0 - error), (bin.high(), 3.0 + error)] {
            assert!((got - want.exp()).abs() < 1e-9, "{bin:?}");
        }
    }

    #[test]
    fn a_single_score_has_no_error_and_makes_no_bin() {
        assert_eq!(bins(&scores(vec![1.0]), 40, 64), []);
        assert_eq!(bins(&scores(vec![]), 40, 64), []);
    }
}

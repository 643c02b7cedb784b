//! Numbers out of scores.

use crate::text::Scored;

/// Mean; `None` of nothing.
#[must_use]
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.into_iter().fold((0_u64, 0.0), |(n, sum), x| (n + 1, sum + x));
    (n > 0).then(|| sum / n as f64)
}

/// exp of the mean negative log-likelihood; `None` of nothing.
#[must_use]
pub fn perplexity(nlls: &[f32]) -> Option<f64> {
    mean(nlls.iter().map(|&nll| f64::from(nll))).map(f64::exp)
}

/// Median, the lower of two; `None` of nothing. Sorts.
#[must_use]
pub fn median(values: &mut [f32]) -> Option<f64> {
    values.sort_by(f32::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).map(|&x| f64::from(x))
}

/// Differences of two scores of the same positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// Pairs.
    pub n: usize,
    /// Mean of first - second.
    pub mean: f64,
    /// Standard error of that mean.
    pub standard_error: f64,
}

/// Compares scores pair by pair; `None` of fewer than two pairs.
#[must_use]
pub fn paired(first: &[f32], second: &[f32]) -> Option<Paired> {
    let differences = || first.iter().zip(second).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let n = differences().count();
    let mean = mean(differences())?;
    let squares: f64 = differences().map(|d| (d - mean).powi(2)).sum();
    (n > 1).then(|| Paired { n, mean, standard_error: (squares / (n - 1) as f64 / n as f64).sqrt() })
}

/// Scores of the positions in the last tenth of a stream of `tokens`.
#[must_use]
pub fn last_tenth(scored: Scored, nlls: &[f32], tokens: u64) -> &[f32] {
    let before = scored.before(tokens - tokens / 10).count() as usize;
    nlls.get(before..).unwrap_or_default()
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Mean position.
    pub position: f64,
    /// Perplexity.
    pub perplexity: f64,
}

/// Perplexity over bins, each reaching `ratio` times as far as the one before but of at least `least` scores; what is
/// left at the end and is fewer joins the last one.
#[must_use]
pub fn bins(scored: Scored, nlls: &[f32], ratio: f64, least: usize) -> Vec<Bin> {
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut from, mut reach) = (0, scored.start as f64 * ratio);
    for (i, position) in scored.positions().enumerate().take(nlls.len()) {
        if i - from >= least && position as f64 >= reach {
            ranges.push(from..i);
            (from, reach) = (i, position as f64 * ratio);
        }
    }
    match ranges.last_mut() {
        Some(last) if nlls.len() - from < least => last.end = nlls.len(),
        _ => ranges.push(from..nlls.len()),
    }
    let position = |i: usize| scored.start as f64 + i as f64 * scored.stride as f64;
    let bin = |range: std::ops::Range<usize>| {
        let position = (position(range.start) + position(range.end - 1)) / 2.0;
        Some(Bin { position, perplexity: perplexity(&nlls[range])? })
    };
    ranges.into_iter().filter(|range| !range.is_empty()).filter_map(bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_and_median() {
        assert_eq!(perplexity(&[]), None);
        assert!((perplexity(&[2_f32.ln(), 8_f32.ln()]).unwrap() - 4.0).abs() < 1e-6);
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [5.0, 1.0, 3.0]), Some(3.0));
    }

    #[test]
    fn pairs_give_mean_and_standard_error() {
        let pairs = paired(&[1.0, 2.0, 3.0, 9.0], &[0.0, 0.0, 2.0, 8.0]).unwrap();
        assert_eq!((pairs.n, pairs.mean), (4, 1.25));
        assert!((pairs.standard_error - 0.25).abs() < 1e-12);
        assert_eq!(paired(&[1.0], &[1.0]), None);
    }

    #[test]
    fn the_last_tenth_is_counted_from_the_stream() {
        let scored = Scored { start: 10, stride: 10, end: 100 };
        let nlls: Vec<f32> = scored.positions().map(|p| p as f32).collect();
        assert_eq!(last_tenth(scored, &nlls, 100), [90.0]);
        // A mode that stopped early has nothing there.
        assert_eq!(last_tenth(scored.before(50), &nlls[..4], 100), [0.0; 0]);
    }

    #[test]
    fn bins_hold_every_score_once() {
        let scored = Scored { start: 512, stride: 40, end: 60_000 };
        let nlls = vec![1.0; scored.count() as usize];
        let bins = bins(scored, &nlls, 1.25, 12);
        assert!(bins.len() > 12 && bins.windows(2).all(|b| b[0].position < b[1].position), "{bins:?}");
        assert!(bins.iter().all(|b| (b.perplexity - 1_f64.exp()).abs() < 1e-9));
        assert_eq!(super::bins(scored, &[], 1.25, 12), []);
    }
}

//! Mean, perplexity, median and paired differences.

/// Mean; `None` without values.
#[must_use]
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.into_iter().fold((0_u64, 0.0), |(n, sum), x| (n + 1, sum + x));
    (n > 0).then(|| sum / n as f64)
}

/// exp of the mean negative log-likelihood; `None` without values.
#[must_use]
pub fn perplexity(nlls: &[f32]) -> Option<f64> {
    mean(nlls.iter().map(|&nll| f64::from(nll))).map(f64::exp)
}

/// Median, the lower one of an even number of values; `None` without values. Sorts `values`.
#[must_use]
pub fn median(values: &mut [f32]) -> Option<f64> {
    values.sort_by(f32::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).map(|&x| f64::from(x))
}

/// Mean difference of two sets of scores on the same positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// Number of pairs.
    pub n: usize,
    /// Mean of first - second.
    pub mean: f64,
    /// Standard error of that mean.
    pub standard_error: f64,
}

/// Compares scores pair by pair; `None` for fewer than two pairs.
#[must_use]
pub fn paired(first: &[f32], second: &[f32]) -> Option<Paired> {
    let differences = || first.iter().zip(second).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let n = differences().count();
    let mean = mean(differences())?;
    let squares: f64 = differences().map(|d| (d - mean).powi(2)).sum();
    (n > 1).then(|| Paired { n, mean, standard_error: (squares / (n - 1) as f64 / n as f64).sqrt() })
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
}

//! Where an axis has ticks, and what is written beside them.

/// The most intervals that ticks divide a linear axis into: their labels must not touch.
const MAX_INTERVALS: f64 = 6.0;
/// The least number of ticks on a logarithmic axis.
const MIN_LOG_TICKS: usize = 4;

/// Ticks from 0 to `max` at multiples of 1, 2 or 5 times a power of ten.
#[must_use]
pub fn decimal(max: f64) -> Vec<f64> {
    let magnitude = 10_f64.powf((max / MAX_INTERVALS).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * magnitude);
    multiples(steps.into_iter().find(|step| max / step <= MAX_INTERVALS).unwrap_or(max), max)
}

/// Ticks from 0 to `max` at multiples of `unit`, doubled as often as it takes.
#[must_use]
pub fn doubled(unit: f64, max: f64) -> Vec<f64> {
    let mut step = unit;
    while max / step > MAX_INTERVALS {
        step *= 2.0;
    }
    multiples(step, max)
}

fn multiples(step: f64, max: f64) -> Vec<f64> {
    let n = (max / step + 1e-9).floor() as u32;
    (0..=n).map(|i| f64::from(i) * step).collect()
}

/// Ticks from `low` to `high` of a logarithmic axis: powers of ten, and as many digits between them as it takes.
#[must_use]
pub fn logarithmic(low: f64, high: f64) -> Vec<f64> {
    const DIGITS: [&[f64]; 4] = [
        &[1.0],
        &[1.0, 2.0, 5.0],
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        &[1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0],
    ];
    let decades = low.log10().floor() as i32..=high.log10().floor() as i32;
    let ticks = |digits: &[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|decade| digits.iter().map(move |digit| digit * 10_f64.powi(decade)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let enough = DIGITS.iter().map(|digits| ticks(digits)).find(|ticks| ticks.len() >= MIN_LOG_TICKS);
    enough.unwrap_or_else(|| ticks(DIGITS[DIGITS.len() - 1]))
}

/// A number of tokens in few characters: 512, 50k, 1.5M.
#[must_use]
pub fn count(x: f64) -> String {
    match x {
        x if x >= 1e6 => format!("{}M", decimals(x / 1e6)),
        x if x >= 1e4 => format!("{}k", decimals(x / 1e3)),
        x => decimals(x),
    }
}

/// A number without trailing zeros, at most three decimals.
#[must_use]
pub fn decimals(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The largest of 1, 2 and 5 times a power of ten that is not above `x`.
#[must_use]
pub fn round_down(x: f64) -> f64 {
    let magnitude = 10_f64.powf(x.log10().floor());
    [5.0, 2.0].into_iter().map(|digit| digit * magnitude).find(|tick| *tick <= x).unwrap_or(magnitude)
}

/// A whole number with commas between thousands.
#[must_use]
pub fn grouped(n: impl Into<u64>) -> String {
    let digits = n.into().to_string();
    let comma = |i: usize| if i > 0 && (digits.len() - i).is_multiple_of(3) { "," } else { "" };
    digits.char_indices().map(|(i, digit)| format!("{}{digit}", comma(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<f64>, label: fn(f64) -> String) -> Vec<String> {
        ticks.into_iter().map(label).collect()
    }

    #[test]
    fn positions_have_a_few_round_ticks() {
        assert_eq!(labels(decimal(4e6), count), ["0", "1M", "2M", "3M", "4M"]);
        assert_eq!(labels(decimal(3e6), count), ["0", "500k", "1M", "1.5M", "2M", "2.5M", "3M"]);
        assert_eq!(labels(decimal(200_000.0), count), ["0", "50k", "100k", "150k", "200k"]);
        assert_eq!(labels(decimal(40_000.0), count), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(labels(decimal(3000.0), count), ["0", "500", "1000", "1500", "2000", "2500", "3000"]);
        for max in 1..2000 {
            let n = decimal(f64::from(max) * 37.0).len();
            assert!((3..=7).contains(&n), "{max} x 37: {n} ticks");
        }
    }

    #[test]
    fn ticks_of_the_beginning_are_multiples_of_the_trained_length() {
        assert_eq!(labels(doubled(256.0, 2048.0), count), ["0", "512", "1024", "1536", "2048"]);
        assert_eq!(labels(doubled(256.0, 900.0), count), ["0", "256", "512", "768"]);
        assert_eq!(labels(doubled(256.0, 100.0), count), ["0"]);
    }

    #[test]
    fn perplexity_has_ticks_in_every_range() {
        assert_eq!(labels(logarithmic(2.2, 120.0), decimals), ["5", "10", "20", "50", "100"]);
        assert_eq!(labels(logarithmic(1.0, 10_000.0), decimals), ["1", "10", "100", "1000", "10000"]);
        assert_eq!(labels(logarithmic(2.5, 5.0), decimals), ["2.5", "3", "3.5", "4", "4.5", "5"]);
    }

    #[test]
    fn numbers_are_rounded_and_grouped() {
        assert_eq!([9.9, 5.0, 4.9, 2.0, 1.9, 0.3].map(round_down), [5.0, 5.0, 2.0, 2.0, 1.0, 0.2]);
        assert_eq!([0_u32, 256, 2048, 100_000].map(grouped), ["0", "256", "2,048", "100,000"]);
        assert_eq!(grouped(4_000_000_u64), "4,000,000");
    }
}

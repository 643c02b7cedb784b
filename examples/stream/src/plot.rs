//! Perplexity over position, as an SVG.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::modes::{Mode, ModeRun};
use crate::stats::{Bin, bins};

const SIZE: (u32, u32) = (960, 560);
/// A bin of the plot reaches this much further than the one before, and holds at least so many scores.
const BIN_RATIO: f64 = 1.2;
const BIN_SCORES: usize = 12;

/// Draws the runs, a line each, on two logarithmic axes.
///
/// # Errors
/// A file that cannot be written.
pub fn draw(path: &Path, runs: &[ModeRun], trained_length: usize, tokens: u64) -> Result<()> {
    let lines: Vec<_> = runs.iter().map(|run| (run.mode, bins(run.scored, &run.nlls, BIN_RATIO, BIN_SCORES))).collect();
    let mut svg = String::new();
    chart(&mut svg, &lines, trained_length, tokens).map_err(|e| anyhow!("plot: {e}"))?;
    std::fs::write(path, svg).with_context(|| format!("cannot write plot '{}'", path.display()))
}

fn chart(
    svg: &mut String,
    lines: &[(Mode, Vec<Bin>)],
    trained_length: usize,
    tokens: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let (x, y) = ranges(lines, tokens);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Perplexity per byte over stream position", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc(format!("position in the stream, tokens (trained length: {trained_length})"))
        .y_desc("perplexity")
        .x_labels(30)
        .y_labels(30)
        .x_label_formatter(&|x| tick(*x))
        .y_label_formatter(&|y| tick(*y))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (mode, bins) in lines {
        let style = style(*mode);
        let points = || bins.iter().map(|bin| (bin.position, bin.perplexity));
        chart
            .draw_series(LineSeries::new(points(), style))?
            .label(mode.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
        chart.draw_series(points().map(|point| Circle::new(point, 3, style.color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(32)
        .margin(12)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Axes that hold all points with some air.
fn ranges(lines: &[(Mode, Vec<Bin>)], tokens: u64) -> (Range<f64>, Range<f64>) {
    let points = || lines.iter().flat_map(|(_, bins)| bins);
    let first = points().map(|bin| bin.position).fold(tokens as f64, f64::min);
    let low = points().map(|bin| bin.perplexity).fold(f64::INFINITY, f64::min);
    let high = points().map(|bin| bin.perplexity).fold(1.0, f64::max);
    // From a power of ten on, for plotters labels whole decades only.
    let low = 10_f64.powf(low.min(high).log10().floor());
    (first * 0.9..tokens as f64 * 1.1, low..high * 3.0)
}

/// Colours that the colour-blind tell apart; recompute is drawn last and thin, for sink should lie below it.
fn style(mode: Mode) -> ShapeStyle {
    let (color, width) = match mode {
        Mode::Sink => (RGBColor(0, 114, 178), 5),
        Mode::Window => (RGBColor(213, 94, 0), 2),
        Mode::Dense => (RGBColor(0, 158, 115), 2),
        Mode::Recompute => (RGBColor(20, 20, 20), 1),
    };
    ShapeStyle { color: color.to_rgba(), filled: false, stroke_width: width }
}

/// 1, 2 and 5 of each decade, such as 5, 2000, 10 k, 2 M; nothing for what would crowd them.
fn tick(x: f64) -> String {
    let digit = x / 10_f64.powf((x.log10() + 1e-9).floor());
    match x {
        _ if ![1.0, 2.0, 5.0].iter().any(|kept| (digit - kept).abs() < 1e-6) => String::new(),
        x if x >= 1e6 => format!("{:.0} M", x / 1e6),
        x if x >= 1e4 => format!("{:.0} k", x / 1e3),
        x => format!("{x:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::tick;

    #[test]
    fn ticks_are_few_and_short() {
        let ticks = [1.0, 2.0, 3.0, 5.0, 9.0, 1000.0, 10_000.0, 200_000.0, 5e6, 4e6].map(tick);
        assert_eq!(ticks, ["1", "2", "", "5", "", "1000", "10 k", "200 k", "5 M", ""]);
    }
}

//! The plot of a run, an SVG: a title, a legend, and the charts of the beginning and of the whole stream.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::data::{ModeData, RunData};
use crate::modes::{DENSE_REACH, Mode};
use crate::panel::{Frame, Panel};
use crate::style::{Anchor, Drawn, FAINT, Root, TEXT, UNITS, draw_text, line, px};
use crate::ticks::grouped;

/// Width and height in pixels.
const SIZE: (u32, u32) = (960, 580);
/// Where the charts are, in pixels.
const LEFT: i32 = 76;
const RIGHT: i32 = 930;
const TOP: i32 = 140;
const BOTTOM: i32 = 478;
/// The space between two charts, and the width of the first.
const GAP: i32 = 44;
const BEGINNING_WIDTH: i32 = 310;

/// Draws a plot into a file.
///
/// # Errors
/// A file that cannot be written.
pub fn draw(path: &Path, data: &RunData) -> Result<()> {
    std::fs::write(path, svg(data)?).with_context(|| format!("cannot write plot '{}'", path.display()))
}

/// Draws a plot.
///
/// # Errors
/// None in practice: drawing into memory does not fail.
pub fn svg(data: &RunData) -> Result<String> {
    let (width, height) = (SIZE.0 * UNITS, SIZE.1 * UNITS);
    let mut drawing = String::new();
    figure(SVGBackend::with_string(&mut drawing, (width, height)), data).map_err(|e| anyhow!("plot: {e}"))?;
    // A start tag with the size in pixels, round joints for all lines, and a description for screen readers.
    let body = drawing.split_once('>').map_or("", |(_, body)| body);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" stroke-linejoin=\"round\" stroke-linecap=\"round\">\n<title>{}</title>{body}",
        SIZE.0,
        SIZE.1,
        title(data)
    ))
}

fn figure(backend: SVGBackend<'_>, data: &RunData) -> Drawn {
    let root = backend.into_drawing_area();
    root.fill(&WHITE)?;
    heading(&root, data)?;
    let panels = Panel::all(data);
    for (panel, frame) in panels.iter().zip(frames(panels.len())) {
        panel.draw(&root, frame, Panel::y_range(&panels))?;
    }
    let y_title = (20, (TOP + BOTTOM) / 2);
    draw_text(&root, "perplexity per byte, log scale", y_title, Anchor::Upwards, (14, TEXT))?;
    draw_text(&root, footnote(&panels), (LEFT, SIZE.1 as i32 - 20), Anchor::Left, (12, FAINT))?;
    root.present()?;
    Ok(())
}

/// Side by side, or one alone.
fn frames(n: usize) -> Vec<Frame> {
    let frame = |left, right, has_y_labels| Frame { left, right, top: TOP, bottom: BOTTOM, has_y_labels };
    match n {
        1 => vec![frame(LEFT, RIGHT, true)],
        _ => vec![frame(LEFT, LEFT + BEGINNING_WIDTH, true), frame(LEFT + BEGINNING_WIDTH + GAP, RIGHT, false)],
    }
}

fn title(data: &RunData) -> String {
    let (tokens, trained) = (grouped(data.tokens), grouped(data.trained_length));
    format!("Perplexity over {tokens} tokens, model trained on sequences of {trained}")
}

/// The title, and the legend in columns.
fn heading(root: &Root<'_>, data: &RunData) -> Drawn {
    draw_text(root, title(data), (24, 26), Anchor::Left, (20, TEXT))?;
    for (mode, x) in data.modes.iter().zip((24..).step_by(232)) {
        root.draw(&PathElement::new([(px(x), px(64)), (px(x + 28), px(64))], line(mode.mode)))?;
        draw_text(root, mode.mode.name(), (x + 38, 64), Anchor::Left, (15, TEXT))?;
        draw_text(root, description(mode, data), (x + 38, 82), Anchor::Left, (12, FAINT))?;
    }
    Ok(())
}

fn description(mode: &ModeData, data: &RunData) -> String {
    let ModeData { sink, window, .. } = mode;
    match mode.mode {
        Mode::Sink => format!("first {} + last {} tokens", grouped(*sink), grouped(*window)),
        Mode::Window => format!("last {} tokens", grouped(*window)),
        Mode::Dense => format!("all tokens, stops at {}", grouped(data.trained_length * u64::from(DENSE_REACH))),
        Mode::Recompute => format!("last {} tokens, rerun for each", grouped(sink + window)),
    }
}

fn footnote(panels: &[Panel]) -> String {
    let counts: Vec<_> = panels.iter().filter_map(Panel::scores_per_point).map(|n| n.to_string()).collect();
    let counts = counts.join(" (left) and ") + if counts.len() > 1 { " (right)" } else { "" };
    format!("Points are means over {counts} scored tokens, bands are \u{b1} 1 standard error.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{ScoredPositions, Scores};

    fn scores(end: u64, stride: u64, nll: f32) -> Scores {
        let positions = ScoredPositions { start: 0, stride, end };
        // Half of the scores are higher and half are lower, so that there is a band.
        Scores {
            positions,
            nlls: positions.iter().map(|p| nll + if (p / stride).is_multiple_of(2) { 0.5 } else { -0.5 }).collect(),
        }
    }

    fn data(tokens: u64) -> RunData {
        let mode = |mode, nll| ModeData {
            mode,
            sink: 4,
            window: 252,
            beginning: scores(tokens.min(2048), 2, nll),
            stream: scores(if mode == Mode::Dense { tokens.min(2048) } else { tokens }, 500, nll),
        };
        let modes = [(Mode::Sink, 1.2), (Mode::Window, 3.5), (Mode::Dense, 4.0), (Mode::Recompute, 1.2)];
        RunData { tokens, trained_length: 256, modes: modes.map(|(m, nll)| mode(m, nll)).to_vec() }
    }

    /// The points of all elements of a kind with a certain colour.
    fn points(svg: &str, start: &str, color: &str) -> Vec<Vec<(f64, f64)>> {
        let elements = svg.lines().filter(|line| line.starts_with(start) && line.contains(color));
        let points = |line: &str| {
            let points = line.split_once("points=\"").unwrap().1.split_once(" \"").unwrap().0;
            let number = |x: &str| x.parse().unwrap();
            points.split(' ').map(|p| p.split_once(',').map(|(x, y)| (number(x), number(y))).unwrap()).collect()
        };
        elements.map(points).collect()
    }

    #[test]
    fn every_mode_has_a_curve_inside_a_band() {
        let svg = svg(&data(4_000_000)).unwrap();
        // Dense stops before the chart of the whole stream.
        for (color, charts) in [("#0072B2", 2), ("#D55E00", 2), ("#009E73", 1), ("#141414", 2)] {
            let bands = points(&svg, "<polygon", color);
            // The first line is the legend's.
            let curves = &points(&svg, "<polyline", color)[1..];
            assert_eq!((bands.len(), curves.len()), (charts, charts), "{color}");
            for (band, curve) in bands.iter().zip(curves) {
                assert!(curve.len() >= 16 && band.len() == 2 * curve.len(), "{color}: {} {}", band.len(), curve.len());
                let (upper, lower) = band.split_at(curve.len());
                for ((point, upper), lower) in curve.iter().zip(upper).zip(lower.iter().rev()) {
                    assert!(point.0 == upper.0 && point.0 == lower.0, "{color}: {point:?} {upper:?} {lower:?}");
                    // Down the page, coordinates grow.
                    assert!(
                        upper.1 + 10.0 < point.1 && point.1 + 10.0 < lower.1,
                        "{color}: {upper:?} {point:?} {lower:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn both_axes_have_ticks_and_titles() {
        let svg = svg(&data(4_000_000)).unwrap();
        let texts: Vec<_> = svg.lines().collect();
        for text in ["0", "512", "2048", "1M", "2M", "3M", "4M", "5", "10", "20", "50"] {
            assert!(texts.contains(&text), "{text}");
        }
        for text in ["position, tokens", "perplexity per byte, log scale", "sink", "window", "dense", "recompute"] {
            assert!(texts.contains(&text), "{text}");
        }
        assert!(
            svg.starts_with("<svg xmlns=") && svg.trim_end().ends_with("</svg>") && svg.matches("<svg").count() == 1
        );
        assert!(!svg.contains("<script") && !svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_short_stream_has_one_chart() {
        let texts = |tokens| svg(&data(tokens)).unwrap().matches("position, tokens").count();
        assert_eq!([900, 2048, 2049, 40_000].map(texts), [1, 1, 2, 2]);
    }

    #[test]
    fn few_scores_are_a_point_with_an_error_bar() {
        let mut data = data(3000);
        data.modes.truncate(1);
        let svg = svg(&data).unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
        data.modes[0].stream =
            Scores { positions: ScoredPositions { start: 0, stride: 5000, end: 3000 }, nlls: vec![1.0] };
        assert_eq!(super::svg(&data).unwrap().matches("<circle").count(), 0);
    }
}

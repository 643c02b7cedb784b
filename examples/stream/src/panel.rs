//! One chart of the plot: axes, grid, and for each mode a curve in a band of its standard error.

use plotters::coord::types::RangedCoordf64;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use crate::curve::{Bin, bins};
use crate::data::{ModeData, RunData};
use crate::modes::{DENSE_REACH, Mode};
use crate::scores::Scores;
use crate::stats::mean;
use crate::style::{Anchor, Drawn, FAINT, GRID, Root, TEXT, UNITS, band, draw_text, line, px};
use crate::ticks::{self, grouped};

/// More bins show more of the text's changes, more scores in a bin make the band narrower.
const MAX_BINS: usize = 40;
const MIN_SCORES: usize = 64;

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, LogCoord<f64>>>;

/// The rectangle of a chart, in pixels. Titles and labels are around it.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "sides of a rectangle")]
pub struct Frame {
    pub left: i32,
    pub right: i32,
    pub top: i32,
    pub bottom: i32,
    /// Whether the vertical axis has labels. The right one of two charts shares those of the left.
    pub has_y_labels: bool,
}

/// The content of a chart.
#[derive(Debug, Clone)]
pub struct Panel {
    title: String,
    /// The axis goes from 0 to here.
    x_end: f64,
    x_ticks: Vec<f64>,
    /// A marked position and its label.
    mark: Option<(f64, String)>,
    curves: Vec<(Mode, Vec<Bin>)>,
}

impl Panel {
    /// The beginning, and the whole stream if it is longer than that.
    #[must_use]
    pub fn all(data: &RunData) -> Vec<Self> {
        let reach = data.trained_length * u64::from(DENSE_REACH);
        let mut panels = vec![Self::beginning(data, reach.min(data.tokens))];
        if data.tokens > reach {
            panels.push(Self::whole(data));
        }
        panels
    }

    fn beginning(data: &RunData, end: u64) -> Self {
        let trained = data.trained_length;
        Self {
            title: format!("The first {} tokens", grouped(end)),
            x_end: end as f64,
            x_ticks: ticks::doubled(trained as f64, end as f64),
            mark: (trained < end).then(|| (trained as f64, "trained length".to_owned())),
            curves: curves(data, |mode| &mode.beginning, end),
        }
    }

    fn whole(data: &RunData) -> Self {
        Self {
            title: format!("All {} tokens", grouped(data.tokens)),
            x_end: data.tokens as f64,
            x_ticks: ticks::decimal(data.tokens as f64),
            mark: None,
            curves: curves(data, |mode| &mode.stream, data.tokens),
        }
    }

    /// The number of scores that a point of a curve is the mean of. Some points may have one more or less.
    #[must_use]
    pub fn scores_per_point(&self) -> Option<f64> {
        mean(self.curves.iter().flat_map(|(_, bins)| bins).map(|bin| bin.n as f64)).map(f64::round)
    }

    /// A range of perplexities that holds all curves and bands.
    #[must_use]
    pub fn y_range(panels: &[Self]) -> (f64, f64) {
        let bins = || panels.iter().flat_map(|panel| &panel.curves).flat_map(|(_, bins)| bins);
        let low = bins().map(Bin::low).fold(f64::INFINITY, f64::min);
        let high = bins().map(Bin::high).fold(0.0, f64::max);
        match low < high {
            true => (ticks::round_down(low), high * 1.35),
            false => (1.0, 10.0),
        }
    }

    /// Draws the chart, its title above and its labels around it.
    ///
    /// # Errors
    /// Those of plotters.
    pub fn draw(&self, root: &Root<'_>, frame: Frame, y_range: (f64, f64)) -> Drawn {
        let Frame { left, right, top, bottom, .. } = frame;
        let area = root.clone().shrink((px(left), px(top)), (px(right - left), px(bottom - top)));
        let (low, high) = y_range;
        let mut chart = ChartBuilder::on(&area).build_cartesian_2d(0.0..self.x_end, (low..high).log_scale())?;
        self.draw_axes(&mut chart, y_range)?;
        self.draw_labels(root, &chart, frame, y_range)?;
        self.draw_curves(&mut chart)
    }

    fn draw_axes(&self, chart: &mut Chart<'_>, (low, high): (f64, f64)) -> Drawn {
        let y_ticks = ticks::logarithmic(low, high).into_iter();
        let grid = GRID.stroke_width(UNITS);
        chart.draw_series(y_ticks.map(|y| PathElement::new([(0.0, y), (self.x_end, y)], grid)))?;
        let faint = FAINT.stroke_width(UNITS);
        chart.draw_series([PathElement::new([(0.0, high), (0.0, low), (self.x_end, low)], faint)])?;
        if let Some((x, _)) = self.mark {
            chart.draw_series([DashedPathElement::new([(x, low), (x, high)], px(4), px(4), faint)])?;
        }
        Ok(())
    }

    /// The labels and tick marks, which are outside of the chart's coordinates.
    fn draw_labels(&self, root: &Root<'_>, chart: &Chart<'_>, frame: Frame, (low, high): (f64, f64)) -> Drawn {
        let Frame { left, right, top, bottom, has_y_labels } = frame;
        let x_pixel = |x: f64| chart.backend_coord(&(x, low)).0 / UNITS as i32;
        let y_pixel = |y: f64| chart.backend_coord(&(0.0, y)).1 / UNITS as i32;
        draw_text(root, self.title.clone(), (left, top - 16), Anchor::Left, (15, TEXT))?;
        for tick in &self.x_ticks {
            let x = x_pixel(*tick);
            root.draw(&PathElement::new([(px(x), px(bottom)), (px(x), px(bottom + 5))], FAINT.stroke_width(UNITS)))?;
            draw_text(root, ticks::count(*tick), (x, bottom + 18), Anchor::Center, (14, TEXT))?;
        }
        draw_text(root, "position, tokens", ((left + right) / 2, bottom + 44), Anchor::Center, (14, TEXT))?;
        let y_ticks = if has_y_labels { ticks::logarithmic(low, high) } else { Vec::new() };
        for tick in y_ticks {
            draw_text(root, ticks::decimals(tick), (left - 9, y_pixel(tick)), Anchor::Right, (14, TEXT))?;
        }
        if let Some((x, label)) = &self.mark {
            draw_text(root, label.clone(), (x_pixel(*x) + 7, top + 10), Anchor::Left, (12, FAINT))?;
        }
        Ok(())
    }

    /// The bands, and the curves over all of them.
    fn draw_curves(&self, chart: &mut Chart<'_>) -> Drawn {
        for (mode, bins) in &self.curves {
            chart.draw_series([Polygon::new(outline(bins), band(*mode))])?;
        }
        for (mode, bins) in &self.curves {
            chart.draw_series(LineSeries::new(bins.iter().map(|bin| (bin.position, bin.perplexity())), line(*mode)))?;
            if let [bin] = bins[..] {
                // A band and a curve of one bin have no width: it gets a point with an error bar.
                let bar = [(bin.position, bin.low()), (bin.position, bin.high())];
                chart.draw_series([PathElement::new(bar, line(*mode))])?;
                chart.draw_series([Circle::new((bin.position, bin.perplexity()), px(4), line(*mode).filled())])?;
            }
        }
        Ok(())
    }
}

/// A curve for each mode that reached `end`. Dense stops earlier, and has a curve in the chart of the beginning only.
fn curves(data: &RunData, scores: fn(&ModeData) -> &Scores, end: u64) -> Vec<(Mode, Vec<Bin>)> {
    let complete = data.modes.iter().filter(|mode| scores(mode).positions.end >= end);
    complete.map(|mode| (mode.mode, bins(scores(mode), MAX_BINS, MIN_SCORES))).collect()
}

/// The outline of a band: along its upper edge and back along its lower one.
fn outline(bins: &[Bin]) -> Vec<(f64, f64)> {
    let upper = bins.iter().map(|bin| (bin.position, bin.high()));
    upper.chain(bins.iter().rev().map(|bin| (bin.position, bin.low()))).collect()
}

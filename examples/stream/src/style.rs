//! Fonts, colours and units of the plot.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::modes::Mode;

/// Units per pixel. plotters rounds coordinates to whole units, which would be seen in pixels.
pub const UNITS: u32 = 10;

/// Text.
pub const TEXT: RGBColor = RGBColor(31, 35, 40);
/// Text and lines of less importance.
pub const FAINT: RGBColor = RGBColor(89, 99, 110);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(226, 229, 233);

/// Whatever is installed: browsers and GitHub do not load fonts for an SVG.
const FONTS: &str = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif";
/// plotters divides font sizes by this.
const FONT_SCALE: f64 = 1.24;

/// The whole drawing.
pub type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The result of drawing something.
pub type Drawn = Result<(), Box<dyn Error>>;

/// Pixels in units.
#[must_use]
pub fn px(pixels: i32) -> i32 {
    pixels * UNITS as i32
}

/// Which end of a text is at its position. The position is in the middle of its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the ends")]
pub enum Anchor {
    Left,
    Center,
    Right,
    /// The centre of a text that reads from the bottom to the top.
    Upwards,
}

/// Draws a text at a position in pixels, with a size in pixels and a colour.
///
/// # Errors
/// Those of plotters.
pub fn draw_text(
    root: &Root<'_>,
    text: impl Into<String>,
    (x, y): (i32, i32),
    anchor: Anchor,
    (size, color): (u32, RGBColor),
) -> Drawn {
    let horizontal = match anchor {
        Anchor::Left => HPos::Left,
        Anchor::Center | Anchor::Upwards => HPos::Center,
        Anchor::Right => HPos::Right,
    };
    let turn = if anchor == Anchor::Upwards { FontTransform::Rotate270 } else { FontTransform::None };
    let font = (FONTS, f64::from(size * UNITS) * FONT_SCALE).into_font().transform(turn);
    let style = TextStyle::from(font).color(&color).pos(Pos::new(horizontal, VPos::Center));
    root.draw(&Text::new(text.into(), (px(x), px(y)), style))?;
    Ok(())
}

/// The line of a mode. The colours differ for the colour-blind, too. Recompute is drawn last and thin, because the
/// curve of sink should lie below it.
#[must_use]
pub fn line(mode: Mode) -> ShapeStyle {
    let (color, tenths) = match mode {
        Mode::Sink => (RGBColor(0, 114, 178), 50),
        Mode::Window => (RGBColor(213, 94, 0), 22),
        Mode::Dense => (RGBColor(0, 158, 115), 22),
        Mode::Recompute => (RGBColor(20, 20, 20), 13),
    };
    color.stroke_width(tenths * UNITS / 10)
}

/// The band of a mode's standard error.
#[must_use]
pub fn band(mode: Mode) -> ShapeStyle {
    let opacity = if mode == Mode::Recompute { 0.1 } else { 0.2 };
    line(mode).color.mix(opacity).filled()
}

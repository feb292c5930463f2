//! Shapes as PNG: lines with smooth edges, text in a fixed font, so that no font of the host is needed.

use crate::plot::{Anchor, Colour, Place, Shape, Style};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::FONT_10X20;
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::{
    Dimensions, DrawTarget, Drawable, OriginDimensions, Pixel, Point, Size,
};
use embedded_graphics::text::{Baseline, Text};
use std::convert::Infallible;
use tiny_skia::{Color, FillRule, Paint, PathBuilder, Pixmap, Stroke, Transform};

/// Pixels for a unit of the picture.
const SCALE: f32 = 2.0;

/// A picture cannot be painted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("painting a picture: {problem}")]
pub struct PngError {
    /// Why.
    pub problem: String,
}

impl PngError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        "PLOT_FAILED"
    }
}

/// A picture of that size as a file.
pub(crate) fn paint((width, height): (f64, f64), shapes: &[Shape]) -> Result<Vec<u8>, PngError> {
    let failed = |problem: &str| PngError { problem: problem.to_owned() };
    let size = |units: f64| (units as f32 * SCALE).ceil() as u32;
    let mut canvas = Pixmap::new(size(width), size(height)).ok_or_else(|| failed("no memory"))?;
    canvas.fill(Color::WHITE);
    for shape in shapes {
        match shape {
            Shape::Path { places, colour, width } => stroke(&mut canvas, places, *colour, *width),
            Shape::Dot { at, radius, colour } => dot(&mut canvas, *at, *radius, *colour),
            Shape::Text { at, anchor, style, text } => {
                write(&mut canvas, *at, (*anchor, *style), text);
            }
        }
    }
    canvas.encode_png().map_err(|error| failed(&error.to_string()))
}

fn paint_of([red, green, blue]: Colour) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(red, green, blue, 255);
    paint
}

fn stroke(canvas: &mut Pixmap, places: &[Place], colour: Colour, width: f64) {
    let mut path = PathBuilder::new();
    for (at, (x, y)) in places.iter().enumerate() {
        let (x, y) = (*x as f32, *y as f32);
        if at == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    // A line of one place has nothing to paint.
    let Some(path) = path.finish() else { return };
    let stroke = Stroke { width: width as f32, ..Stroke::default() };
    let scale = Transform::from_scale(SCALE, SCALE);
    canvas.stroke_path(&path, &paint_of(colour), &stroke, scale, None);
}

fn dot(canvas: &mut Pixmap, (x, y): Place, radius: f64, colour: Colour) {
    let Some(path) = PathBuilder::from_circle(x as f32, y as f32, radius as f32) else { return };
    let scale = Transform::from_scale(SCALE, SCALE);
    canvas.fill_path(&path, &paint_of(colour), FillRule::Winding, scale, None);
}

fn write(canvas: &mut Pixmap, (x, y): Place, (anchor, style): (Anchor, Style), text: &str) {
    let font = MonoTextStyle::new(&FONT_10X20, BinaryColor::On);
    let line = Text::with_baseline(text, Point::zero(), font, Baseline::Alphabetic);
    let wide = line.bounding_box().size.width as i32;
    let back = match anchor {
        Anchor::Start => 0,
        Anchor::Middle => wide / 2,
        Anchor::End => wide,
    };
    let pixel = |units: f64| (units as f32 * SCALE).round() as i32;
    let mut ink = Ink { canvas, origin: (pixel(x), pixel(y)), back, style };
    let Ok(_) = line.draw(&mut ink);
}

/// Puts the pixels of a text where they belong.
struct Ink<'a> {
    canvas: &'a mut Pixmap,
    origin: (i32, i32),
    /// Pixels of the text before its place.
    back: i32,
    style: Style,
}

impl Ink<'_> {
    fn put(&mut self, x: i32, y: i32) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if x >= self.canvas.width() || y >= self.canvas.height() {
            return;
        }
        let at = 4 * (y as usize * self.canvas.width() as usize + x as usize);
        if let Some(pixel) = self.canvas.data_mut().get_mut(at..at + 4) {
            pixel.copy_from_slice(&[0x22, 0x22, 0x22, 0xff]);
        }
    }
}

impl OriginDimensions for Ink<'_> {
    fn size(&self) -> Size {
        Size::new(self.canvas.width(), self.canvas.height())
    }
}

impl DrawTarget for Ink<'_> {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(Point { x: along, y: below }, colour) in pixels {
            if colour == BinaryColor::Off {
                continue;
            }
            let (along, (x, y)) = (along - self.back, self.origin);
            match self.style {
                Style::Plain => self.put(x + along, y + below),
                // Twice, a pixel apart: bold.
                Style::Title => {
                    self.put(x + along, y + below);
                    self.put(x + along + 1, y + below);
                }
                Style::Upwards => self.put(x + below, y - along),
            }
        }
        Ok(())
    }
}

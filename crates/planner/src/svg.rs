//! Shapes as SVG.

use crate::plot::{Anchor, Colour, Shape, Style};
use std::fmt::Write;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// A picture of that size as a document.
pub(crate) fn write((width, height): (f64, f64), shapes: &[Shape]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for shape in shapes {
        // Writing to a string does not fail.
        let _ = match shape {
            Shape::Path { places, colour, width } => {
                let places: Vec<String> =
                    places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                writeln!(
                    svg,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\"/>",
                    places.join(" "),
                    hex(*colour)
                )
            }
            Shape::Dot { at: (x, y), radius, colour } => writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{}\"/>",
                hex(*colour)
            ),
            Shape::Text { at: (x, y), anchor, style, text } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let style = match style {
                    Style::Plain => String::new(),
                    Style::Title => " font-size=\"15\"".to_owned(),
                    Style::Upwards => format!(" transform=\"rotate(-90 {x:.1} {y:.1})\""),
                };
                let text = escaped(text);
                writeln!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{style}>{text}</text>"
                )
            }
        };
    }
    svg.push_str("</svg>\n");
    svg
}

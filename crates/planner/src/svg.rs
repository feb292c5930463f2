//! Line plots as SVG: one file, no script, no font but the reader's own.

use crate::report::figure;
use std::fmt::Write;

/// A plot.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below it.
    pub x_label: String,
    /// Beside it.
    pub y_label: String,
    /// What is drawn.
    pub lines: Vec<Line>,
}

/// A line with the widths of its intervals.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// x, y and half the width of the interval around y (0: none). What is not finite is left out.
    pub points: Vec<(f64, f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Told apart by people who do not see all colours (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// From values to places.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64, zero: bool) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if low == high {
            high = low + 1.0;
        }
        Self { low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// About five round values.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|by| by * power >= rough);
        let step = step.unwrap_or(10.0) * power;
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|at| at as f64 * step).collect()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Plot {
    /// The plot as an SVG document.
    pub fn to_svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Axis::new(points().map(|p| p.0), LEFT, WIDTH - RIGHT, false);
        let ends = points().flat_map(|p| [p.1 - p.2, p.1 + p.2]);
        let y = Axis::new(ends, HEIGHT - BOTTOM, TOP, true);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        self.axes(&mut svg, &x, &y);
        for (at, line) in self.lines.iter().enumerate() {
            draw(&mut svg, line, COLOURS[at % COLOURS.len()], &x, &y);
            let (place, colour) = (TOP + 16.0 * at as f64, COLOURS[at % COLOURS.len()]);
            let _ = writeln!(
                svg,
                "<line x1=\"{}\" y1=\"{place}\" x2=\"{}\" y2=\"{place}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                LEFT + 10.0,
                LEFT + 34.0,
                LEFT + 40.0,
                place + 4.0,
                escaped(&line.name)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in x.ticks() {
            let _ = writeln!(
                svg,
                "<line x1=\"{0:.1}\" y1=\"{TOP}\" x2=\"{0:.1}\" y2=\"{bottom}\" stroke=\"#e5e5e5\"/>\
                 <text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\">{2}</text>",
                x.at(tick),
                bottom + 16.0,
                figure(tick)
            );
        }
        for tick in y.ticks() {
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{right}\" y2=\"{0:.1}\" stroke=\"#e5e5e5\"/>\
                 <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
                y.at(tick),
                LEFT - 6.0,
                y.at(tick) + 4.0,
                figure(tick)
            );
        }
        let (middle, centre) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let (width, height, low) = (right - LEFT, bottom - TOP, HEIGHT - 12.0);
        let title = escaped(&self.title);
        let (x_label, y_label) = (escaped(&self.x_label), escaped(&self.y_label));
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#888\"/>\n\
             <text x=\"{middle}\" y=\"22\" text-anchor=\"middle\" font-size=\"15\">{title}</text>\n\
             <text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{x_label}</text>\n\
             <text x=\"16\" y=\"{centre}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {centre})\">{y_label}</text>"
        );
    }
}

fn draw(svg: &mut String, line: &Line, colour: &str, x: &Axis, y: &Axis) {
    let seen = || line.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite());
    let path: Vec<String> = seen().map(|p| format!("{:.1},{:.1}", x.at(p.0), y.at(p.1))).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    for (at, value, width) in seen() {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{colour}\"/>",
            x.at(*at),
            y.at(*value)
        );
        if width.is_finite() && *width > 0.0 {
            let _ = write!(
                svg,
                "<line x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{2:.1}\" stroke=\"{colour}\"/>",
                x.at(*at),
                y.at(value - width),
                y.at(value + width)
            );
        }
    }
    svg.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_its_lines_ticks_and_names() {
        let line = |name: &str, points: &[(f64, f64, f64)]| Line {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let plot = Plot {
            title: "Queue & replicas".into(),
            x_label: "load".into(),
            y_label: "number".into(),
            lines: vec![
                line("a<b", &[(0.0, 1.0, 0.1), (1.0, 2.0, 0.0), (2.0, f64::NAN, 0.0)]),
                line("empty", &[]),
            ],
        };
        let svg = plot.to_svg();
        for part in ["Queue &amp; replicas", "a&lt;b", "<polyline", ">0.5<", ">load<", "</svg>"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(svg.matches("Queue &amp; replicas").count(), 1, "{svg}");
        assert!(Plot::default().to_svg().contains("</svg>"));
    }
}

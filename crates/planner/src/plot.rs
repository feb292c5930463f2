//! Line plots: where everything goes, as shapes that are written as SVG or painted as PNG.

use crate::png::{self, PngError};
use crate::report::figure;
use crate::svg;

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

pub(crate) const WIDTH: f64 = 720.0;
pub(crate) const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
/// Between the lines and the legend.
const GAP: f64 = 16.0;
/// A line's sample in the legend.
const SAMPLE: f64 = 24.0;
/// No wider is a letter of the legend.
const LETTER: f64 = 6.5;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Red, green and blue.
pub(crate) type Colour = [u8; 3];

/// Told apart by people who do not see all colours (Okabe and Ito).
const COLOURS: [Colour; 7] = [
    [0x00, 0x72, 0xb2],
    [0xd5, 0x5e, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0xe6, 0x9f, 0x00],
    [0x56, 0xb4, 0xe9],
    [0x00, 0x00, 0x00],
];
const GRID: Colour = [0xe5, 0xe5, 0xe5];
const FRAME: Colour = [0x88, 0x88, 0x88];

/// A place in the picture, in its units, from the upper left.
pub(crate) type Place = (f64, f64);

/// Which part of a text is at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    /// Larger: the title.
    Title,
    /// From the bottom to the top.
    Upwards,
}

/// A part of a picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// Straight lines from place to place.
    Path { places: Vec<Place>, colour: Colour, width: f64 },
    /// A filled circle.
    Dot { at: Place, radius: f64, colour: Colour },
    /// A line of text; its place is on its base line.
    Text { at: Place, anchor: Anchor, style: Style, text: String },
}

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

    /// With room beyond the values, where they do not end at zero: what lies at the edge is seen whole.
    fn with_room(self) -> Self {
        let room = (self.high - self.low) * 0.03;
        let beyond = |end: f64, room: f64| if end == 0.0 { end } else { end + room };
        Self { low: beyond(self.low, -room), high: beyond(self.high, room), ..self }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// About five round values.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|by| by * power >= 0.8 * rough);
        let step = step.unwrap_or(10.0) * power;
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|at| at as f64 * step).collect()
    }
}

impl Plot {
    /// The plot as an SVG document: one file, no script, no font but the reader's own.
    pub fn to_svg(&self) -> String {
        svg::write((WIDTH, HEIGHT), &self.shapes())
    }

    /// The plot as a PNG picture of twice as many pixels as its units: 1,440 by 840.
    ///
    /// # Errors
    /// There is not the memory for it.
    pub fn to_png(&self) -> Result<Vec<u8>, PngError> {
        png::paint((WIDTH, HEIGHT), &self.shapes())
    }

    fn shapes(&self) -> Vec<Shape> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let letters = self.lines.iter().map(|line| line.name.chars().count()).max();
        // The legend is beside the lines, never over them; half of the width is theirs whatever the names are.
        let legend = letters.map_or(0.0, |most| SAMPLE + GAP + most as f64 * LETTER);
        let right = (WIDTH - GAP - legend).max(WIDTH / 2.0);
        let x = Axis::new(points().map(|p| p.0), LEFT, right, false).with_room();
        let ends = points().flat_map(|p| [p.1, p.1 - p.2, p.1 + p.2]);
        let y = Axis::new(ends, HEIGHT - BOTTOM, TOP, true).with_room();
        let mut shapes = vec![];
        self.axes(&mut shapes, &x, &y);
        for (at, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            line.draw(&mut shapes, colour, &x, &y);
            let height = TOP + 16.0 * (at as f64 + 0.75);
            let from = right + GAP / 2.0;
            let places = vec![(from, height), (from + SAMPLE, height)];
            shapes.push(Shape::Path { places, colour, width: 2.0 });
            let place = (from + SAMPLE + GAP / 2.0, height + 4.0);
            shapes.push(text(place, Anchor::Start, &line.name));
        }
        shapes
    }

    fn axes(&self, shapes: &mut Vec<Shape>, x: &Axis, y: &Axis) {
        let (bottom, right) = (HEIGHT - BOTTOM, x.to);
        for tick in x.ticks() {
            let at = x.at(tick);
            let places = vec![(at, TOP), (at, bottom)];
            shapes.push(Shape::Path { places, colour: GRID, width: 1.0 });
            shapes.push(text((at, bottom + 16.0), Anchor::Middle, &figure(tick)));
        }
        for tick in y.ticks() {
            let at = y.at(tick);
            let places = vec![(LEFT, at), (right, at)];
            shapes.push(Shape::Path { places, colour: GRID, width: 1.0 });
            shapes.push(text((LEFT - 6.0, at + 4.0), Anchor::End, &figure(tick)));
        }
        let places = vec![(LEFT, TOP), (right, TOP), (right, bottom), (LEFT, bottom), (LEFT, TOP)];
        shapes.push(Shape::Path { places, colour: FRAME, width: 1.0 });
        let (middle, centre) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let mut add = |at, style, text: &String| {
            shapes.push(Shape::Text { at, anchor: Anchor::Middle, style, text: text.clone() });
        };
        add((middle, 22.0), Style::Title, &self.title);
        add((middle, HEIGHT - 12.0), Style::Plain, &self.x_label);
        add((16.0, centre), Style::Upwards, &self.y_label);
    }
}

fn text(at: Place, anchor: Anchor, text: &str) -> Shape {
    Shape::Text { at, anchor, style: Style::Plain, text: text.to_owned() }
}

impl Line {
    fn draw(&self, shapes: &mut Vec<Shape>, colour: Colour, x: &Axis, y: &Axis) {
        let seen = || self.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite());
        let places: Vec<Place> = seen().map(|p| (x.at(p.0), y.at(p.1))).collect();
        for (place, (_, value, width)) in places.iter().zip(seen()) {
            shapes.push(Shape::Dot { at: *place, radius: 2.5, colour });
            if width.is_finite() && *width > 0.0 {
                let ends = [value - width, value + width].map(|end| (place.0, y.at(end)));
                shapes.push(Shape::Path { places: ends.to_vec(), colour, width: 1.0 });
            }
        }
        shapes.push(Shape::Path { places, colour, width: 2.0 });
    }
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
        // The legend begins where the frame ends.
        let frame = svg.split("<polyline").find(|it| it.contains("#888888")).unwrap_or_default();
        let corner = frame.split([' ', ',']).filter_map(|it| it.parse::<f64>().ok());
        let right = corner.fold(0.0, f64::max);
        let legend = svg.lines().find(|it| it.contains("a&lt;b")).unwrap_or_default();
        let from: f64 = legend.split('"').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0.0);
        assert!(from > right && right > WIDTH / 2.0, "{from} {right}");
        assert!(Plot::default().to_svg().contains("</svg>"));
        let png = plot.to_png().unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        assert!(png.len() > 5000, "{}", png.len());
        assert!(Plot::default().to_png().unwrap().len() < png.len());
    }
}

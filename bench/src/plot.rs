//! The report as a folder: JSON, one page, and for each check the distribution of what was measured.

use crate::error::BenchError;
use crate::render::markdown;
use crate::report::{Check, Plot, Report};
use crate::stats::Sample;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use std::fs;
use std::path::Path;

/// Size of a plot, pixels.
const SIZE: (u32, u32) = (720, 300);
const OURS: RGBColor = RGBColor(31, 98, 168);
const BASELINE: RGBColor = RGBColor(200, 120, 30);

/// Writes the reports into a folder, which is made if absent: `report.md`, and for each bench `BENCH.json`, for each
/// check and each plot `ID.svg`.
///
/// # Errors
/// [`BenchError::Io`], [`BenchError::Plot`].
pub fn write_folder(folder: &Path, reports: &[Report]) -> Result<(), BenchError> {
    let failed = |path: &Path| BenchError::io(format!("writing {}", path.display()));
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for report in reports {
        let path = folder.join(format!("{}.json", report.bench));
        let json = serde_json::to_vec_pretty(report).map_err(std::io::Error::other);
        fs::write(&path, json.map_err(failed(&path))?).map_err(failed(&path))?;
        for check in &report.checks {
            let path = folder.join(format!("{}.svg", check.id));
            fs::write(&path, draw(check, &path)?).map_err(failed(&path))?;
        }
        for plot in &report.plots {
            let path = folder.join(format!("{}.svg", plot.id));
            fs::write(&path, draw_plot(plot, &path)?).map_err(failed(&path))?;
        }
    }
    let path = folder.join("report.md");
    fs::write(&path, markdown(reports)).map_err(failed(&path))
}

/// A plot's curves over logarithmic axes.
fn draw_plot(plot: &Plot, path: &Path) -> Result<String, BenchError> {
    let mut svg = String::new();
    lines(plot, &mut svg).map_err(|error| BenchError::Plot {
        path: path.display().to_string(),
        problem: error.to_string(),
    })?;
    Ok(svg)
}

/// Colours of curves, in their order; ours are even, what is beside them odd.
const COLORS: [RGBColor; 6] = [
    OURS,
    BASELINE,
    RGBColor(60, 150, 90),
    RGBColor(190, 60, 60),
    RGBColor(120, 80, 170),
    RGBColor(110, 110, 110),
];

/// The least and the greatest of what is above zero; from 1 to 10 if there is nothing.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (least, most) = values
        .filter(|value| *value > 0.0)
        .fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
    if least > most { 1.0..10.0 } else { least / 1.2..most * 1.2 }
}

fn lines(plot: &Plot, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let points = || plot.curves.iter().flat_map(|curve| curve.points.iter().copied());
    let (across, up) = (range(points().map(|(x, _)| x)), range(points().map(|(_, y)| y)));
    let mut chart = ChartBuilder::on(&area)
        .caption(plot.id, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(across.log_scale(), up.log_scale())?;
    chart.configure_mesh().x_desc(plot.x).y_desc(plot.y).light_line_style(WHITE).draw()?;
    for (curve, color) in plot.curves.iter().zip(COLORS.into_iter().cycle()) {
        let shown = curve.points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0);
        let line = chart.draw_series(LineSeries::new(shown, color.stroke_width(2)))?;
        line.label(curve.name.as_str()).legend(move |(x, y)| key(x, y, color));
    }
    finish(&mut chart, &area)
}

/// The cumulative distribution of ours and of the baseline.
fn draw(check: &Check, path: &Path) -> Result<String, BenchError> {
    let problem = |problem: String| BenchError::Plot { path: path.display().to_string(), problem };
    let mut svg = String::new();
    curves(check, &mut svg).map_err(|error| problem(error.to_string()))?;
    Ok(svg)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn curves(check: &Check, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let all = check.sample.values().iter().chain(check.baseline_sample.values());
    let most = all.copied().fold(0.0_f64, f64::max);
    // A figure of zero has a plot too.
    let most = if most > 0.0 { most * 1.05 } else { 1.0 };
    let mut chart = ChartBuilder::on(&area)
        .caption(check.id, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..most, 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc(check.unit)
        .y_desc("share of measurements")
        .light_line_style(WHITE)
        .draw()?;
    let ours =
        chart.draw_series(LineSeries::new(steps(&check.sample, most), OURS.stroke_width(2)))?;
    ours.label("ours").legend(|(x, y)| key(x, y, OURS));
    if let Some(name) = check.baseline_name {
        let steps = steps(&check.baseline_sample, most);
        let line = chart.draw_series(LineSeries::new(steps, BASELINE.stroke_width(2)))?;
        line.label(name).legend(|(x, y)| key(x, y, BASELINE));
    }
    finish(&mut chart, &area)
}

/// Names the curves and writes the picture.
fn finish<'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, C>,
    area: &DrawingArea<SVGBackend<'a>, Shift>,
) -> Drawn {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

fn key(x: i32, y: i32, color: RGBColor) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2))
}

/// The corners of the cumulative distribution, from 0 to `most`.
fn steps(sample: &Sample, most: f64) -> Vec<(f64, f64)> {
    let all = sample.len() as f64;
    let mut corners = vec![(0.0, 0.0)];
    for (place, value) in sample.values().iter().enumerate() {
        corners.push((*value, place as f64 / all));
        corners.push((*value, (place + 1) as f64 / all));
    }
    corners.push((most, if sample.is_empty() { 0.0 } else { 1.0 }));
    corners
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Baseline, Curve, Goal, Host, Plot};

    #[test]
    fn a_distribution_has_a_step_for_each_value() {
        let corners = steps(&Sample::new([1.0, 2.0]), 3.0);
        assert_eq!(
            corners,
            [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (2.0, 0.5), (2.0, 1.0), (3.0, 1.0)]
        );
        assert_eq!(steps(&Sample::default(), 1.0), [(0.0, 0.0), (1.0, 0.0)]);
    }

    #[test]
    fn a_folder_holds_everything() {
        let check = Check::new("start.cold", "ms", Sample::new([1.0, 2.0]), "about")
            .beside(Baseline { name: "bare QEMU", sample: Sample::new([1.0]) })
            .with_goal(Goal::RatioAtMost(1.5));
        let zero = Check::new("dispatch.lost", "jobs", Sample::new([0.0]), "about");
        let host = Host { cpu: "a CPU".into(), cores: 1, accel: "tcg".into() };
        let points = vec![(1.0, 3.0), (1024.0, 5.0)];
        let line = Plot {
            id: "start.sizes",
            about: "about",
            x: "bytes",
            y: "us",
            curves: vec![Curve { name: "ours".into(), points }],
        };
        let report = Report {
            bench: "start",
            version: "0",
            host,
            checks: vec![check, zero],
            plots: vec![line],
        };
        let folder = tempfile::tempdir().expect("folder");
        let inside = folder.path().join("report");
        write_folder(&inside, &[report]).expect("written");
        for name in
            ["report.md", "start.json", "start.cold.svg", "dispatch.lost.svg", "start.sizes.svg"]
        {
            let text = fs::read_to_string(inside.join(name)).expect(name);
            assert!(
                !text.is_empty() && (!name.ends_with("svg") || text.contains("</svg>")),
                "{name}"
            );
        }
    }
}

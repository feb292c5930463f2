//! A report for people.

use crate::report::{Check, Report};
use std::fmt::Write as _;

/// A report as a table, with what each figure and its baseline are.
pub fn table(report: &Report) -> String {
    let rows: Vec<[String; 7]> = report.checks.iter().map(row).collect();
    let heading = HEADING.map(str::to_owned);
    let mut widths = [0; 7];
    for line in std::iter::once(&heading).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = format!("{}\n", title(report));
    for line in std::iter::once(&heading).chain(&rows) {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for check in &report.checks {
        if let Some(problem) = &check.problem {
            let _ = write!(text, "\n{} has no figure: {problem}\n", check.id);
        }
        let _ = write!(text, "\n{}: {}\n", check.id, check.about);
    }
    text
}

/// Reports as one Markdown page; each check has a plot beside it, `ID.svg`.
pub fn markdown(reports: &[Report]) -> String {
    let mut text = "# Benches\n".to_owned();
    for report in reports {
        let _ = write!(text, "\n## {}\n\n{}\n\n", report.bench, title(report));
        let _ = writeln!(text, "| {} |", HEADING.join(" | "));
        let _ = writeln!(text, "|{}", " --- |".repeat(HEADING.len()));
        for check in &report.checks {
            let _ = writeln!(text, "| {} |", row(check).join(" | "));
        }
        for check in &report.checks {
            if let Some(problem) = &check.problem {
                let _ = write!(text, "\n**{}** has no figure: {problem}\n", check.id);
            }
            let _ = write!(text, "\n**{}**: {}\n\n![{0}]({0}.svg)\n", check.id, check.about);
        }
        for plot in &report.plots {
            let _ = write!(text, "\n**{}**: {}\n\n![{0}]({0}.svg)\n", plot.id, plot.about);
        }
    }
    text
}

const HEADING: [&str; 7] = ["CHECK", "OURS", "P10 .. P90", "N", "BASELINE", "RATIO", "GOAL"];

fn title(report: &Report) -> String {
    let host = &report.host;
    format!(
        "{} {}: {}, {} cores, machines run by {}",
        report.bench, report.version, host.cpu, host.cores, host.accel
    )
}

fn row(check: &Check) -> [String; 7] {
    let baseline = match (check.baseline, check.baseline_name) {
        (Some(figure), Some(name)) => format!("{} ({name})", figure_text(figure)),
        _ => String::new(),
    };
    let goal = check.goal.map_or(String::new(), |goal| {
        let verdict = if check.holds == Some(true) { "holds" } else { "FAILS" };
        format!("{goal}: {verdict}")
    });
    let (ours, spread) = match check.n {
        0 => (String::new(), String::new()),
        _ => (
            format!("{} {}", figure_text(check.ours), check.unit),
            format!("{} .. {}", figure_text(check.p10), figure_text(check.p90)),
        ),
    };
    [
        check.id.to_owned(),
        ours,
        spread,
        check.n.to_string(),
        baseline,
        check.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
        goal,
    ]
}

/// Three digits that count.
fn figure_text(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Baseline, Goal, Host};
    use crate::stats::Sample;

    fn report() -> Report {
        let cold =
            Check::new("start.cold", "ms", Sample::new([55.0, 50.0, 71.0]), "from here to there.")
                .beside(Baseline { name: "bare QEMU", sample: Sample::new([41.0]) })
                .with_goal(Goal::RatioAtMost(1.5));
        let warm = Check::new("start.warm", "ms", Sample::new([6.5]), "warm.")
            .with_goal(Goal::AtMost(5.0));
        let host = Host { cpu: "a CPU".into(), cores: 2, accel: "tcg".into() };
        Report {
            bench: "start",
            version: "0.1.0",
            host,
            checks: vec![cold, warm],
            plots: Vec::new(),
        }
    }

    #[test]
    fn the_table() {
        let expect = "\
start 0.1.0: a CPU, 2 cores, machines run by tcg
CHECK       OURS     P10 .. P90    N  BASELINE          RATIO  GOAL
start.cold  55.0 ms  51.0 .. 67.8  3  41.0 (bare QEMU)  1.34   ratio <= 1.5: holds
start.warm  6.50 ms  6.50 .. 6.50  1                           ours <= 5: FAILS

start.cold: from here to there.

start.warm: warm.
";
        assert_eq!(table(&report()), expect);
    }

    #[test]
    fn the_page_shows_every_check() {
        let page = markdown(&[report()]);
        assert!(page.contains("| start.cold | 55.0 ms | 51.0 .. 67.8 | 3 | 41.0 (bare QEMU) | 1.34 | ratio <= 1.5: holds |"));
        assert!(page.contains("![start.warm](start.warm.svg)"));
    }
}

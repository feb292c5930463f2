//! Tables for people and programs, and plots.

use crate::compare::{BatchTime, Comparison, SpeedUp};
use crate::output::Estimate;
use crate::sim::{Measure, SimReport};
use crate::solve::SolveReport;
use serde::Serialize;
use std::fmt::Write;

/// Between the mean of an interval and its half width.
const INTERVAL: &str = " ± ";

/// A table: of text for people, of CSV for programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Headings.
    pub columns: Vec<String>,
    /// Rows, each as long as the headings.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows: vec![] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Aligned text, the first column to the left and the others to the right.
    pub fn to_text(&self) -> String {
        let width = |at: usize| {
            let cells = self.rows.iter().map(|row| &row[at]).chain([&self.columns[at]]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in std::iter::once(&self.columns).chain(&self.rows) {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let width = widths[at];
                let _ = match at {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Comma-separated values with quotes where they are needed (RFC 4180). A column of intervals becomes two of numbers, the second
    /// of half widths.
    pub fn to_csv(&self) -> String {
        let intervals: Vec<bool> = (0..self.columns.len())
            .map(|at| self.rows.iter().any(|row| row[at].contains(INTERVAL)))
            .collect();
        let apart = |row: &[String], second: &dyn Fn(&str) -> (String, String)| -> Vec<String> {
            let cells = row.iter().zip(&intervals).flat_map(|(cell, interval)| {
                let (first, second) =
                    if *interval { second(cell) } else { (cell.clone(), String::new()) };
                std::iter::once(first).chain(interval.then_some(second))
            });
            cells.collect()
        };
        let heading = |name: &str| (name.to_owned(), format!("{name} half width"));
        let numbers = |cell: &str| {
            let (mean, width) = cell.split_once(INTERVAL).unwrap_or((cell, ""));
            (mean.to_owned(), width.to_owned())
        };
        let quoted = |cell: &String| {
            if cell.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", cell.replace('"', "\"\""))
            } else {
                cell.clone()
            }
        };
        let line = |row: &Vec<String>| row.iter().map(quoted).collect::<Vec<_>>().join(",");
        let first = apart(&self.columns, &heading);
        let rows = self.rows.iter().map(|row| apart(row, &numbers));
        let all = std::iter::once(first).chain(rows);
        all.map(|row| line(&row)).collect::<Vec<_>>().join("\r\n") + "\r\n"
    }

    /// A table of Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
        let rule = format!("|{}\n", " --- |".repeat(self.columns.len()));
        let rows: String = self.rows.iter().map(line).collect();
        line(&self.columns) + &rule + &rows
    }
}

/// Four significant digits, without an exponent where that is readable.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if (1e-3..1e6).contains(&size) {
        let digits = (3 - size.log10().floor() as i32).max(0) as usize;
        let text = format!("{value:.digits$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    } else {
        format!("{value:.3e}")
    }
}

fn interval(estimate: &Estimate) -> String {
    match estimate.half_width.is_finite() {
        true => format!("{}{INTERVAL}{}", figure(estimate.mean), figure(estimate.half_width)),
        false => figure(estimate.mean),
    }
}

fn name(measure: Measure) -> String {
    match measure.unit() {
        "" => measure.as_str().to_owned(),
        unit => format!("{} [{unit}]", measure.as_str()),
    }
}

/// One row for each measure, one column for each service.
pub fn of_simulation(report: &SimReport) -> Table {
    let services: Vec<&str> = report.services.iter().map(|it| it.service.as_str()).collect();
    let mut table = Table::new(&[&["measure"], &services[..]].concat());
    for measure in Measure::ALL {
        let values = report.services.iter().map(|service| interval(&service.get(measure)));
        table.row(std::iter::once(name(measure)).chain(values));
    }
    table
}

/// One row for each measure, one column for each service.
pub fn of_solution(report: &SolveReport) -> Table {
    let services: Vec<&str> = report.services.iter().map(|it| it.service.as_str()).collect();
    let mut table = Table::new(&[&["measure"], &services[..]].concat());
    let solved =
        |measure: &Measure| report.services.iter().any(|it| it.solution.get(*measure).is_finite());
    for measure in Measure::ALL.into_iter().filter(solved) {
        let values = report.services.iter().map(|it| exact(it.solution.get(measure)));
        table.row(std::iter::once(name(measure)).chain(values));
    }
    table
}

fn exact(value: f64) -> String {
    if value.is_finite() { format!("{value:.12e}") } else { "-".to_owned() }
}

/// Simulated, computed and real, side by side.
pub fn of_comparison(comparison: &Comparison) -> Table {
    let mut table =
        Table::new(&["service", "measure", "simulated", "computed", "real", "sim = chain"]);
    for row in &comparison.rows {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), figure);
        let agrees = match row.agrees() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        table.row([
            row.service.clone(),
            name(row.measure),
            interval(&row.simulated),
            number(row.computed),
            row.real.as_ref().map_or("-".to_owned(), interval),
            agrees.to_owned(),
        ]);
    }
    table
}

/// The speed-up over the number of replicas.
pub fn of_speed_up(all: &[SpeedUp]) -> Table {
    let mut table = Table::new(&["replicas", "throughput [/s]", "time in system [s]", "speed-up"]);
    for it in all {
        table.row([
            it.replicas.to_string(),
            interval(&it.throughput),
            interval(&it.time_in_system),
            figure(it.speed_up),
        ]);
    }
    table
}

/// The speed-up of a batch, simulated, computed and real.
pub fn of_batches(all: &[BatchTime]) -> Table {
    let mut table = Table::new(&[
        "replicas",
        "simulated [s]",
        "computed [s]",
        "real [s]",
        "speed-up simulated",
        "computed",
        "real",
    ]);
    let number = |value: Option<f64>| value.map_or("-".to_owned(), figure);
    for it in all {
        table.row([
            it.replicas.to_string(),
            interval(&it.simulated),
            number(it.computed),
            number(it.real),
            figure(it.simulated_speed_up),
            number(it.computed_speed_up),
            number(it.real_speed_up),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_four_digits() {
        for (value, expect) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.123456, "0.1235"),
            (123.456, "123.5"),
            (123456.7, "123457"),
            (1.2e-9, "1.200e-9"),
            (-2.5, "-2.5"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(figure(value), expect);
        }
    }

    #[test]
    fn intervals_are_two_columns_for_programs() {
        let mut table = Table::new(&["measure", "s", "computed"]);
        table.row(["p99 [s]".to_owned(), "1.5 ± 0.25".to_owned(), "-".to_owned()]);
        table.row(["p50 [s]".to_owned(), "-".to_owned(), "2".to_owned()]);
        let expect = "measure,s,s half width,computed\r\np99 [s],1.5,0.25,-\r\np50 [s],-,,2\r\n";
        assert_eq!(table.to_csv(), expect);
        assert!(table.to_text().contains("1.5 ± 0.25"));
    }

    #[test]
    fn a_table_is_text_csv_and_markdown() {
        let mut table = Table::new(&["a", "b"]);
        table.row(["x, y".to_owned(), "1".to_owned()]);
        table.row(["z".to_owned(), "100".to_owned()]);
        assert_eq!(table.to_text(), "a       b\nx, y    1\nz     100\n");
        assert_eq!(table.to_csv(), "a,b\r\n\"x, y\",1\r\nz,100\r\n");
        assert_eq!(table.to_markdown(), "| a | b |\n| --- | --- |\n| x, y | 1 |\n| z | 100 |\n");
    }
}

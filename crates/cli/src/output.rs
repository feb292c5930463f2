//! How answers are printed: data on stdout, progress on stderr.

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// `-o`: the form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns, the important ones
    Table,
    /// Columns, all of them
    Wide,
    /// The API's own document
    Json,
    /// Names or ids alone, one a line
    Name,
    /// Comma-separated values (RFC 4180), all columns
    Csv,
}

/// A line of comma-separated values.
pub(crate) fn csv_line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = |cell: &str| match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    };
    cells.into_iter().map(quoted).collect::<Vec<_>>().join(",") + "\r\n"
}

/// A list as a table: headings, and whether a column shows in `table` or only in `wide`.
pub(crate) struct Column<T> {
    pub(crate) heading: &'static str,
    pub(crate) wide: bool,
    pub(crate) cell: fn(&T) -> String,
}

/// A column that always shows.
pub(crate) const fn column<T>(heading: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { heading, wide: false, cell }
}

/// A column that shows in `wide` only.
pub(crate) const fn wide<T>(heading: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { heading, wide: true, cell }
}

/// Prints a list. The first column is the name.
pub(crate) fn list<T: Serialize>(format: Format, items: &[T], columns: &[Column<T>]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(items)?)?,
        Format::Name => {
            for item in items {
                writeln!(out, "{}", (columns[0].cell)(item))?;
            }
        }
        Format::Csv => {
            write!(out, "{}", csv_line(columns.iter().map(|column| column.heading)))?;
            for item in items {
                let cells: Vec<String> = columns.iter().map(|column| (column.cell)(item)).collect();
                write!(out, "{}", csv_line(cells.iter().map(String::as_str)))?;
            }
        }
        Format::Table | Format::Wide => {
            let shown: Vec<_> =
                columns.iter().filter(|c| !c.wide || format == Format::Wide).collect();
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_content_arrangement(
                if std::io::stdout().is_terminal() {
                    ContentArrangement::Dynamic
                } else {
                    ContentArrangement::Disabled
                },
            );
            table.set_header(shown.iter().map(|c| c.heading));
            for item in items {
                table.add_row(shown.iter().map(|c| (c.cell)(item)));
            }
            for line in table.lines() {
                // The table's style pads each cell by a blank on both sides.
                writeln!(out, "{}", line.strip_prefix(' ').unwrap_or(&line).trim_end())?;
            }
        }
    }
    Ok(())
}

/// Prints one thing: as JSON, or as lines of `key: value`.
pub(crate) fn one<T: Serialize>(format: Format, item: &T, lines: &[(&str, String)]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(item)?)?,
        Format::Name => writeln!(out, "{}", lines.first().map_or("", |(_, value)| value))?,
        Format::Csv => {
            write!(out, "{}", csv_line(lines.iter().map(|(key, _)| *key)))?;
            write!(out, "{}", csv_line(lines.iter().map(|(_, value)| value.as_str())))?;
        }
        Format::Table | Format::Wide => {
            let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
            for (key, value) in lines {
                writeln!(out, "{key:width$}  {value}")?;
            }
        }
    }
    Ok(())
}

/// An optional figure, or a dash.
pub(crate) fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Milliseconds with one digit, or a dash.
pub(crate) fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        assert_eq!(
            csv_line(["a", "b c", "1,5", "say \"x\""]),
            "a,b c,\"1,5\",\"say \"\"x\"\"\"\r\n"
        );
        assert_eq!(csv_line([]), "\r\n");
    }
}

//! Loads that change: rates by the clock, and traces from comma-separated values.

use serde::{Deserialize, Serialize};

/// From a time on, requests come so many times as often as the interval says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatePoint {
    /// From when, seconds after the beginning of the run or of the period.
    pub at_secs: f64,
    /// How many times as often, 0 or more.
    pub factor: f64,
}

/// A request of a trace.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TracedRequest {
    /// When it is sent, seconds after the beginning.
    pub at_secs: f64,
    /// Its work, seconds at performance 1; drawn where the trace does not say.
    pub work_secs: Option<f64>,
    /// Its input, KiB; drawn where the trace does not say.
    pub input_kib: Option<f64>,
    /// Its output, KiB; drawn where the trace does not say.
    pub output_kib: Option<f64>,
}

/// Columns of a trace.
const COLUMNS: [&str; 4] = ["at_secs", "work_secs", "input_kib", "output_kib"];

/// Most requests of a trace: 160 MB of memory.
const REQUESTS_MAX: usize = 4_000_000;

/// Reads a trace: a heading with `at_secs` and, if known, `work_secs`, `input_kib` and `output_kib` in any order, then a request
/// a line; a file of one column of times needs no heading. Times must not fall.
///
/// # Errors
/// What is wrong, with its line.
pub fn parse_trace(text: &str) -> Result<Vec<TracedRequest>, String> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#')
    });
    let mut rows: Vec<TracedRequest> = vec![];
    let Some((number, first)) = lines.next() else {
        return Err("has no requests".to_owned());
    };
    let columns = match first.trim().parse::<f64>() {
        Ok(_) => {
            rows.push(row(number, first, &[0])?);
            vec![0]
        }
        Err(_) => heading(first)?,
    };
    for (number, line) in lines {
        let next = row(number, line, &columns)?;
        if rows.last().is_some_and(|last| last.at_secs > next.at_secs) {
            return Err(format!("line {}: comes before the one above it", number + 1));
        }
        if rows.len() == REQUESTS_MAX {
            return Err(format!("has more than {REQUESTS_MAX} requests"));
        }
        rows.push(next);
    }
    if rows.is_empty() { Err("has no requests".to_owned()) } else { Ok(rows) }
}

/// The index in [`COLUMNS`] of each column of the file.
fn heading(line: &str) -> Result<Vec<usize>, String> {
    let mut columns = vec![];
    for name in line.split(',').map(|name| name.trim().trim_matches('"')) {
        match COLUMNS.iter().position(|known| *known == name) {
            Some(column) if !columns.contains(&column) => columns.push(column),
            Some(_) => return Err(format!("has the column {name} twice")),
            None => {
                let all = COLUMNS.join(", ");
                return Err(format!("has a column {name:?}: there are {all}"));
            }
        }
    }
    if columns.contains(&0) { Ok(columns) } else { Err("has no column at_secs".to_owned()) }
}

fn row(number: usize, line: &str, columns: &[usize]) -> Result<TracedRequest, String> {
    let mut values = [None; COLUMNS.len()];
    let mut cells = line.split(',');
    for column in columns {
        let text = cells.next().unwrap_or("").trim().trim_matches('"');
        let name = COLUMNS[*column];
        if text.is_empty() && *column > 0 {
            continue;
        }
        let value: Option<f64> = text.parse().ok();
        let value = value.filter(|value| value.is_finite() && (0.0..=1e12).contains(value));
        let Some(value) = value else {
            return Err(format!(
                "line {}: {name} is {text:?}: must be a number from 0",
                number + 1
            ));
        };
        values[*column] = Some(value);
    }
    if cells.next().is_some() {
        return Err(format!("line {}: has more cells than the heading", number + 1));
    }
    let [at_secs, work_secs, input_kib, output_kib] = values;
    Ok(TracedRequest { at_secs: at_secs.unwrap_or(0.0), work_secs, input_kib, output_kib })
}

/// A rate that changes by the clock, piece by piece constant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate<'a> {
    pub(crate) points: &'a [RatePoint],
    pub(crate) period_secs: Option<f64>,
}

impl Rate<'_> {
    /// When `amount` seconds at factor 1 have passed since `now`; infinite when they never do.
    pub(crate) fn after(&self, now: f64, amount: f64) -> f64 {
        let mut left = amount;
        let mut now = now;
        // Each round is one piece, and a check sees to it that a period has one with a factor above 0.
        loop {
            let begun = self.period_secs.map_or(0.0, |period| (now / period).floor() * period);
            let at = now - begun;
            // Rounding may leave a time a hair before the end that it has reached.
            let next = self.points.iter().position(|point| point.at_secs > at + 1e-9);
            let factor = match next {
                Some(0) => 1.0,
                Some(next) => self.points[next - 1].factor,
                None => self.points.last().map_or(1.0, |point| point.factor),
            };
            let end = match (next, self.period_secs) {
                (Some(next), _) => begun + self.points[next].at_secs,
                (None, Some(period)) => begun + period,
                (None, None) => f64::INFINITY,
            };
            if factor > 0.0 && now + left / factor <= end {
                return now + left / factor;
            }
            if end.is_infinite() {
                return f64::INFINITY;
            }
            left = (left - (end - now) * factor).max(0.0);
            // A period's end belongs to the next one.
            now = end.max(now + 1e-9);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read() {
        let at = |at_secs| TracedRequest { at_secs, ..TracedRequest::default() };
        assert_eq!(parse_trace("0\n0.5\n\n# later\n2\n"), Ok(vec![at(0.0), at(0.5), at(2.0)]));
        let both = parse_trace("work_secs, at_secs\n0.1,1\n,2\n").unwrap();
        assert_eq!(both, [TracedRequest { work_secs: Some(0.1), ..at(1.0) }, at(2.0)]);
        for (text, says) in [
            ("", "no requests"),
            ("at_secs\n", "no requests"),
            ("1\n0\n", "line 2: comes before"),
            ("time\n1\n", "column \"time\""),
            ("at_secs,at_secs\n", "twice"),
            ("work_secs\n1\n", "no column at_secs"),
            ("at_secs\nx\n", "line 2: at_secs is \"x\""),
            ("at_secs\n-1\n", "from 0"),
            ("at_secs\n1,2\n", "more cells"),
        ] {
            assert!(parse_trace(text).unwrap_err().contains(says), "{text:?}");
        }
    }

    #[test]
    fn rates_change_by_the_clock() {
        let points = [
            RatePoint { at_secs: 0.0, factor: 1.0 },
            RatePoint { at_secs: 10.0, factor: 4.0 },
            RatePoint { at_secs: 20.0, factor: 0.0 },
        ];
        let once = Rate { points: &points, period_secs: None };
        let again = Rate { points: &points, period_secs: Some(30.0) };
        for (rate, now, amount, expect) in [
            (once, 0.0, 5.0, 5.0),
            (once, 5.0, 9.0, 11.0),
            (once, 19.0, 4.0, 20.0),
            (once, 19.0, 5.0, f64::INFINITY),
            (again, 19.0, 5.0, 31.0),
            (again, 0.0, 50.0, 20.0),
            (again, 0.0, 51.0, 31.0),
            (again, 0.0, 100.0, 50.0),
            (again, 65.0, 1.0, 66.0),
        ] {
            let is = rate.after(now, amount);
            assert!(is == expect || (is - expect).abs() < 1e-6, "{now} + {amount}: {is}");
        }
        let none = Rate { points: &points[1..], period_secs: None };
        assert_eq!(none.after(0.0, 3.0), 3.0, "before the first point the factor is 1");
    }
}

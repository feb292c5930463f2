//! One module for each noun of the command line.

pub(crate) mod api;
pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod events;
pub(crate) mod firewall;
pub(crate) mod image;
pub(crate) mod job;
pub(crate) mod link;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod port;
pub(crate) mod project;
pub(crate) mod service;
pub(crate) mod up;
pub(crate) mod vm;

use anyhow::{Context as _, Result};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Reads a file, or standard input for `-`.
fn read_input(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).context("reading standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    }
    Ok(bytes)
}

/// `500ms`, `30s`, `5m`, `2h`, `7d`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 =
        digits.parse().map_err(|_| format!("{text:?} is not a duration such as 30s"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        unit => return Err(format!("{unit:?} is not a unit of time: ms, s, m, h or d")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let check = |text, ms: Option<u64>| {
            assert_eq!(duration(text).ok(), ms.map(Duration::from_millis), "{text}");
        };
        check("500ms", Some(500));
        check("30", Some(30_000));
        check("1.5m", Some(90_000));
        check("2h", Some(7_200_000));
        check("-1s", None);
        check("5y", None);
        check("s", None);
    }
}

//! The link: plain TCP and every path of ours side by side.
//!
//! Two hosts are two network namespaces; see [`wire`]. On one host the two programs are this binary, started again as [`peer`]; the same program runs on plain TCP and under the
//! library, in turn.

mod local;
mod peer;
mod wire;

pub use peer::{Traffic, peer};

use crate::error::BenchError;
use crate::host;
use crate::options::Progress;
use crate::report::Report;
use std::path::PathBuf;

/// What the bench of the link is told.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// How often each pair of programs runs, with the link and without.
    pub count: u32,
    /// The program that becomes a peer when it is started with `peer_words` and those of [`Traffic::words`].
    pub program: PathBuf,
    /// Arguments before those of the traffic.
    pub peer_words: Vec<String>,
}

/// Runs per check unless told: the median of seven is not moved by two that were disturbed.
pub const LINK_COUNT_DEFAULT: u32 = 7;

/// Measures the link. Blocks for about half a minute per run; between two hosts it needs root.
///
/// # Errors
/// [`BenchError`]; nothing is left behind then either.
pub fn run_link(options: &LinkOptions, progress: Progress<'_>) -> Result<Report, BenchError> {
    let host = host::without_guests();
    let mut checks = local::measure(options, progress)?;
    checks.extend(wire::measure(options.count, progress)?);
    Ok(Report { bench: "link", version: env!("CARGO_PKG_VERSION"), host, checks })
}

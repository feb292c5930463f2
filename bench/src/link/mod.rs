//! The link: plain TCP and every path of ours side by side.
//!
//! Two hosts are two network namespaces; see [`wire`]. On one host the two programs are this binary, started again as [`peer`], or
//! programs of the distribution ([`programs`], [`mpi`]); the same program runs on plain TCP and under the library, in turn.
//! What cannot be measured is told in its own check; the others go on.

mod ground;
mod local;
mod mpi;
mod peer;
mod programs;
mod sweep;
mod wire;

pub use peer::{Traffic, peer};

use crate::error::BenchError;
use crate::host;
use crate::options::{Bench, Progress};
use crate::report::{Check, Goal, Plot, Report};
use ground::Ground;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A part of the bench of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkPart {
    /// Streams and round trips of two programs on one host.
    Local,
    /// Redis and PostgreSQL.
    Programs,
    /// Sizes and intervals.
    Sweep,
    /// Open MPI.
    Mpi,
    /// Two hosts and a wire of 1 Gbit/s.
    Wire,
    /// Two hosts and no limit.
    Unlimited,
}

impl LinkPart {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 6] =
        [Self::Local, Self::Programs, Self::Sweep, Self::Mpi, Self::Wire, Self::Unlimited];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Programs => "programs",
            Self::Sweep => "sweep",
            Self::Mpi => "mpi",
            Self::Wire => "wire",
            Self::Unlimited => "unlimited",
        }
    }

    /// The part of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// What the bench of the link is told.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// How often each pair of programs runs, with the link and without; [`Bench::count_default`] unless given.
    pub count: Option<u32>,
    /// The program that becomes a peer when it is started with `peer_words` and those of [`Traffic::words`].
    pub program: PathBuf,
    /// Arguments before those of the traffic.
    pub peer_words: Vec<String>,
    /// What is measured.
    pub parts: Vec<LinkPart>,
    /// Set by who wants it to end before its time; looked at between runs.
    pub stop: Arc<AtomicBool>,
}

/// Measures the link. Blocks for about a minute per run; between two hosts it needs root.
///
/// # Errors
/// [`BenchError`] where nothing can be measured, and [`BenchError::Interrupted`]; nothing is left behind then either. What only
/// spoils one check is its [`Check::problem`].
pub fn run_link(options: &LinkOptions, progress: Progress<'_>) -> Result<Report, BenchError> {
    let bench = Bench::Link;
    let count = bench.count(options.count)?;
    let host = host::without_guests();
    let ground = Ground::new(options, count)?;
    let mut found = Outcome::default();
    let wanted = |part| options.parts.contains(&part);
    type Measure = fn(&Ground<'_>, Progress<'_>, &mut Outcome) -> Result<(), BenchError>;
    let parts: [(LinkPart, Measure); 4] = [
        (LinkPart::Local, local::measure),
        (LinkPart::Programs, programs::measure),
        (LinkPart::Sweep, sweep::measure),
        (LinkPart::Mpi, mpi::measure),
    ];
    for (_, measure) in parts.into_iter().filter(|(part, _)| wanted(*part)) {
        measure(&ground, progress, &mut found)?;
    }
    found.checks.extend(wire::measure(&ground, progress, &wanted)?);
    let Outcome { checks, plots } = found;
    Ok(Report { bench: bench.name(), version: env!("CARGO_PKG_VERSION"), host, checks, plots })
}

/// What was found so far.
#[derive(Debug, Default)]
struct Outcome {
    checks: Vec<Check>,
    plots: Vec<Plot>,
}

/// What a check is, before there are figures.
#[derive(Debug, Clone, Copy)]
struct Head {
    id: &'static str,
    unit: &'static str,
    goal: Option<Goal>,
    about: &'static str,
}

impl Head {
    fn goal(self, check: Check) -> Check {
        match self.goal {
            Some(goal) => check.with_goal(goal),
            None => check,
        }
    }

    /// The check without a figure.
    fn failed(self, problem: impl Into<String>) -> Check {
        self.goal(Check::without_figure(self.id, self.unit, self.about, problem))
    }
}

/// An error and what caused it, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    skein_shell::report::chain(error)
}

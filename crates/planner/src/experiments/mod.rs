//! The experiments of the source, E1 to E7, regenerated: scenarios, tables, plots, and what they confirm.
//!
//! Everything is made in memory; whoever asks writes the files.

mod single;
mod system;

use crate::plot::Plot;
use crate::progress::Progress;
use crate::report::Table;
use crate::scenario::Scenario;
use std::fmt::Write;

/// How much work goes into the experiments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Factor on all simulated times, above 0; 1 is what the report is made with.
    pub duration: f64,
    /// Points of a curve, at least 3.
    pub points: u32,
}

impl Default for Effort {
    fn default() -> Self {
        Self { duration: 1.0, points: 23 }
    }
}

/// A statement and whether the experiment confirms it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was claimed, or is of interest.
    pub claim: String,
    /// Whether it shows.
    pub holds: bool,
    /// The figures.
    pub figures: String,
}

/// An experiment and its results.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// `E1` to `E7`.
    pub id: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// The scenario that it starts from, as a file.
    pub scenario: &'static str,
    /// Tables with their captions.
    pub tables: Vec<(String, Table)>,
    /// Plots with the names of their files, without an ending.
    pub plots: Vec<(String, Plot)>,
    /// What it shows.
    pub findings: Vec<Finding>,
}

/// Regenerates all experiments, in order. `progress` counts replications; when it is stopped, the experiments
/// that are left are short.
pub fn run_all(effort: Effort, progress: &Progress) -> Vec<Experiment> {
    vec![
        single::load(effort, progress),
        single::failures(effort, progress),
        system::services(effort, progress),
        system::synthesis(effort, progress),
        system::chain(effort, progress),
        system::fifteen(effort, progress),
        single::prototype(effort, progress),
    ]
}

/// The report on all experiments as Markdown, with links to the plots as `NAME.svg`, beside which `NAME.png` may be.
pub fn to_markdown(all: &[Experiment]) -> String {
    let mut text = String::from("# Experiments E1 to E7\n");
    for it in all {
        let _ = write!(text, "\n## {}: {}\n\n", it.id, it.title);
        for finding in &it.findings {
            let holds = if finding.holds { "confirmed" } else { "not confirmed" };
            let _ = writeln!(text, "- **{holds}**: {} ({})", finding.claim, finding.figures);
        }
        for (caption, table) in &it.tables {
            let _ = write!(text, "\n{caption}\n\n{}", table.to_markdown());
        }
        for (name, plot) in &it.plots {
            let _ = write!(text, "\n![{}]({name}.svg)\n", plot.title);
        }
        let _ = write!(text, "\nScenario:\n```toml\n{}```\n", it.scenario);
    }
    text
}

/// A scenario of an experiment. They are part of the program and checked by its tests.
fn scenario(text: &str, effort: Effort) -> Scenario {
    match Scenario::parse(text) {
        Ok(mut scenario) => {
            scenario.run.duration_secs *= effort.duration;
            scenario
        }
        Err(error) => unreachable!("a built-in scenario: {error}"),
    }
}

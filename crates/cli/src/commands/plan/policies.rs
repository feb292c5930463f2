//! `skein plan policies`: which scaling rule does best on a scenario, by what, and at which load.

use super::progress::with_progress;
use super::{print, read_scenario};
use crate::commands::service::scaling_rule;
use crate::output::Format;
use anyhow::Result;
use skein_model::{ScalingPolicy, ScalingRule};
use skein_planner::policies::{
    Candidate, candidates, compare_policies, service_index, to_table, to_words,
};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Compare scaling rules on a scenario
///
/// Simulates it under its own policy, under thresholds, the concurrency target, Kubernetes' HPA, Knative's KPA and the
/// predictive rule, with the same users, failures and start-up times for each. Less is better of everything that is shown; `*`
/// marks the best and what is not surely worse.
#[derive(clap::Args)]
pub(crate) struct Policies {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Which service's policy is varied; the first unless given
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Factors on the rates of its users
    #[arg(long, value_delimiter = ',', default_value = "0.5,1,2", value_name = "FACTORS")]
    loads: Vec<f64>,
    /// One more rule, such as 'eager=kind = "hpa", target = 0.4'
    #[arg(long, value_name = "NAME=RULE", value_parser = named_rule)]
    rule: Vec<(String, ScalingRule)>,
    /// The predictive rule's objective for the wait; the mean work of a request unless given
    #[arg(long, value_name = "TIME", value_parser = crate::commands::duration)]
    wait: Option<Duration>,
    /// Print comma-separated values, as `-o csv` does
    #[arg(long)]
    csv: bool,
}

fn named_rule(text: &str) -> Result<(String, ScalingRule), String> {
    let (name, rule) = text.split_once('=').ok_or("must be NAME=RULE")?;
    Ok((name.trim().to_owned(), scaling_rule(rule)?))
}

impl Policies {
    pub(crate) async fn run(self, format: Format) -> Result<ExitCode> {
        let scenario = read_scenario(&self.scenario)?;
        let service = service_index(&scenario, self.service.as_deref())?;
        let own = &scenario.services[service].scaling;
        let mut all = candidates(&scenario, service, self.wait);
        all.extend(self.rule.into_iter().map(|(name, rule)| Candidate {
            name,
            scaling: ScalingPolicy { rule, ..own.clone() },
        }));
        let loads = self.loads;
        let report = with_progress(move |progress| {
            compare_policies(&scenario, service, &all, &loads, progress)
        });
        let outcome = report.await?;
        let exit = outcome.exit();
        let report = outcome.value?;
        print(format, self.csv, &report, &to_table(&report))?;
        if !self.csv && format != Format::Json {
            println!();
            for line in to_words(&report) {
                println!("{line}");
            }
        }
        Ok(exit)
    }
}

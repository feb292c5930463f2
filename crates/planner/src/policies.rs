//! Scaling rules compared on one load: the same users, failures and start-up times for each (common random numbers), so that
//! differences are those of the rules, and small ones show.

use crate::output::Estimate;
use crate::progress::Progress;
use crate::report::{Table, figure};
use crate::scenario::Scenario;
use crate::sim::{Counted, Measure, Measured, Raw, count, work_of};
use rayon::prelude::*;
use serde::Serialize;
use skein_model::{HpaRule, KpaRule, PredictiveRule, ScalingPolicy, ScalingRule, ThresholdScope};
use std::collections::BTreeMap;
use std::time::Duration;

/// What rules are judged by; of all of them less is better. Replicas are what a rule costs, and the last three are how
/// restless it is.
pub const JUDGED: [Measure; 8] = [
    Measure::P50,
    Measure::P99,
    Measure::TimeInQueue,
    Measure::Refusal,
    Measure::Replicas,
    Measure::ReplicationRate,
    Measure::Oscillation,
    Measure::TransferRate,
];

/// A policy to be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// In the report.
    pub name: String,
    /// What it is.
    pub scaling: ScalingPolicy,
}

/// Why there is nothing to compare.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoliciesError {
    /// The service is not in the scenario.
    #[error("service {service} is not there: there are {known}")]
    NoService {
        /// What was asked for.
        service: String,
        /// What there is.
        known: String,
    },
    /// A factor on the load cannot be.
    #[error("a load of {load}: must be 0.001 to 1000")]
    Load {
        /// What was asked for.
        load: String,
    },
    /// A policy is not usable.
    #[error("policy {name}: {why}")]
    Policy {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
}

impl PoliciesError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoService { .. } => "SCENARIO_INVALID",
            Self::Load { .. } => "POLICIES_LOAD",
            Self::Policy { .. } => "POLICIES_RULE",
        }
    }
}

/// How a policy did at a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// The policy.
    pub policy: String,
    /// Factor on the rates of the scenario.
    pub load: f64,
    /// All measures with their intervals.
    pub measures: Vec<(Measure, Estimate)>,
}

/// Who is best by a measure at a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranking {
    /// Factor on the rates of the scenario.
    pub load: f64,
    /// The measure.
    pub measure: Measure,
    /// The policy of the least mean.
    pub best: String,
    /// How much more each of the others has; where the interval holds 0 it is as good.
    pub behind: Vec<(String, Estimate)>,
}

impl Ranking {
    /// Whether a policy is the best, or not surely worse.
    pub fn is_good(&self, policy: &str) -> bool {
        self.best == policy || self.behind.iter().any(|(name, by)| name == policy && !worse(by))
    }

    /// Whether no other is as good as the best.
    pub fn is_clear(&self) -> bool {
        self.behind.iter().all(|(_, by)| worse(by))
    }
}

fn worse(by: &Estimate) -> bool {
    by.half_width.is_finite() && by.mean - by.half_width > 0.0
}

/// The comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyReport {
    /// Name of the scenario.
    pub scenario: String,
    /// The service whose policy was varied.
    pub service: String,
    /// Replications of each.
    pub replications: usize,
    /// Each policy at each load.
    pub scores: Vec<Score>,
    /// Each measure of [`JUDGED`] at each load.
    pub rankings: Vec<Ranking>,
}

/// The policies that people would try on a service: its own, and each of the other kinds as it comes, within the same bounds
/// of replicas. `wait` is the objective of the predictive rule; the mean work of a request unless given.
pub fn candidates(scenario: &Scenario, service: usize, wait: Option<Duration>) -> Vec<Candidate> {
    let spec = &scenario.services[service];
    let own = &spec.scaling;
    let work: Vec<f64> = scenario
        .users
        .iter()
        .filter(|user| user.service == spec.name)
        .map(|user| user.work_secs.mean())
        .collect();
    let work = work.iter().sum::<f64>() / work.len().max(1) as f64;
    let secs = |secs: f64| Duration::from_secs_f64(secs.clamp(0.0, 3600.0));
    let predictive = PredictiveRule {
        wait: wait.unwrap_or_else(|| secs(work)),
        start: secs(spec.start_secs.mean()),
        ..PredictiveRule::default()
    };
    let thresholds = ScalingRule::Thresholds {
        replicate_above: 2 * spec.capacity,
        dereplicate_at: 0,
        scope: ThresholdScope::Replica,
    };
    let with = |name: &str, rule: ScalingRule, cooldown: Duration| Candidate {
        name: name.to_owned(),
        scaling: ScalingPolicy { rule, cooldown, ..own.clone() },
    };
    let others = [
        with("thresholds", thresholds, own.cooldown),
        with("concurrency", ScalingRule::default(), own.cooldown),
        // These two pace themselves.
        with("hpa", ScalingRule::Hpa(HpaRule::default()), Duration::ZERO),
        with("kpa", ScalingRule::Kpa(KpaRule::default()), Duration::ZERO),
        with("predictive", ScalingRule::Predictive(predictive), own.cooldown),
    ];
    let mut all = vec![Candidate { name: "scenario".to_owned(), scaling: own.clone() }];
    all.extend(others.into_iter().filter(|it| it.scaling != *own));
    all
}

/// The place of a service in a scenario; the first unless named.
///
/// # Errors
/// [`PoliciesError::NoService`].
pub fn service_index(scenario: &Scenario, name: Option<&str>) -> Result<usize, PoliciesError> {
    let Some(name) = name else { return Ok(0) };
    let found = scenario.services.iter().position(|service| service.name.as_str() == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = scenario.services.iter().map(|it| it.name.as_str()).collect();
        PoliciesError::NoService { service: name.to_owned(), known: known.join(", ") }
    })
}

/// Simulates a service under each policy at each factor of its users' rates. When it is stopped early, with the replications
/// that all have done.
///
/// # Errors
/// A load or a policy that cannot be.
pub fn compare_policies(
    scenario: &Scenario,
    service: usize,
    candidates: &[Candidate],
    loads: &[f64],
    progress: &Progress,
) -> Result<PolicyReport, PoliciesError> {
    let mut points: Vec<(usize, usize, Scenario)> = vec![];
    for (load, factor) in loads.iter().enumerate() {
        if !(0.001..=1000.0).contains(factor) {
            return Err(PoliciesError::Load { load: factor.to_string() });
        }
        for (candidate, it) in candidates.iter().enumerate() {
            let mut point = scenario.clone();
            let spec = &mut point.services[service];
            spec.scaling = it.scaling.clone();
            spec.check_scaling()
                .map_err(|why| PoliciesError::Policy { name: it.name.clone(), why })?;
            let name = spec.name.clone();
            let users = point.users.iter_mut().filter(|user| user.service == name);
            users.for_each(|user| user.scale_rate(*factor));
            points.push((load, candidate, point));
        }
    }
    progress.expect(work_of(scenario, scenario.run.replications) * points.len() as u64);
    // One replication of all points after the other, so that stopping early leaves whole ones.
    let mut done: Vec<Vec<Raw>> = vec![vec![]; points.len()];
    for number in 0..scenario.run.replications {
        let of = |(_, _, point): &(usize, usize, Scenario)| count(point, number, progress);
        let one: Vec<Counted> = points.par_iter().map(of).collect();
        // Of the first one, what there is; of the others, only what all have.
        if number > 0 && !one.iter().all(Counted::is_whole) {
            break;
        }
        let of_service = one.into_iter().map(|mut it| it.services.swap_remove(service));
        done.iter_mut().zip(of_service).for_each(|(all, one)| all.push(one));
        if progress.is_stopped() {
            break;
        }
    }
    let measured =
        |all: &Vec<Raw>| Raw::all_measured(&all.iter().collect::<Vec<_>>(), scenario.run.warm_up);
    let done: Vec<Vec<Measured>> = done.iter().map(measured).collect();
    Ok(report(scenario, service, candidates, loads, &done))
}

fn report(
    scenario: &Scenario,
    service: usize,
    candidates: &[Candidate],
    loads: &[f64],
    done: &[Vec<Measured>],
) -> PolicyReport {
    let confidence = scenario.run.confidence;
    let (mut scores, mut rankings) = (vec![], vec![]);
    for (load, runs) in loads.iter().zip(done.chunks(candidates.len())) {
        for (candidate, replications) in candidates.iter().zip(runs) {
            let estimate = |measure: Measure| {
                let values = replications.iter().map(|it| measure.of(it));
                (measure, Estimate::of(values, confidence))
            };
            let measures = Measure::ALL.into_iter().map(estimate).collect();
            scores.push(Score { policy: candidate.name.clone(), load: *load, measures });
        }
        for measure in JUDGED {
            if let Some(it) = ranking(candidates, runs, (*load, measure), confidence) {
                rankings.push(it);
            }
        }
    }
    PolicyReport {
        scenario: scenario.name.clone(),
        service: scenario.services[service].name.to_string(),
        replications: done.first().map_or(0, Vec::len),
        scores,
        rankings,
    }
}

/// Ranks policies by a measure; none when nobody has it.
fn ranking(
    candidates: &[Candidate],
    runs: &[Vec<Measured>],
    (load, measure): (f64, Measure),
    confidence: f64,
) -> Option<Ranking> {
    let mean = |of: &[Measured]| Estimate::of(of.iter().map(|it| measure.of(it)), confidence).mean;
    let means: Vec<f64> = runs.iter().map(|of| mean(of)).collect();
    let best = (0..means.len())
        .filter(|at| means[*at].is_finite())
        .min_by(|a, b| means[*a].total_cmp(&means[*b]))?;
    let behind = |at: usize| {
        let pairs = runs[at].iter().zip(&runs[best]);
        let apart = pairs.map(|(it, best)| measure.of(it) - measure.of(best));
        (candidates[at].name.clone(), Estimate::of(apart, confidence))
    };
    Some(Ranking {
        load,
        measure,
        best: candidates[best].name.clone(),
        behind: (0..runs.len()).filter(|at| *at != best).map(behind).collect(),
    })
}

/// A row for each policy at each load; `*` marks the best by a measure and all that are not surely worse.
pub fn to_table(report: &PolicyReport) -> Table {
    let names = JUDGED.map(|measure| match measure.unit() {
        "" => measure.as_str().to_owned(),
        unit => format!("{} [{unit}]", measure.as_str()),
    });
    let heading: Vec<&str> =
        ["load", "policy"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut table = Table::new(&heading);
    for score in &report.scores {
        let cell = |measure: Measure| {
            let found = score.measures.iter().find(|(of, _)| *of == measure);
            let mean = found.map_or(f64::NAN, |it| it.1.mean);
            let good = report.rankings.iter().any(|it| {
                it.load == score.load && it.measure == measure && it.is_good(&score.policy)
            });
            format!("{}{}", figure(mean), if good { " *" } else { "" })
        };
        let cells = [figure(score.load), score.policy.clone()];
        table.row(cells.into_iter().chain(JUDGED.map(cell)));
    }
    table
}

/// Where each policy wins, shares the lead, and is the worst, one line each.
pub fn to_words(report: &PolicyReport) -> Vec<String> {
    let mut names: Vec<&str> = vec![];
    for score in &report.scores {
        if !names.contains(&score.policy.as_str()) {
            names.push(&score.policy);
        }
    }
    let listed = |chosen: Vec<&Ranking>| -> String {
        let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ranking in chosen {
            by.entry(ranking.measure.as_str()).or_default().push(figure(ranking.load));
        }
        let one = |(measure, loads): (&str, Vec<String>)| {
            format!("{measure} (load {})", loads.join(", "))
        };
        let all: Vec<String> = by.into_iter().map(one).collect();
        if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
    };
    let last = |ranking: &Ranking, name: &str| {
        let mean = |by: &Estimate| by.mean;
        let worst = ranking.behind.iter().max_by(|a, b| mean(&a.1).total_cmp(&mean(&b.1)));
        worst.is_some_and(|(who, by)| who == name && worse(by))
    };
    names
        .into_iter()
        .map(|name| {
            let all = || report.rankings.iter();
            let wins = all().filter(|it| it.best == name && it.is_clear()).collect();
            let shares = all().filter(|it| it.is_good(name) && !it.is_clear()).collect();
            let loses = all().filter(|it| last(it, name)).collect();
            format!(
                "{name}: wins {}; shares the lead at {}; is worst at {}",
                listed(wins),
                listed(shares),
                listed(loses)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIO: &str = r#"
name = "two levels"
run = { replications = 4, duration_secs = 1200, warm_up = { kind = "none" } }
[[nodes]]
name = "n"
count = 4
[[services]]
name = "s"
start_secs = 2
code_mib = 10
scaling = { replicas_min = 1, replicas_max = 20, cooldown_ms = 1000 }
[[users]]
name = "u"
service = "s"
interval_secs = { kind = "exponential", mean = 0.5 }
rate = [{ at_secs = 300, factor = 4 }, { at_secs = 600, factor = 1 }]
work_secs = { kind = "exponential", mean = 1 }
"#;

    #[test]
    fn each_policy_is_tried_on_the_same_users() {
        let scenario = Scenario::parse(SCENARIO).unwrap();
        let all = candidates(&scenario, 0, None);
        let names: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["scenario", "thresholds", "hpa", "kpa", "predictive"]);
        let run = || compare_policies(&scenario, 0, &all, &[0.5, 1.0], &Progress::default());
        let report = run().unwrap();
        assert!(report == run().unwrap(), "the same seed, the same report");
        assert_eq!((report.scores.len(), report.replications), (10, 4));
        let sent: Vec<f64> = report
            .scores
            .iter()
            .filter(|score| score.load == 1.0)
            .map(|score| {
                let mean =
                    |of: Measure| score.measures.iter().find(|it| it.0 == of).unwrap().1.mean;
                assert!(mean(Measure::Replicas) >= 1.0 && mean(Measure::Throughput) > 1.0);
                mean(Measure::Refusal)
            })
            .collect();
        assert_eq!(sent, [0.0; 5]);
        let text = to_table(&report).to_text();
        assert!(text.lines().skip(1).all(|line| line.split_whitespace().count() >= 10), "{text}");
        assert!(text.contains('*'));
        let words = to_words(&report);
        assert_eq!(words.len(), 5);
        assert!(words.iter().any(|line| !line.contains("wins nothing")), "{words:#?}");
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let scenario = Scenario::parse(SCENARIO).unwrap();
        let all = candidates(&scenario, 0, None);
        let error = compare_policies(&scenario, 0, &all, &[0.0], &Progress::default()).unwrap_err();
        assert_eq!(error.code(), "POLICIES_LOAD");
        assert_eq!(service_index(&scenario, Some("t")).unwrap_err().code(), "SCENARIO_INVALID");
        let mut bad = all[0].clone();
        bad.scaling.replicas_max = 0;
        let error =
            compare_policies(&scenario, 0, &[bad], &[1.0], &Progress::default()).unwrap_err();
        assert_eq!(error.code(), "POLICIES_RULE");
    }
}

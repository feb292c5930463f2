//! One service: load without failures (E1), failures on three topologies (E2), speed-up of batches (E7).

use super::{Effort, Experiment, Finding, scenario};
use crate::compare::{BATCH_AT_SECS, batch_secs};
use crate::output::Estimate;
use crate::plot::{Line, Plot};
use crate::progress::Progress;
use crate::random::{Distribution, RandomKind};
use crate::report::{Table, figure};
use crate::scenario::{Scenario, Topology};
use crate::sim::{Measure, ServiceReport, simulate};
use skein_model::Migration;

const LOAD: &str = include_str!("../../scenarios/e1-load.toml");
const FAILURES: &str = include_str!("../../scenarios/e2-failures.toml");
const PROTOTYPE: &str = include_str!("../../scenarios/e7-prototype.toml");

fn point(x: f64, estimate: Estimate) -> (f64, f64, f64) {
    let width = if estimate.half_width.is_finite() { estimate.half_width } else { 0.0 };
    (x, estimate.mean, width)
}

fn run(scenario: &Scenario, progress: &Progress) -> ServiceReport {
    simulate(scenario, progress).services.swap_remove(0)
}

/// A nearly regular flow: within a fifth of its mean.
fn near(mean: f64) -> Distribution {
    Distribution::Random(RandomKind::Uniform { low: 0.8 * mean, high: 1.2 * mean })
}

/// E1: mean queue and replicas against the load, for nearly regular and for Poisson flows.
pub(super) fn load(effort: Effort, progress: &Progress) -> Experiment {
    let base = scenario(LOAD, effort);
    let loads: Vec<f64> =
        (1..=effort.points).map(|at| 5.0 * f64::from(at) / f64::from(effort.points + 1)).collect();
    let mut table = Table::new(&[
        "load",
        "replicas, regular",
        "queue, regular",
        "replications/h, regular",
        "replicas, Poisson",
        "queue, Poisson",
    ]);
    let mut lines: Vec<Line> = ["nearly regular flows", "Poisson flows"]
        .map(|name| Line { name: name.to_owned(), points: vec![] })
        .into();
    let mut queues = lines.clone();
    let mut regular = vec![];
    for load in &loads {
        let with = |interval: Distribution, work: Distribution| {
            let mut at = base.clone();
            (at.users[0].interval_secs, at.users[0].work_secs) = (interval, work);
            run(&at, progress)
        };
        let even = with(near(1.0 / load), near(1.0));
        let poisson = with(Distribution::exponential(1.0 / load), Distribution::exponential(1.0));
        for (at, report) in [&even, &poisson].into_iter().enumerate() {
            lines[at].points.push(point(*load, report.get(Measure::Replicas)));
            queues[at].points.push(point(*load, report.get(Measure::QueueLength)));
        }
        let mean = |report: &ServiceReport, measure| report.get(measure).mean;
        table.row([
            figure(*load),
            figure(mean(&even, Measure::Replicas)),
            figure(mean(&even, Measure::QueueLength)),
            figure(mean(&even, Measure::ReplicationRate)),
            figure(mean(&poisson, Measure::Replicas)),
            figure(mean(&poisson, Measure::QueueLength)),
        ]);
        regular.push((
            mean(&even, Measure::Replicas),
            mean(&even, Measure::QueueLength),
            mean(&even, Measure::ReplicationRate),
        ));
    }
    let plot = |title: &str, y_label: &str, lines| Plot {
        title: title.to_owned(),
        x_label: "load (arrivals × work)".to_owned(),
        y_label: y_label.to_owned(),
        lines,
    };
    Experiment {
        id: "E1",
        title: "one service without failures",
        scenario: LOAD,
        tables: vec![("Mean replicas and queue against the load".to_owned(), table)],
        plots: vec![
            ("e1-replicas".to_owned(), plot("E1: replicas against load", "replicas", lines)),
            ("e1-queue".to_owned(), plot("E1: queue against load", "waiting requests", queues)),
        ],
        findings: steps(&regular),
    }
}

/// Steps of (replicas, queue, replications) over ascending loads.
fn steps(curve: &[(f64, f64, f64)]) -> Vec<Finding> {
    let flat = curve.iter().filter(|(replicas, ..)| (replicas - replicas.round()).abs() < 0.02);
    let (flat, all) = (flat.count(), curve.len());
    let rises: Vec<usize> = curve
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[1].0 - pair[0].0 > 0.5)
        .map(|(at, _)| at)
        .collect();
    // The queue grows up to a step, and falls where replicas step up: at the next load that is past the step, not on it.
    let settled = |at: usize| curve[at + 1..].iter().find(|(.., rate)| *rate < 1e-9);
    let falls = |at: &&usize| settled(**at).is_some_and(|(_, queue, _)| *queue < curve[**at].1);
    let together = rises.iter().filter(falls).count();
    let still = curve.iter().filter(|(.., rate)| *rate < 1e-9).count();
    vec![
        Finding {
            claim: "with nearly regular flows the mean number of replicas is stepped".to_owned(),
            holds: flat * 10 >= all * 9 && rises.len() >= 3,
            figures: format!("{flat} of {all} loads on whole numbers, {} steps", rises.len()),
        },
        Finding {
            claim: "the queue steps at the same loads, down where the replicas step up".to_owned(),
            holds: together == rises.len(),
            figures: format!("at {together} of {} steps", rises.len()),
        },
        Finding {
            claim: "between the steps the regime is stationary, without replications".to_owned(),
            holds: still * 10 >= all * 9,
            figures: format!("at {still} of {all} loads"),
        },
    ]
}

/// E2: three topologies, two rates of failure.
pub(super) fn failures(effort: Effort, progress: &Progress) -> Experiment {
    let base = scenario(FAILURES, effort);
    let centre = match "n1".parse() {
        Ok(centre) => centre,
        Err(error) => unreachable!("n1 is a name: {error}"),
    };
    let topologies = [
        ("clique", Topology::Clique),
        ("ring", Topology::Ring),
        ("star", Topology::Star { centre }),
    ];
    let measures =
        [Measure::Loss, Measure::Refusal, Measure::TimeInSystem, Measure::P99, Measure::Replicas];
    let mut table =
        Table::new(&[&["topology", "failures"][..], &measures.map(Measure::as_str)[..]].concat());
    let mut results: Vec<Vec<ServiceReport>> = vec![];
    let (mut times, mut losses) = (vec![], vec![]);
    for (name, topology) in topologies {
        let reports: Vec<ServiceReport> = FACTORS
            .iter()
            .map(|factor| run(&failing(&base, &topology, *factor), progress))
            .collect();
        for (factor, report) in FACTORS.iter().zip(&reports) {
            let cells = measures.map(|measure| figure(report.get(measure).mean));
            table.row([name.to_owned(), format!("× {factor}")].into_iter().chain(cells));
        }
        let curve = |measure: Measure| Line {
            name: name.to_owned(),
            points: FACTORS
                .iter()
                .zip(&reports)
                .map(|(x, it)| point(*x, it.get(measure)))
                .collect(),
        };
        times.push(curve(Measure::TimeInSystem));
        losses.push(curve(Measure::Loss));
        results.push(reports);
    }
    let (away, saved) = leaving(&base, &results[0][FACTORS.len() - 1], progress);
    let plot = |title: &str, y_label: &str, lines| Plot {
        title: title.to_owned(),
        x_label: "times as many failures".to_owned(),
        y_label: y_label.to_owned(),
        lines,
    };
    let mut findings = findings_of_failures(&results);
    findings.push(saved);
    Experiment {
        id: "E2",
        title: "failing nodes on clique, ring and star",
        scenario: FAILURES,
        tables: vec![
            ("What topology and failures cost".to_owned(), table),
            ("Ten times the failures on the clique, known 30 s before".to_owned(), away),
        ],
        plots: vec![
            ("e2-time".to_owned(), plot("E2: time in system", "seconds", times)),
            ("e2-loss".to_owned(), plot("E2: losses", "share lost", losses)),
        ],
        findings,
    }
}

/// Failures of E2: so many times as often.
const FACTORS: [f64; 4] = [1.0, 2.0, 5.0, 10.0];

/// The scenario of E2 on a topology with so many times as many failures.
fn failing(base: &Scenario, topology: &Topology, factor: f64) -> Scenario {
    let mut at = base.clone();
    if let Some(network) = &mut at.network {
        network.topology = topology.clone();
    }
    for group in &mut at.nodes {
        let mean = group.time_to_failure_secs.as_ref().map_or(0.0, Distribution::mean);
        group.time_to_failure_secs = Some(Distribution::exponential(mean / factor));
    }
    at
}

/// What migration saves where failures are known beforehand, against a run in which nobody leaves.
fn leaving(base: &Scenario, stays: &ServiceReport, progress: &Progress) -> (Table, Finding) {
    let mut at = failing(base, &Topology::Clique, FACTORS[FACTORS.len() - 1]);
    at.nodes.iter_mut().for_each(|group| group.failure_warning_secs = 30.0);
    let migration = Migration { at_once: 5, ..Migration::default() };
    at.services.iter_mut().for_each(|service| service.scaling.migration = Some(migration));
    let leaves = run(&at, progress);
    let measures =
        [Measure::Loss, Measure::TimeInSystem, Measure::MigrationRate, Measure::MigrationPause];
    let mut table = Table::new(&[&["replicas"][..], &measures.map(Measure::as_str)[..]].concat());
    for (name, report) in [("stay", stays), ("leave", &leaves)] {
        let cells = measures.map(|measure| figure(report.get(measure).mean));
        table.row(std::iter::once(name.to_owned()).chain(cells));
    }
    let (lost, kept) = (stays.get(Measure::Loss).mean, leaves.get(Measure::Loss).mean);
    let times = [stays, &leaves].map(|report| figure(report.get(Measure::TimeInSystem).mean));
    let finding = Finding {
        claim: "replicas that leave failing nodes in time save most of what is lost, for the time that their state is on its way"
            .to_owned(),
        holds: kept < 0.5 * lost,
        figures: format!(
            "{} instead of {}; {} s in system instead of {} s",
            figure(kept),
            figure(lost),
            times[1],
            times[0]
        ),
    };
    (table, finding)
}

/// What the source says, of results by topology and factor.
fn findings_of_failures(results: &[Vec<ServiceReport>]) -> Vec<Finding> {
    let last = FACTORS.len() - 1;
    let time = |at: usize, factor: usize| results[at][factor].get(Measure::TimeInSystem).mean;
    let loss = |factor: usize| results[0][factor].get(Measure::Loss).mean;
    let (clique, ring, star) = (time(0, 0), time(1, 0), time(2, 0));
    vec![
        Finding {
            claim: "times worsen from clique over ring to star".to_owned(),
            holds: clique < ring && ring < star,
            figures: format!("{} s, {} s, {} s", figure(clique), figure(ring), figure(star)),
        },
        Finding {
            claim: "replicas made again elsewhere keep times low: ten times the failures cost less than twice the time"
                .to_owned(),
            holds: time(0, last) < 2.0 * clique,
            figures: format!(
                "{} s instead of {} s on the clique",
                figure(time(0, last)),
                figure(clique)
            ),
        },
        Finding {
            claim: "losses grow with the failures".to_owned(),
            holds: loss(last) > 3.0 * loss(0),
            figures: format!("{} instead of {} on the clique", figure(loss(last)), figure(loss(0))),
        },
    ]
}

/// E7: time for a batch of n requests on 1 to 5 replicas.
pub(super) fn prototype(effort: Effort, progress: &Progress) -> Experiment {
    let base = scenario(PROTOTYPE, Effort { duration: 1.0, ..effort });
    let batches: Vec<u32> = (1..=10).map(|at| 10 * at).collect();
    let mut table = Table::new(&["requests", "1", "2", "3", "4", "5"]);
    let mut lines: Vec<Line> = (1..=5)
        .map(|replicas| {
            let name =
                if replicas == 1 { "1 replica".into() } else { format!("{replicas} replicas") };
            Line { name, points: vec![] }
        })
        .collect();
    let mut last = [0.0; 5];
    for batch in &batches {
        let mut one = f64::NAN;
        let mut row = vec![batch.to_string()];
        for replicas in 1..=5u32 {
            let mut at = base.clone();
            let scaling = &mut at.services[0].scaling;
            (scaling.replicas_min, scaling.replicas_max) = (replicas, replicas);
            at.users[0].arrivals_secs = vec![BATCH_AT_SECS; *batch as usize];
            let times = (0..at.run.replications).map(|number| batch_secs(&at, number));
            let estimate = Estimate::of(times, at.run.confidence);
            if replicas == 1 {
                one = estimate.mean;
            }
            let speed_up = one / estimate.mean;
            row.push(figure(speed_up));
            last[replicas as usize - 1] = speed_up;
            lines[replicas as usize - 1].points.push((f64::from(*batch), speed_up, 0.0));
        }
        table.row(row);
    }
    let _ = progress;
    Experiment {
        id: "E7",
        title: "speed-up of batches over the number of replicas",
        scenario: PROTOTYPE,
        tables: vec![("Time on one replica divided by time on 1 to 5".to_owned(), table)],
        plots: vec![(
            "e7-speed-up".to_owned(),
            Plot {
                title: "E7: speed-up of a batch".to_owned(),
                x_label: "requests in the batch".to_owned(),
                y_label: "speed-up".to_owned(),
                lines,
            },
        )],
        findings: vec![Finding {
            claim: "the speed-up of large batches is near the number of replicas".to_owned(),
            holds: last.iter().zip(1..).all(|(is, n)| *is > 0.9 * f64::from(n)),
            figures: format!("{} with 5 replicas and 100 requests", figure(last[4])),
        }],
    }
}

//! The same scenario simulated, computed and, if somebody measured it, real: side by side.

use crate::output::Estimate;
use crate::scenario::Scenario;
use crate::sim::{Measure, Progress, SimReport, simulate};
use crate::solve::{SolveReport, solve};
use serde::Serialize;

/// What was measured of a live service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LiveService {
    /// Its name, as in the scenario.
    pub service: String,
    /// What was measured.
    pub measures: Vec<(Measure, f64)>,
}

/// One measure of one service, three times.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The service.
    pub service: String,
    /// The measure.
    pub measure: Measure,
    /// Simulated, with its interval.
    pub simulated: Estimate,
    /// Computed.
    pub computed: Option<f64>,
    /// Measured live.
    pub real: Option<f64>,
}

impl Row {
    /// Whether the simulated interval holds the computed value; none where there is none.
    pub fn agrees(&self) -> Option<bool> {
        self.computed.map(|value| self.simulated.covers(value))
    }
}

/// All measures of all services.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The simulation.
    pub simulation: SimReport,
    /// What was computed, or why nothing was.
    pub computation: Result<SolveReport, String>,
    /// Each measure of each service.
    pub rows: Vec<Row>,
}

/// Simulates and solves a scenario, and sets both beside what was measured live.
pub fn compare(scenario: &Scenario, live: &[LiveService], progress: &Progress) -> Comparison {
    let simulation = simulate(scenario, progress);
    let computation = solve(scenario).map_err(|error| chain_of(&error));
    let mut rows = vec![];
    for service in &simulation.services {
        let name = &service.service;
        let computed = computation
            .as_ref()
            .ok()
            .and_then(|report| report.services.iter().find(|solved| solved.service == *name));
        let real = live.iter().find(|live| live.service == *name);
        for (measure, simulated) in &service.measures {
            let of = |measures: &[(Measure, f64)]| {
                measures.iter().find(|(of, _)| of == measure).map(|it| it.1)
            };
            rows.push(Row {
                service: name.clone(),
                measure: *measure,
                simulated: *simulated,
                computed: computed.and_then(|solved| of(&solved.solution.measures)),
                real: real.and_then(|live| of(&live.measures)),
            });
        }
    }
    Comparison { simulation, computation, rows }
}

fn chain_of(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain_of(source)),
        None => error.to_string(),
    }
}

/// Throughput with a fixed number of replicas, against that with one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SpeedUp {
    /// Replicas.
    pub replicas: u32,
    /// Requests served per second.
    pub throughput: Estimate,
    /// Seconds from sending to answer.
    pub time_in_system: Estimate,
    /// Throughput divided by that of one replica.
    pub speed_up: f64,
}

/// The speed-up of the first service of a scenario over 1 to `replicas_max` replicas, all else equal.
pub fn speed_up(scenario: &Scenario, replicas_max: u32, progress: &Progress) -> Vec<SpeedUp> {
    let mut all: Vec<SpeedUp> = vec![];
    for replicas in 1..=replicas_max {
        let mut scenario = scenario.clone();
        let scaling = &mut scenario.services[0].scaling;
        (scaling.replicas_min, scaling.replicas_max) = (replicas, replicas);
        scaling.warm = scaling.warm.min(replicas);
        let report = simulate(&scenario, progress);
        let throughput = report.services[0].get(Measure::Throughput);
        let first = all.first().map_or(throughput.mean, |one| one.throughput.mean);
        all.push(SpeedUp {
            replicas,
            throughput,
            time_in_system: report.services[0].get(Measure::TimeInSystem),
            speed_up: throughput.mean / first,
        });
    }
    all
}

//! The same scenario simulated, computed and, if somebody measured it, real: side by side.

use crate::output::Estimate;
use crate::progress::Progress;
use crate::random::Distribution;
use crate::scenario::{Scenario, WarmUp};
use crate::sim::{Measure, Recording, SimReport, replicate, simulate};
use crate::solve::{SolveReport, solve, solve_over};
use serde::Serialize;
use skein_model::EventKind;

/// What was measured of a live service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LiveService {
    /// Its name, as in the scenario.
    pub service: String,
    /// What was measured: see [`crate::measure_history`].
    pub measures: Vec<(Measure, Estimate)>,
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
    /// Measured live, with its interval.
    pub real: Option<Estimate>,
}

impl Row {
    /// Whether the simulated interval holds the computed value, up to rounding; none where there is none.
    pub fn agrees(&self) -> Option<bool> {
        let near = |value: f64| (self.simulated.mean - value).abs() <= 1e-9 * value.abs();
        self.computed.map(|value| self.simulated.covers(value) || near(value))
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
    // A simulation that counts from its empty start is compared with what the chain says of the same stretch of time.
    let computation = match scenario.run.warm_up {
        WarmUp::None => solve_over(scenario, scenario.run.duration_secs, progress),
        WarmUp::Mser5 | WarmUp::Fixed { .. } => solve(scenario, progress),
    };
    let computation = computation.map_err(|error| chain_of(&error));
    let mut rows = vec![];
    for service in &simulation.services {
        let name = &service.service;
        let computed = computation
            .as_ref()
            .ok()
            .and_then(|report| report.services.iter().find(|solved| solved.service == *name));
        let real = live.iter().find(|live| live.service == *name);
        for (measure, simulated) in &service.measures {
            rows.push(Row {
                service: name.clone(),
                measure: *measure,
                simulated: *simulated,
                computed: computed.and_then(|solved| find(&solved.solution.measures, *measure)),
                real: real.and_then(|live| find(&live.measures, *measure)),
            });
        }
    }
    Comparison { simulation, computation, rows }
}

fn find<T: Copy>(measures: &[(Measure, T)], measure: Measure) -> Option<T> {
    measures.iter().find(|(of, _)| *of == measure).map(|it| it.1)
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

/// The time that a batch of requests takes at a fixed number of replicas, three times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BatchTime {
    /// Replicas.
    pub replicas: u32,
    /// Seconds to the last answer, simulated.
    pub simulated: Estimate,
    /// The same on one replica, divided by this.
    pub simulated_speed_up: f64,
    /// Seconds, computed; none where the work is not exponential or links take time.
    pub computed: Option<f64>,
    /// The same on one replica, divided by this.
    pub computed_speed_up: Option<f64>,
    /// Seconds, measured live.
    pub real: Option<f64>,
    /// The same on one replica, divided by this.
    pub real_speed_up: Option<f64>,
}

/// A scenario in which the first user of a service sends so many requests at once, and that many replicas are ready, on nodes
/// that do not fail.
pub fn batch_scenario(
    scenario: &Scenario,
    service: usize,
    replicas: u32,
    requests: u32,
) -> Scenario {
    let mut batch = scenario.clone();
    for group in &mut batch.nodes {
        group.time_to_failure_secs = None;
    }
    let spec = &mut batch.services[service];
    let scaling = &mut spec.scaling;
    (scaling.replicas_min, scaling.replicas_max) = (replicas, replicas);
    scaling.warm = 0;
    spec.start_secs = Distribution::Constant(0.0);
    spec.queue_bound = spec.queue_bound.max(requests);
    let name = spec.name.clone();
    batch.users.retain(|user| user.service == name);
    batch.users.truncate(1);
    for user in &mut batch.users {
        (user.count, user.waits_for_answer) = (1, false);
        (user.rate, user.rate_period_secs) = (vec![], None);
        (user.arrivals_csv, user.trace) = (None, vec![]);
        // When the replicas are there.
        user.arrivals_secs = vec![BATCH_AT_SECS; requests as usize];
    }
    // Longer than one replica takes, whatever is drawn.
    let work = batch.users.first().map_or(1.0, |user| user.work_secs.mean());
    batch.run.duration_secs = (100.0 * work * f64::from(requests)).clamp(1000.0, 1e8);
    batch
}

/// When a batch is sent.
pub(crate) const BATCH_AT_SECS: f64 = 0.001;

/// Seconds from sending a batch to its last answer; not a number when not all were answered.
pub(crate) fn batch_secs(scenario: &Scenario, replication: u32) -> f64 {
    let history = replicate(scenario, replication, Recording::On).history;
    let done = history.iter().rev().find(|event| matches!(event.kind, EventKind::JobDone { .. }));
    done.map_or(f64::NAN, |event| event.at.as_micros() as f64 * 1e-6 - BATCH_AT_SECS)
}

/// The speed-up of a batch over 1 to `replicas_max` replicas: simulated, computed, and beside what was measured live with as
/// many (seconds, from one replica on; empty when nobody did).
pub fn batch_times(
    scenario: &Scenario,
    service: usize,
    (replicas_max, requests): (u32, u32),
    live: &[f64],
) -> Vec<BatchTime> {
    let mut all: Vec<BatchTime> = vec![];
    for replicas in 1..=replicas_max {
        let batch = batch_scenario(scenario, service, replicas, requests);
        let times = (0..batch.run.replications).map(|number| batch_secs(&batch, number));
        let simulated = Estimate::of(times, batch.run.confidence);
        let computed = computed_batch(&batch, service, replicas, requests);
        let real = live.get(replicas as usize - 1).copied();
        let first = all.first().copied();
        let against = |one: Option<f64>, this: Option<f64>| Some(one.or(this)? / this?);
        all.push(BatchTime {
            replicas,
            simulated,
            simulated_speed_up: first.map_or(1.0, |one| one.simulated.mean / simulated.mean),
            computed,
            computed_speed_up: against(first.and_then(|one| one.computed), computed),
            real,
            real_speed_up: against(first.and_then(|one| one.real), real),
        });
    }
    all
}

/// A death process: while j requests are left, min(j, places) are served.
fn computed_batch(batch: &Scenario, service: usize, replicas: u32, requests: u32) -> Option<f64> {
    let work = batch.users.first()?.work_secs.exponential_mean()?;
    let groups = &batch.nodes;
    let same = groups.iter().all(|it| it.performance == groups[0].performance);
    let still = groups.iter().all(|it| it.background == Distribution::Constant(0.0));
    if batch.network.is_some() || !same || !still {
        return None;
    }
    let places = replicas * batch.services[service].capacity;
    let rate = groups[0].performance / work;
    Some((1..=requests).map(|left| 1.0 / (f64::from(left.min(places)) * rate)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_rare_to_be_seen_does_not_disagree() {
        let text = r#"
name = "rare"
run = { seed = 3, replications = 4, duration_secs = 2000 }
[[nodes]]
name = "n"
[[services]]
name = "s"
start_secs = 0
queue_bound = 30
scaling = { replicas_min = 1, replicas_max = 1 }
[[users]]
name = "u"
service = "s"
interval_secs = { kind = "exponential", mean = 2 }
work_secs = { kind = "exponential", mean = 1 }
"#;
        let mut scenario = Scenario::parse(text).unwrap();
        let compared = compare(&scenario, &[], &Progress::default());
        let row = |compared: &Comparison, measure| {
            compared.rows.iter().find(|row| row.measure == measure).cloned().unwrap()
        };
        let refusal = row(&compared, Measure::Refusal);
        assert!(refusal.simulated.mean == 0.0 && refusal.computed.unwrap() > 0.0, "{refusal:?}");
        assert!((1e-4..2e-3).contains(&refusal.simulated.half_width), "{refusal:?}");
        assert_eq!(refusal.agrees(), Some(true));
        assert_eq!(row(&compared, Measure::Service).agrees(), Some(true));
        // Nothing fails, and nothing changes the number of replicas: that is sure.
        for measure in [Measure::Loss, Measure::LostRate, Measure::ReplicationRate] {
            assert_eq!(row(&compared, measure).simulated.half_width, 0.0, "{measure:?}");
        }
        // What would have been seen disagrees.
        scenario.services[0].queue_bound = 2;
        let often = row(&compare(&scenario, &[], &Progress::default()), Measure::Refusal);
        assert!(often.computed.unwrap() > refusal.simulated.half_width);
        assert_eq!(Row { computed: often.computed, ..refusal }.agrees(), Some(false));
    }

    #[test]
    fn a_batch_takes_as_long_as_a_death_process() {
        let text = r#"
name = "batch"
run = { seed = 3, replications = 200, duration_secs = 10 }
[[nodes]]
name = "n"
[[services]]
name = "s"
[[users]]
name = "u"
service = "s"
interval_secs = 1
work_secs = { kind = "exponential", mean = 0.5 }
"#;
        let scenario = Scenario::parse(text).unwrap();
        let all = batch_times(&scenario, 0, (5, 40), &[20.0, 10.0]);
        assert_eq!(all.len(), 5);
        for it in &all {
            let computed = it.computed.unwrap();
            assert!((it.simulated.mean / computed - 1.0).abs() < 0.06, "{it:?}");
            assert!((it.simulated_speed_up / it.computed_speed_up.unwrap() - 1.0).abs() < 0.06);
        }
        assert!((all[0].computed.unwrap() - 20.0).abs() < 1e-9);
        assert_eq!((all[1].real_speed_up, all[2].real_speed_up), (Some(2.0), None));
    }
}

//! What the benches of the planner measure. Each function does one piece of work of a known size and says how large it was;
//! whoever calls it has the clock.

use crate::chain::{Bound, ChainError, Family, Replicas};
use crate::models;
use crate::progress::Progress;
use crate::scenario::{FailureLoses, QueueCounts, Repair, Scenario};
use crate::sim::{Measure, count, simulate};

/// Scenario of [`mmc`].
const MMC: &str = r#"
name = "M/M/5"
run = { seed = 1, replications = 2, duration_secs = 100000 }
[[nodes]]
name = "n"
[[services]]
name = "s"
start_secs = 0
queue_bound = 1000
scaling = { replicas_min = 5, replicas_max = 5 }
[[users]]
name = "u"
service = "s"
interval_secs = { kind = "exponential", mean = 0.25 }
work_secs = { kind = "exponential", mean = 1 }
"#;

fn scenario(text: &str, secs: f64) -> Scenario {
    match Scenario::parse(text) {
        Ok(mut scenario) => {
            scenario.run.duration_secs = secs;
            scenario
        }
        Err(error) => unreachable!("a built-in scenario: {error}"),
    }
}

/// One replication of an M/M/5 queue of load 0.8 with all statistics, for so many simulated seconds (8 events each):
/// events handled.
pub fn mmc(secs: f64, progress: &Progress) -> u64 {
    count(&scenario(MMC, secs), 0, progress).events
}

/// One replication of the fifteen-node system (E6), for so many simulated seconds (about 37 events each): events handled.
pub fn fifteen(secs: f64, progress: &Progress) -> u64 {
    let text = include_str!("../scenarios/e6-fifteen.toml");
    count(&scenario(text, secs), 0, progress).events
}

/// As many replications of [`mmc`] as asked for, on so many threads: events handled.
///
/// # Errors
/// The threads cannot be started.
pub fn parallel(threads: usize, replications: u32, secs: f64) -> Result<u64, String> {
    let mut scenario = scenario(MMC, secs);
    scenario.run.replications = replications;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| format!("starting {threads} threads: {error}"))?;
    Ok(pool.install(|| simulate(&scenario, &Progress::default())).events)
}

/// So many nodes with ten replicas each in services of 100, under failures, for so many simulated seconds: events handled.
/// The figure of interest is the simulated time divided by the time it took.
pub fn large(nodes: u32, secs: f64, progress: &Progress) -> u64 {
    let mut text = format!(
        r#"
name = "large"
run = {{ seed = 1, replications = 1 }}
[[nodes]]
name = "n"
count = {nodes}
time_to_failure_secs = {{ kind = "exponential", mean = 2592000 }}
time_to_repair_secs = {{ kind = "exponential", mean = 3600 }}
"#
    );
    for service in 0..(nodes / 10).max(1) {
        text.push_str(&format!(
            r#"
[[services]]
name = "s{service}"
queue_bound = 1000
scaling = {{ replicas_min = 100, replicas_max = 110, placement = "round_robin", rule = {{ kind = "thresholds", replicate_above = 10, dereplicate_at = 0, scope = "service" }} }}
[[users]]
name = "u{service}"
service = "s{service}"
interval_secs = {{ kind = "exponential", mean = 1 }}
work_secs = {{ kind = "exponential", mean = 10 }}
"#
        ));
    }
    count(&scenario(&text, secs), 0, progress).events
}

/// The two-dimensional chain with 100 nodes and queues of 50, built and certified: its states.
///
/// # Errors
/// It could not be certified, or was stopped.
pub fn chain_2d(progress: &Progress) -> Result<usize, ChainError> {
    Ok(family_2d().solve_unless_stopped(progress)?.states)
}

fn family_2d() -> Family {
    Family {
        nodes: 100,
        queue: 50,
        bound: Bound::Each,
        counts: QueueCounts::Waiting,
        capacity: 1,
        arrival: 70.0,
        service: 1.0,
        failure: 0.001,
        repair: 0.01,
        crew: Repair::PerNode,
        loses: FailureLoses::Held,
        replicas: Replicas::WhenFull,
    }
}

/// A chain of five million states, built and certified: its states.
///
/// # Errors
/// It could not be certified, or was stopped.
pub fn chain_of_millions(progress: &Progress) -> Result<usize, ChainError> {
    let family = Family {
        nodes: 315,
        queue: 99,
        arrival: 220.0,
        replicas: Replicas::EveryNode,
        ..family_2d()
    };
    Ok(family.solve_unless_stopped(progress)?.states)
}

/// A small chain of the same kind that other tools solve too.
fn exported() -> Family {
    Family { nodes: 20, queue: 20, arrival: 16.0, loses: FailureLoses::InService, ..family_2d() }
}

/// The small chain in PRISM's language.
pub fn exported_model() -> String {
    exported().to_prism().unwrap_or_default()
}

/// The small chain, built and certified: its states, and the long-run share of those that refuse.
///
/// # Errors
/// It could not be certified, or was stopped.
pub fn exported_chain(progress: &Progress) -> Result<(usize, f64), ChainError> {
    let solution = exported().solve_unless_stopped(progress)?;
    Ok((solution.states, solution.get(Measure::Refusal)))
}

/// The published cluster of two rows of `n` workstations: 597,012 states at 128, and
/// the long-run share of premium service.
///
/// # Errors
/// It could not be certified, or was stopped.
pub fn cluster(n: u16, progress: &Progress) -> Result<(usize, f64), ChainError> {
    models::cluster(n, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_as_large_as_it_says() {
        let run = &Progress::default();
        // One event more a second for the cells of so short a run.
        assert!((8.0..10.0).contains(&(mmc(1000.0, run) as f64 / 1000.0)));
        let fifteen = fifteen(200.0, run) as f64 / 200.0;
        assert!((20.0..60.0).contains(&fifteen), "{fifteen}");
        assert!(parallel(2, 2, 100.0).unwrap() > 1000);
        assert!(large(20, 100.0, run) > 300);
    }
}

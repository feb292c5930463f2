//! Machines that leave their nodes: simulated with the policy's own moves.

use skein_model::EventKind;
use skein_planner::{
    Measure, Progress, Recording, Replication, Scenario, SimReport, replicate, simulate,
};

/// Three nodes that fail, known so long before, and a service that keeps two replicas.
fn failing(warning: f64, migration: &str, service: &str) -> Scenario {
    let text = format!(
        r#"
name = "failing"
run = {{ seed = 7, replications = 10, duration_secs = 20000, warm_up = {{ kind = "none" }} }}
assumptions = {{ failure_loses = "in_service" }}
[[nodes]]
name = "n"
count = 3
time_to_failure_secs = {{ kind = "exponential", mean = 400 }}
time_to_repair_secs = {{ kind = "exponential", mean = 20 }}
failure_warning_secs = {warning}
[network]
topology = {{ kind = "clique" }}
throughput_mib_per_sec = 100
[[services]]
name = "s"
code_mib = 20
state_mib = 10
start_secs = 0.5
queue_bound = 200
{service}
scaling = {{ replicas_min = 2, replicas_max = 2, placement = "spread", {migration} }}
[[users]]
name = "u"
service = "s"
interval_secs = {{ kind = "exponential", mean = 1 }}
work_secs = {{ kind = "exponential", mean = 1 }}
"#
    );
    Scenario::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

const AWAY: &str = "migration = { at_once = 2 }";

fn run(scenario: &Scenario) -> SimReport {
    simulate(scenario, &Progress::default())
}

fn mean(report: &SimReport, measure: Measure) -> f64 {
    report.services[0].get(measure).mean
}

/// Every job ends once, and the history tells as much as was counted.
fn check_history(scenario: &Scenario) -> Replication {
    let replication = replicate(scenario, 0, Recording::On);
    let count =
        |name: &str| replication.history.iter().filter(|event| event.kind.name() == name).count();
    let left = &replication.services[0];
    let open = (left.left_waiting + left.left_in_service) as usize;
    let ended = count("job_done") + count("job_dead_lettered");
    assert_eq!(count("job_accepted"), ended + open);
    assert_eq!(count("migrated"), left.sums.migrations as usize);
    assert!(count("migrating") >= count("migrated"));
    let again = replicate(scenario, 0, Recording::On);
    assert!(again.history == replication.history, "the same seed, the same history");
    replication
}

#[test]
fn who_leaves_a_failing_node_in_time_loses_little() {
    let stays = run(&failing(30.0, "", ""));
    let leaves = run(&failing(30.0, AWAY, ""));
    assert_eq!(mean(&stays, Measure::MigrationRate), 0.0);
    let (lost, kept) = (mean(&stays, Measure::Loss), mean(&leaves, Measure::Loss));
    assert!(lost > 1e-3 && kept < lost / 10.0, "{lost} without and {kept} with migration");
    assert!(mean(&leaves, Measure::MigrationRate) > 5.0, "{leaves:?}");
    // 10 MiB of state at 100 MiB/s, at the least; what is served is finished first, and costs no pause.
    let pause = mean(&leaves, Measure::MigrationPause);
    assert!((0.1..0.3).contains(&pause), "{pause}");
    // Nobody says so in time: there is nothing to leave.
    let unwarned = run(&failing(0.0, AWAY, ""));
    assert_eq!(mean(&unwarned, Measure::MigrationRate), 0.0);
}

#[test]
fn strong_mobility_takes_along_what_weak_mobility_finishes_or_does_again() {
    let weak = failing(30.0, AWAY, "");
    let interrupted = failing(30.0, AWAY, "interruptible = true");
    let strong = failing(30.0, AWAY, "mobility = \"strong\"");
    let returned = |scenario: &Scenario| {
        let history = check_history(scenario).history;
        history.iter().filter(|it| matches!(it.kind, EventKind::JobReturned { .. })).count()
    };
    assert_eq!([returned(&weak), returned(&strong)], [0, 0]);
    assert!(returned(&interrupted) > 0);
    let work = |scenario: &Scenario| mean(&run(scenario), Measure::TimeInService);
    let (weak, strong) = (work(&weak), work(&strong));
    // A request that moves along waits for its state, one of several hundred.
    assert!((weak / strong - 1.0).abs() < 0.02, "{weak} {strong}");
}

#[test]
fn a_service_leaves_crowded_nodes_for_calm_ones() {
    let scenario = |migration: &str| {
        let text = format!(
            r#"
name = "crowded"
run = {{ seed = 3, replications = 10, duration_secs = 20000, warm_up = {{ kind = "none" }} }}
[[nodes]]
name = "n"
count = 6
background = {{ kind = "empirical", values = [0.0, 0.1, 0.9] }}
background_lasts_secs = {{ kind = "exponential", mean = 300 }}
[[services]]
name = "s"
start_secs = 0.2
queue_bound = 1000
scaling = {{ replicas_min = 2, replicas_max = 2, placement = "spread", {migration} }}
[[users]]
name = "u"
service = "s"
interval_secs = {{ kind = "exponential", mean = 4 }}
work_secs = {{ kind = "exponential", mean = 1 }}
"#
        );
        Scenario::parse(&text).unwrap()
    };
    let stays = run(&scenario(""));
    let moves = scenario("migration = { leave_above = 0.8, go_below = 0.5, stay_ms = 5000 }");
    check_history(&moves);
    let moves = run(&moves);
    let time = |report| mean(report, Measure::TimeInSystem);
    assert!(time(&moves) < time(&stays) / 2.0, "{} and {}", time(&moves), time(&stays));
}

#[test]
fn replicas_that_move_are_measured_alike_in_history_and_run() {
    let mut scenario = failing(30.0, AWAY, "queue = \"shortest_of_replicas\"");
    scenario.run.duration_secs = 5000.0;
    let replication = check_history(&scenario);
    let found = skein_planner::measure_history(&replication.history, "s", (0, 5000.0), 0.95);
    for measure in
        [Measure::Replicas, Measure::Starting, Measure::MigrationRate, Measure::WorkingNodes]
    {
        let (_, estimate) = found.iter().find(|(of, _)| *of == measure).unwrap();
        let expect = measure.of(&replication.services[0]);
        assert!(
            (estimate.mean - expect).abs() < 0.01 * expect.max(0.1),
            "{measure:?}: {estimate:?} {expect}"
        );
    }
}

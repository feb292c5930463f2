//! The simulator against closed forms, against itself, and against what cannot be.

use skein_planner::{Estimate, Measure, Progress, Recording, Scenario, replicate, simulate};

/// A service with a fixed number of replicas that start at once.
fn queue(more: &str, interval: f64, work: f64, replicas: u32, bound: u32) -> String {
    format!(
        r#"
name = "queue"
{more}
[[nodes]]
name = "n"
[[services]]
name = "s"
start_secs = 0
queue_bound = {bound}
scaling = {{ replicas_min = {replicas}, replicas_max = {replicas} }}
[[users]]
name = "u"
service = "s"
interval_secs = {{ kind = "exponential", mean = {interval} }}
work_secs = {{ kind = "exponential", mean = {work} }}
"#
    )
}

fn run(text: &str) -> skein_planner::SimReport {
    simulate(&Scenario::parse(text).unwrap(), &Progress::default())
}

const LONG: &str =
    "run = { seed = 7, replications = 20, duration_secs = 20000, confidence = 0.99 }";

/// The 99 % interval, a little widened because many are checked, holds the exact value.
fn check(is: Estimate, exact: f64, what: &str) {
    let off = (is.mean - exact).abs();
    assert!(off <= 1.3 * is.half_width + 1e-12, "{what}: {is:?}, exactly {exact}");
    assert!(is.half_width <= 0.08 * exact.abs() + 1e-3, "{what}: {is:?} is too wide");
}

#[test]
fn queues_with_known_answers() {
    // Arrival rate, service rate, servers, places in the system; refusal, throughput, L, W.
    for (lambda, mu, c, k, refusal, throughput, l, w) in [
        (1.5, 3.0, 1, 3, 1.0 / 15.0, 1.4, 11.0 / 15.0, 0.523809523810),
        (0.8, 1.0, 1, 10, 0.023492857580, 0.781205713936, 2.966314266484, 3.797097503983),
        (4.0, 1.0, 5, 20, 0.003960999701, 3.984156001197, 5.918843676156, 1.485595361823),
        (50.0, 10.0, 4, 6, 0.293542993481, 35.322850325950, 4.354205414342, 0.123268801191),
    ] {
        let long = LONG.replace("20000", &format!("{}", 20_000.0 / lambda));
        let report = run(&queue(&long, 1.0 / lambda, 1.0 / mu, c, k - c));
        let get = |measure| report.services[0].get(measure);
        check(get(Measure::Refusal), refusal, "refusal");
        check(get(Measure::Throughput), throughput, "throughput");
        check(get(Measure::InSystem), l, "in system");
        check(get(Measure::TimeInSystem), w, "time in system");
        check(get(Measure::Replicas), f64::from(c), "replicas");
        let quantile = get(Measure::P50).mean;
        assert!(
            quantile < get(Measure::P90).mean && get(Measure::P90).mean < get(Measure::P99).mean
        );
    }
}

#[test]
fn a_single_server_that_breaks_down() {
    // L = λ[(υ+ξ)²+μυ] / [(υ+ξ)(μξ−λ(υ+ξ))]
    for (lambda, mu, fails, repairs, l) in
        [(0.5, 1.0, 0.05, 0.5, 1.424242424242424), (0.3, 1.0, 0.1, 0.2, 1.727272727272727)]
    {
        let text = queue(LONG, 1.0 / lambda, 1.0 / mu, 1, 100_000).replace(
            "name = \"n\"",
            &format!(
                "name = \"n\"\ntime_to_failure_secs = {{ kind = \"exponential\", mean = {} }}
                 time_to_repair_secs = {{ kind = \"exponential\", mean = {} }}",
                1.0 / fails,
                1.0 / repairs
            ),
        );
        let text = text.replace("start_secs = 0", "start_secs = 0\nmobility = \"strong\"");
        let report = run(&text);
        let get = |measure| report.services[0].get(measure);
        check(get(Measure::InSystem), l, "in system");
        check(get(Measure::WorkingNodes), repairs / (fails + repairs), "working nodes");
        check(get(Measure::Replicas), repairs / (fails + repairs), "replicas");
        assert_eq!(get(Measure::Loss).mean, 0.0);
    }
}

/// Everything at once: failures, links, several services, every queue kind.
fn rich(seed: u64) -> String {
    format!(
        r#"
name = "rich"
run = {{ seed = {seed}, replications = 4, duration_secs = 300 }}
assumptions = {{ failure_loses = "in_service", repair = "single_crew" }}
[[nodes]]
name = "n"
count = 6
memory_mib = 64
background = {{ kind = "uniform", low = 0.0, high = 0.5 }}
time_to_failure_secs = {{ kind = "weibull", scale = 80, shape = 1.5 }}
time_to_repair_secs = {{ kind = "erlang", mean = 10, phases = 2 }}
[network]
topology = {{ kind = "ring" }}
throughput_mib_per_sec = {{ kind = "uniform", low = 50, high = 100 }}
background_mib_per_sec = {{ kind = "uniform", low = 0, high = 20 }}
latency_ms = 1
[[services]]
name = "shared"
code_mib = 2
capacity = 2
queue_bound = 20
scaling = {{ zero_grace_ms = 500, cooldown_ms = 300, replicas_max = 8 }}
interruptible = true
[[services]]
name = "own"
code_mib = 1
state_mib = 1
queue_bound = 5
queue = "shortest_of_replicas"
mobility = "strong"
scaling = {{ cooldown_ms = 200, rule = {{ kind = "thresholds", replicate_above = 3, dereplicate_at = 1, scope = "replica" }} }}
[[services]]
name = "turns"
queue_bound = 5
queue = "turn_of_replicas"
scaling = {{ replicas_min = 1, placement = "spread" }}
[[users]]
name = "a"
service = "shared"
count = 3
node = "n2"
interval_secs = {{ kind = "pareto", least = 0.05, shape = 1.5 }}
work_secs = {{ kind = "normal", mean = 0.2, deviation = 0.1 }}
input_kib = 500
output_kib = {{ kind = "exponential", mean = 100 }}
[[users]]
name = "b"
service = "own"
interval_secs = {{ kind = "exponential", mean = 0.1 }}
work_secs = {{ kind = "exponential", mean = 0.25 }}
input_kib = 10
[[users]]
name = "c"
service = "turns"
count = 5
waits_for_answer = true
interval_secs = 0.3
work_secs = {{ kind = "empirical", values = [0.05, 0.1, 0.2] }}
[[users]]
name = "d"
service = "turns"
interval_secs = 1
arrivals_secs = [1.0, 1.0, 2.5, 100.0]
work_secs = 0.1
"#
    )
}

#[test]
fn the_same_seed_gives_the_same_history_and_every_request_ends_once() {
    for seed in 1..6 {
        let scenario = Scenario::parse(&rich(seed)).unwrap();
        let first = replicate(&scenario, 0, Recording::On);
        let again = replicate(&scenario, 0, Recording::On);
        let json = |it: &skein_planner::Replication| serde_json::to_string(&it.history).unwrap();
        assert_eq!(json(&first), json(&again));
        let other = replicate(&scenario, 1, Recording::On);
        assert_ne!(json(&first), json(&other));
        assert_eq!(replicate(&scenario, 0, Recording::Off).events, first.events);

        let count = |name: &str, service: &str| {
            let of = |event: &&skein_model::Event| {
                event.kind.name() == name
                    && event.subject.service.as_ref().is_some_and(|it| it.as_str() == service)
            };
            first.history.iter().filter(of).count()
        };
        for (at, service) in ["shared", "own", "turns"].into_iter().enumerate() {
            let (accepted, done) = (count("job_accepted", service), count("job_done", service));
            let dead = count("job_dead_lettered", service);
            let left = &first.services[at];
            let open = (left.left_waiting + left.left_in_service) as usize;
            assert_eq!(accepted, done + dead + open, "{service} of seed {seed}");
            assert!(done > 100, "{service}: {done} done");
        }
    }
}

#[test]
fn threads_do_not_change_a_report() {
    let scenario = Scenario::parse(&rich(3)).unwrap();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| simulate(&scenario, &Progress::default()))
    };
    let text = |report| serde_json::to_string(&report).unwrap();
    assert_eq!(text(with(1)), text(with(2)));
}

#[test]
fn a_stopped_simulation_reports_what_it_has() {
    let scenario = Scenario::parse(&rich(1)).unwrap();
    let progress = Progress::default();
    progress.stop();
    let report = simulate(&scenario, &progress);
    assert_eq!((report.replications, progress.done()), (1, 1));
}

#[test]
fn faster_time_changes_no_share() {
    let slow = LONG.replace("confidence", "warm_up = { kind = \"none\" }, confidence");
    let fast = slow.replace("20000", "2000");
    let slow = run(&queue(&slow, 1.0, 0.9, 1, 10));
    let fast = run(&queue(&fast, 0.1, 0.09, 1, 10));
    let get = |report: &skein_planner::SimReport, of| report.services[0].get(of).mean;
    let (a, b) = (get(&slow, Measure::Refusal), get(&fast, Measure::Refusal));
    assert!((a - b).abs() < 1e-6, "{a} {b}");
    let (a, b) = (get(&slow, Measure::TimeInSystem), get(&fast, Measure::TimeInSystem));
    assert!((a / b - 10.0).abs() < 1e-5, "{a} {b}");
}

#[test]
fn one_more_node_refuses_no_more() {
    let refused = |nodes: u32| {
        let text = rich(4).replace("count = 6", &format!("count = {nodes}"));
        let text = text.replace("memory_mib = 64", "memory_mib = 32");
        run(&text).services[0].get(Measure::Refusal).mean
    };
    let few = refused(2);
    assert!(few > 0.01 && refused(6) <= few);
}

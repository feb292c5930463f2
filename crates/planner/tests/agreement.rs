//! The simulator and the chain, made from one scenario, agree.

use proptest::prelude::*;
use skein_planner::{Measure, Progress, Scenario, compare, solve, speed_up};

fn scenario(
    assumptions: &str,
    nodes: &str,
    service: &str,
    user: (f64, f64),
    run: &str,
) -> Scenario {
    let (interval, work) = user;
    let text = format!(
        r#"
name = "agreement"
run = {{ {run} }}
assumptions = {{ {assumptions} }}
[[nodes]]
name = "n"
machines_max = 1
{nodes}
[[services]]
name = "s"
mobility = "strong"
{service}
[[users]]
name = "u"
service = "s"
interval_secs = {{ kind = "exponential", mean = {interval} }}
work_secs = {{ kind = "exponential", mean = {work} }}
"#
    );
    Scenario::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// All measures agree within so many half widths and so much beside.
fn check(scenario: &Scenario, widths: f64, beside: f64) {
    let comparison = compare(scenario, &[], &Progress::default());
    let computed = comparison.computation.as_ref().expect("a chain");
    for row in &comparison.rows {
        let Some(value) = row.computed else { continue };
        let off = (row.simulated.mean - value).abs();
        let allowed = widths * row.simulated.half_width + beside * value.abs() + 1e-9;
        assert!(
            off <= allowed,
            "{:?}: simulated {:?}, computed {value}\n{:?}\n{}",
            row.measure,
            row.simulated,
            computed.services[0].left_out,
            scenario.to_toml()
        );
    }
}

#[test]
fn the_reference_case_agrees() {
    let scenario = scenario(
        r#"chain_replicas = "every_node", failure_loses = "in_service""#,
        "count = 5\ntime_to_failure_secs = { kind = \"exponential\", mean = 100 }\n\
         time_to_repair_secs = { kind = \"exponential\", mean = 10 }",
        "start_secs = 0\nqueue_bound = 3\nqueue = \"shared_per_replica\"\n\
         scaling = { replicas_min = 5, replicas_max = 5 }",
        (0.25, 1.0),
        "seed = 3, replications = 30, duration_secs = 20000",
    );
    let solved = solve(&scenario, &Progress::default()).unwrap();
    let refusal = solved.services[0].solution.get(Measure::Refusal);
    assert!((refusal / 0.0306304141641745 - 1.0).abs() < 1e-9, "{refusal}");
    // With no node at work the chain refuses; the simulator lets as many wait as one replica would.
    check(&scenario, 1.5, 1e-3);
}

#[test]
fn thresholds_with_start_up_time_agree() {
    let scenario = scenario(
        "",
        "count = 6",
        "start_secs = { kind = \"exponential\", mean = 0.5 }\nqueue_bound = 30\n\
         scaling = { replicas_min = 1, replicas_max = 6, cooldown_ms = 0, rule = { kind = \"thresholds\", \
         replicate_above = 3, dereplicate_at = 0, scope = \"replica\" } }",
        (0.4, 1.0),
        "seed = 5, replications = 20, duration_secs = 20000",
    );
    // A removal is decided some milliseconds after it could be.
    check(&scenario, 1.5, 0.01);
}

#[test]
fn replicas_that_share_nodes_fail_together() {
    for (loses, rule) in [("in_service", 3), ("nothing", 3), ("held", 1)] {
        let mut scenario = scenario(
            &format!("failure_loses = \"{loses}\""),
            "count = 3\ntime_to_failure_secs = { kind = \"exponential\", mean = 60 }\n\
             time_to_repair_secs = { kind = \"exponential\", mean = 15 }",
            &format!(
                "start_secs = {{ kind = \"exponential\", mean = 0.5 }}\nqueue_bound = 12\n\
                 scaling = {{ replicas_min = 1, replicas_max = 6, cooldown_ms = 0, placement = \"spread\", \
                 removal = \"most_loaded_node\", rule = {{ kind = \"thresholds\", replicate_above = {rule}, \
                 dereplicate_at = 0, scope = \"replica\" }} }}"
            ),
            (0.3, 1.0),
            "seed = 5, replications = 20, duration_secs = 10000",
        );
        scenario.nodes[0].machines_max = 4;
        let solved = solve(&scenario, &Progress::default()).unwrap();
        let left_out = &solved.services[0].left_out;
        assert!(left_out.iter().all(|what| !what.contains("share nodes")), "{left_out:?}");
        // More replicas than nodes are at work.
        let get = |measure| solved.services[0].solution.get(measure);
        assert!(get(Measure::Replicas) > 3.0 && get(Measure::WorkingNodes) < 2.5);
        check(&scenario, 1.5, 0.02);
    }
}

#[test]
fn too_many_ways_to_share_nodes_are_said() {
    let mut scenario = scenario(
        "",
        "count = 20\ntime_to_failure_secs = { kind = \"exponential\", mean = 60 }\n\
         time_to_repair_secs = { kind = \"exponential\", mean = 15 }",
        "start_secs = { kind = \"exponential\", mean = 0.5 }\nqueue_bound = 12\n\
         scaling = { replicas_min = 1, replicas_max = 30, rule = { kind = \"thresholds\", replicate_above = 3, \
         dereplicate_at = 0, scope = \"replica\" } }",
        (0.3, 1.0),
        "",
    );
    scenario.nodes[0].machines_max = 4;
    let (family, left_out) =
        skein_planner::family_of(&scenario, &scenario.services[0]).expect("a chain");
    assert!(left_out.iter().any(|what| what.contains("too many ways to share")), "{left_out:?}");
    assert!(matches!(family.replicas, skein_planner::Replicas::Policy { each: 1, .. }));
}

#[test]
fn what_a_chain_leaves_out_is_said() {
    let mut scenario = scenario(
        "",
        "count = 3\nbackground = { kind = \"uniform\", low = 0, high = 0.4 }",
        "scaling = { replicas_max = 3, rule = { kind = \"thresholds\", replicate_above = 3, \
         dereplicate_at = 0, scope = \"service\" } }",
        (1.0, 1.0),
        "",
    );
    let solved = solve(&scenario, &Progress::default()).unwrap();
    let expect = [
        "random background loads: their means instead",
        "the cool-down",
        "the grace before zero: the last replica goes at once",
        "start-up time: exponential with the same mean instead",
    ];
    assert_eq!(solved.services[0].left_out, expect);
    scenario.services[0].scaling.rule = Default::default();
    let error = solve(&scenario, &Progress::default()).unwrap_err();
    assert_eq!(error.code(), "CHAIN_NONE");
    assert!(error.to_string().contains("averages over windows"), "{error}");
}

#[test]
fn more_replicas_serve_more_until_there_is_no_more_to_serve() {
    let scenario = scenario(
        "",
        "count = 5",
        "queue_bound = 10",
        (0.25, 1.0),
        "seed = 2, replications = 4, duration_secs = 4000",
    );
    let all = speed_up(&scenario, 5, &Progress::default());
    assert_eq!(all.len(), 5);
    assert!((all[2].speed_up - 3.0).abs() < 0.2, "{all:?}");
    assert!(all[4].speed_up < 4.3 && all[4].speed_up > 3.7, "{all:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_small_scenarios_agree(
        nodes in 1u32..5, queue in 0u32..6, load in 0.2f64..1.3, fails in 0.01f64..0.1,
        loses in 0usize..4, single: bool, all: bool, seed in 0u64..1000,
    ) {
        let loses = ["nothing", "overflow", "in_service", "held"][loses];
        let repair = if single { "single_crew" } else { "per_node" };
        let queue_kind = if all { "shared" } else { "shared_per_replica" };
        let scenario = scenario(
            &format!(r#"failure_loses = "{loses}", repair = "{repair}""#),
            &format!(
                "count = {nodes}\ntime_to_failure_secs = {{ kind = \"exponential\", mean = {} }}\n\
                 time_to_repair_secs = {{ kind = \"exponential\", mean = 4 }}",
                1.0 / fails
            ),
            &format!(
                "start_secs = 0\nqueue_bound = {queue}\nqueue = \"{queue_kind}\"\n\
                 scaling = {{ replicas_min = {nodes}, replicas_max = {nodes}, rule = {{ kind = \"thresholds\", \
                 replicate_above = 1, dereplicate_at = 0, scope = \"service\" }} }}"
            ),
            (1.0 / (load * f64::from(nodes)), 1.0),
            &format!("seed = {seed}, replications = 20, duration_secs = 4000, confidence = 0.99"),
        );
        check(&scenario, 2.0, 1e-3);
    }
}

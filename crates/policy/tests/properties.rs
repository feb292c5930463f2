//! Whatever happens, every plan keeps the invariants (the world checks each), and the cloud settles.

mod world;

use proptest::prelude::*;
use skein_model::{NodeState, Placement};
use std::time::Duration;
use world::{World, node};

#[derive(Debug, Clone)]
enum Happening {
    Submit { service: usize, jobs: u32 },
    Node { node: usize, state: NodeState },
    Used { node: usize, percent: u32 },
    Bury,
    Image { service: usize },
    Broken { service: usize, broken: bool },
    Kill { machine: usize },
    Bounds { service: usize, min: u32, max: u32 },
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let state = prop_oneof![
        Just(NodeState::Ready),
        Just(NodeState::Ready),
        Just(NodeState::Cordoned),
        Just(NodeState::Lost)
    ];
    prop_oneof![
        6 => (0..3usize, 1..40u32).prop_map(|(service, jobs)| Happening::Submit { service, jobs }),
        2 => (0..4usize, state).prop_map(|(node, state)| Happening::Node { node, state }),
        1 => (0..4usize, 0..100u32).prop_map(|(node, percent)| Happening::Used { node, percent }),
        1 => Just(Happening::Bury),
        1 => (0..3usize).prop_map(|service| Happening::Image { service }),
        1 => (0..3usize, any::<bool>())
            .prop_map(|(service, broken)| Happening::Broken { service, broken }),
        1 => (0..20usize).prop_map(|machine| Happening::Kill { machine }),
        1 => (0..3usize, 0..4u32, 0..6u32)
            .prop_map(|(service, min, more)| Happening::Bounds { service, min, max: min + more }),
    ]
}

fn any_scaling() -> impl Strategy<Value = String> {
    let rule = prop_oneof![
        (1..8u32, any::<bool>(), 1..4u32).prop_map(|(above, each, less)| format!(
            r#"{{"kind": "thresholds", "replicate_above": {above}, "dereplicate_at": {}, "scope": "{}"}}"#,
            above.saturating_sub(less),
            if each { "replica" } else { "service" }
        )),
        (1..10u32, 1..20u32, 1..20u32).prop_map(|(target, stable, panic)| format!(
            r#"{{"kind": "concurrency", "target": {}, "stable_window_ms": {}, "panic_window_ms": {},
                 "panic_threshold": 2.0}}"#,
            f64::from(target) / 10.0,
            stable.max(panic) * 400,
            panic * 400
        )),
        (1..10u32, 1..20u32, any::<bool>(), 0..3u32).prop_map(|(target, period, jobs, window)| format!(
            r#"{{"kind": "hpa", "metric": "{}", "target": {}, "sync_period_ms": {}, "metric_window_ms": {},
                 "scale_down": {{"stabilisation_window_ms": {}, "limits":
                    [{{"by": "percent", "value": 50, "period_ms": 1000}}]}}}}"#,
            if jobs { "jobs" } else { "busy" },
            f64::from(target) / 10.0,
            period * 100,
            period * 90,
            window * 700
        )),
        (1..10u32, 1..20u32, 0..3u32).prop_map(|(target, tick, delay)| format!(
            r#"{{"kind": "kpa", "target": {}, "tick_ms": {}, "stable_window_ms": {}, "down_delay_ms": {}}}"#,
            f64::from(target) / 10.0,
            tick * 100,
            tick * 300,
            delay * 600
        )),
        (0..10u32, 1..20u32, 0..3u32).prop_map(|(wait, window, start)| format!(
            r#"{{"kind": "predictive", "wait_ms": {}, "window_ms": {}, "start_ms": {}}}"#,
            wait * 100,
            window * 300,
            start * 300
        )),
    ];
    let names = ["least_loaded", "most_free", "fastest", "spread", "random", "round_robin"];
    assert_eq!(names.len(), Placement::ALL.len());
    let placement = prop::sample::select(names.to_vec());
    let removal = prop::sample::select(vec![
        "newest",
        "oldest",
        "most_loaded_node",
        "slowest_node",
        "random",
    ]);
    let bounds = (0..3u32, 1..8u32, 0..3u32);
    let migration = prop::option::of((any::<bool>(), 50..100u32, 0..50u32, 1..4u32, 0..3000u32));
    (rule, bounds, 0..4000u32, 0..3000u32, placement, removal, migration).prop_map(
        |(rule, (min, more, warm), grace, cooldown, placement, removal, migration)| {
            let migration = migration.map_or("null".to_owned(), |(cordoned, above, below, at_once, stay)| {
                format!(
                    r#"{{"leave_cordoned": {cordoned}, "leave_above": {}, "go_below": {}, "at_once": {at_once}, "stay_ms": {stay}}}"#,
                    f64::from(above) / 100.0,
                    f64::from(below) / 100.0
                )
            });
            format!(
                r#"{{"replicas_min": {min}, "replicas_max": {}, "warm": {}, "rule": {rule},
                     "zero_grace_ms": {grace}, "cooldown_ms": {cooldown}, "placement": "{placement}",
                     "removal": "{removal}", "migration": {migration}}}"#,
                min + more,
                warm.min(min + more)
            )
        },
    )
}

fn world(scalings: &[String]) -> World {
    let mut world =
        World::new(vec![node("n1", 200), node("n2", 100), node("n3", 100), node("n4", 50)]);
    world.nodes[1].performance = 2.0;
    for (at, scaling) in scalings.iter().enumerate() {
        let key = world.service(&format!("s{at}"), scaling);
        let service = world.services.get_mut(&key).unwrap();
        service.capacity = 1 + at as u32 * 2;
        service.job = Duration::from_millis(30 + 200 * at as u64);
        service.memory_mib = 16 + 8 * at as u64;
    }
    world
}

fn apply(world: &mut World, happening: Happening) {
    let key = |world: &World, service: usize| world.services.keys().nth(service).unwrap().clone();
    match happening {
        Happening::Submit { service, jobs } => {
            let key = key(world, service);
            world.submit(&key, jobs);
        }
        Happening::Node { node, state } => {
            let name = world.nodes[node].name.to_string();
            if world.nodes[node].state == NodeState::Lost {
                world.bury();
            }
            world.set_node(&name, state);
        }
        Happening::Used { node, percent } => world.nodes[node].used = f64::from(percent) / 100.0,
        Happening::Bury => world.bury(),
        Happening::Image { service } => {
            let key = key(world, service);
            world.services.get_mut(&key).unwrap().revision += 1;
        }
        Happening::Broken { service, broken } => {
            let key = key(world, service);
            world.services.get_mut(&key).unwrap().broken = broken;
        }
        Happening::Kill { machine } => {
            if machine < world.machines.len() {
                let killed = world.machines.remove(machine);
                let service = world.services.get_mut(&killed.key).unwrap();
                service.waiting += killed.jobs.len() as u32;
            }
        }
        Happening::Bounds { service, min, max } => {
            let key = key(world, service);
            let scaling = &mut world.services.get_mut(&key).unwrap().record.spec.scaling;
            scaling.replicas_max = max.max(1);
            scaling.replicas_min = min.min(scaling.replicas_max);
            scaling.warm = scaling.warm.min(scaling.replicas_max);
        }
    }
    world.plan();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_plan_keeps_the_invariants_and_the_cloud_settles(
        scalings in prop::collection::vec(any_scaling(), 3),
        script in prop::collection::vec((0..1500u32, any_happening()), 1..40),
    ) {
        let mut world = world(&scalings);
        let mut seconds = 0.0;
        for (wait_ms, happening) in script {
            seconds += f64::from(wait_ms) / 1000.0;
            world.until(seconds);
            apply(&mut world, happening);
        }
        // Everything works again, and nothing more comes.
        for at in 0..4 {
            apply(&mut world, Happening::Node { node: at, state: NodeState::Ready });
        }
        world.bury();
        for service in world.services.values_mut() {
            service.broken = false;
            service.revision += 1;
        }
        world.plan();
        let before = world.plans;
        world.until(seconds + 600.0);
        prop_assert!(world.plans - before < 6_000, "{} plans", world.plans - before);
        let settled = world.log.clone();
        world.until(seconds + 700.0);
        prop_assert_eq!(&world.log, &settled, "steps without a cause");
        for (key, service) in &world.services {
            let policy = &service.record.spec.scaling;
            prop_assert_eq!(service.waiting, 0, "{} is served\n{}", key, world.log);
            let count = world.count(key) as u32;
            let least = policy.replicas_min.max(policy.warm);
            prop_assert!(count == least || count < least && world.log.contains("no room"),
                "{} has {} machines, not {}\n{}", key, count, least, world.log);
        }
    }
}

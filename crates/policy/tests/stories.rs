//! Stories: what happens to a service in a small cloud, with every step and its reason. The files in `golden` are
//! meant to be read.

mod world;

use skein_model::NodeState;
use world::{World, golden, node};

const CONCURRENCY: &str = r#"{"replicas_max": 6, "zero_grace_ms": 10000, "cooldown_ms": 2000,
    "rule": {"kind": "concurrency", "target": 0.5, "stable_window_ms": 8000, "panic_window_ms": 1000,
             "panic_threshold": 2.0}}"#;

const THRESHOLDS: &str = r#"{"replicas_max": 8, "zero_grace_ms": 5000, "cooldown_ms": 1000,
    "rule": {"kind": "thresholds", "replicate_above": 4, "dereplicate_at": 1, "scope": "replica"}}"#;

fn nodes() -> Vec<skein_policy::NodeView> {
    vec![node("n1", 256), node("n2", 128), node("n3", 128)]
}

#[test]
fn a_burst_from_zero_starts_all_it_needs_at_once_and_goes_back_to_zero() {
    let mut world = World::new(nodes());
    let key = world.service("search", CONCURRENCY);
    world.until(1.0);
    world.submit(&key, 7);
    assert_eq!(world.count(&key), 4, "7 jobs at 2 each");
    world.until(30.0);
    assert_eq!(world.count(&key), 0);
    golden("burst", include_str!("golden/burst.txt"), &world.log);
}

#[test]
fn a_ramp_is_followed_up_and_down() {
    let mut world = World::new(nodes());
    let key = world.service("search", CONCURRENCY);
    for second in 0..40u32 {
        let rate = if second < 20 { second } else { 39 - second };
        for part in 0..10 {
            world.until(f64::from(second) + f64::from(part) / 10.0);
            world.submit(&key, rate / 2 + u32::from(part % 2 < rate % 2));
        }
    }
    world.until(70.0);
    golden("ramp", include_str!("golden/ramp.txt"), &world.log);
}

#[test]
fn thresholds_add_while_the_queue_grows_and_remove_one_at_a_time() {
    let mut world = World::new(nodes());
    let key = world.service("render", THRESHOLDS);
    world.services.get_mut(&key).unwrap().capacity = 1;
    world.until(1.0);
    for (at, jobs) in [(1.0, 1), (1.02, 6), (1.1, 12), (1.2, 30)] {
        world.until(at);
        world.submit(&key, jobs);
        let why = world.why(&key);
        world.say(&why);
    }
    world.until(20.0);
    golden("thresholds", include_str!("golden/thresholds.txt"), &world.log);
}

#[test]
fn a_lost_node_is_replaced_and_a_cordoned_one_gets_nothing_new() {
    let mut world = World::new(nodes());
    let key = world.service(
        "search",
        r#"{"replicas_min": 3, "replicas_max": 6, "placement": "round_robin",
            "rule": {"kind": "thresholds", "replicate_above": 4, "dereplicate_at": 1, "scope": "service"}}"#,
    );
    world.until(1.0);
    world.submit(&key, 12);
    world.set_node("n2", NodeState::Lost);
    world.until(1.1);
    world.bury();
    world.set_node("n3", NodeState::Cordoned);
    world.until(2.0);
    world.set_node("n1", NodeState::Lost);
    world.until(2.5);
    world.set_node("n2", NodeState::Ready);
    world.until(10.0);
    assert_eq!(world.count(&key), 5, "3, and 2 on a node that is lost and not buried");
    golden("node_loss", include_str!("golden/node_loss.txt"), &world.log);
}

#[test]
fn a_warm_pool_stays_idle_beyond_the_load() {
    let mut world = World::new(nodes());
    let scaling = CONCURRENCY.replacen('{', r#"{"warm": 2, "#, 1);
    let key = world.service("search", &scaling);
    world.until(1.0);
    assert_eq!(world.count(&key), 2);
    world.submit(&key, 2);
    world.until(5.0);
    assert_eq!(world.count(&key), 3);
    world.until(60.0);
    assert_eq!(world.count(&key), 2);
    golden("warm", include_str!("golden/warm.txt"), &world.log);
}

#[test]
fn a_flapping_load_does_not_make_machines_flap() {
    let mut world = World::new(nodes());
    let key = world.service("search", CONCURRENCY);
    for round in 0..30 {
        world.until(f64::from(round));
        world.submit(&key, if round % 2 == 0 { 9 } else { 1 });
    }
    world.until(29.9);
    let steps = world.log.lines().filter(|line| line.contains("boot")).count();
    assert!(steps <= 6, "{steps} boots:\n{}", world.log);
    golden("flapping", include_str!("golden/flapping.txt"), &world.log);
}

#[test]
fn machines_leave_a_cordoned_node_and_then_a_crowded_one() {
    let mut world = World::new(nodes());
    let key = world.service(
        "search",
        r#"{"replicas_min": 3, "replicas_max": 3, "placement": "spread",
            "migration": {"leave_above": 0.8, "go_below": 0.5, "stay_ms": 5000}}"#,
    );
    world.until(1.0);
    world.submit(&key, 2);
    world.say("-- n1 is cordoned");
    world.set_node("n1", NodeState::Cordoned);
    world.plan();
    world.until(3.0);
    world.say("-- n1 is back, n2 is busy with other things");
    world.set_node("n1", NodeState::Ready);
    world.nodes[1].used = 0.9;
    world.plan();
    world.until(20.0);
    assert_eq!(world.count(&key), 3);
    golden("migration", include_str!("golden/migration.txt"), &world.log);
}

#[test]
fn a_machine_that_is_not_wanted_any_more_goes_with_its_copy() {
    let mut world = World::new(nodes());
    let key = world.service(
        "search",
        r#"{"replicas_min": 1, "replicas_max": 1, "zero_grace_ms": 0, "cooldown_ms": 0, "migration": {}}"#,
    );
    world.until(1.0);
    world.until(2.0);
    assert_eq!(world.count(&key), 1);
    world.set_node("n1", NodeState::Cordoned);
    world.plan();
    assert_eq!(world.machines.len(), 2, "the copy starts:\n{}", world.log);
    world.services.get_mut(&key).unwrap().record.spec.scaling.replicas_min = 0;
    world.plan();
    world.until(3.0);
    assert_eq!(world.machines.len(), 0, "{}", world.log);
}

#[test]
fn an_image_that_does_not_start_is_tried_ever_more_rarely_until_it_changes() {
    let mut world = World::new(nodes());
    let key = world.service("broken", CONCURRENCY);
    world.services.get_mut(&key).unwrap().broken = true;
    world.until(1.0);
    world.submit(&key, 5);
    world.until(200.0);
    let boots = world.log.lines().filter(|line| line.contains("boot")).count();
    assert!((3..20).contains(&boots), "{boots} boots:\n{}", world.log);
    let service = world.services.get_mut(&key).unwrap();
    service.broken = false;
    service.revision = 2;
    world.say("-- a new image");
    world.plan();
    world.until(203.0);
    assert_eq!(world.services[&key].waiting, 0);
    golden("broken", include_str!("golden/broken.txt"), &world.log);
}

#[test]
fn a_new_revision_replaces_machines_and_keeps_capacity() {
    let mut world = World::new(nodes());
    let key = world.service(
        "search",
        r#"{"replicas_min": 4, "replicas_max": 4,
            "rule": {"kind": "thresholds", "replicate_above": 4, "dereplicate_at": 1, "scope": "service"}}"#,
    );
    world.until(1.0);
    world.until(1.2);
    world.submit(&key, 8);
    world.services.get_mut(&key).unwrap().revision = 2;
    world.say("-- a new image");
    world.plan();
    world.until(10.0);
    assert_eq!(world.count(&key), 4);
    assert!(world.machines.iter().all(|machine| machine.view.revision.0 == 2));
    golden("roll", include_str!("golden/roll.txt"), &world.log);
}

#[test]
fn a_full_cloud_says_what_is_missing_and_still_replaces() {
    let mut world = World::new(vec![node("n1", 40), node("n2", 20)]);
    let key = world.service("search", CONCURRENCY);
    world.until(1.0);
    world.submit(&key, 50);
    world.until(1.5);
    world.services.get_mut(&key).unwrap().revision = 2;
    world.say("-- a new image");
    world.plan();
    world.until(4.0);
    assert!(world.machines.iter().all(|machine| machine.view.revision.0 == 2));
    golden("full", include_str!("golden/full.txt"), &world.log);
}

#[test]
fn a_removed_service_drains_and_its_memory_goes() {
    let mut world = World::new(nodes());
    let key = world.service("search", CONCURRENCY);
    world.until(1.0);
    world.submit(&key, 3);
    world.until(1.06);
    world.services.remove(&key);
    world.say("-- removed");
    world.plan();
    assert!(world.memory.services.is_empty());
    world.until(1.2);
    assert!(world.machines.is_empty());
    assert_eq!(world.count(&key), 0);
    golden("removed", include_str!("golden/removed.txt"), &world.log);
}

//! What the cloud does when nothing goes wrong: machines come and go with the work.

use anyhow::{Result, ensure};
use bytes::Bytes;
use skein_api::{Code, ImagePut, JobOptions, Node, ScaleRequest};
use skein_model::{
    EventKind, JobStateName, MachineGoal, NodeState, PhaseName, ScalingRule, ThresholdScope,
};
use skein_tests::{Setup, World, run, service, until};
use std::collections::BTreeSet;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

fn payloads(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("payload {number}")).collect()
}

/// Submits jobs in one batch; all must be accepted.
async fn submit(world: &mut World, name: &str, count: usize, path: &str) -> Result<()> {
    let client = world.client().clone();
    let accepted = world.ledger.submit_batch(&client, name, &payloads(count), path).await?;
    ensure!(accepted == count, "{accepted} of {count} jobs were accepted");
    Ok(())
}

#[test]
fn a_call_starts_a_machine_from_zero() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        ensure!(world.machines("echo").await?.is_empty());
        let reply =
            world.client().call("echo", Bytes::from("hello"), &JobOptions::default()).await?;
        ensure!(reply.body == "hello");
        let machines = world.ready("echo", 1).await?;
        ensure!(reply.headers["skein-machine"] == machines[0].id.as_str());
        world.submit("echo", "again", "/?x=1").await?;
        world.settle_done().await
    });
}

#[test]
fn a_warm_machine_waits_and_serves() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |s| s.scaling.warm = 1)).await?;
        let warm = world.ready("echo", 1).await?;
        let reply =
            world.client().call("echo", Bytes::from("hello"), &JobOptions::default()).await?;
        ensure!(reply.headers["skein-machine"] == warm[0].id.as_str(), "another machine served");
        Ok(())
    });
}

#[test]
fn replicas_multiply_with_the_queue_and_go_to_zero() {
    run(Setup::nodes(3), async |world| {
        let spec = service("echo", |s| {
            s.capacity = Some(1);
            s.scaling.zero_grace = Duration::from_millis(500);
        });
        world.serve(&spec).await?;
        submit(world, "echo", 60, "/?sleep_ms=100").await?;
        let (mut most, mut nodes) = (0, BTreeSet::new());
        until("all jobs done", async || {
            let machines = world.machines("echo").await?;
            most = most.max(machines.iter().filter(|m| m.goal == MachineGoal::Run).count());
            nodes.extend(machines.into_iter().map(|m| m.node));
            ensure!(most <= 3, "more machines than the maximum: {most}");
            let done = world.client().service("echo").await?.counters.done;
            Ok((done == 60).then_some(()))
        })
        .await?;
        ensure!(most == 3, "at most {most} machines");
        ensure!(nodes.len() == 3, "machines on {nodes:?} only");
        world.ledger.settle_done(world.client()).await?;
        world.ready("echo", 0).await?;
        let events = world.events().await?;
        let count = |wanted: fn(&EventKind) -> bool| {
            events.iter().filter(|line| wanted(&line.event)).count()
        };
        let made = count(|kind| matches!(kind, EventKind::Replicated { .. }));
        let removed = count(|kind| matches!(kind, EventKind::Dereplicated { .. }));
        ensure!(made == removed && made >= 3, "{made} replicated, {removed} dereplicated");
        let reasons = world.client().service("echo").await?.decisions;
        ensure!(reasons.iter().all(|decision| !decision.reason.is_empty()));
        world.settle_done().await
    });
}

#[test]
fn a_minimum_is_kept_and_can_be_changed() {
    run(Setup::nodes(2), async |world| {
        let spec = service("echo", |s| {
            s.scaling.replicas_min = 2;
            s.scaling.zero_grace = Duration::from_millis(200);
        });
        world.serve(&spec).await?;
        let machines = world.ready("echo", 2).await?;
        let nodes: BTreeSet<_> = machines.iter().map(|m| m.node.as_str()).collect();
        ensure!(nodes.len() == 2, "both on {nodes:?}");
        let scale = |min, max| ScaleRequest { min: Some(min), max: Some(max), warm: None };
        world.client().scale("echo", &scale(4, 4)).await?;
        world.ready("echo", 4).await?;
        world.client().scale("echo", &scale(1, 4)).await?;
        world.ready("echo", 1).await?;
        world.client().scale("echo", &scale(0, 4)).await?;
        world.ready("echo", 0).await?;
        world.audit().await
    });
}

#[test]
fn thresholds_on_the_queue_add_and_remove_machines() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.capacity = Some(1);
            s.scaling.zero_grace = Duration::from_millis(300);
            s.scaling.rule = ScalingRule::Thresholds {
                replicate_above: 5,
                dereplicate_at: 0,
                scope: ThresholdScope::Service,
            };
        });
        world.serve(&spec).await?;
        submit(world, "echo", 30, "/?sleep_ms=100").await?;
        world.ready("echo", 3).await?;
        world.ledger.settle_done(world.client()).await?;
        world.ready("echo", 0).await?;
        world.settle_done().await
    });
}

#[test]
fn a_changed_image_replaces_machines_without_losing_a_job() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 2)).await?;
        let before: BTreeSet<_> = world.ready("echo", 2).await?.into_iter().map(|m| m.id).collect();
        submit(world, "echo", 40, "/?sleep_ms=50").await?;
        let image = world.client().images().await?.remove(0);
        let put = ImagePut {
            kernel: image.kernel,
            modules: Vec::new(),
            memory_mib: Some(20),
            capacity: Some(image.capacity),
            port: None,
        };
        world.client().put_image("echo", &put).await?;
        submit(world, "echo", 40, "/?sleep_ms=50").await?;
        until("two machines of the new image", async || {
            let machines = world.machines("echo").await?;
            let new = machines.iter().all(|m| !before.contains(&m.id) && m.memory_mib == 20);
            let ready = machines.iter().filter(|m| m.state == PhaseName::Ready).count();
            Ok((new && ready >= 2).then_some(()))
        })
        .await?;
        world.settle_done().await?;
        let returned = world.client().service("echo").await?.counters.returned;
        ensure!(returned == 0, "{returned} attempts were cut off");
        Ok(())
    });
}

#[test]
fn a_removed_service_leaves_no_machine_and_no_waiting_job() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.capacity = Some(1);
            s.scaling.replicas_max = 1;
        });
        world.serve(&spec).await?;
        let running = world.submit("echo", "running", "/?sleep_ms=800").await?;
        world.served_by(&running).await?;
        let waiting = world.submit("echo", "waiting", "/").await?;
        world.client().remove_service("echo").await?;
        let job = world.client().job(&waiting, Duration::from_secs(20)).await?;
        ensure!(job.failure_code.as_deref() == Some("SERVICE_REMOVED"), "{job:?}");
        let job = world.client().job(&running, Duration::from_secs(20)).await?;
        ensure!(job.ended_at.is_some(), "{job:?}");
        world.ready("echo", 0).await?;
        ensure!(world.client().services().await?.is_empty());
        world.audit().await
    });
}

#[test]
fn a_cordoned_node_gets_no_machine() {
    run(Setup::nodes(2), async |world| {
        let cordon = async |verb: &str| {
            let path = format!("/v1/nodes/n1/{verb}");
            world.client().raw(http::Method::POST, &path, Bytes::new()).await
        };
        cordon("cordon").await?;
        let nodes = world.client().nodes().await?;
        ensure!(nodes[0].state == NodeState::Cordoned && nodes[1].state == NodeState::Ready);
        world.serve(&service("echo", |s| s.scaling.replicas_min = 2)).await?;
        let machines = world.ready("echo", 2).await?;
        ensure!(machines.iter().all(|m| m.node == "n2"), "{machines:?}");
        cordon("uncordon").await?;
        let scale = ScaleRequest { min: Some(3), max: Some(3), warm: None };
        world.client().scale("echo", &scale).await?;
        let machines = world.ready("echo", 3).await?;
        ensure!(machines.iter().any(|m| m.node == "n1"), "{machines:?}");
        Ok(())
    });
}

#[test]
fn a_node_that_is_gone_for_good_is_taken_out_of_the_records() {
    run(Setup::nodes(2), async |world| {
        let client = world.client().clone();
        let code = async || client.remove_node("n2").await.err().and_then(|error| error.code());
        ensure!(code().await == Some(Code::NodeInUse), "its agent lives");
        world.cloud_mut().crash_agent("n2").await;
        until("n2 to be lost", async || {
            let nodes = client.nodes().await?;
            let is_lost = |node: &Node| node.name == "n2" && node.state == NodeState::Lost;
            Ok(nodes.iter().any(is_lost).then_some(()))
        })
        .await?;
        client.remove_node("n2").await?;
        let nodes = client.nodes().await?;
        ensure!(nodes.iter().all(|node| node.name != "n2"), "{nodes:?}");
        ensure!(code().await == Some(Code::NodeUnknown), "it is gone");
        // Whoever comes back joins again.
        world.cloud_mut().restart_agent("n2").await?;
        let nodes = client.nodes().await?;
        ensure!(nodes.iter().any(|node| node.name == "n2"), "{nodes:?}");
        Ok(())
    });
}

#[test]
fn a_machine_stopped_by_hand_finishes_its_job_first() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let job = world.submit("echo", "served", "/?sleep_ms=700").await?;
        let machine = world.served_by(&job).await?;
        world.client().stop_machine(&machine, false).await?;
        world.settle_done().await?;
        let job = world.client().job(&job, NOW).await?;
        ensure!((job.attempts, job.machine.as_deref()) == (1, Some(machine.as_str())), "{job:?}");
        let gone = world
            .event("the machine's end", |line, kind| {
                line.machine.as_ref() == Some(&machine) && kind.name() == "machine_gone"
            })
            .await?;
        let EventKind::MachineGone { code, .. } = &gone.event else { unreachable!() };
        ensure!(code == "STOPPED", "{gone:?}");
        // Hard at once: the job on it is served again elsewhere.
        let job = world.submit("echo", "again", "/?sleep_ms=700").await?;
        let machine = world.served_by(&job).await?;
        world.client().stop_machine(&machine, true).await?;
        world.settle_done().await?;
        let job = world.client().job(&job, NOW).await?;
        ensure!(job.state == JobStateName::Done);
        Ok(())
    });
}

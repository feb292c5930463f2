//! What the cloud survives: each part of it is killed at each step of its work. Afterwards every acknowledged job has ended
//! once, with the right result, and nothing leaks.

use anyhow::{Context, Result, ensure};
use rand::RngExt as _;
use skein_api::Machine;
use skein_model::{EventKind, JobStateName, PhaseName};
use skein_shell::fault;
use skein_tests::{Setup, World, run, service, until};
use std::collections::BTreeMap;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

fn kill(pid: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("a process id")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// Waits until history tells how a machine ended; the cause's code.
async fn cause(world: &World, machine: &str) -> Result<String> {
    let gone = world
        .event("the machine's end", |line, kind| {
            line.machine.as_deref() == Some(machine) && kind.name() == "machine_gone"
        })
        .await?;
    match gone.event {
        EventKind::MachineGone { code, .. } => Ok(code),
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
fn a_machine_killed_in_its_boot_is_replaced() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.scaling.zero_grace = Duration::from_millis(100);
            s.scaling.cooldown = Duration::from_millis(100);
        });
        world.serve(&spec).await?;
        for moment_ms in [0, 8, 20, 40] {
            let job = world.submit("echo", &format!("killed after {moment_ms} ms"), "/").await?;
            let pid =
                until("a process", async || Ok(world.leaks().processes().first().copied())).await?;
            // A moment of the boot, not a wait for anything.
            tokio::time::sleep(Duration::from_millis(moment_ms)).await;
            kill(pid)?;
            let job = world.client().job(&job, Duration::from_secs(50)).await?;
            ensure!(job.state == JobStateName::Done, "{job:?}");
            world.ready("echo", 0).await?;
        }
        world.settle_done().await
    });
}

#[test]
fn an_idle_machine_that_is_killed_is_replaced() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 2)).await?;
        let machines = world.ready("echo", 2).await?;
        kill(world.process_of(&machines[0].id)?)?;
        ensure!(cause(world, &machines[0].id).await? == "MACHINE_KILLED");
        let after = world.ready("echo", 2).await?;
        ensure!(after.iter().any(|m| m.id == machines[1].id), "the other one went too");
        ensure!(after.iter().all(|m| m.id != machines[0].id));
        let gone = world.client().machine(&machines[0].id).await?;
        ensure!(gone.exit.as_deref() == Some("killed by signal 9"), "{gone:?}");
        world.audit().await
    });
}

#[test]
fn jobs_of_a_killed_machine_are_served_once_more_elsewhere() {
    run(Setup::nodes(2), async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 2)).await?;
        world.ready("echo", 2).await?;
        let mut jobs = Vec::new();
        for number in 0..6 {
            jobs.push(world.submit("echo", &format!("{number}"), "/?sleep_ms=900").await?);
        }
        let machine = world.served_by(&jobs[0]).await?;
        kill(world.process_of(&machine)?)?;
        ensure!(cause(world, &machine).await? == "MACHINE_KILLED");
        world.settle_done().await?;
        let first = world.client().job(&jobs[0], NOW).await?;
        ensure!(first.attempts == 2 && first.machine.as_deref() != Some(&machine), "{first:?}");
        let returned = world.events().await?.into_iter().any(|line| {
            line.job.as_deref() == Some(&jobs[0]) && line.event.name() == "job_returned"
        });
        ensure!(returned, "history does not tell that job {} went back", jobs[0]);
        Ok(())
    });
}

#[test]
fn a_job_that_kills_each_machine_is_lost_with_its_reason() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |s| s.queue.retry.attempts_max = 2)).await?;
        let job = world.submit("echo", "deadly", "/?sleep_ms=4000").await?;
        for _ in 0..2 {
            let machine = world.served_by(&job).await?;
            kill(world.process_of(&machine)?)?;
            ensure!(cause(world, &machine).await? == "MACHINE_KILLED");
        }
        let ended = world.client().job(&job, Duration::from_secs(30)).await?;
        ensure!(ended.failure_code.as_deref() == Some("MACHINE_LOST"), "{ended:?}");
        let ending = world.ledger.settle(world.client()).await?;
        ensure!(ending.dead == 1, "{ending:?}");
        let lost = until("the loss in the counters", async || {
            let counters = world.client().service("echo").await?.counters;
            Ok((counters.lost == 1).then_some(()))
        });
        lost.await?;
        world.audit().await
    });
}

/// Processes by machine.
fn processes(world: &World, machines: &[Machine]) -> BTreeMap<String, i32> {
    let leaks = world.leaks();
    machines.iter().filter_map(|m| Some((m.id.clone(), leaks.process_of(&m.id)?))).collect()
}

/// The agent is killed when a task of it comes to `point`, and another one goes on.
fn crash_at(point: &str, has_process: bool) {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let armed = fault::arm(point, &world.network("n1"));
        let job = world.submit("echo", point, "/").await?;
        tokio::time::timeout(skein_tests::DEADLINE, armed.arrived()).await.context("the point")?;
        let before = world.leaks().processes();
        ensure!(before.len() == usize::from(has_process), "processes: {before:?}");
        world.cloud_mut().crash_agent("n1").await;
        drop(armed);
        ensure!(world.leaks().processes() == before, "the crash ended a machine");
        world.cloud_mut().restart_agent("n1").await?;
        world.settle_done().await?;
        ensure!(
            !has_process || world.leaks().processes() == before,
            "the machine was not taken up again: {before:?}, now {:?}",
            world.leaks().processes()
        );
        let job = world.client().job(&job, NOW).await?;
        ensure!(job.attempts <= 2, "{job:?}");
        let adopted = world.events().await?.iter().any(|l| l.event.name() == "machine_adopted");
        ensure!(adopted == has_process, "history tells of adoption: {adopted}");
        Ok(())
    });
}

#[test]
fn an_agent_crashes_before_it_launches_a_machine() {
    crash_at("machine.assigned", false);
}

#[test]
fn an_agent_crashes_when_the_port_is_plugged() {
    crash_at("machine.plugged", false);
}

#[test]
fn an_agent_crashes_when_the_process_runs() {
    crash_at("machine.launched", true);
}

#[test]
fn an_agent_crashes_when_the_machine_listens() {
    crash_at("machine.listening", true);
}

#[test]
fn an_agent_crashes_before_it_writes_that_the_machine_is_ready() {
    crash_at("machine.unwritten", true);
}

#[test]
fn an_agent_crashes_when_it_has_claimed_a_job() {
    crash_at("job.claimed", true);
}

#[test]
fn an_agent_crashes_with_the_answer_in_its_hands() {
    crash_at("job.answered", true);
}

#[test]
fn an_agent_crashes_while_machines_serve_and_drain() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.capacity = Some(1);
            s.scaling.replicas_min = 2;
        });
        world.serve(&spec).await?;
        let machines = world.ready("echo", 2).await?;
        let before = processes(world, &machines);
        let mut serving = Vec::new();
        for payload in ["one", "two"] {
            let job = world.submit("echo", payload, "/?sleep_ms=1200").await?;
            serving.push(world.served_by(&job).await?);
        }
        // One of them drains, the other serves on.
        world.client().stop_machine(&serving[0], false).await?;
        until("a draining machine", async || {
            let machine = world.client().machine(&serving[0]).await?;
            Ok((machine.state == PhaseName::Draining).then_some(()))
        })
        .await?;
        world.cloud_mut().crash_agent("n1").await;
        let now = processes(world, &machines);
        ensure!(now == before, "the crash ended a machine");
        world.cloud_mut().restart_agent("n1").await?;
        world.settle_done().await?;
        let kept = world.ready("echo", 2).await?;
        ensure!(kept.iter().any(|m| m.id == serving[1]), "the serving machine went: {kept:?}");
        ensure!(processes(world, &kept)[&serving[1]] == before[&serving[1]]);
        ensure!(kept.iter().all(|m| m.id != serving[0]), "the draining machine stayed");
        Ok(())
    });
}

#[test]
fn an_agent_that_restarts_in_order_keeps_its_machines() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 2)).await?;
        let before = processes(world, &world.ready("echo", 2).await?);
        let cloud = world.take_cloud().context("a cloud")?;
        cloud.stop().await;
        ensure!(world.leaks().processes().len() == 2, "machines ended with the cloud");
        world.start_again().await?;
        let after = processes(world, &world.ready("echo", 2).await?);
        ensure!(after == before, "{before:?} became {after:?}");
        world.submit("echo", "afterwards", "/").await?;
        world.settle_done().await
    });
}

#[test]
fn a_cloud_that_ends_takes_the_machines_of_a_crashed_agent_with_it() {
    run(Setup::nodes(2), async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 2)).await?;
        let machines = world.ready("echo", 2).await?;
        world.cloud_mut().crash_agent("n1").await;
        ensure!(world.leaks().processes().len() == machines.len(), "the crash ended a machine");
        // What is left is looked for behind every test.
        Ok(())
    });
}

#[test]
fn jobs_and_machines_of_a_lost_node_go_to_another() {
    run(Setup::nodes(2), async |world| {
        let node = async |world: &World, verb: &str| {
            let path = format!("/v1/nodes/n2/{verb}");
            world.client().raw(http::Method::POST, &path, bytes::Bytes::new()).await
        };
        node(world, "cordon").await?;
        world.serve(&service("echo", |s| s.scaling.replicas_min = 1)).await?;
        let lost = world.ready("echo", 1).await?.remove(0);
        let job = world.submit("echo", "moved", "/?sleep_ms=2500").await?;
        ensure!(world.served_by(&job).await? == lost.id);
        node(world, "uncordon").await?;
        world.cloud_mut().crash_agent("n1").await;
        world
            .event("the loss of n1", |l, k| {
                l.node.as_deref() == Some("n1") && k.name() == "node_lost"
            })
            .await?;
        world.ledger.settle_done(world.client()).await?;
        let job = world.client().job(&job, NOW).await?;
        ensure!(job.attempts == 2 && job.node.as_deref() == Some("n2"), "{job:?}");
        let replaced = until("a replacement on n2", async || {
            let machines = world.machines("echo").await?;
            Ok(machines.into_iter().find(|m| m.node == "n2" && m.state == PhaseName::Ready))
        });
        replaced.await?;
        // The node comes back with a machine that nobody misses.
        world.cloud_mut().restart_agent("n1").await?;
        world.ready("echo", 1).await?;
        world.settle_done().await
    });
}

#[test]
fn a_server_that_crashes_loses_no_acknowledged_job() {
    run(Setup::nodes(2), async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_max = 4)).await?;
        let client = world.client().clone();
        for round in 0..3 {
            let payloads: Vec<String> = (0..150).map(|n| format!("{round}.{n}")).collect();
            let mut part = std::mem::take(&mut world.ledger);
            let submitting = async {
                for chunk in payloads.chunks(10) {
                    // A broken connection acknowledges nothing; the next chunk may meet the new server.
                    let _ = part.submit_batch(&client, "echo", chunk, "/?sleep_ms=20").await;
                    for payload in &chunk[..2] {
                        let _ = part.submit(&client, "echo", payload, "/").await;
                    }
                }
            };
            let moment = Duration::from_millis(rand::rng().random_range(0..60));
            eprintln!("round {round}: the server crashes after {moment:?}");
            let crashing = async {
                tokio::time::sleep(moment).await;
                world.cloud_mut().crash_server().await
            };
            let ((), crashed) = futures_util::future::join(submitting, crashing).await;
            crashed?;
            world.ledger = part;
        }
        ensure!(!world.ledger.ids().is_empty(), "nothing was acknowledged");
        world.settle_done().await
    });
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_space() {
    let disk = skein_tests::SmallDisk::new(48).expect("a small disk");
    let setup = Setup { folder: Some(disk.path().to_owned()), ..Setup::default() };
    run(setup, async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 1)).await?;
        world.ready("echo", 1).await?;
        world.submit("echo", "before", "/").await?;
        world.settle_done().await?;
        disk.fill()?;
        let mut codes = BTreeMap::<String, u32>::new();
        for (number, size) in
            [300_000, 12_000, 300_000, 12_000, 10].into_iter().cycle().take(60).enumerate()
        {
            let payload = format!("{number} {}", "x".repeat(size));
            match world.submit("echo", &payload, "/").await {
                Ok(_) => *codes.entry("accepted".into()).or_default() += 1,
                Err(error) => {
                    let known = error.downcast_ref::<skein_api::ClientError>();
                    if known.and_then(skein_api::ClientError::code).is_none() {
                        eprintln!("{error:#}");
                    }
                    let error = known;
                    let code = error.and_then(|error| error.code());
                    let code = code.map_or("none", skein_api::Code::as_str);
                    *codes.entry(code.into()).or_default() += 1;
                }
            }
        }
        eprintln!("{codes:?}");
        ensure!(codes.get("DISK_FULL").is_some_and(|count| *count > 0), "{codes:?}");
        ensure!(codes.keys().all(|code| code == "DISK_FULL" || code == "accepted"), "{codes:?}");
        disk.free()?;
        world.submit("echo", "after", "/").await?;
        world.submit("echo", &"large ".repeat(50_000), "/").await?;
        world.settle_done().await
    });
}

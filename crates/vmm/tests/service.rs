//! A real service in a real machine: ready, figures, orderly stop, and how it ends when it
//! misbehaves.

#![allow(missing_docs, reason = "tests")]

mod host;

use host::echo::{self, Network};
use host::{Guard, Host, PATIENCE, alive};
use skein_model::ExitCause;
use skein_vmm::{Adopted, Driver, Grace, MachineState, StopMeans};
use std::time::Duration;
use tokio::time::timeout;

const GRACE: Grace = Grace { orderly: PATIENCE, quit: PATIENCE };

#[tokio::test]
async fn a_service_from_launch_to_orderly_stop() {
    let Some((network, tap)) = Network::new() else { return };
    let host = Host::start().await;
    let mut spec = echo::spec(&host, "echo-1", tap);
    spec.run_as = Some(skein_vmm::RunAs { uid: 700_124, gid: 700_124 });
    let machine = host.launch(spec).await;
    let ready = machine.ready(PATIENCE).await.expect("ready");
    assert_eq!((ready.port, ready.capacity), (80, 4));
    assert!(ready.boot > Duration::ZERO);
    assert_eq!(machine.ready_now(), Some(ready));
    let (status, body) = network.get("/").await.expect("answered");
    assert_eq!(status, 200);
    assert!(body.contains("\"host\":\"echo-1\""), "{body}");
    let stats = machine.stats(PATIENCE).await.expect("figures");
    assert_eq!(stats.requests, 1);
    assert!(stats.memory_total > 4 << 20 && stats.memory_used < stats.memory_total, "{stats:?}");
    assert!(stats.uptime > Duration::ZERO);
    let mut console = machine.console().attach();
    let log = timeout(PATIENCE, console.read()).await.expect("in time").expect("log");
    assert!(!log.bytes.is_empty());
    let pid = machine.pid().expect("process");
    let outcome = machine.stop(GRACE).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Orderly, ExitCause::Stopped));
    assert!(!alive(pid));
    assert_eq!(machine.control_lines_dropped(), 0);
}

#[tokio::test]
async fn a_paused_service_still_stops_in_order() {
    let Some((_network, tap)) = Network::new() else { return };
    let host = Host::start().await;
    let machine = host.launch(echo::spec(&host, "echo-2", tap)).await;
    machine.ready(PATIENCE).await.expect("ready");
    machine.pause().await.expect("paused");
    assert_eq!(machine.status().await, Ok(MachineState::Paused));
    assert!(machine.stats(Duration::from_millis(50)).await.is_err());
    let outcome = machine.stop(GRACE).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Orderly, ExitCause::Stopped));
}

#[tokio::test]
async fn a_service_that_misbehaves_ends_with_its_cause() {
    let host = Host::start().await;
    let check = async |id: &str, target: &str, expect: fn(&ExitCause) -> bool| {
        let Some((network, tap)) = Network::new() else { return };
        let machine = host.launch(echo::spec(&host, id, tap)).await;
        machine.ready(PATIENCE).await.expect("ready");
        let _request = network.send(target).await.expect("sent");
        let cause = timeout(PATIENCE, machine.exited()).await.expect("ends");
        assert!(expect(&cause), "{id}: {cause:?}");
    };
    let panicked = |cause: &ExitCause| matches!(cause, ExitCause::Panicked { message } if message.contains("a request asked for a panic"));
    check("panics", "/?panic=1", panicked).await;
    let excepted = |cause: &ExitCause| matches!(cause, ExitCause::Exception { message } if !message.is_empty());
    check("overflows", "/?overflow=1", excepted).await;
    check("exhausts", "/?oom=1", |cause| *cause == ExitCause::OutOfMemory).await;
}

#[tokio::test]
async fn a_service_that_hangs_is_made_to_stop() {
    let Some((network, tap)) = Network::new() else { return };
    let host = Host::start().await;
    let machine = host.launch(echo::spec(&host, "hangs", tap)).await;
    machine.ready(PATIENCE).await.expect("ready");
    let _request = network.send("/?hang=1").await.expect("sent");
    // It computes for ever from the moment it does not answer.
    while machine.stats(Duration::from_millis(100)).await.is_ok() {}
    let grace = Grace { orderly: Duration::from_millis(100), ..GRACE };
    let outcome = machine.stop(grace).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Quit, ExitCause::Stopped));
}

#[tokio::test]
async fn a_service_without_network_cannot_start() {
    let host = Host::start().await;
    let machine = host.launch(host.spec("alone", echo::image())).await;
    let cause = timeout(PATIENCE, machine.exited()).await.expect("ends");
    assert!(
        matches!(&cause, ExitCause::CannotStart { message } if !message.is_empty()),
        "{cause:?}"
    );
}

#[tokio::test]
async fn an_adopted_service_is_still_ready() {
    let Some((network, tap)) = Network::new() else { return };
    let host = Host::start().await;
    let machine = host.launch(echo::spec(&host, "echo-3", tap)).await;
    let ready = machine.ready(PATIENCE).await.expect("ready");
    host.driver.detach().await;
    let adopt = async || {
        let driver = host::open(host::utf8(host.dir.path())).await;
        match driver.adopt(&host.path("echo-3")).await.expect("adopted") {
            Adopted::Running(machine) => (driver, Guard(machine)),
            ended @ Adopted::Ended { .. } => panic!("{ended:?}"),
        }
    };
    let (driver, found) = adopt().await;
    assert_eq!(found.ready(PATIENCE).await, Ok(ready), "remembered");
    assert_eq!(network.get("/").await.expect("answered").0, 200);
    driver.detach().await;

    // Nobody may have heard the guest: then it is asked again.
    let record = host.path("echo-3/machine.json");
    let text = std::fs::read_to_string(&record).expect("record");
    let mut record_value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    record_value["ready"] = serde_json::Value::Null;
    // And the launcher may have died before it knew the process.
    record_value["process"] = serde_json::Value::Null;
    std::fs::write(&record, record_value.to_string()).expect("record");
    let (_driver, found) = adopt().await;
    assert_eq!(found.pid(), machine.pid());
    let again = found.ready(PATIENCE).await.expect("ready again");
    assert_eq!((again.port, again.capacity), (ready.port, ready.capacity));
    let outcome = found.stop(GRACE).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Orderly, ExitCause::Stopped));
}

//! A machine outlives the process that launched it, killed without warning, and is found again by
//! another that is not its parent.

#![allow(missing_docs, reason = "tests")]

mod host;

use host::{PATIENCE, alive, eventually, kill, open, spec_in, utf8};
use skein_model::ExitCause;
use skein_vmm::{Adopted, Driver, Grace, Machine, MachineState, StopMeans, TinyGuest};
use std::path::Path;
use std::process::{Command, Stdio};
use tokio::time::timeout;

/// Where the played agent is told to run its machine.
const DIRECTORY: &str = "SKEIN_TEST_AGENT_DIRECTORY";

/// Not a test by itself: the process that will be killed.
#[tokio::test]
async fn plays_the_agent() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let dir = utf8(Path::new(&dir));
    let driver = open(dir).await;
    let guest =
        TinyGuest::new().print("waiting\n").await_key().print("panic: told to\n").exit(0x11);
    let machine = driver.launch(spec_in(dir, &guest.elf())).await.expect("launched");
    // Until it is killed; the bound is for the case that nobody does.
    let _ = timeout(PATIENCE, machine.exited()).await;
}

/// Kills what it stands for, however the test ends.
struct Pid(u32);

impl Drop for Pid {
    fn drop(&mut self) {
        kill(self.0);
    }
}

/// A machine whose agent was killed after it was launched.
async fn orphan(dir: &Path) -> Pid {
    let mut agent = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "plays_the_agent"])
        .env(DIRECTORY, dir)
        .stdout(Stdio::null())
        .spawn()
        .expect("agent");
    let _agent = Pid(agent.id());
    let pid = || {
        let record = std::fs::read(dir.join("machine.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        u32::try_from(record["process"]["pid"].as_u64()?).ok()
    };
    eventually("the agent launches its machine", || pid().is_some()).await;
    let machine = Pid(pid().expect("process"));
    agent.kill().expect("killed");
    agent.wait().expect("reaped");
    machine
}

async fn adopt(dir: &Path) -> (skein_vmm::QemuDriver, Machine) {
    let driver = open(utf8(dir)).await;
    match driver.adopt(utf8(dir)).await.expect("adopted") {
        Adopted::Running(machine) => (driver, machine),
        ended @ Adopted::Ended { .. } => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn an_orphan_is_adopted_and_stopped() {
    let dir = tempfile::tempdir().expect("directory");
    let pid = orphan(dir.path()).await;
    assert!(alive(pid.0));
    let (_driver, machine) = adopt(dir.path()).await;
    assert_eq!(machine.pid(), Some(pid.0));
    assert_eq!(machine.status().await, Ok(MachineState::Running));
    assert!(machine.usage().expect("usage").resident_bytes > 0);
    let grace = Grace { orderly: std::time::Duration::ZERO, quit: PATIENCE };
    let outcome = machine.stop(grace).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Quit, ExitCause::Stopped));
    eventually("no process is left", || !alive(pid.0)).await;
}

#[tokio::test]
async fn an_orphans_last_words_are_its_cause() {
    let dir = tempfile::tempdir().expect("directory");
    let pid = orphan(dir.path()).await;
    let (driver, machine) = adopt(dir.path()).await;
    machine.serial().send(b"x").expect("typed");
    let cause = timeout(PATIENCE, machine.exited()).await.expect("ends");
    assert_eq!(cause, ExitCause::Panicked { message: "told to".into() });
    eventually("no process is left", || !alive(pid.0)).await;
    let again = driver.adopt(utf8(dir.path())).await.expect("adopted");
    assert!(matches!(again, Adopted::Ended { cause: ExitCause::Panicked { .. }, .. }), "{again:?}");
}

#[tokio::test]
async fn an_orphan_that_was_killed_is_known_to_be_dead() {
    let dir = tempfile::tempdir().expect("directory");
    let pid = orphan(dir.path()).await;
    let (_driver, machine) = adopt(dir.path()).await;
    kill(pid.0);
    let cause = timeout(PATIENCE, machine.exited()).await.expect("ends");
    assert_eq!(cause, ExitCause::Killed { signal: 0 }, "nobody can know the signal");
}

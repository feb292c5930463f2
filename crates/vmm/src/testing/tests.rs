//! The fake keeps the promises of the real one.

use super::*;
use crate::machine::{Grace, MachineState, ReadyError, StopMeans};
use crate::spec::GuestConfig;
use skein_model::MemoryMib;

const PATIENCE: Duration = Duration::from_secs(20);

fn spec(id: &str) -> LaunchSpec {
    LaunchSpec {
        id: id.parse().expect("id"),
        generation: Generation(1),
        dir: format!("/run/fake/{id}").into(),
        kernel: "/no/kernel".into(),
        modules: None,
        memory: MemoryMib::DEFAULT,
        nic: None,
        guest: GuestConfig { capacity: 3, ..GuestConfig::default() },
        run_as: None,
    }
}

#[tokio::test]
async fn a_fake_machine_lives_and_stops() {
    let driver = FakeDriver::new();
    let machine = driver.launch(spec("m1")).await.expect("launched");
    assert_eq!(machine.ready(PATIENCE).await.map(|ready| ready.capacity), Ok(3));
    assert!(machine.stats(PATIENCE).await.is_ok());
    machine.pause().await.expect("paused");
    assert_eq!(machine.status().await, Ok(MachineState::Paused));
    assert!(driver.host().command(machine.id(), FakeCommand::Print("hi".into())).await);
    let piece = machine.console().attach().read().await.expect("printed");
    assert_eq!(piece.bytes, b"hi");
    let outcome = machine.stop(Grace::default()).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Orderly, ExitCause::Stopped));
    assert_eq!(driver.host().running(), []);
    assert!(!driver.host().command(machine.id(), FakeCommand::Exit(0)).await);
}

#[tokio::test]
async fn a_fake_guest_may_misbehave() {
    let driver = FakeDriver::new();
    let host = driver.host().clone();
    let short = Grace { orderly: Duration::from_millis(20), quit: Duration::from_millis(200) };
    for (on_stop, means) in [(OnStop::Ignore, StopMeans::Quit), (OnStop::Hang, StopMeans::Kill)] {
        host.set_guest(FakeGuest { on_stop, ..FakeGuest::default() });
        let machine = driver.launch(spec("m1")).await.expect("launched");
        assert_eq!(machine.stop(short).await.expect("stopped").means, means);
    }
    host.set_guest(FakeGuest { boot: None, ..FakeGuest::default() });
    let machine = driver.launch(spec("m2")).await.expect("launched");
    let waited = Duration::from_millis(10);
    assert_eq!(machine.ready(waited).await, Err(ReadyError::Deadline { waited }));
    host.command(machine.id(), FakeCommand::Print("panic: here\n".into())).await;
    host.command(machine.id(), FakeCommand::Exit(35)).await;
    assert_eq!(machine.exited().await, ExitCause::Panicked { message: "here".into() });
    let guest = FakeGuest { dies_with: Some(1), ..FakeGuest::default() };
    host.set_guest_of("m3".parse().expect("id"), guest);
    let machine = driver.launch(spec("m3")).await.expect("launched");
    assert_eq!(machine.exited().await.code(), "VMM_FAILED");
    host.refuse_launches(true);
    assert_eq!(driver.launch(spec("m4")).await.expect_err("refused").code(), "QEMU_NOT_FOUND");
}

#[tokio::test]
async fn a_fake_machine_outlives_its_driver() {
    let host = FakeHost::new();
    let first = FakeDriver::on(host.clone());
    let machine = first.launch(spec("m1")).await.expect("launched");
    machine.ready(PATIENCE).await.expect("ready");
    drop(first);
    assert_eq!(machine.exited().await, ExitCause::Lost);
    let next = FakeDriver::on(host.clone());
    let adopted = next.adopt("/run/fake/m1".into()).await.expect("adopted");
    let Adopted::Running(machine) = adopted else { panic!("it runs") };
    assert_eq!(machine.ready(PATIENCE).await.map(|ready| ready.capacity), Ok(3));
    host.command(machine.id(), FakeCommand::Die(11)).await;
    assert_eq!(machine.exited().await, ExitCause::Killed { signal: 11 });
    let adopted = next.adopt("/run/fake/m1".into()).await.expect("adopted");
    assert!(matches!(adopted, Adopted::Ended { .. }));
    let none = next.adopt("/run/fake/m9".into()).await.expect_err("none");
    assert_eq!(none.code(), "MACHINE_NOT_FOUND");
}

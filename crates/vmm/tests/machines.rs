//! Machines from launch to end, on the real QEMU.

#![allow(missing_docs, reason = "tests")]

mod host;

use host::{Guard, Host, PATIENCE, alive, eventually, status_field};
use skein_model::ExitCause;
use skein_vmm::{
    Adopted, Driver, Grace, MachineState, QemuDriver, ReadyError, RunAs, StopMeans, TinyGuest,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

async fn ends(machine: &Guard) -> ExitCause {
    timeout(PATIENCE, machine.exited()).await.expect("the machine ends")
}

#[tokio::test]
async fn a_guest_ends_as_it_says() {
    let host = Host::start().await;
    let check = async |id: &str, guest: TinyGuest, expect: ExitCause| {
        let machine = host.boot(id, guest).await;
        assert_eq!(ends(&machine).await, expect, "{id}");
        assert!(!machine.pid().is_some_and(alive), "{id}");
        let ended = ReadyError::Ended { cause: expect };
        assert_eq!(machine.ready(PATIENCE).await, Err(ended), "{id}");
    };
    let tiny = TinyGuest::new;
    check("ordered", tiny().exit(0x10), ExitCause::Stopped).await;
    check("ordinary", tiny().long_mode().sse().exit(0x10), ExitCause::Stopped).await;
    let message = "src/main.rs:7: no".to_owned();
    let panic = tiny().print("hello\npanic: src/main.rs:7: no\n").exit(0x11);
    check("panics", panic, ExitCause::Panicked { message }).await;
    let message = "no address".to_owned();
    let fatal = tiny().print("fatal: no address\n").exit(0x12);
    check("cannot", fatal, ExitCause::CannotStart { message }).await;
    check("full", tiny().exit(0x13), ExitCause::OutOfMemory).await;
    let message = "14 at 0x0".to_owned();
    let exception = tiny().print("exception: 14 at 0x0\n").exit(0x14);
    check("excepts", exception, ExitCause::Exception { message }).await;
    let message = "the processor reset itself (triple fault)".to_owned();
    check("resets", tiny().triple_fault(), ExitCause::Exception { message }).await;
    // What was said on the serial port only is in the log afterwards.
    let log = skein_vmm::read_log(&host.path("panics/console.log"), 4096).expect("log");
    assert!(String::from_utf8_lossy(&log).contains("panic: src/main.rs:7: no"));
}

#[tokio::test]
async fn a_kernel_that_is_none_is_the_machines_end() {
    let host = Host::start().await;
    for (id, kernel) in
        [("rubbish", &b"no kernel"[..]), ("empty", b""), ("half", b"\x7fELF\x02\x01")]
    {
        let machine = host.launch(host.spec(id, kernel)).await;
        let cause = ends(&machine).await;
        assert!(
            matches!(&cause, ExitCause::VmmFailed { message } if !message.is_empty()),
            "{cause:?}"
        );
        assert_eq!(cause.code(), "VMM_FAILED");
    }
}

#[tokio::test]
async fn a_launch_whose_asker_has_gone_leaves_nothing() {
    let host = Host::start().await;
    let guest = TinyGuest::new().elf();
    // Asked for and given up at once; again if the launch was faster than the asker.
    let mut tries = 0..;
    let gone = loop {
        let name = format!("gone-{}", tries.next().unwrap_or(0));
        let mut asking = Box::pin(host.driver.launch(host.spec(&name, &guest)));
        let look = std::future::poll_fn(|context| Poll::Ready(asking.as_mut().poll(context)));
        match look.await {
            Poll::Pending => break name,
            Poll::Ready(machine) => machine.expect("launched").kill().await.expect("killed"),
        };
    };
    // One thread launches, one after the other: when this one runs, the other was taken back.
    let _next = host.boot("next", TinyGuest::new()).await;
    assert!(!host.path(&format!("{gone}/machine.json")).exists());
}

#[tokio::test]
async fn what_cannot_be_launched_leaves_nothing() {
    let host = Host::start().await;
    let code = async |spec| host.driver.launch(spec).await.expect_err("refused").code();
    let guest = TinyGuest::new().elf();

    let mut spec = host.spec("m", &guest);
    spec.kernel = host.path("absent.elf");
    assert_eq!(code(spec).await, "IMAGE_FILE_MISSING");
    let mut spec = host.spec("m", &guest);
    spec.modules = Some(host.path("absent.cpio"));
    assert_eq!(code(spec).await, "IMAGE_FILE_MISSING");
    let mut spec = host.spec("m", &guest);
    spec.guest.capacity = 0;
    assert_eq!(code(spec).await, "MACHINE_SPEC_INVALID");
    let mut spec = host.spec("m", &guest);
    spec.dir = host.path(&"d".repeat(120));
    assert_eq!(code(spec).await, "RUN_DIR_TOO_LONG");
    let mut spec = host.spec("m", &guest);
    spec.dir = "/proc/no/such".into();
    assert_eq!(code(spec).await, "RUN_DIR_UNUSABLE");
    assert!(!host.path("m").exists());

    // A machine that runs is not overrun.
    let machine = host.boot("m", TinyGuest::new()).await;
    assert_eq!(code(host.spec("m", &guest)).await, "RUN_DIR_OCCUPIED");
    assert_eq!(machine.status().await, Ok(MachineState::Running));
    machine.kill().await.expect("killed");
    let machine = host.boot("m", TinyGuest::new().exit(0x10)).await;
    assert_eq!(ends(&machine).await, ExitCause::Stopped);
}

#[tokio::test]
async fn a_qemu_that_vanishes_fails_the_launch() {
    let host = Host::start().await;
    let program = host.path("qemu");
    let script = "#!/bin/sh\necho QEMU emulator version 9.9.9\n";
    std::fs::write(&program, script).expect("script");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("executable");
    let mut config = host::config(host::utf8(host.dir.path()));
    config.program = Some(program.clone());
    let driver = QemuDriver::open(config).await.expect("opened");
    std::fs::remove_file(&program).expect("removed");
    let spec = host.spec("m", &TinyGuest::new().elf());
    assert_eq!(driver.launch(spec).await.expect_err("gone").code(), "QEMU_NOT_FOUND");
    assert!(!host.path("m").exists(), "nothing is left");
}

#[tokio::test]
async fn qemu_that_is_missing_or_is_something_else() {
    let dir = tempfile::tempdir().expect("directory");
    let code = async |program: &str| {
        let mut config = host::config(host::utf8(dir.path()));
        config.program = Some(program.into());
        QemuDriver::open(config).await.expect_err("refused").code()
    };
    assert_eq!(code("/no/such/qemu").await, "QEMU_NOT_FOUND");
    assert_eq!(code("no-such-qemu").await, "QEMU_NOT_FOUND");
    assert_eq!(code("/bin/true").await, "QEMU_NOT_QEMU");
    assert_eq!(code("/etc/passwd").await, "QEMU_NOT_RUNNABLE");
    let old = dir.path().join("qemu-old");
    std::fs::write(&old, "#!/bin/sh\necho QEMU emulator version 4.2.1\n").expect("script");
    std::fs::set_permissions(&old, PermissionsExt::from_mode(0o755)).expect("executable");
    assert_eq!(code(host::utf8(&old).as_str()).await, "QEMU_TOO_OLD");
}

#[tokio::test]
async fn a_guest_that_does_not_stop_is_made_to() {
    let host = Host::start().await;
    let grace = Grace { orderly: Duration::from_millis(50), quit: PATIENCE };
    let machine = host.boot("deaf", TinyGuest::new()).await;
    let outcome = machine.stop(grace).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Quit, ExitCause::Stopped));
    let again = machine.stop(grace).await.expect("stopped");
    assert_eq!(again.means, StopMeans::AlreadyGone);

    let machine = host.boot("stubborn", TinyGuest::new()).await;
    let pid = machine.pid().expect("process");
    // A QEMU that stands still answers neither.
    let frozen = rustix::process::Pid::from_raw(pid as i32).expect("pid");
    rustix::process::kill_process(frozen, rustix::process::Signal::STOP).expect("frozen");
    let short = Grace { orderly: Duration::from_millis(50), quit: Duration::from_millis(50) };
    let outcome = machine.stop(short).await.expect("stopped");
    assert_eq!((outcome.means, outcome.cause), (StopMeans::Kill, ExitCause::Killed { signal: 9 }));
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_killed_machine_is_seen_as_killed() {
    let host = Host::start().await;
    let machine = host.boot("victim", TinyGuest::new()).await;
    host::kill(machine.pid().expect("process"));
    assert_eq!(ends(&machine).await, ExitCause::Killed { signal: 9 });
    let machine = host.boot("victim", TinyGuest::new()).await;
    assert!(machine.status().await.is_ok());
    let pid = rustix::process::Pid::from_raw(machine.pid().expect("process") as i32).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    assert_eq!(ends(&machine).await, ExitCause::Killed { signal: 15 });
    let machine = host.boot("victim", TinyGuest::new()).await;
    assert_eq!(machine.kill().await.expect("killed"), ExitCause::Killed { signal: 9 });
}

#[tokio::test]
async fn pause_and_resume() {
    let host = Host::start().await;
    let machine = host.boot("pauses", TinyGuest::new().print("x").forever()).await;
    assert_eq!(machine.status().await, Ok(MachineState::Running));
    for _ in 0..2 {
        machine.pause().await.expect("paused");
        assert_eq!(machine.status().await, Ok(MachineState::Paused));
    }
    let before = machine.usage().expect("usage");
    machine.resume().await.expect("resumed");
    assert_eq!(machine.status().await, Ok(MachineState::Running));
    eventually("processor time grows", || {
        machine.usage().is_ok_and(|usage| usage.cpu > before.cpu)
    })
    .await;
    assert!(machine.usage().expect("usage").resident_bytes > 1 << 20);
    assert!(machine.proportional_bytes().expect("memory") > 1 << 20);
}

#[tokio::test]
async fn a_serial_flood_costs_bounded_memory() {
    let host = Host::start().await;
    let machine = host.boot("floods", TinyGuest::new().print("0123456789").forever()).await;
    let mut watcher = machine.serial().attach();
    let mut seen = 0;
    while seen < 64 * 1024 {
        let piece = timeout(PATIENCE, watcher.read()).await.expect("in time").expect("output");
        seen += piece.bytes.len() + piece.missed as usize;
    }
    assert_eq!(machine.serial().tail(1 << 20).len(), 16 * 1024);
    let outcome = machine.stop(Grace { orderly: Duration::ZERO, quit: PATIENCE }).await;
    assert_eq!(outcome.expect("stopped").means, StopMeans::Quit);
}

#[tokio::test]
async fn a_machine_is_found_again() {
    let host = Host::start().await;
    let machine = host.boot("found", TinyGuest::new().print("hello")).await;
    let pid = machine.pid().expect("process");
    host.driver.detach().await;
    assert_eq!(machine.exit(), None);
    assert_eq!(ends(&machine).await, ExitCause::Lost);
    assert!(alive(pid));

    let next = host::open(host::utf8(host.dir.path())).await;
    let Adopted::Running(found) = next.adopt(&host.path("found")).await.expect("adopted") else {
        panic!("it runs");
    };
    let found = Guard(found);
    assert_eq!((found.pid(), found.generation().0), (Some(pid), 7));
    assert_eq!(found.status().await, Ok(MachineState::Running));
    let grace = Grace { orderly: Duration::ZERO, quit: PATIENCE };
    assert_eq!(found.stop(grace).await.expect("stopped").cause, ExitCause::Stopped);
    eventually("no process is left", || !alive(pid)).await;

    let ended = next.adopt(&host.path("found")).await.expect("adopted");
    assert!(matches!(ended, Adopted::Ended { cause: ExitCause::Stopped, .. }), "{ended:?}");
}

#[tokio::test]
async fn what_ended_unwatched_is_told_from_its_log() {
    let host = Host::start().await;
    let machine = host.boot("unseen", TinyGuest::new()).await;
    host.driver.detach().await;
    let next = host::open(host::utf8(host.dir.path())).await;
    host::kill(machine.pid().expect("process"));
    let code = async || next.adopt(&host.path("none")).await.expect_err("none").code();
    assert_eq!(code().await, "MACHINE_NOT_FOUND");
    // Its parent, this process, reaps it by adopting it.
    let cause = match next.adopt(&host.path("unseen")).await.expect("adopted") {
        Adopted::Running(machine) => timeout(PATIENCE, machine.exited()).await.expect("ends"),
        Adopted::Ended { cause, .. } => cause,
    };
    assert_eq!(cause, ExitCause::Killed { signal: 9 });

    // The record of another boot of the host, or of a process whose number is used again, names no
    // process.
    let record = host.path("unseen/machine.json");
    let text = std::fs::read_to_string(&record).expect("record");
    std::fs::remove_file(host.path("unseen/exit.json")).expect("removed");
    std::fs::write(host.path("unseen/console.log"), "x\npanic: a.rs:1: no\n").expect("log");
    let own = std::process::id();
    let pid = machine.pid().expect("process");
    std::fs::write(&record, text.replace(&format!("\"pid\":{pid}"), &format!("\"pid\":{own}")))
        .expect("record");
    let ended = next.adopt(&host.path("unseen")).await.expect("adopted");
    let Adopted::Ended { cause, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(cause, ExitCause::Panicked { message: "a.rs:1: no".into() });
    std::fs::write(&record, "{}").expect("record");
    let broken = next.adopt(&host.path("unseen")).await.expect_err("broken");
    assert_eq!(broken.code(), "MACHINE_RECORD_UNREADABLE");
}

#[tokio::test]
async fn qemu_is_locked_up() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: needs root");
        return;
    }
    let host = Host::start().await;
    let mut spec = host.spec("jailed", &TinyGuest::new().elf());
    let run_as = RunAs { uid: 700_123, gid: 700_123 };
    spec.run_as = Some(run_as);
    std::fs::set_permissions(&spec.kernel, PermissionsExt::from_mode(0o440)).expect("mode");
    let refused = host.driver.launch(spec).await.expect_err("refused");
    assert_eq!(refused.code(), "IMAGE_FILE_UNREADABLE");

    let mut spec = host.spec("jailed", &TinyGuest::new().elf());
    spec.run_as = Some(run_as);
    std::fs::set_permissions(&spec.kernel, PermissionsExt::from_mode(0o444)).expect("mode");
    let machine = host.launch(spec).await;
    let pid = machine.pid().expect("process");
    machine.status().await.expect("QEMU is up");
    assert_eq!(status_field(pid, "Uid"), "700123 700123 700123 700123");
    assert_eq!(status_field(pid, "Gid"), "700123 700123 700123 700123");
    assert_eq!(status_field(pid, "Groups"), "");
    assert_eq!(status_field(pid, "CapEff"), "0000000000000000");
    assert_eq!(status_field(pid, "NoNewPrivs"), "1");
    assert_eq!(status_field(pid, "Seccomp"), "2");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("core");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).expect("ns");
    assert_ne!(namespace(&pid.to_string()), namespace("self"));
    let mine = std::fs::metadata("/proc/self").expect("self").uid();
    let dir = std::fs::metadata(host.path("jailed")).expect("run directory");
    assert_eq!((dir.uid(), dir.mode() & 0o777), (mine, 0o700));

    // Nothing is open but its own: the three standard ones, event descriptors, its sockets and its
    // kernel.
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors") {
        let target = std::fs::read_link(entry.expect("entry").path()).expect("link");
        let target = target.to_string_lossy().into_owned();
        let own = target.starts_with("anon_inode:")
            || target.starts_with("socket:")
            || target == "/dev/null"
            || target.ends_with("/jailed.elf")
            || target.ends_with("/jailed/stderr.log");
        assert!(own, "{target} leaked to QEMU");
    }
}

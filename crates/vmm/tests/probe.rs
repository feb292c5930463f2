//! Who runs guests on this host, found by trying. One test, because it looks at all children of
//! this process.

#![allow(missing_docs, reason = "tests")]

mod host;

use host::{Host, PATIENCE, config, utf8};
use skein_model::ExitCause;
use skein_vmm::{Accel, AccelChoice, ProbeSource, QemuDriver, TinyGuest};
use std::os::unix::fs::PermissionsExt;
use tokio::time::timeout;

/// Processes started by this one that are still there, dead or alive.
fn children() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks");
    let list = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.expect("task").path().join("children")).unwrap_or_default()
    };
    tasks.map(list).collect()
}

#[tokio::test]
async fn the_probe_finds_what_runs_guests() {
    let dir = tempfile::tempdir().expect("directory");
    let probing = || {
        let mut config = config(utf8(dir.path()));
        config.accel = AccelChoice::Probe;
        config
    };
    let open = async |config| QemuDriver::open(config).await.expect("QEMU is installed");
    let report = async |config| {
        let driver = open(config).await;
        skein_vmm::Driver::probe(&driver).clone()
    };
    let first = report(probing()).await;
    eprintln!("{first:?}");
    assert!(!first.reason.is_empty());
    assert_eq!(children(), "", "the probe leaves no process");

    // Whatever the verdict: with it, a guest runs.
    let driver = open(probing()).await;
    let host = Host { driver, dir: tempfile::tempdir().expect("directory") };
    let machine = host.boot("proof", TinyGuest::new().long_mode().sse().exit(0x10)).await;
    let cause = timeout(PATIENCE, machine.exited()).await.expect("ends");
    assert_eq!(cause, ExitCause::Stopped);
    drop(host);

    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        assert_eq!((first.accel, first.source), (Accel::Tcg, ProbeSource::Settled));
        return;
    }
    assert_eq!(first.source, ProbeSource::Tried);
    let again = report(probing()).await;
    assert_eq!((again.accel, again.source), (first.accel, ProbeSource::Remembered));

    // A verdict of another boot of the host is none.
    let path = dir.path().join("accel.json");
    let verdict = std::fs::read_to_string(&path).expect("verdict");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
    std::fs::write(&path, verdict.replace(boot.trim(), "another")).expect("written");
    assert_eq!(report(probing()).await.source, ProbeSource::Tried);
    std::fs::write(&path, "rubbish").expect("written");
    assert_eq!(report(probing()).await.source, ProbeSource::Tried);

    // A QEMU that hangs under KVM is given up and killed.
    let hangs = dir.path().join("qemu-hangs");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && echo QEMU emulator version 9.9.9 && exit\nexec sleep 1000\n";
    std::fs::write(&hangs, script).expect("script");
    std::fs::set_permissions(&hangs, PermissionsExt::from_mode(0o755)).expect("executable");
    let mut config = probing();
    config.program = Some(utf8(&hangs).to_owned());
    let verdict = timeout(PATIENCE, report(config)).await.expect("given up");
    assert_eq!(verdict.accel, Accel::Tcg);
    assert!(verdict.reason.contains("did not end"), "{}", verdict.reason);
    assert_eq!(children(), "", "the probe leaves no process");
}

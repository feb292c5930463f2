//! A place to run machines in, which leaves nothing behind.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod echo;

use camino::{Utf8Path, Utf8PathBuf};
use skein_model::{Generation, MemoryMib};
use skein_vmm::{
    AccelChoice, Driver, GuestConfig, LaunchSpec, Machine, QemuConfig, QemuDriver, TinyGuest,
};
use std::ops::Deref;
use std::time::Duration;

/// Long enough for an emulated guest on a busy host; no test waits this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Host {
    pub(crate) driver: QemuDriver,
    pub(crate) dir: tempfile::TempDir,
}

impl Host {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("vmm").tempdir().expect("directory");
        let driver = open(utf8(dir.path())).await;
        Self { driver, dir }
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        utf8(self.dir.path()).join(name)
    }

    /// A specification that boots `kernel`, named for the test.
    pub(crate) fn spec(&self, id: &str, kernel: &[u8]) -> LaunchSpec {
        spec(id, self.path(id), self.path(&format!("{id}.elf")), kernel)
    }

    pub(crate) async fn launch(&self, spec: LaunchSpec) -> Guard {
        Guard(self.driver.launch(spec).await.expect("launched"))
    }

    pub(crate) async fn boot(&self, id: &str, guest: TinyGuest) -> Guard {
        self.launch(self.spec(id, &guest.elf())).await
    }
}

/// A machine named `m` whose files are all in `dir`.
pub(crate) fn spec_in(dir: &Utf8Path, kernel: &[u8]) -> LaunchSpec {
    spec("m", dir.to_owned(), dir.join("kernel.elf"), kernel)
}

fn spec(id: &str, dir: Utf8PathBuf, path: Utf8PathBuf, kernel: &[u8]) -> LaunchSpec {
    std::fs::write(&path, kernel).expect("kernel written");
    LaunchSpec {
        id: id.parse().expect("id"),
        generation: Generation(7),
        dir,
        kernel: path,
        modules: None,
        memory: MemoryMib::DEFAULT,
        nic: None,
        guest: GuestConfig::default(),
        run_as: None,
    }
}

pub(crate) fn utf8(path: &std::path::Path) -> &Utf8Path {
    Utf8Path::from_path(path).expect("UTF-8")
}

pub(crate) async fn open(state_dir: &Utf8Path) -> QemuDriver {
    QemuDriver::open(config(state_dir)).await.expect("QEMU is installed")
}

pub(crate) fn config(state_dir: &Utf8Path) -> QemuConfig {
    QemuConfig {
        program: None,
        accel: AccelChoice::Tcg,
        state_dir: state_dir.to_owned(),
        probe_as: None,
    }
}

/// Kills its machine's process when the test is over, however it went.
pub(crate) struct Guard(pub(crate) Machine);

impl Deref for Guard {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let (None, Some(pid)) = (self.0.exit(), self.0.pid()) {
            kill(pid);
        }
    }
}

pub(crate) fn kill(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Whether a process exists that is not dead already.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}

/// A field of `/proc/PID/status`.
pub(crate) fn status_field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("process");
    let field = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    field.expect("field").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until `condition` holds; panics with `what` when it does not in time.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! Machines that are QEMU processes.

mod adopt;
pub(crate) mod args;
mod launch;
pub(crate) mod process;
mod rundir;
pub(crate) mod spawn;
pub(crate) mod version;

use self::launch::Delivery;
use self::spawn::{Order, SpawnThread};
use self::version::{QEMU_OLDEST, QemuVersion};
use crate::driver::{AdoptError, Adopted, Driver, LaunchError};
use crate::machine::Machine;
use crate::probe::{self, AccelChoice, ProbeReport};
use crate::spec::{LaunchSpec, RunAs};
use crate::supervise::Supervisor;
use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use std::io;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The full emulator, under KVM too: Debian's small `qemu-system-x86_64-microvm` has neither a
/// sandbox nor the device by which a guest says how it ended.
const PROGRAM: &str = "qemu-system-x86_64";
/// How long `--version` may take; it takes 20 ms.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// How a [`QemuDriver`] is set up.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// QEMU's program: a path, or a name to be searched in `/usr/bin`, `/usr/local/bin` and `/bin`.
    /// `None` for `qemu-system-x86_64`.
    pub program: Option<Utf8PathBuf>,
    /// Who runs the guests' instructions.
    pub accel: AccelChoice,
    /// Where the probe's verdict is remembered for this boot of the host; made if absent.
    pub state_dir: Utf8PathBuf,
    /// The user machines will run as, so that the probe tries what they will do.
    pub probe_as: Option<RunAs>,
}

/// Why QEMU cannot be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not installed.
    #[error("{program} is not installed (Debian and Ubuntu: apt install qemu-system-x86)")]
    NotFound {
        /// What was looked for.
        program: Utf8PathBuf,
    },
    /// It cannot be run.
    #[error("running {program} --version")]
    Run {
        /// Which program.
        program: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say which version it is.
    #[error("{program} is not QEMU: its --version says {said:?}")]
    NotQemu {
        /// Which program.
        program: Utf8PathBuf,
        /// The beginning of what it said.
        said: String,
    },
    /// It is too old.
    #[error("{program} is version {version}, and {QEMU_OLDEST} is the oldest that works")]
    TooOld {
        /// Which program.
        program: Utf8PathBuf,
        /// Its version.
        version: QemuVersion,
    },
    /// The thread that starts processes cannot be started.
    #[error("starting the spawn thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// KVM was asked for and does not work.
    #[error("KVM does not work here: {reason}")]
    NoKvm {
        /// What the probe found.
        reason: String,
    },
}

impl OpenError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "QEMU_NOT_FOUND",
            Self::Run { .. } => "QEMU_NOT_RUNNABLE",
            Self::NotQemu { .. } => "QEMU_NOT_QEMU",
            Self::TooOld { .. } => "QEMU_TOO_OLD",
            Self::Thread { .. } => "SPAWN_THREAD_FAILED",
            Self::NoKvm { .. } => "KVM_NOT_USABLE",
        }
    }
}

/// Runs machines as QEMU processes. Dropping it lets its machines run on unwatched; another driver
/// may adopt them.
#[derive(Debug)]
pub struct QemuDriver {
    program: Utf8PathBuf,
    version: QemuVersion,
    report: ProbeReport,
    spawner: SpawnThread,
    tasks: TaskTracker,
    detach: CancellationToken,
}

impl QemuDriver {
    /// Finds QEMU, asks its version, and probes the acceleration unless that was done in this boot
    /// of the host. Takes about 20 ms, and up to 2 s more when the probe runs. Raises this
    /// process's limit of open files to what it may have: each machine takes five.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open(config: QemuConfig) -> Result<Self, OpenError> {
        raise_descriptor_limit();
        let spawner = SpawnThread::start().map_err(|source| OpenError::Thread { source })?;
        let named = config.program.clone().unwrap_or_else(|| PROGRAM.into());
        let program = find(&named).ok_or(OpenError::NotFound { program: named })?;
        let version = ask_version(&spawner, &program).await?;
        if version < QEMU_OLDEST {
            return Err(OpenError::TooOld { program, version });
        }
        let report = probe::decide(&spawner, &config, &program, version).await?;
        tracing::info!(%program, %version, accel = %report.accel, why = report.reason, "QEMU found");
        let (tasks, detach) = (TaskTracker::new(), CancellationToken::new());
        Ok(Self { program, version, report, spawner, tasks, detach })
    }

    /// QEMU's program.
    pub fn program(&self) -> &Utf8Path {
        &self.program
    }

    /// Its version.
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// Stops watching all machines and waits until nothing touches them any more. The machines run
    /// on. Handles then answer that their machine is lost.
    pub async fn detach(&self) {
        self.detach.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn supervise(&self, supervisor: Supervisor) {
        self.tasks.spawn(supervisor.run(self.detach.clone()));
    }
}

impl Drop for QemuDriver {
    fn drop(&mut self) {
        self.detach.cancel();
    }
}

#[async_trait]
impl Driver for QemuDriver {
    async fn launch(&self, spec: LaunchSpec) -> Result<Machine, LaunchError> {
        let asked = std::time::Instant::now();
        let program = self.program.clone();
        let settings =
            launch::Settings { program, version: self.version, report: self.report.clone() };
        let launched = self
            .spawner
            .run(move |spawner| launch::launch(spec, &settings, spawner, asked).map(Delivery::new))
            .await
            .map_err(|_| LaunchError::Closed)??;
        let launched = launched.arrived().ok_or(LaunchError::Closed)?;
        let (machine, supervisor) = launched.connect()?;
        self.supervise(supervisor);
        Ok(machine)
    }

    async fn adopt(&self, dir: &Utf8Path) -> Result<Adopted, AdoptError> {
        let (adopted, supervisor) = adopt::adopt(dir)?;
        if let Some(supervisor) = supervisor {
            self.supervise(supervisor);
        }
        Ok(adopted)
    }

    fn probe(&self) -> &ProbeReport {
        &self.report
    }
}

/// A path as it is, or the first executable of that name.
fn find(program: &Utf8Path) -> Option<Utf8PathBuf> {
    if program.as_str().contains('/') {
        return program.exists().then(|| program.to_owned());
    }
    ["/usr/bin", "/usr/local/bin", "/bin"]
        .iter()
        .map(|dir| Utf8Path::new(dir).join(program))
        .find(|path| path.exists())
}

async fn ask_version(spawner: &SpawnThread, program: &Utf8Path) -> Result<QemuVersion, OpenError> {
    let failed = |source| OpenError::Run { program: program.to_owned(), source };
    let output = tempfile::tempfile().map_err(failed)?;
    let order = Order {
        program: program.to_owned(),
        args: vec!["--version".to_owned()],
        fds: Vec::new(),
        output: output.try_clone().map_err(failed)?,
        run_as: None,
    };
    probe::run_briefly(spawner, order, VERSION_DEADLINE).await.map_err(failed)?;
    let said = probe::read_output(output).map_err(failed)?;
    QemuVersion::from_output(&said).ok_or_else(|| OpenError::NotQemu {
        program: program.to_owned(),
        said: said.chars().take(80).collect(),
    })
}

/// Each machine takes four sockets and a process descriptor, and the usual soft limit is 1,024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "limit of open files not raised");
    }
}

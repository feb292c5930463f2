//! A handle on one machine.

use crate::console::Console;
use crate::control::{Control, ControlError, GuestStats, Ready};
use crate::exit::Asked;
use crate::proc::HostUsage;
use crate::qmp::{Qmp, QmpError};
use camino::{Utf8Path, Utf8PathBuf};
use skein_model::{ExitCause, Generation, MachineId, Timestamp};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long QEMU may take to answer a command. Its monitor is silent for seconds while a migration
/// completes, so this is no sign of death.
const QMP_DEADLINE: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone. It can only be longer when the kernel itself is
/// stuck.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A handle on one machine. Clones share it; dropping the last one leaves the machine running.
#[derive(Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) id: MachineId,
    pub(crate) generation: Generation,
    pub(crate) launched_at: Timestamp,
    pub(crate) dir: Utf8PathBuf,
    pub(crate) process: Box<dyn Process>,
    pub(crate) qmp: Qmp,
    pub(crate) control: Control,
    pub(crate) console: Console,
    pub(crate) serial: Console,
    pub(crate) asked: AskedCell,
    pub(crate) times: LaunchTimes,
    pub(crate) ended: watch::Receiver<Option<ExitCause>>,
}

/// The process of a machine.
pub(crate) trait Process: Send + Sync + fmt::Debug {
    fn pid(&self) -> Option<u32>;
    fn kill(&self) -> io::Result<()>;
    fn usage(&self) -> io::Result<HostUsage>;
    fn proportional_bytes(&self) -> io::Result<u64>;
}

/// The strongest thing asked of a machine so far.
#[derive(Debug, Default)]
pub(crate) struct AskedCell(AtomicU8);

impl AskedCell {
    fn raise(&self, asked: Asked) {
        self.0.fetch_max(asked as u8, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Asked {
        match self.0.load(Ordering::Relaxed) {
            0 => Asked::Nothing,
            1 => Asked::Stop,
            2 => Asked::Quit,
            _ => Asked::Kill,
        }
    }
}

/// Where the time of a launch went, on this side.
#[derive(Debug, Clone, Copy)]
pub struct LaunchTimes {
    /// When the launch was asked for.
    pub asked: Instant,
    /// From then until sockets and files were ready; zero for an adopted machine.
    pub prepared: Duration,
    /// From then until QEMU's process was started; zero for an adopted machine.
    pub spawned: Duration,
}

/// Whether a machine's processor runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// It runs.
    Running,
    /// It was paused.
    Paused,
    /// Anything else, in QEMU's word.
    Other(String),
}

/// How long each step of a stop may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace {
    /// For the guest to finish what is in service and end by itself; zero to leave this step out.
    pub orderly: Duration,
    /// For QEMU to end when it is told to; zero to leave this step out.
    pub quit: Duration,
}

impl Grace {
    /// Kill at once.
    pub const NONE: Self = Self { orderly: Duration::ZERO, quit: Duration::ZERO };
}

impl Default for Grace {
    fn default() -> Self {
        Self { orderly: Duration::from_secs(5), quit: Duration::from_secs(2) }
    }
}

/// What it took to end a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMeans {
    /// It had ended before.
    AlreadyGone,
    /// The guest stopped in order.
    Orderly,
    /// The guest did not answer; QEMU ended when told to.
    Quit,
    /// QEMU was killed.
    Kill,
}

/// How a stop went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// What it took.
    pub means: StopMeans,
    /// How the machine ended.
    pub cause: ExitCause,
}

/// A machine did not become ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadyError {
    /// It ended instead.
    #[error("the machine ended before it was ready: {cause}")]
    Ended {
        /// How.
        cause: ExitCause,
    },
    /// It did not say so in time. It still runs.
    #[error("the machine was not ready after {waited:?}")]
    Deadline {
        /// How long was waited.
        waited: Duration,
    },
}

impl ReadyError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Ended { cause } => cause.code(),
            Self::Deadline { .. } => "BOOT_TIMEOUT",
        }
    }
}

/// A machine could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The signal could not be sent.
    #[error("killing the process of machine {id}")]
    Kill {
        /// Which machine.
        id: MachineId,
        /// Why.
        source: io::Error,
    },
    /// The process is still there: the kernel is stuck.
    #[error("the process of machine {id} was killed and did not end in {waited:?}")]
    Undead {
        /// Which machine.
        id: MachineId,
        /// How long was waited.
        waited: Duration,
    },
}

impl StopError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "MACHINE_NOT_KILLED",
            Self::Undead { .. } => "MACHINE_UNDEAD",
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("id", &self.inner.id)
            .field("pid", &self.pid())
            .field("exit", &self.exit())
            .finish_non_exhaustive()
    }
}

impl Machine {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Which machine.
    pub fn id(&self) -> &MachineId {
        &self.inner.id
    }

    /// Version of the record it was launched from.
    pub fn generation(&self) -> Generation {
        self.inner.generation
    }

    /// When it was launched, also by an earlier process.
    pub fn launched_at(&self) -> Timestamp {
        self.inner.launched_at
    }

    /// Its run directory.
    pub fn dir(&self) -> &Utf8Path {
        &self.inner.dir
    }

    /// Number of its process; `None` for a machine that is none (a fake).
    pub fn pid(&self) -> Option<u32> {
        self.inner.process.pid()
    }

    /// Where the time of its launch went.
    pub fn times(&self) -> LaunchTimes {
        self.inner.times
    }

    /// Waits until the guest listens; answers at once when it did before.
    ///
    /// # Errors
    /// [`ReadyError`]
    ///
    /// # Cancel safety
    /// Safe: it only watches.
    pub async fn ready(&self, deadline: Duration) -> Result<Ready, ReadyError> {
        let mut heard = self.inner.control.heard();
        let said = async {
            // The guard of the channel is dropped here, so that this future can move between
            // threads.
            let ready =
                heard.wait_for(|heard| heard.ready.is_some()).await.map(|heard| heard.ready);
            match ready {
                Ok(ready) => Ok(ready),
                // The channel ended, and so does the machine.
                Err(_) => Err(self.exited().await),
            }
        };
        match timeout(deadline, said).await {
            Ok(Ok(Some(ready))) => Ok(ready),
            Ok(Ok(None)) => Err(ReadyError::Ended { cause: ExitCause::Lost }),
            Ok(Err(cause)) => Err(ReadyError::Ended { cause }),
            Err(_) => Err(ReadyError::Deadline { waited: deadline }),
        }
    }

    /// What the guest said when it began to listen; `None` before.
    pub fn ready_now(&self) -> Option<Ready> {
        self.inner.control.heard().borrow().ready
    }

    /// Asks the guest for its figures.
    ///
    /// # Errors
    /// [`ControlError`]
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn stats(&self, deadline: Duration) -> Result<GuestStats, ControlError> {
        self.inner.control.stats(deadline).await
    }

    /// Lines of the guest's control channel that were dropped: too many, too long or malformed.
    pub fn control_lines_dropped(&self) -> u64 {
        self.inner.control.dropped()
    }

    /// What its process uses of the host.
    ///
    /// # Errors
    /// Those of reading `/proc`, for example when the process has ended.
    pub fn usage(&self) -> io::Result<HostUsage> {
        self.inner.process.usage()
    }

    /// Memory of its process, bytes; pages shared by n processes count one n-th. Costs the host
    /// about a third of a millisecond, so ask seldom.
    ///
    /// # Errors
    /// Those of reading `/proc`, for example when the process has ended.
    pub fn proportional_bytes(&self) -> io::Result<u64> {
        self.inner.process.proportional_bytes()
    }

    /// The guest's log.
    pub fn console(&self) -> &Console {
        &self.inner.console
    }

    /// The guest's serial port: what it says before its log works, and when it dies.
    pub fn serial(&self) -> &Console {
        &self.inner.serial
    }

    /// Whether its processor runs.
    ///
    /// # Errors
    /// [`QmpError`]
    pub async fn status(&self) -> Result<MachineState, QmpError> {
        let status = self.inner.qmp.execute("query-status", None, QMP_DEADLINE).await?;
        Ok(match status["status"].as_str() {
            Some("running") => MachineState::Running,
            Some("paused") => MachineState::Paused,
            other => MachineState::Other(other.unwrap_or_default().chars().take(40).collect()),
        })
    }

    /// Stands its processor still. Running it twice is harmless.
    ///
    /// # Errors
    /// [`QmpError`]
    pub async fn pause(&self) -> Result<(), QmpError> {
        self.inner.qmp.execute("stop", None, QMP_DEADLINE).await.map(drop)
    }

    /// Lets its processor run again. Running it twice is harmless.
    ///
    /// # Errors
    /// [`QmpError`]
    pub async fn resume(&self) -> Result<(), QmpError> {
        self.inner.qmp.execute("cont", None, QMP_DEADLINE).await.map(drop)
    }

    /// The machine's QMP connection, for what this handle does not offer.
    pub fn qmp(&self) -> &Qmp {
        &self.inner.qmp
    }

    /// Ends the machine: asks the guest to stop, then QEMU, then kills. A paused machine is resumed
    /// to stop in order. Running it twice, or at the same time, is harmless.
    ///
    /// # Errors
    /// [`StopError`]
    ///
    /// # Cancel safety
    /// Not safe: the steps already taken stay taken, the others are left out.
    pub async fn stop(&self, grace: Grace) -> Result<StopOutcome, StopError> {
        if let Some(cause) = self.exit() {
            return Ok(StopOutcome { means: StopMeans::AlreadyGone, cause });
        }
        if !grace.orderly.is_zero() && self.inner.control.stop().is_ok() {
            self.inner.asked.raise(Asked::Stop);
            let orderly = async {
                // A paused guest cannot stop. Whether this works shows by the machine's end.
                let _ = self.inner.qmp.execute("cont", None, grace.orderly).await;
                self.exited().await
            };
            if let Ok(cause) = timeout(grace.orderly, orderly).await {
                return Ok(StopOutcome { means: StopMeans::Orderly, cause });
            }
        }
        if !grace.quit.is_zero() {
            self.inner.asked.raise(Asked::Quit);
            let quit = async {
                // Whether this works shows by the machine's end.
                let _ = self.inner.qmp.execute("quit", None, grace.quit).await;
                self.exited().await
            };
            if let Ok(cause) = timeout(grace.quit, quit).await {
                return Ok(StopOutcome { means: StopMeans::Quit, cause });
            }
        }
        let cause = self.kill().await?;
        Ok(StopOutcome { means: StopMeans::Kill, cause })
    }

    /// Kills the machine at once, and waits until it is gone.
    ///
    /// # Errors
    /// [`StopError`]
    ///
    /// # Cancel safety
    /// Safe: the signal is sent first.
    pub async fn kill(&self) -> Result<ExitCause, StopError> {
        if let Some(cause) = self.exit() {
            return Ok(cause);
        }
        self.inner.asked.raise(Asked::Kill);
        let id = || self.inner.id.clone();
        self.inner.process.kill().map_err(|source| StopError::Kill { id: id(), source })?;
        timeout(KILL_DEADLINE, self.exited())
            .await
            .map_err(|_| StopError::Undead { id: id(), waited: KILL_DEADLINE })
    }

    /// How it ended; `None` while it runs.
    pub fn exit(&self) -> Option<ExitCause> {
        self.inner.ended.borrow().clone()
    }

    /// Waits until the machine has ended. [`ExitCause::Lost`] when its driver was closed meanwhile:
    /// then nobody watches the machine any more, and it may still run.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn exited(&self) -> ExitCause {
        let mut ended = self.inner.ended.clone();
        let cause = match ended.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone(),
            Err(_) => None,
        };
        cause.unwrap_or(ExitCause::Lost)
    }
}

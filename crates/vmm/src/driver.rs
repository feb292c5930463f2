//! The seam between whoever runs machines and what runs them.

use crate::accel::Accel;
use crate::machine::Machine;
use crate::probe::ProbeReport;
use crate::spec::{LaunchSpec, SpecError};
use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use skein_model::{ExitCause, Generation, MachineId};
use std::fmt;
use std::io;

/// Starts machines, and finds those again that an earlier process started.
#[async_trait]
pub trait Driver: Send + Sync + fmt::Debug {
    /// Starts a machine. Returns when its process runs, which is before the guest is ready: see
    /// [`Machine::ready`].
    ///
    /// # Errors
    /// [`LaunchError`]; then no process is left, and no file of the attempt. What goes wrong later
    /// (a kernel that QEMU refuses) ends the machine and is its cause of exit.
    ///
    /// # Cancel safety
    /// Safe: a machine whose asker has gone is ended. Only if this process dies may one run that nobody holds;
    /// [`Driver::adopt`] finds it.
    async fn launch(&self, spec: LaunchSpec) -> Result<Machine, LaunchError>;

    /// Finds the machine of a run directory again, after the process that launched it has ended. At
    /// most one process may hold a machine at a time.
    ///
    /// # Errors
    /// [`AdoptError`]; the machine is left alone.
    async fn adopt(&self, dir: &Utf8Path) -> Result<Adopted, AdoptError>;

    /// Who runs the guests' instructions on this host, and why.
    fn probe(&self) -> &ProbeReport;

    /// Who runs the guests' instructions on this host.
    fn accel(&self) -> Accel {
        self.probe().accel
    }
}

/// What became of the machine in a run directory.
#[derive(Debug, Clone)]
pub enum Adopted {
    /// It runs.
    Running(Machine),
    /// It ended while nobody watched.
    Ended {
        /// Which machine.
        id: MachineId,
        /// Version of the record it was launched from.
        generation: Generation,
        /// How it ended, as far as its log tells; [`ExitCause::Lost`] when it does not.
        cause: ExitCause,
    },
}

/// Why a machine was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification is no machine.
    #[error("the machine's specification is not usable")]
    Spec(#[from] SpecError),
    /// The kernel or the modules cannot be read.
    #[error("opening {path}")]
    Open {
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may not read the file, and QEMU runs as another user.
    #[error(
        "{path} is not readable by the machine's user {uid}: it must be readable by others (mode 0444) in a \
         directory that they cannot enter"
    )]
    Unreadable {
        /// Which file.
        path: Utf8PathBuf,
        /// The user.
        uid: u32,
    },
    /// A machine runs in that run directory.
    #[error("a machine runs in {path}, as process {pid}: adopt it or end it first")]
    Occupied {
        /// The directory.
        path: Utf8PathBuf,
        /// Its process.
        pid: i32,
    },
    /// The run directory's path is too long for sockets.
    #[error(
        "the run directory {path} is too long: {bytes} bytes with its longest socket, and Unix sockets allow 107"
    )]
    PathTooLong {
        /// The directory.
        path: Utf8PathBuf,
        /// Length with the longest socket's name, bytes.
        bytes: usize,
    },
    /// A file or socket of the run directory.
    #[error("preparing {path}")]
    RunDir {
        /// Which.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU could not be started.
    #[error("starting {program}")]
    Spawn {
        /// QEMU's path.
        program: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The driver is shutting down.
    #[error("the driver has been closed")]
    Closed,
}

impl LaunchError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Spec(error) => error.code(),
            Self::Open { .. } => "IMAGE_FILE_MISSING",
            Self::Unreadable { .. } => "IMAGE_FILE_UNREADABLE",
            Self::Occupied { .. } => "RUN_DIR_OCCUPIED",
            Self::PathTooLong { .. } => "RUN_DIR_TOO_LONG",
            Self::RunDir { source, .. } if disk_full(source) => "DISK_FULL",
            Self::RunDir { .. } => "RUN_DIR_UNUSABLE",
            Self::Spawn { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "QEMU_NOT_FOUND",
                io::ErrorKind::PermissionDenied => "QEMU_NOT_PERMITTED",
                _ => "QEMU_NOT_STARTED",
            },
            Self::Closed => "DRIVER_CLOSED",
        }
    }
}

pub(crate) fn disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why a run directory's machine was not found again.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// No machine was launched in this directory.
    #[error("{path} holds no machine")]
    NoMachine {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// What it says about its machine cannot be read.
    #[error("reading {path}")]
    Record {
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine's process runs, but a socket of it does not answer.
    #[error("connecting to {path}")]
    Socket {
        /// Which socket.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process cannot be watched.
    #[error("watching process {pid}")]
    Process {
        /// Which.
        pid: i32,
        /// Why.
        source: io::Error,
    },
}

impl AdoptError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoMachine { .. } => "MACHINE_NOT_FOUND",
            Self::Record { .. } => "MACHINE_RECORD_UNREADABLE",
            Self::Socket { .. } => "MACHINE_SOCKET_DEAD",
            Self::Process { .. } => "MACHINE_NOT_WATCHED",
        }
    }
}

//! The run directory of a machine: its sockets, its log, and what the next process needs to find it
//! again.
//!
//! ```text
//! machine.json   what was launched, and which process it is; mode 0600
//! qmp.sock console.sock control.sock serial.sock
//! console.log console.log.1    the guest's log, bounded
//! stderr.log     what QEMU complained about
//! exit.json      how it ended
//! ```
//!
//! The directory belongs to the driver's user with mode 0700 and not to the machine's: QEMU is
//! handed every file and socket open, so a QEMU that its guest took over can neither read nor
//! change anything here.

use crate::accel::Accel;
use crate::control::Ready;
use crate::driver::LaunchError;
use crate::proc::ProcessMark;
use crate::qemu::version::QemuVersion;
use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skein_model::{ExitCause, Generation, MachineId, MemoryMib, Timestamp};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

/// Longest path of a Unix socket, bytes: `sun_path` of 108 with its NUL.
const SOCKET_PATH_MAX: usize = 107;
/// Longest record that is read back, bytes. A command line is about 3 KiB.
const RECORD_BYTES_MAX: u64 = 64 * 1024;
/// How much of QEMU's standard error is read back, bytes.
const STDERR_BYTES_MAX: u64 = 16 * 1024;

/// Layout of `machine.json`; a change that an older reader must not see gets the next number.
const FORMAT: u32 = 1;

/// What `machine.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MachineFile {
    pub(super) format: u32,
    pub(super) id: MachineId,
    pub(super) generation: Generation,
    /// Unique for each launch, and a word of QEMU's command line.
    pub(super) uuid: String,
    /// Boot of the host in which it was launched.
    pub(super) boot_id: String,
    pub(super) launched_at: Timestamp,
    /// Absent while the process is being started.
    pub(super) process: Option<ProcessMark>,
    pub(super) ready: Option<Ready>,
    pub(super) qemu: QemuVersion,
    pub(super) accel: Accel,
    pub(super) memory: MemoryMib,
    /// The command line as it was: a migration needs the same one, not a computed one.
    pub(super) argv: Vec<String>,
}

/// What `exit.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExitFile {
    pub(super) uuid: String,
    pub(super) cause: ExitCause,
}

/// A listening socket and the client that waits in its queue.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) listener: UnixListener,
    pub(super) client: UnixStream,
}

/// The run directory of one machine.
#[derive(Debug, Clone)]
pub(super) struct RunDir {
    path: Utf8PathBuf,
}

impl RunDir {
    /// Names of the sockets; `control.sock` and `console.sock` are the longest.
    pub(super) const QMP: &'static str = "qmp.sock";
    pub(super) const CONSOLE: &'static str = "console.sock";
    pub(super) const CONTROL: &'static str = "control.sock";
    pub(super) const SERIAL: &'static str = "serial.sock";
    const RECORD: &'static str = "machine.json";
    const EXIT: &'static str = "exit.json";
    const STDERR: &'static str = "stderr.log";
    const CONSOLE_LOG: &'static str = "console.log";

    pub(super) fn new(path: &Utf8Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Refuses a path that leaves no room for the sockets' names.
    pub(super) fn check(&self) -> Result<(), LaunchError> {
        let bytes = self.file(Self::CONTROL).as_str().len();
        if bytes > SOCKET_PATH_MAX {
            return Err(LaunchError::PathTooLong { path: self.path.clone(), bytes });
        }
        Ok(())
    }

    /// Makes the directory, and removes what an earlier machine left in it.
    pub(super) fn prepare(&self) -> Result<(), LaunchError> {
        let failed =
            |path: &Utf8Path, source| LaunchError::RunDir { path: path.to_owned(), source };
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|e| failed(&self.path, e))?;
        self.remove_files().map_err(|(path, error)| failed(&path, error))
    }

    /// Removes what a machine left, and the directory if nothing else is in it. Done as far as it
    /// goes.
    pub(super) fn clear(&self) {
        let removed = self.remove_files();
        tracing::debug!(path = %self.path, ?removed, "run directory cleared");
        let _ = std::fs::remove_dir(&self.path);
    }

    fn remove_files(&self) -> Result<(), (Utf8PathBuf, io::Error)> {
        let older_log = format!("{}.1", Self::CONSOLE_LOG);
        for name in [
            Self::RECORD,
            Self::EXIT,
            Self::STDERR,
            Self::CONSOLE_LOG,
            &older_log,
            Self::QMP,
            Self::CONSOLE,
            Self::CONTROL,
            Self::SERIAL,
        ] {
            let path = self.file(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((path, error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A socket QEMU will serve, with its client already in the queue.
    pub(super) fn device(&self, name: &str) -> Result<Device, LaunchError> {
        let path = self.file(name);
        let make = || {
            let listener = UnixListener::bind(&path)?;
            let client = self.connect(name)?;
            Ok(Device { listener, client })
        };
        make().map_err(|source| LaunchError::RunDir { path: path.clone(), source })
    }

    /// Connects to a socket QEMU serves.
    pub(super) fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let client = UnixStream::connect(self.file(name))?;
        client.set_nonblocking(true)?;
        Ok(client)
    }

    pub(super) fn file(&self, name: &str) -> Utf8PathBuf {
        self.path.join(name)
    }

    pub(super) fn console_log(&self) -> Utf8PathBuf {
        self.file(Self::CONSOLE_LOG)
    }

    /// The file QEMU complains into.
    pub(super) fn open_stderr(&self) -> Result<File, LaunchError> {
        let path = self.file(Self::STDERR);
        private()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| LaunchError::RunDir { path, source })
    }

    pub(super) fn write_record(&self, record: &MachineFile) -> Result<(), LaunchError> {
        self.write(Self::RECORD, record)
            .map_err(|source| LaunchError::RunDir { path: self.file(Self::RECORD), source })
    }

    /// `None` when no machine was launched here.
    pub(super) fn read_record(&self) -> io::Result<Option<MachineFile>> {
        let record: Option<MachineFile> = self.read(Self::RECORD)?;
        match record {
            Some(record) if record.format != FORMAT => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("format {} was written by another version", record.format),
            )),
            record => Ok(record),
        }
    }

    pub(super) fn write_exit(&self, exit: &ExitFile) -> io::Result<()> {
        self.write(Self::EXIT, exit)
    }

    pub(super) fn read_exit(&self) -> io::Result<Option<ExitFile>> {
        self.read(Self::EXIT)
    }

    /// What QEMU complained about; empty when that cannot be read.
    pub(super) fn stderr(&self) -> String {
        let read = || {
            let mut text = Vec::new();
            File::open(self.file(Self::STDERR))?.take(STDERR_BYTES_MAX).read_to_end(&mut text)?;
            io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
        };
        read().unwrap_or_default()
    }

    /// Replaces a file in one step. Not synced: after a crash of the host there is no machine to
    /// find.
    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let (path, temporary) = (self.file(name), self.file(&format!("{name}.new")));
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        private().create(true).truncate(true).write(true).open(&temporary)?.write_all(&bytes)?;
        std::fs::rename(&temporary, &path)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let mut bytes = Vec::new();
        match File::open(self.file(name)) {
            Ok(file) => file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl MachineFile {
    pub(super) const FORMAT: u32 = FORMAT;
}

fn private() -> OpenOptions {
    let mut options = File::options();
    options.mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_path_without_room_for_sockets_is_refused() {
        let check = |bytes: usize| {
            let dir = RunDir::new(&Utf8PathBuf::from(format!("/{}", "d".repeat(bytes - 1))));
            dir.check().map_err(|error| error.code())
        };
        assert_eq!(check(SOCKET_PATH_MAX - "/control.sock".len()), Ok(()));
        assert_eq!(check(SOCKET_PATH_MAX - "/control.sock".len() + 1), Err("RUN_DIR_TOO_LONG"));
    }

    #[test]
    fn a_used_directory_is_emptied_and_closed_to_others() {
        let base = tempfile::tempdir().expect("directory");
        let path = Utf8PathBuf::try_from(base.path().join("n/m")).expect("UTF-8");
        let dir = RunDir::new(&path);
        for _ in 0..2 {
            dir.prepare().expect("prepared");
            dir.device(RunDir::QMP).expect("socket");
            dir.write_exit(&ExitFile { uuid: "u".into(), cause: ExitCause::Lost })
                .expect("written");
            assert!(dir.read_exit().expect("read").is_some());
        }
        let mode = std::fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(dir.read_record().expect("no record").is_none());
        std::fs::write(dir.file(RunDir::RECORD), "{").expect("written");
        assert_eq!(dir.read_record().expect_err("broken").kind(), io::ErrorKind::InvalidData);
    }
}

//! The sockets on which projects ask.

use super::asker::LEAVE;
use super::{BrokerError, Project};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Asks that may wait for the thread in the kernel.
const BACKLOG: i32 = 1024;
/// A broker answers from memory, within a tick of its thread.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who may connect to a socket: owner and group.
const MODE: u32 = 0o660;

/// A project's socket; its file goes with the value.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) project: Arc<str>,
    path: PathBuf,
    /// Held while we listen: of two brokers that start at the same moment one does.
    _lock: OwnedFd,
}

impl Listener {
    /// Listens. A file that nobody listens on is replaced; a broker that yields is asked to, if `asks`.
    ///
    /// # Errors
    /// [`BrokerError::Running`], [`BrokerError::Path`], [`BrokerError::Listen`].
    pub(super) fn open(project: &Project, asks: bool) -> Result<Self, BrokerError> {
        let path = &project.socket;
        let address =
            SocketAddrUnix::new(path).map_err(|_| BrokerError::Path { path: path.to_owned() })?;
        let failed = |source: Errno| listening(path, source.into());
        let lock = match lock(path) {
            Err(BrokerError::Running { .. }) if asks => {
                ask_to_leave(&address);
                lock(path)?
            }
            locked => locked?,
        };
        // Anything but a socket stays, and is in the way.
        if path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket()) {
            // One that holds no lock: a broker of an earlier release.
            match rustix::net::connect(unix().map_err(failed)?, &address) {
                Ok(()) | Err(Errno::AGAIN) => {
                    return Err(BrokerError::Running { path: path.to_owned() });
                }
                Err(_) => {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
        let socket = unix().map_err(failed)?;
        // The file is made with the socket's mode, less what the umask takes: nobody gets in between making and changing it.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE)).map_err(failed)?;
        rustix::net::bind(&socket, &address).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(MODE);
        std::fs::set_permissions(path, mode).map_err(|source| listening(path, source))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
        Ok(Self { socket, project: project.name.as_str().into(), path: path.clone(), _lock: lock })
    }

    /// Whether it is where the project is served.
    pub(super) fn is_of(&self, project: &Project) -> bool {
        *self.project == *project.name && self.path == project.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listening(path: &Path, source: io::Error) -> BrokerError {
    BrokerError::Listen { path: path.to_owned(), source }
}

fn unix() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Asks the broker on a socket to leave it, and waits until it has heard.
fn ask_to_leave(address: &SocketAddrUnix) {
    let ask = || -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let asker = rustix::net::socket_with(family, kind, flags, None)?;
        for way in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&asker, way, Some(PATIENCE))?;
        }
        rustix::net::connect(&asker, address)?;
        rustix::net::send(&asker, &LEAVE, SendFlags::NOSIGNAL)?;
        // The end of the connection is the answer.
        rustix::net::recv(&asker, &mut [0; 1][..], RecvFlags::empty())?;
        Ok(())
    };
    // The lock tells whether it went.
    let _ = ask();
}

/// The right to make and remove the socket's file. The lock's own file stays: one that is removed could be locked twice.
fn lock(path: &Path) -> Result<OwnedFd, BrokerError> {
    let mut name = OsString::from(path);
    name.push(".lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let failed = |source: Errno| listening(path, source.into());
    let file = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(BrokerError::Running { path: path.to_owned() }),
        Err(source) => Err(failed(source)),
    }
}

//! A QEMU process: watched, measured and killed through a process descriptor, so that a number used
//! again hits nobody.

use crate::exit::RawExit;
use crate::machine::Process;
use crate::proc::{self, HostUsage, ProcessMark};
use crate::supervise::Exit;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a killed process may take to be gone.
const PUT_DOWN_SECS: i64 = 2;

/// The process of a machine.
#[derive(Debug)]
pub(crate) struct QemuProcess {
    mark: ProcessMark,
    pidfd: Arc<OwnedFd>,
}

impl QemuProcess {
    /// The process that `pidfd` stands for.
    pub(crate) fn new(mark: ProcessMark, pidfd: OwnedFd) -> Self {
        Self { mark, pidfd: Arc::new(pidfd) }
    }

    /// Its number.
    pub(crate) fn pid(&self) -> i32 {
        self.mark.pid
    }

    /// The process of an earlier launch; `None` when it has ended.
    pub(crate) fn find(mark: ProcessMark) -> io::Result<Option<Self>> {
        let Some(pid) = mark.rustix() else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after the descriptor was opened: if it is the right process now, it is the one
        // that is held.
        Ok(mark.exists().then(|| Self::new(mark, pidfd)))
    }

    /// How the process ended, reaping it if it is a child; `None` while it runs.
    pub(crate) fn ended(&self) -> Option<RawExit> {
        let mut polled = [PollFd::new(self.pidfd.as_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut polled, Some(&now)) {
            Ok(1) => reap(&self.pidfd),
            _ => None,
        }
    }

    /// Kills the process and reaps it. Blocks until it is gone, which is at once unless the kernel
    /// is stuck.
    pub(crate) fn put_down(&self) {
        let _ = Process::kill(self);
        let mut polled = [PollFd::new(self.pidfd.as_ref(), PollFlags::IN)];
        let deadline = Timespec { tv_sec: PUT_DOWN_SECS, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut polled, Some(&deadline));
        let _ = reap(&self.pidfd);
    }

    /// Resolves when the process has ended, and reaps it if it is a child.
    pub(crate) fn exit(&self) -> io::Result<Exit> {
        #[expect(
            deprecated,
            reason = "the successor is unsafe because a type may lie about its \
            descriptor; this one is an `OwnedFd`, and nobody replaces it"
        )]
        let pidfd = AsyncFd::with_interest(Arc::clone(&self.pidfd), Interest::READABLE)?;
        Ok(Box::pin(async move {
            loop {
                let Ok(mut ready) = pidfd.readable().await else { return RawExit::Unknown };
                match reap(pidfd.get_ref()) {
                    Some(exit) => return exit,
                    None => ready.clear_ready(),
                }
            }
        }))
    }
}

/// `None` when the process still runs.
fn reap(pidfd: &OwnedFd) -> Option<RawExit> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
        Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => RawExit::Exited(code),
            (None, Some(signal)) => RawExit::Signalled(signal),
            (None, None) => RawExit::Unknown,
        }),
        Ok(None) => None,
        // Not a child: it ended, and its parent knows how.
        Err(_) => Some(RawExit::Unknown),
    }
}

impl Process for QemuProcess {
    fn pid(&self) -> Option<u32> {
        u32::try_from(self.mark.pid).ok()
    }

    fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL) {
            // It has ended: that is what was wanted.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    fn usage(&self) -> io::Result<HostUsage> {
        HostUsage::of(self.mark.pid)
    }

    fn proportional_bytes(&self) -> io::Result<u64> {
        proc::proportional_bytes(self.mark.pid)
    }
}

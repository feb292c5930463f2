//! Who holds a program's socket, and the socket itself for a moment.
//!
//! TCP must end when the program's last descriptor does, so nobody else may keep one. What has to be done with the socket - a
//! bell, the cut of a broken connection - is done with a copy that is taken from the program (`pidfd_getfd`) and closed at
//! once. Processes that share the socket after a fork are found in `/proc` when the one that is known has ended or closed
//! it.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// A process that holds the socket.
#[derive(Debug)]
pub(super) struct Holder {
    /// The kernel's number of the socket, by which a copy is recognised.
    cookie: u64,
    inode: u64,
    process: OwnedFd,
    pid: Pid,
    fd: RawFd,
    /// It was found since it was asked last.
    fresh: bool,
}

impl Holder {
    /// The process `pid`, which says that `socket` is its descriptor `fd`.
    ///
    /// # Errors
    /// What the kernel says: the process is no more, or this one may not take descriptors from it (CAP_SYS_PTRACE).
    pub(super) fn new(socket: BorrowedFd<'_>, pid: u32, fd: RawFd) -> io::Result<Self> {
        let cookie = sockopt::socket_cookie(socket)?;
        let inode = rustix::fs::fstat(socket)?.st_ino;
        let number = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        let pid = Pid::from_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let holder = Self { cookie, inode, process, pid, fd, fresh: false };
        match holder.copy() {
            Some(_) => Ok(holder),
            None => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Becomes readable when the process ends.
    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    fn copy(&self) -> Option<OwnedFd> {
        let copy = pidfd_getfd(&self.process, self.fd, PidfdGetfdFlags::empty()).ok()?;
        // The number may be another file's by now.
        (sockopt::socket_cookie(&copy).ok()? == self.cookie).then_some(copy)
    }

    /// The socket, to be closed at once. `None`: no process holds it.
    pub(super) fn socket(&mut self) -> Option<OwnedFd> {
        self.copy().or_else(|| if self.renew() { self.copy() } else { None })
    }

    /// Whether [`Holder::process`] is another one than at the last asking.
    pub(super) const fn take_fresh(&mut self) -> bool {
        std::mem::replace(&mut self.fresh, false)
    }

    /// Whether the process that is known has ended.
    pub(super) fn has_ended(&self) -> bool {
        let mut set = [PollFd::new(&self.process, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut set, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Looks for a process that holds the socket; `false` if there is none.
    pub(super) fn renew(&mut self) -> bool {
        let known = self.pid.as_raw_nonzero().get();
        if self.adopt(known) {
            return true;
        }
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .any(|pid: i32| self.adopt(pid))
    }

    fn adopt(&mut self, number: i32) -> bool {
        let wanted = format!("socket:[{}]", self.inode);
        let Ok(files) = fs::read_dir(format!("/proc/{number}/fd")) else { return false };
        let found = files.flatten().find_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let fd = entry.file_name().to_str()?.parse().ok()?;
            (target.as_os_str() == wanted.as_str()).then_some(fd)
        });
        let (Some(fd), Some(pid)) = (found, Pid::from_raw(number)) else { return false };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        // Between the look and here the number may have become another process's: the cookie tells.
        let before = std::mem::replace(&mut self.process, process);
        let known = std::mem::replace(&mut self.fd, fd);
        let holds = self.copy().is_some();
        if holds {
            (self.pid, self.fresh) = (pid, true);
        } else {
            (self.process, self.fd) = (before, known);
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    #[test]
    fn a_socket_is_found_with_whoever_holds_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // A child that has it as its standard input.
        let child = |socket: &TcpStream| {
            let input = Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
            Command::new("sleep").arg("60").stdin(input).spawn().unwrap()
        };
        let mut one = child(&here);
        let mut other = child(&here);
        let mut holder = Holder::new(here.as_fd(), one.id(), 0).unwrap();
        drop(here);
        assert!(holder.socket().is_some());
        one.kill().unwrap();
        one.wait().unwrap();
        assert!(holder.has_ended());
        let copy = holder.socket().expect("the other child has it");
        assert!(copy.as_raw_fd() >= 0);
        drop(copy);
        assert!(!holder.has_ended());
        assert!(holder.take_fresh() && !holder.take_fresh(), "its end is to be waited for, once");
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(holder.socket().is_none());
        assert!(!holder.renew());
    }
}

//! Which processes hold which sockets, as `/proc` tells.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::RawFd;
use std::path::Path;

/// A process that holds a socket, and by which descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) pid: u32,
    pub(super) fd: RawFd,
}

/// A process for each of the sockets, by their inodes; none for those that nobody holds, or nobody whom we may look at.
pub(super) fn holders(wanted: &HashSet<u64>) -> HashMap<u64, Holding> {
    let mut found = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids {
        if found.len() == wanted.len() {
            break;
        }
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let held = files.flatten().filter_map(|entry| {
            let fd = entry.file_name().to_str()?.parse().ok()?;
            Some((inode(&entry.path())?, Holding { pid, fd }))
        });
        found.extend(held.filter(|(inode, _)| wanted.contains(inode)));
    }
    found
}

/// Whether a process holds a socket by this descriptor.
pub(super) fn holds(pid: u32, fd: RawFd, socket: u64) -> bool {
    inode(Path::new(&format!("/proc/{pid}/fd/{fd}"))) == Some(socket)
}

/// Whether this user may not see what a process holds.
pub(super) fn is_hidden(pid: u32) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    files.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The inode of an open socket.
fn inode(descriptor: &Path) -> Option<u64> {
    let target = fs::read_link(descriptor).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn a_socket_is_found_with_this_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(socket.as_fd()).unwrap().st_ino;
        let found = holders(&HashSet::from([inode, 1]));
        let holding = Holding { pid: std::process::id(), fd: socket.as_raw_fd() };
        assert_eq!(found, HashMap::from([(inode, holding)]));
        assert!(holds(holding.pid, holding.fd, inode));
        assert!(!holds(holding.pid, holding.fd, inode + 1));
        drop(socket);
        assert_eq!(holders(&HashSet::from([inode])), HashMap::new());
    }
}

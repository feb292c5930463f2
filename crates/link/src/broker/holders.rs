//! Which processes hold which sockets, as `/proc` tells.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// A process for each of the sockets, by their inodes; none for those that nobody holds, or nobody whom we may look at.
pub(super) fn holders(wanted: &HashSet<u64>) -> HashMap<u64, u32> {
    let mut found = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids {
        if found.len() == wanted.len() {
            break;
        }
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let inodes = files.flatten().filter_map(|entry| inode(&entry.path()));
        found.extend(inodes.filter(|inode| wanted.contains(inode)).map(|inode| (inode, pid)));
    }
    found
}

/// The inode of an open socket.
fn inode(descriptor: &Path) -> Option<u64> {
    let target = fs::read_link(descriptor).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_socket_is_found_with_this_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(socket.as_fd()).unwrap().st_ino;
        let found = holders(&HashSet::from([inode, 1]));
        assert_eq!(found, HashMap::from([(inode, std::process::id())]));
        drop(socket);
        assert_eq!(holders(&HashSet::from([inode])), HashMap::new());
    }
}

//! Connections that asked and were refused: they stay on TCP, and are kept here to be shown with the reason.
//!
//! Nothing is sent for it: a library asks for each connection that has shown traffic, and what it is answered is noted. Whether a
//! program still holds its socket is looked up in `/proc`; how many bytes went, asked of the kernel when somebody wants a list.

use super::holders::{self, holders};
use super::list::{Connection, Path};
use super::table::{End, Place, Table};
use crate::remote::Unreached;
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use skein_link_core::ring::Role;
use skein_link_core::ring::host::tcp_bytes;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;

/// Of one project at a time. 1,024: each costs a look into `/proc` a second, some microseconds.
const REFUSED_MAX: usize = 1024;
/// So many leave when there are too many, for finding them takes a look at all.
const LEAVE_AT_ONCE: usize = REFUSED_MAX / 16;

/// Why a connection that asked got no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Its peer is elsewhere, and the light protocol does not get there.
    Unreached(Unreached),
    /// It is of another network namespace than the node's own, where a program may have any addresses.
    Namespace,
    /// A rule of the cloud.
    Forbidden,
    /// Changes of its namespace's firewall cannot be heard.
    Unwatched,
    /// The firewall has changed, and the connection has not heard of its peer since.
    Unproven,
    /// Its project has as many as it may.
    TooMany,
    /// There is no memory for it.
    NoMemory,
    /// The kernel does not let us, or is too old.
    NoMeans,
}

impl Why {
    /// Whether it may ask again.
    pub(super) const fn passes(self) -> bool {
        matches!(self, Self::Unproven | Self::TooMany | Self::NoMemory)
    }

    /// Its word in lists.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Unreached(Unreached::NoNode) => "no-node",
            Self::Unreached(Unreached::Away) => "node-away",
            Self::Unreached(Unreached::Encrypted) => "encrypted",
            Self::Namespace => "other-namespace",
            Self::Forbidden => "forbidden",
            Self::Unwatched => "unwatched",
            Self::Unproven => "unproven",
            Self::TooMany => "too-many",
            Self::NoMemory => "no-memory",
            Self::NoMeans => "no-means",
        }
    }
}

/// What is known of one, beside its ends.
#[derive(Debug)]
struct Refused {
    why: Why,
    /// The descriptors, low and high, in the processes that hold the ends.
    fds: [RawFd; 2],
    /// Greater than that of all that were noted before.
    number: u64,
}

/// All of them.
pub(super) struct List {
    table: Table<Refused>,
    noted: u64,
}

impl List {
    pub(super) fn new() -> Self {
        Self { table: Table::new(REFUSED_MAX), noted: 0 }
    }

    /// An end was refused; again, perhaps.
    pub(super) fn note(&mut self, place: &Place, role: Role, (end, fd): (End, RawFd), why: Why) {
        self.table.supersede(place, role, end.cookie);
        if !self.table.has(place) && self.table.count(&place.project) >= REFUSED_MAX {
            self.make_room(&place.project);
        }
        self.noted += 1;
        let fresh = Refused { why, fds: [-1; 2], number: self.noted };
        let asked = self.table.ask(place.clone(), role, end, || Ok::<_, Infallible>(fresh));
        if let Ok(Some(entry)) = asked {
            entry.shared.why = why;
            entry.shared.fds[role.index()] = fd;
        }
    }

    /// The oldest of the process that has most leave: who claims many pushes out his own.
    fn make_room(&mut self, project: &Arc<str>) {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        let of_project = || self.table.iter().filter(|(place, _)| place.project == *project);
        for (_, entry) in of_project() {
            for end in entry.ends.iter().flatten() {
                *counts.entry(end.pid).or_default() += 1;
            }
        }
        let Some((most, _)) = counts.into_iter().max_by_key(|(pid, count)| (*count, *pid)) else {
            return;
        };
        let theirs = of_project().filter(|(_, e)| e.ends.iter().flatten().any(|e| e.pid == most));
        let numbered = theirs.map(|(place, entry)| (entry.shared.number, place.clone()));
        let mut theirs: Vec<(u64, Place)> = numbered.collect();
        theirs.sort_unstable_by_key(|(number, _)| *number);
        for (_, place) in theirs.iter().take(LEAVE_AT_ONCE) {
            self.table.remove(place);
        }
    }

    /// It has got a segment, or is told otherwise.
    pub(super) fn forget(&mut self, place: &Place) {
        self.table.remove(place);
    }

    /// Those for which the condition holds.
    pub(super) fn tell(&self, wanted: impl Fn(&Place) -> bool) -> Vec<Connection> {
        let entries = self.table.iter().filter(|(place, _)| wanted(place));
        let tell = |(place, entry): (&Place, &super::table::Entry<Refused>)| Connection {
            project: place.project.to_string(),
            low: place.key.low.to_string(),
            high: place.key.high.to_string(),
            pids: entry.ends.map(|end| end.map_or(0, |end| end.pid)),
            path: Path::Tcp,
            reason: entry.shared.why.word().to_owned(),
            ring_bytes: [0; 2],
            tcp_bytes: bytes(&entry.ends, entry.shared.fds),
            wakeups: [0; 2],
        };
        entries.map(tell).collect()
    }

    /// Drops those that no program holds any more.
    pub(super) fn sweep(&mut self) {
        let mut missed = HashSet::new();
        for (_, entry) in self.table.iter() {
            for (end, fd) in entry.ends.iter().zip(entry.shared.fds) {
                let missing = end.filter(|end| !holders::holds(end.pid, fd, end.inode));
                missed.extend(missing.map(|end| end.inode));
            }
        }
        if missed.is_empty() {
            return;
        }
        let found = holders(&missed);
        for (_, entry) in self.table.iter_mut() {
            for (place, fd) in entry.ends.iter_mut().zip(&mut entry.shared.fds) {
                let Some(end) = place.as_mut().filter(|end| missed.contains(&end.inode)) else {
                    continue;
                };
                match found.get(&end.inode) {
                    Some(holder) => (end.pid, *fd) = (holder.pid, holder.fd),
                    // Whoever may not look asks no more than whether the process lives.
                    None if holders::is_hidden(end.pid) => {}
                    None => *place = None,
                }
            }
        }
        self.table.retain(|_, entry| entry.ends.iter().any(Option::is_some));
    }
}

/// Bytes of a connection from low to high and back, as the kernel of an end that is here counts them.
fn bytes(ends: &[Option<End>; 2], fds: [RawFd; 2]) -> Option<[u64; 2]> {
    let (low, high) = (ends[0].zip(Some(fds[0])), ends[1].zip(Some(fds[1])));
    let of_low = low.and_then(|(end, fd)| counted(end, fd));
    of_low.or_else(|| {
        let [to_low, to_high] = high.and_then(|(end, fd)| counted(end, fd))?;
        Some([to_high, to_low])
    })
}

/// What an end has sent and received. Its socket is taken for a moment, and nothing is done with it.
fn counted(end: End, fd: RawFd) -> Option<[u64; 2]> {
    let pid = Pid::from_raw(i32::try_from(end.pid).ok()?)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let socket = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()?;
    // The number may be another file's by now.
    let is_it = sockopt::socket_cookie(&socket).ok()? == end.cookie;
    is_it.then(|| tcp_bytes(socket.as_fd()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::ConnectionKey;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    const LOW: ([u8; 4], u16) = ([10, 0, 0, 1], 80);

    fn place(project: &str, number: u16) -> Place {
        let key = ConnectionKey::new(SocketAddr::from(LOW), ([10, 0, 0, 2], number).into());
        Place { project: project.into(), namespace: 1, key }
    }

    /// Notes one that a process has; nothing of it is in `/proc`.
    fn note(list: &mut List, project: &str, number: u16, pid: u32) {
        let end = End { cookie: u64::from(number), inode: 1 << 60, pid };
        list.note(&place(project, number), Role::Low, (end, 3), Why::Forbidden);
    }

    #[test]
    fn who_claims_many_pushes_out_his_own() {
        let mut list = List::new();
        for number in 1..=3 {
            note(&mut list, "one", number, 7);
        }
        note(&mut list, "two", 1, 9);
        for number in 10..5000 {
            note(&mut list, "one", number, 8);
        }
        let count = list.tell(|place| *place.project == *"one").len();
        assert!((REFUSED_MAX - LEAVE_AT_ONCE..=REFUSED_MAX).contains(&count), "{count}");
        let kept = list.tell(|_| true);
        assert_eq!(kept.iter().filter(|one| one.pids[0] == 7).count(), 3);
        assert_eq!(kept.iter().filter(|one| one.project == "two").count(), 1);
        // The latest are there, the oldest are not.
        let has = |number: u16| list.table.has(&place("one", number));
        assert!(has(4999) && !has(10));
    }

    #[test]
    fn for_one_too_many_64_leave_at_once_the_oldest() {
        let mut list = List::new();
        let most = u16::try_from(REFUSED_MAX).unwrap();
        (1..=most).for_each(|number| note(&mut list, "one", number, 7));
        let count = |list: &List| list.tell(|_| true).len();
        assert_eq!(count(&list), REFUSED_MAX);
        // One that is there already needs no room.
        note(&mut list, "one", 5, 7);
        assert_eq!(count(&list), REFUSED_MAX);
        note(&mut list, "one", most + 1, 7);
        assert_eq!(count(&list), REFUSED_MAX - LEAVE_AT_ONCE + 1);
        let has = |number: u16| list.table.has(&place("one", number));
        assert!((1..=64).all(|number| !has(number)) && (65..=most + 1).all(has));
    }

    #[test]
    fn it_is_told_once_with_its_latest_reason_until_it_is_taken() {
        let mut list = List::new();
        note(&mut list, "one", 1, 7);
        let end = End { cookie: 100, inode: 2 << 60, pid: 8 };
        list.note(&place("one", 1), Role::High, (end, 4), Why::TooMany);
        let told = list.tell(|_| true);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].pids, told[0].reason.as_str()), ([7, 8], "too-many"));
        assert_eq!((told[0].path, told[0].tcp_bytes), (Path::Tcp, None));
        list.forget(&place("one", 1));
        assert!(list.tell(|_| true).is_empty());
    }

    #[test]
    fn it_is_there_while_somebody_holds_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let inode = rustix::fs::fstat(&socket).unwrap().st_ino;
        let cookie = sockopt::socket_cookie(&socket).unwrap();
        let end = End { cookie, inode, pid: std::process::id() };
        let mut list = List::new();
        list.note(&place("one", 1), Role::Low, (end, socket.as_raw_fd()), Why::Forbidden);
        list.sweep();
        assert_eq!(list.tell(|_| true)[0].pids[0], std::process::id());
        // By another descriptor, which is found.
        let other = socket.try_clone().unwrap();
        drop(socket);
        list.sweep();
        assert_eq!(list.tell(|_| true).len(), 1);
        drop(other);
        list.sweep();
        assert!(list.tell(|_| true).is_empty());
    }

    #[test]
    fn each_reason_has_a_word_of_its_own() {
        let unreached = [Unreached::NoNode, Unreached::Away, Unreached::Encrypted];
        let others = [Why::Namespace, Why::Forbidden, Why::Unwatched, Why::Unproven];
        let means = [Why::TooMany, Why::NoMemory, Why::NoMeans];
        let all = unreached.map(Why::Unreached).into_iter().chain(others).chain(means);
        let words: HashSet<&str> = all.map(Why::word).collect();
        assert_eq!(words.len(), 10);
    }
}

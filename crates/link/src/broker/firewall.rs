//! Notices that somebody changes the firewall of a network namespace.
//!
//! The kernel tells each change of nftables on a socket of the namespace that it happens in. What the rules mean is not looked
//! at: a connection whose rules have changed goes back to TCP, where the kernel judges every packet by the new ones.

use crate::place::own_namespace;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use skein_link_core::ring::host::{last_heard, network_namespace_file};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::warn;

/// 256: containers of one host whose programs are under the link at the same time; each costs a descriptor.
const WATCHES_MAX: usize = 256;
/// Group 7 of the kernel's nfnetlink groups: changes of nftables.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);
/// Subsystem of nftables in a message's type.
const NFTABLES: u8 = 10;
/// `NFT_MSG_NEWGEN`: only the number of a change whose parts are told as well.
const NEW_GENERATION: u8 = 15;
/// In messages about tables, chains, rules, sets and their elements, this attribute is the table's name.
const ATTRIBUTE_TABLE: u16 = 1;
/// Kernel clocks tick at least so often; what was heard within a tick of a change may have come before it.
const TICK: Duration = Duration::from_millis(10);

/// 64 KiB: the kernel makes the messages of a change no longer than half of it.
const BUFFER: usize = 64 * 1024;

struct Watch {
    /// `None`: the kernel does not let us.
    socket: Option<OwnedFd>,
    /// The latest change.
    changed: Option<Instant>,
}

/// The namespaces that are watched.
pub(super) struct Watches {
    own: Option<u64>,
    /// Changes of tables whose names begin so are left alone.
    ignored: Option<String>,
    watches: HashMap<u64, Watch>,
    buffer: Vec<u8>,
}

impl Watches {
    /// Watches the calling thread's namespace, to begin with.
    pub(super) fn new(ignored: Option<String>) -> Self {
        let own = own_namespace();
        let socket = open().map_err(|error| {
            warn!(%error, "changes of the firewall go unnoticed; CAP_NET_ADMIN lets the broker see them");
        });
        let watch = Watch { socket: socket.ok(), changed: None };
        let watches = own.map(|own| (own, watch)).into_iter().collect();
        Self { own, ignored, watches, buffer: vec![0; BUFFER] }
    }

    /// Watches the namespace of a socket, if it does not yet; whether connections there may leave TCP.
    pub(super) fn cover(&mut self, namespace: u64, socket: BorrowedFd<'_>) -> bool {
        if self.watches.contains_key(&namespace) {
            return true;
        }
        if self.watches.len() >= WATCHES_MAX {
            return false;
        }
        match open_in(socket) {
            Ok(socket) => {
                self.watches.insert(namespace, Watch { socket: Some(socket), changed: None });
                true
            }
            Err(error) => {
                warn!(%error, "the firewall of a network namespace cannot be watched: its connections stay on TCP");
                false
            }
        }
    }

    /// What becomes readable when there is something to hear, by namespace.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        let heard = self.watches.iter();
        heard.filter_map(|(namespace, watch)| Some((*namespace, watch.socket.as_ref()?.as_fd())))
    }

    /// Hears what there is; whether rules of the namespace have changed.
    pub(super) fn hear(&mut self, namespace: u64, now: Instant) -> bool {
        let Some(watch) = self.watches.get_mut(&namespace) else { return false };
        let Some(socket) = &watch.socket else { return false };
        let mut changed = false;
        loop {
            match rustix::net::recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::AGAIN) => break,
                // More than fits is a change of many things.
                Ok((length, _)) if length >= BUFFER => changed = true,
                Ok((length, _)) => {
                    changed |= tells_change(&self.buffer[..length], self.ignored.as_deref());
                }
                // So many changes that some were not told.
                Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(error) => {
                    warn!(%error, "a firewall's changes cannot be heard any more");
                    watch.socket = None;
                    changed = true;
                    break;
                }
            }
        }
        if changed {
            watch.changed = Some(now);
        }
        changed
    }

    /// Whether a connection has heard of its peer over TCP since the rules have changed the last time.
    pub(super) fn is_proven(&self, namespace: u64, socket: BorrowedFd<'_>, now: Instant) -> bool {
        let Some(changed) = self.watches.get(&namespace).and_then(|watch| watch.changed) else {
            return true;
        };
        let since = now.saturating_duration_since(changed);
        last_heard(socket).is_ok_and(|ago| ago + TICK < since)
    }

    /// Forgets namespaces in which there is no connection.
    pub(super) fn retain(&mut self, is_used: impl Fn(u64) -> bool) {
        let own = self.own;
        self.watches.retain(|namespace, _| Some(*namespace) == own || is_used(*namespace));
    }
}

/// A socket on which the calling thread's namespace tells of changes.
fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
    Ok(socket)
}

/// The same in the namespace of a socket, from a thread that enters it.
fn open_in(other: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let namespace = network_namespace_file(other)?;
    let thread = std::thread::Builder::new().name("link-firewall".to_owned());
    let opening = thread.spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        open()
    })?;
    opening.join().map_err(|_| io::Error::other("the thread that opens it panicked"))?
}

/// Whether messages of the kernel tell of a change of a table that is not ignored.
fn tells_change(mut bytes: &[u8], ignored: Option<&str>) -> bool {
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        // Length 4, type 2, flags 2, sequence 4, port 4.
        if length < 16 || length > bytes.len() || rest.len() < 2 {
            return false;
        }
        let kind = u16::from_ne_bytes([rest[0], rest[1]]).to_be_bytes();
        if kind[0] == NFTABLES && kind[1] != NEW_GENERATION {
            let table = table_of(&bytes[16..length]);
            let is_ignored = ignored
                .zip(table)
                .is_some_and(|(prefix, table)| table.strip_prefix(prefix.as_bytes()).is_some());
            if !is_ignored {
                return true;
            }
        }
        // Messages begin at multiples of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// The table's name in a message's body: four bytes of nfnetlink, then attributes.
fn table_of(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body.get(4..)?;
    loop {
        let (head, _) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        // The two upper bits are flags.
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == ATTRIBUTE_TABLE {
            return Some(value.strip_suffix(&[0]).unwrap_or(value));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, subsystem: u8, table: &str) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        // An attribute before it, of three bytes.
        body.extend_from_slice(&[7, 0, 9, 0, 1, 2, 3, 0]);
        let length = u16::try_from(4 + table.len() + 1).unwrap().to_ne_bytes();
        body.extend_from_slice(&[length[0], length[1], 1, 0]);
        body.extend_from_slice(table.as_bytes());
        body.push(0);
        let length = u32::try_from(16 + body.len()).unwrap().to_ne_bytes();
        let mut bytes = length.to_vec();
        bytes.extend_from_slice(&u16::from_be_bytes([subsystem, kind]).to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn changes_are_told_apart_from_what_is_none() {
        let check = |bytes: &[u8], expect| {
            assert_eq!(tells_change(bytes, Some("skein-")), expect, "{bytes:02x?}");
        };
        check(&message(6, 10, "filter"), true);
        check(&message(6, 10, "skein-c1-n1"), false);
        check(&message(15, 10, "filter"), false);
        check(&message(6, 1, "filter"), false);
        check(&[message(6, 10, "skein-c1-n1"), message(12, 10, "filter")].concat(), true);
        check(&[message(15, 10, "x"), message(6, 10, "skein-x")].concat(), false);
        check(&[], false);
        // A table without a name in it is somebody's.
        let mut nameless = message(6, 10, "filter");
        nameless.truncate(20);
        nameless[..4].copy_from_slice(&20u32.to_ne_bytes());
        check(&nameless, true);
        assert!(tells_change(&message(6, 10, "skein-c1-n1"), None));
    }

    #[test]
    fn any_bytes_do_no_harm() {
        let whole = message(6, 10, "filter");
        for cut in 0..whole.len() {
            tells_change(&whole[..cut], Some("skein-"));
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                tells_change(&bytes, Some("skein-"));
            }
        }
    }
}

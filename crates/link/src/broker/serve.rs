//! The broker's thread: takes asks, answers them.

use super::list::{Connection, Shared, describe};
use super::table::{self, End, Place, Table};
use super::{BrokerConfig, BrokerError, Order};
use crate::remote::ConnectionKey;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
    sockopt,
};
use skein_link_core::negotiate::{Answer, Ask, LIST, MESSAGE_LEN};
use skein_link_core::ring::host::{Memory, network_namespace};
use skein_link_core::ring::{Hello, Reason, Refusal, Role};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tracing::{debug, warn};

/// Askers that have connected and not yet asked. 256: an ask follows its connection within microseconds.
const ASKERS_MAX: usize = 256;
/// Asks that may wait for the thread in the kernel.
const BACKLOG: i32 = 1024;
/// Between two looks at what nobody tells: stop, orders, ends that are no more.
const TICK: Duration = Duration::from_millis(100);
/// Every so many ticks, connections that have ended are dropped.
const TICKS_PER_SWEEP: u32 = 10;

struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    name: String,
}

struct Asker {
    socket: OwnedFd,
    project: usize,
    ticks: u32,
}

pub(crate) struct Server {
    config: BrokerConfig,
    listeners: Vec<Listener>,
    askers: Vec<Asker>,
    table: Table<Shared>,
    stop: Arc<AtomicBool>,
    orders: Receiver<Order>,
}

impl Server {
    pub(crate) fn bind(
        config: BrokerConfig,
        stop: Arc<AtomicBool>,
        orders: Receiver<Order>,
    ) -> Result<Self, BrokerError> {
        let mut listeners = Vec::new();
        for project in &config.projects {
            let socket = listen(&project.socket)?;
            listeners.push(Listener {
                socket,
                path: project.socket.clone(),
                name: project.name.clone(),
            });
        }
        let table = Table::new(config.connections_max);
        Ok(Self { config, listeners, askers: Vec::new(), table, stop, orders })
    }

    pub(crate) fn run(mut self) {
        let mut ticks = 0u32;
        while !self.stop.load(Ordering::Acquire) {
            let ready = self.wait();
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            match ready {
                Some(ready) => self.serve(&ready),
                None => {
                    ticks = ticks.wrapping_add(1);
                    for asker in &mut self.askers {
                        asker.ticks += 1;
                    }
                    self.askers.retain(|asker| asker.ticks < TICKS_PER_SWEEP);
                }
            }
            if ticks >= TICKS_PER_SWEEP {
                ticks = 0;
                self.sweep();
            }
        }
    }

    /// Which sockets are readable, listeners first; `None` after a tick without any.
    fn wait(&self) -> Option<Vec<bool>> {
        let listeners = self.listeners.iter().map(|listener| &listener.socket);
        let askers = self.askers.iter().map(|asker| &asker.socket);
        let mut set: Vec<_> =
            listeners.chain(askers).map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        let tick = Timespec::try_from(TICK).ok()?;
        match poll(&mut set, Some(&tick)) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(set.iter().map(|entry| !entry.revents().is_empty()).collect()),
        }
    }

    fn serve(&mut self, ready: &[bool]) {
        let (listeners, askers) = ready.split_at(self.listeners.len());
        let mut rest = Vec::new();
        let mut asking = Vec::new();
        for (index, asker) in std::mem::take(&mut self.askers).into_iter().enumerate() {
            let is_ready = askers.get(index).is_some_and(|ready| *ready);
            let into = if is_ready { &mut asking } else { &mut rest };
            into.push(asker);
        }
        self.askers = rest;
        for (project, _) in listeners.iter().enumerate().filter(|(_, ready)| **ready) {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            while self.askers.len() < ASKERS_MAX {
                let listener = &self.listeners[project].socket;
                let Ok(socket) = rustix::net::accept_with(listener, flags) else { break };
                // Mostly the ask is there already.
                asking.push(Asker { socket, project, ticks: 0 });
                if asking.len() >= ASKERS_MAX {
                    break;
                }
            }
        }
        for asker in asking {
            self.answer(asker);
        }
    }

    fn answer(&mut self, asker: Asker) {
        let mut bytes = [0; MESSAGE_LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&asker.socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Ok(received) if received.bytes == MESSAGE_LEN => received,
            Err(rustix::io::Errno::AGAIN) => return self.askers.push(asker),
            _ => return,
        };
        let _ = received;
        let mut passed = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let socket = passed.next().and_then(|mut files| files.next());
        if bytes == LIST {
            return self.send_list(&asker);
        }
        let (Ok(_), Some(socket)) = (Ask::decode(&bytes), socket) else {
            debug!("an ask that is none");
            return;
        };
        let pid = sockopt::socket_peercred(&asker.socket)
            .map_or(0, |peer| u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0));
        let answer = self.find(asker.project, socket.as_fd(), pid);
        // Closed before the answer: the program's own close must be the last.
        drop(socket);
        let (answer, file) = match &answer {
            Found::Segment(role, file) => (Answer::Segment(*role), Some(file.as_fd())),
            Found::Never => (Answer::Never, None),
            Found::Later => (Answer::Later, None),
        };
        reply(asker.socket.as_fd(), answer, file);
    }

    /// The segment for a socket.
    fn find(&mut self, project: usize, socket: BorrowedFd<'_>, pid: u32) -> Found {
        let Some((place, role, local, peer)) = place(project, socket) else {
            return Found::Never;
        };
        let Ok(cookie) = sockopt::socket_cookie(socket) else {
            return Found::Never;
        };
        if !is_local(local.ip(), peer.ip()) {
            // To another host goes what the node reaches; the node is not asked for what it does not.
            return Found::Never;
        }
        let capacity = self.config.capacity;
        let make = || Memory::create(capacity).map(|memory| Shared { memory, light: false });
        match self.table.ask(place, role, End { cookie, pid }, make) {
            Ok(Some(entry)) => match rustix::io::fcntl_dupfd_cloexec(entry.shared.memory.file(), 0)
            {
                Ok(file) => Found::Segment(role, file),
                Err(_) => Found::Later,
            },
            Ok(None) => Found::Later,
            Err(error) => {
                warn!(%error, "no memory for a connection");
                Found::Later
            }
        }
    }

    fn list(&self, project: Option<usize>) -> Vec<Connection> {
        let wanted = |place: &Place| project.is_none_or(|project| place.project == project);
        let entries = self.table.iter().filter(|(place, _)| wanted(place));
        let mut list: Vec<_> = entries
            .map(|(place, entry)| describe(&self.listeners[place.project].name, place, entry))
            .collect();
        list.sort_by(|one, other| (&one.low, &one.high).cmp(&(&other.low, &other.high)));
        list
    }

    fn send_list(&self, asker: &Asker) {
        // The asker reads as fast as it can; one that does not gets what fits.
        for connection in self.list(Some(asker.project)) {
            let Ok(packet) = serde_json::to_vec(&connection) else { return };
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            if rustix::net::send(&asker.socket, &packet, flags).is_err() {
                return;
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::List(answer) => {
                let _ = answer.send(self.list(None));
            }
            Order::Revoke(forbidden, answer) => {
                let mut count = 0;
                for (place, entry) in self.table.iter() {
                    if forbidden(&place.key) {
                        revoke(&entry.shared);
                        count += 1;
                    }
                }
                let _ = answer.send(count);
            }
        }
    }

    /// Drops connections whose programs are gone.
    fn sweep(&mut self) {
        self.table.retain(|_, entry| {
            let header = entry.shared.memory.segment().header();
            let gone = |role: Role, end: &Option<End>| match end {
                None => true,
                Some(end) => header.hello(role) == Hello::Gone || !is_alive(end.pid),
            };
            !(gone(Role::Low, &entry.ends[0]) && gone(Role::High, &entry.ends[1]))
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in &self.listeners {
            let _ = std::fs::remove_file(&listener.path);
        }
    }
}

enum Found {
    Segment(Role, OwnedFd),
    Never,
    Later,
}

fn revoke(shared: &Shared) {
    let segment = shared.memory.segment();
    for role in [Role::Low, Role::High] {
        segment.pipe(role).direction().refuse(Refusal::NoMore);
        segment.header().leave(role, Reason::Operator);
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// Whose connection a socket is an end of. `None`: it is no connected TCP socket, or one that cannot be told apart.
fn place(project: usize, socket: BorrowedFd<'_>) -> Option<(Place, Role, SocketAddr, SocketAddr)> {
    if sockopt::socket_protocol(socket).ok()? != Some(rustix::net::ipproto::TCP) {
        return None;
    }
    let local = address(rustix::net::getsockname(socket).ok()?)?;
    let peer = address(rustix::net::getpeername(socket).ok()??)?;
    let role = table::role(local, peer)?;
    let namespace = network_namespace(socket).ok()?;
    let key = ConnectionKey::new(local, peer);
    Some((Place { project, namespace, key }, role, local, peer))
}

/// An address in its plainest form: IPv4 as such, even on an IPv6 socket, without flow and scope.
fn address(address: rustix::net::SocketAddrAny) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(address).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Whether both addresses are this host's. An address of one's own is reached from that same address, unless a program
/// chose otherwise; then the connection stays on TCP.
fn is_local(local: IpAddr, peer: IpAddr) -> bool {
    local == peer || (local.is_loopback() && peer.is_loopback())
}

fn reply(asker: BorrowedFd<'_>, answer: Answer, file: Option<BorrowedFd<'_>>) {
    let bytes = answer.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files;
    if let Some(file) = file {
        files = [file];
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let pieces = [IoSlice::new(&bytes)];
    if let Err(error) = sendmsg(asker, &pieces, &mut control, SendFlags::NOSIGNAL) {
        debug!(%error, "an asker did not wait for its answer");
    }
}

/// A listening socket. A file that nobody listens on is replaced.
fn listen(path: &std::path::Path) -> Result<OwnedFd, BrokerError> {
    let failed = |source: rustix::io::Errno| BrokerError::Listen {
        path: path.to_owned(),
        source: source.into(),
    };
    let address =
        SocketAddrUnix::new(path).map_err(|_| BrokerError::Path { path: path.to_owned() })?;
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    };
    if path.exists() {
        match rustix::net::connect(make().map_err(failed)?, &address) {
            Ok(()) | Err(rustix::io::Errno::AGAIN) => {
                return Err(BrokerError::Running { path: path.to_owned() });
            }
            Err(_) => {
                let _ = std::fs::remove_file(path);
            }
        }
    }
    let socket = make().map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(path, mode)
        .map_err(|source| BrokerError::Listen { path: path.to_owned(), source })?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket)
}

//! The broker's thread: takes asks, answers them.

use super::far::{self, Asker as FarAsker, Doorman, Program};
use super::list::{Connection, Shared, Totals, describe};
use super::table::{self, End, Place, Table};
use super::{BrokerConfig, BrokerError, Order};
use crate::remote::{ConnectionKey, Meeting, PROJECT_BYTES_MAX, Remote};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
    sockopt,
};
use skein_link_core::negotiate::{Answer, Ask, LIST, MESSAGE_LEN};
use skein_link_core::ring::host::{Memory, network_namespace};
use skein_link_core::ring::{Hello, Reach, Reason, Refusal, Role};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Askers that have connected and not yet asked. 256: an ask follows its connection within microseconds.
const ASKERS_MAX: usize = 256;
/// Asks that may wait for the thread in the kernel.
const BACKLOG: i32 = 1024;
/// Between two looks at what nobody tells: askers that do not ask, ends that are no more.
const TICK: Duration = Duration::from_millis(100);
/// How often connections that have ended are dropped, and askers that have not asked since the last time.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    name: String,
}

struct Asker {
    socket: OwnedFd,
    project: usize,
    /// It was there at the last sweep.
    old: bool,
}

pub(crate) struct Server {
    config: BrokerConfig,
    listeners: Vec<Listener>,
    askers: Vec<Asker>,
    table: Table<Shared>,
    /// Of the connections that are no more.
    past: Totals,
    /// Where connections to other hosts are taken; `None` if there is no way, or the kernel is too old.
    doorman: Option<Arc<Doorman>>,
    stop: Arc<AtomicBool>,
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
}

impl Server {
    pub(crate) fn bind(
        config: BrokerConfig,
        stop: Arc<AtomicBool>,
        orders: Receiver<Order>,
        wake: Arc<OwnedFd>,
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
        let doorman = config.remote.as_ref().and_then(|_| match Doorman::new() {
            Ok(doorman) => Some(Arc::new(doorman)),
            Err(error) => {
                warn!(%error, "connections to other hosts stay on TCP");
                None
            }
        });
        Ok(Self {
            config,
            listeners,
            askers: Vec::new(),
            table,
            past: Totals::default(),
            doorman,
            stop,
            orders,
            wake,
        })
    }

    pub(crate) fn run(mut self) {
        let mut swept = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            let ready = self.wait();
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            if let Some(ready) = ready {
                self.serve(&ready);
            }
            if swept.elapsed() >= SWEEP_EVERY {
                swept = Instant::now();
                self.sweep();
            }
        }
    }

    /// Which sockets are readable, listeners first, after the one that wakes; `None` after a tick without any.
    fn wait(&self) -> Option<Vec<bool>> {
        let listeners = self.listeners.iter().map(|listener| &listener.socket);
        let askers = self.askers.iter().map(|asker| &asker.socket);
        let wake = std::iter::once(&*self.wake);
        let all = wake.chain(listeners).chain(askers);
        let mut set: Vec<_> = all.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        let tick = Timespec::try_from(TICK).ok()?;
        match poll(&mut set, Some(&tick)) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(set.iter().map(|entry| !entry.revents().is_empty()).collect()),
        }
    }

    fn serve(&mut self, ready: &[bool]) {
        let Some((woken, ready)) = ready.split_first() else { return };
        if *woken {
            let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        }
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
                asking.push(Asker { socket, project, old: false });
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
        let (Ok(ask), Some(socket)) = (Ask::decode(&bytes), socket) else {
            debug!("an ask that is none");
            return;
        };
        let pid = sockopt::socket_peercred(&asker.socket)
            .map_or(0, |peer| u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0));
        let answer = self.find(asker.project, socket.as_fd(), pid, ask);
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
    fn find(&mut self, project: usize, socket: BorrowedFd<'_>, pid: u32, ask: Ask) -> Found {
        let Some((place, role, local, peer)) = place(project, socket) else {
            return Found::Never;
        };
        let Ok(cookie) = sockopt::socket_cookie(socket) else {
            return Found::Never;
        };
        let is_near = is_local(local.ip(), peer.ip());
        let (reach, capacity) =
            if is_near { (Reach::Near, self.config.capacity) } else { (Reach::Far, far::CAPACITY) };
        let far = if is_near { None } else { self.way_to(peer, project) };
        if !is_near && far.is_none() {
            return Found::Never;
        }
        if let Some(former) = self.table.supersede(&place, role, cookie) {
            self.past.add(&former.shared);
        }
        let mut fresh = false;
        let make = || {
            fresh = true;
            Memory::create(capacity, reach).map(|memory| Shared { memory: Arc::new(memory) })
        };
        let memory = match self.table.ask(place.clone(), role, End { cookie, pid }, make) {
            Ok(Some(entry)) => Arc::clone(&entry.shared.memory),
            Ok(None) => return Found::Later,
            Err(error) => {
                warn!(%error, "no memory for a connection");
                return Found::Later;
            }
        };
        if !fresh && memory.segment().header().hello(role) != Hello::None {
            // A program that was started with this socket. What the one before it agreed is its own.
            return Found::Never;
        }
        let Ok(file) = rustix::io::fcntl_dupfd_cloexec(memory.file(), 0) else {
            return Found::Later;
        };
        if let Some((doorman, remote)) = far.filter(|_| fresh) {
            let fd = RawFd::try_from(ask.fd).unwrap_or(-1);
            match Program::new(memory, &FarAsker { socket, pid, fd, role }, &doorman) {
                Ok(program) => {
                    let project = self.listeners[project].name.clone();
                    remote.open(Meeting { project, key: place.key }, peer, Box::new(program));
                }
                Err(error) => {
                    debug!(%error, "a program's socket cannot be had when it is needed");
                    self.table.remove(&place);
                    return Found::Never;
                }
            }
        }
        Found::Segment(role, file)
    }

    /// What takes a connection to another host, if anything does.
    fn way_to(&self, peer: SocketAddr, project: usize) -> Option<(Arc<Doorman>, Arc<dyn Remote>)> {
        let remote = self.config.remote.as_ref().filter(|remote| remote.reaches(peer))?;
        let fits = self.listeners[project].name.len() <= PROJECT_BYTES_MAX;
        Some((self.doorman.clone().filter(|_| fits)?, Arc::clone(remote)))
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
            Order::Totals(answer) => {
                let mut totals = self.past.clone();
                self.table.iter().for_each(|(_, entry)| totals.add(&entry.shared));
                let _ = answer.send(totals);
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
        self.askers.retain(|asker| !asker.old);
        for asker in &mut self.askers {
            asker.old = true;
        }
        let past = &mut self.past;
        self.table.retain(|entry| {
            let header = entry.shared.memory.segment().header();
            let gone = |role: Role, end: &Option<End>| match end {
                None => true,
                Some(end) => header.hello(role) == Hello::Gone || !is_alive(end.pid),
            };
            // The node looks by itself after the programs whose peers are far.
            let is_carried = Arc::strong_count(&entry.shared.memory) > 1;
            let keeps = is_carried
                || !(gone(Role::Low, &entry.ends[0]) && gone(Role::High, &entry.ends[1]));
            if !keeps {
                past.add(&entry.shared);
            }
            keeps
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

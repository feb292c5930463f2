//! The broker's thread: takes asks, answers them.

use super::asker::{ASKERS_MAX, Asker, Wish, keep};
use super::far::{self, Asker as FarAsker, Doorman, Program};
use super::firewall::Watches;
use super::holders::{holders, is_hidden};
use super::list::{Connection, Shared, Totals, describe};
use super::listen::Listener;
use super::refused::{self, Why};
use super::table::{self, End, Place, Table};
use super::{BrokerConfig, BrokerError, Order, Project};
use crate::remote::{ConnectionKey, Meeting, PROJECT_BYTES_MAX, Remote, Unreached};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, sockopt};
use skein_link_core::negotiate::{Answer, Ask};
use skein_link_core::ring::host::{Memory, network_namespace, wake_all};
use skein_link_core::ring::{Hello, Reach, Reason, Refusal, Role};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Between two looks at what nobody tells: askers that do not ask, ends that are no more.
const TICK: Duration = Duration::from_millis(100);
/// How often connections that have ended are dropped, and askers that have not asked since the last time.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked up who holds the sockets: a process may hand its socket on and live.
const HOLDERS_EVERY: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    config: BrokerConfig,
    listeners: Vec<Listener>,
    /// In the order in which they came.
    askers: Vec<Asker>,
    table: Table<Shared>,
    /// Those that were refused; for lists.
    refused: refused::List,
    /// Of the connections that are no more.
    past: Totals,
    /// Where connections to other hosts are taken; `None` if there is no way, or the kernel is too old.
    doorman: Option<Arc<Doorman>>,
    watches: Watches,
    stop: Arc<AtomicBool>,
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
    looked: Instant,
}

/// What has something for the thread.
enum Ready {
    Wake,
    Listener(usize),
    Namespace(u64),
    Asker(usize),
}

impl Server {
    pub(crate) fn bind(
        config: BrokerConfig,
        stop: Arc<AtomicBool>,
        orders: Receiver<Order>,
        wake: Arc<OwnedFd>,
    ) -> Result<Self, BrokerError> {
        let open = |project| Listener::open(project, !config.yields);
        let listeners = config.projects.iter().map(open).collect::<Result<_, _>>()?;
        let doorman = config.remote.as_ref().and_then(|_| match Doorman::new() {
            Ok(doorman) => Some(Arc::new(doorman)),
            Err(error) => {
                warn!(%error, "connections to other hosts stay on TCP");
                None
            }
        });
        Ok(Self {
            table: Table::new(config.connections_max),
            refused: refused::List::new(),
            watches: Watches::new(config.tables_ignored.clone()),
            config,
            listeners,
            askers: Vec::new(),
            past: Totals::default(),
            doorman,
            stop,
            orders,
            wake,
            looked: Instant::now(),
        })
    }

    pub(crate) fn run(mut self) {
        let mut swept = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            let ready = self.wait();
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            self.serve(&ready);
            if swept.elapsed() >= SWEEP_EVERY {
                swept = Instant::now();
                self.sweep();
            }
        }
    }

    /// Waits for a tick at most.
    fn wait(&self) -> Vec<Ready> {
        let wake = std::iter::once((Ready::Wake, PollFd::new(&*self.wake, PollFlags::IN)));
        let listeners = self.listeners.iter().enumerate().map(|(at, listener)| {
            (Ready::Listener(at), PollFd::new(&listener.socket, PollFlags::IN))
        });
        let watches = self.watches.sockets().map(|(namespace, socket)| {
            (Ready::Namespace(namespace), PollFd::from_borrowed_fd(socket, PollFlags::IN))
        });
        let askers =
            self.askers.iter().enumerate().map(|(at, asker)| {
                (Ready::Asker(at), PollFd::new(&asker.socket, asker.interest()))
            });
        let all = wake.chain(listeners).chain(watches).chain(askers);
        let (sources, mut set): (Vec<Ready>, Vec<PollFd<'_>>) = all.unzip();
        let tick = Timespec::try_from(TICK).ok();
        if poll(&mut set, tick.as_ref()).is_err() {
            return Vec::new();
        }
        let states = sources.into_iter().zip(&set);
        let ready = states.filter(|(_, state)| !state.revents().is_empty());
        ready.map(|(source, _)| source).collect()
    }

    fn serve(&mut self, ready: &[Ready]) {
        let mut asking = HashSet::new();
        let mut listening = Vec::new();
        for source in ready {
            match source {
                Ready::Wake => {
                    let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
                }
                // Before all asks: who asks after a change is judged by it.
                Ready::Namespace(namespace) => self.hear_firewall(*namespace),
                Ready::Listener(at) => listening.push(*at),
                Ready::Asker(at) => {
                    asking.insert(*at);
                }
            }
        }
        // Orders may have taken askers away since: then a place is another's, who is asked in vain.
        let all = std::mem::take(&mut self.askers).into_iter().enumerate();
        let (ready, rest): (Vec<_>, Vec<_>) = all.partition(|(at, _)| asking.contains(at));
        self.askers = rest.into_iter().map(|(_, asker)| asker).collect();
        for (_, asker) in ready {
            if let Some(asker) = self.answer(asker) {
                keep(&mut self.askers, asker);
            }
        }
        for at in listening {
            self.accept(at);
        }
    }

    fn hear_firewall(&mut self, namespace: u64) {
        if self.watches.hear(namespace, Instant::now()) {
            let count = self.revoke(|place| place.namespace == namespace);
            debug!(count, "the firewall's rules changed: connections went back to TCP");
        }
    }

    fn accept(&mut self, at: usize) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No more than fit: the others' turn comes first.
        for _ in 0..ASKERS_MAX {
            let Some(listener) = self.listeners.get(at) else { return };
            let Ok(socket) = rustix::net::accept_with(&listener.socket, flags) else { return };
            let project = Arc::clone(&listener.project);
            // Mostly the ask is there already.
            if let Some(asker) = self.answer(Asker::new(socket, project)) {
                keep(&mut self.askers, asker);
            }
        }
    }

    /// Answers an asker; back if there is more to hear or to tell.
    fn answer(&mut self, mut asker: Asker) -> Option<Asker> {
        if asker.is_told() {
            return asker.go_on().then_some(asker);
        }
        let (ask, socket) = match asker.hear() {
            Wish::Waits => return Some(asker),
            Wish::List => {
                let project = &asker.project;
                let mut list = self.list(|place| place.project == *project);
                list.extend(self.refused.tell(|place| place.project == *project));
                list.sort_by_cached_key(Connection::ends);
                let packets = list.iter().filter_map(|one| serde_json::to_vec(one).ok());
                return asker.tell(packets.collect()).then_some(asker);
            }
            Wish::Leave => {
                // Before the asker is let go, who then finds the sockets free.
                if self.config.yields {
                    self.listeners.clear();
                }
                return None;
            }
            Wish::Segment(ask, socket) => (ask, socket),
            Wish::Nonsense => {
                debug!("an ask that is none");
                return None;
            }
        };
        let found = self.find(&asker.project, socket.as_fd(), asker.pid(), ask);
        // Closed before the answer: the program's own close must be the last.
        drop(socket);
        match &found {
            Found::Segment(role, file) => asker.reply(Answer::Segment(*role), Some(file.as_fd())),
            Found::Never => asker.reply(Answer::Never, None),
            Found::Later => asker.reply(Answer::Later, None),
        }
        None
    }

    /// What a socket gets. A refusal is noted.
    fn find(&mut self, project: &Arc<str>, socket: BorrowedFd<'_>, pid: u32, ask: Ask) -> Found {
        let Some(seen) = Seen::of(project, socket) else { return Found::Never };
        let fd = RawFd::try_from(ask.fd).unwrap_or(-1);
        match self.segment(&seen, socket, (pid, fd)) {
            Ok(found) => {
                self.refused.forget(&seen.place);
                found
            }
            Err(why) => {
                // What the other end has got is told already, with what became of it.
                if !self.table.has(&seen.place) {
                    self.refused.note(&seen.place, seen.role, (seen.end(pid), fd), why);
                }
                if why.passes() { Found::Later } else { Found::Never }
            }
        }
    }

    /// The segment for a socket, which is this descriptor of that process.
    fn segment(
        &mut self,
        seen: &Seen,
        socket: BorrowedFd<'_>,
        (pid, fd): (u32, RawFd),
    ) -> Result<Found, Why> {
        let far = if seen.is_near { None } else { Some(self.way_to(seen)?) };
        self.judge(seen, socket)?;
        let (place, role) = (&seen.place, seen.role);
        if let Some(former) = self.table.supersede(place, role, seen.cookie) {
            self.past.add_ended(&former.shared);
        }
        let (reach, capacity) = match far {
            None => (Reach::Near, self.config.capacity),
            Some(_) => (Reach::Far, far::CAPACITY),
        };
        let mut fresh = false;
        let make = || {
            fresh = true;
            let memory = Memory::create(capacity, reach)?;
            Ok::<_, std::io::Error>(Shared { memory: Arc::new(memory), is_revoked: false })
        };
        let end = seen.end(pid);
        let memory = match self.table.ask(place.clone(), role, end, make) {
            Ok(Some(entry)) if entry.shared.is_revoked => return Ok(Found::Never),
            Ok(Some(entry)) => Arc::clone(&entry.shared.memory),
            Ok(None) => return Err(Why::TooMany),
            Err(error) => {
                warn!(%error, "no memory for a connection");
                return Err(Why::NoMemory);
            }
        };
        if !fresh && memory.segment().header().hello(role) != Hello::None {
            // A program that was started with this socket. What the one before it agreed is its own.
            return Ok(Found::Never);
        }
        let Ok(file) = rustix::io::fcntl_dupfd_cloexec(memory.file(), 0) else {
            return Ok(Found::Later);
        };
        if let Some((doorman, remote)) = far.filter(|_| fresh) {
            match Program::new(memory, &FarAsker { socket, pid, fd, role }, &doorman) {
                Ok(program) => {
                    let meeting = Meeting { project: place.project.to_string(), key: place.key };
                    remote.open(meeting, seen.peer, Box::new(program));
                }
                Err(error) => {
                    debug!(%error, "a program's socket cannot be had when it is needed");
                    self.table.remove(place);
                    return Err(Why::NoMeans);
                }
            }
        }
        Ok(Found::Segment(role, file))
    }

    /// What takes a connection to another host. Only those of the node's own network namespace: in another one a program may
    /// give itself any addresses.
    fn way_to(&self, seen: &Seen) -> Result<(Arc<Doorman>, Arc<dyn Remote>), Why> {
        let remote = self.config.remote.as_ref().ok_or(Why::Unreached(Unreached::NoNode))?;
        if !remote.reaches(seen.peer) {
            return Err(Why::Unreached(remote.why_not(seen.peer)));
        }
        if remote.namespace().is_some_and(|own| own != seen.place.namespace) {
            return Err(Why::Namespace);
        }
        let fits = seen.place.project.len() <= PROJECT_BYTES_MAX;
        let doorman = self.doorman.clone().filter(|_| fits).ok_or(Why::NoMeans)?;
        Ok((doorman, Arc::clone(remote)))
    }

    /// Whether guard or firewall are against it.
    fn judge(&mut self, seen: &Seen, socket: BorrowedFd<'_>) -> Result<(), Why> {
        let namespace = seen.place.namespace;
        if self.config.guard.as_ref().is_some_and(|guard| !guard.allows(&seen.place)) {
            return Err(Why::Forbidden);
        }
        if !self.watches.cover(namespace, socket) {
            return Err(Why::Unwatched);
        }
        // What has happened while this thread was asleep or answered others.
        self.hear_firewall(namespace);
        let is_proven = self.watches.is_proven(namespace, socket, Instant::now());
        if is_proven { Ok(()) } else { Err(Why::Unproven) }
    }

    fn list(&self, wanted: impl Fn(&Place) -> bool) -> Vec<Connection> {
        let entries = self.table.iter().filter(|(place, _)| wanted(place));
        let mut list: Vec<_> = entries.map(|(place, entry)| describe(place, entry)).collect();
        list.sort_by_cached_key(Connection::ends);
        list
    }

    fn obey(&mut self, order: Order) {
        // Who has asked waits for the answer; one who does not needs none.
        match order {
            Order::List(answer) => {
                let _ = answer.send(self.list(|_| true));
            }
            Order::Refused(answer) => {
                let mut list = self.refused.tell(|_| true);
                list.sort_by_cached_key(Connection::ends);
                let _ = answer.send(list);
            }
            Order::Totals(answer) => {
                let mut totals = self.past.clone();
                self.table.iter().for_each(|(_, entry)| totals.add(&entry.shared));
                let _ = answer.send(totals);
            }
            Order::Revoke(forbidden, answer) => {
                let _ = answer.send(self.revoke(forbidden));
            }
            Order::Enforce(answer) => {
                let guard = self.config.guard.clone();
                let forbids = |place: &Place| guard.as_ref().is_some_and(|g| !g.allows(place));
                let _ = answer.send(self.revoke(forbids));
            }
            Order::Projects(projects, answer) => {
                let _ = answer.send(self.set_projects(&projects));
            }
        }
    }

    /// Sends connections back to TCP for good; how many that were not there already.
    fn revoke(&mut self, forbidden: impl Fn(&Place) -> bool) -> usize {
        let mut count = 0;
        for (place, entry) in self.table.iter_mut() {
            if !entry.shared.is_revoked && forbidden(place) {
                entry.shared.revoke();
                count += 1;
            }
        }
        count
    }

    fn set_projects(&mut self, projects: &[Project]) -> Result<(), BrokerError> {
        self.listeners.retain(|listener| projects.iter().any(|project| listener.is_of(project)));
        let mut result = Ok(());
        for project in projects {
            if self.listeners.iter().any(|listener| listener.is_of(project)) {
                continue;
            }
            match Listener::open(project, !self.config.yields) {
                Ok(listener) => self.listeners.push(listener),
                Err(error) => result = Err(error),
            }
        }
        let served = |name: &str| projects.iter().any(|project| project.name == name);
        self.askers.retain(|asker| served(&asker.project));
        self.revoke(|place| !served(&place.project));
        result
    }

    /// Drops connections whose programs are gone.
    fn sweep(&mut self) {
        self.askers.retain(|asker| !asker.old);
        for asker in &mut self.askers {
            asker.old = true;
        }
        self.find_heirs();
        self.refused.sweep();
        let past = &mut self.past;
        self.table.retain(|_, entry| {
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
                past.add_ended(&entry.shared);
            }
            keeps
        });
        let used: HashSet<u64> = self.table.iter().map(|(place, _)| place.namespace).collect();
        self.watches.retain(|namespace| used.contains(&namespace));
    }

    /// A program that has asked may end while others hold its socket: the connection is theirs, and may be revoked as before.
    fn find_heirs(&mut self) {
        let looks = self.looked.elapsed() >= HOLDERS_EVERY;
        let ends = self.table.iter().flat_map(|(_, entry)| {
            let header = entry.shared.memory.segment().header();
            let roles = [Role::Low, Role::High].into_iter().zip(&entry.ends);
            let open = roles.filter(|(role, _)| header.hello(*role) != Hello::Gone);
            open.filter_map(|(_, end)| *end)
        });
        let wanted = ends.filter(|end| looks || !is_alive(end.pid)).map(|end| end.inode);
        let wanted: HashSet<u64> = wanted.collect();
        if looks {
            self.looked = Instant::now();
        }
        if wanted.is_empty() {
            return;
        }
        let found = holders(&wanted);
        for (_, entry) in self.table.iter_mut() {
            for end in entry.ends.iter_mut().flatten().filter(|end| wanted.contains(&end.inode)) {
                end.pid = match found.get(&end.inode) {
                    Some(holder) => holder.pid,
                    None if is_hidden(end.pid) => end.pid,
                    None => 0,
                };
            }
        }
    }
}

enum Found {
    Segment(Role, OwnedFd),
    Never,
    Later,
}

impl Shared {
    fn revoke(&mut self) {
        self.is_revoked = true;
        let segment = self.memory.segment();
        for role in [Role::Low, Role::High] {
            segment.pipe(role).direction().refuse(Refusal::NoMore);
            segment.header().leave(role, Reason::Operator);
        }
        // The other host's program hears of it from its node, which ours has to tell.
        if segment.reach() == Reach::Far && segment.header().call_node() {
            wake_all(segment.header().calls());
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// What the kernel says of a socket.
struct Seen {
    place: Place,
    role: Role,
    peer: SocketAddr,
    cookie: u64,
    inode: u64,
    is_near: bool,
}

impl Seen {
    /// The end that it is, of a process.
    const fn end(&self, pid: u32) -> End {
        End { cookie: self.cookie, inode: self.inode, pid }
    }

    /// `None`: it is no connected TCP socket, or one that cannot be told apart.
    fn of(project: &Arc<str>, socket: BorrowedFd<'_>) -> Option<Self> {
        if sockopt::socket_protocol(socket).ok()? != Some(rustix::net::ipproto::TCP) {
            return None;
        }
        let local = address(rustix::net::getsockname(socket).ok()?)?;
        let peer = address(rustix::net::getpeername(socket).ok()??)?;
        let role = table::role(local, peer)?;
        let namespace = network_namespace(socket).ok()?;
        let key = ConnectionKey::new(local, peer);
        let place = Place { project: Arc::clone(project), namespace, key };
        let cookie = sockopt::socket_cookie(socket).ok()?;
        let inode = rustix::fs::fstat(socket).ok()?.st_ino;
        let is_near = is_local(local.ip(), peer.ip());
        Some(Self { place, role, peer, cookie, inode, is_near })
    }
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

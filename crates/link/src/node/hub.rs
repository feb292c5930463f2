//! Sessions and the carriers they share: one thread's half of the node that knows nothing of programs.
//!
//! ```text
//!  carrier ── from whom? ──▶ session ── events ──▶ (who owns the hub)
//!     ▲                         │
//!     └──── the way in use ◀────┘ transmit
//! ```

use super::clock::Clock;
use super::inflow::{BULK_REST, Inflow};
use crate::carrier::{Address, Carrier, CarrierKind, Sent, Source};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skein_link_core::light::{ChannelId, Config, DatagramSize, Moment, Planned, Session};
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// How long an interface whose queue overflows is left alone: eight full frames at 1 Gbit/s.
const CONGESTED_PAUSE: Duration = Duration::from_micros(100);

/// A carrier of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CarrierIndex(usize);

/// A peer of a hub. Never that of another peer, even after this one was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerIndex(usize);

/// A way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// By which carrier.
    pub carrier: CarrierIndex,
    /// To where.
    pub address: Address,
}

/// Takes bytes of a channel at once; how many.
pub type Taker<'a> = &'a mut dyn FnMut(PeerIndex, ChannelId, &[u8]) -> usize;

/// How long a carrier that takes no more is left alone, unless its descriptor becomes writable before. That it does only when half
/// of its buffer is free, and a wire that waits for the sender to wake up after that is a wire that stands still. Who asks
/// again at once gets one frame through each time, for as long as a wire of 1 Gbit/s is full: that took a processor of its own, which
/// the receiver may need. So long, such a wire takes 17 frames.
const FULL_PAUSE: Duration = Duration::from_micros(200);

struct Line {
    carrier: Box<dyn Carrier>,
    /// It takes no more until then, or until its descriptor is writable.
    full_until: Option<Moment>,
    /// It takes no more until then.
    congested_until: Option<Moment>,
    failures: u64,
}

struct Peer {
    session: Session,
    ways: Vec<Way>,
    /// The largest datagram of each way, as far as is known.
    sizes: Vec<DatagramSize>,
    /// Which of `ways` is used.
    current: usize,
}

/// Sessions and their carriers.
pub struct Hub {
    clock: Clock,
    lines: Vec<Line>,
    /// `None`: was removed. A place is never used again, so that no index means another peer later: eight bytes for each.
    peers: Vec<Option<Box<Peer>>>,
    by_address: HashMap<Address, usize>,
    inflow: Inflow,
}

impl Hub {
    /// A hub without carriers.
    pub fn new(clock: Clock) -> Self {
        let inflow = Inflow::default();
        Self { clock, lines: Vec::new(), peers: Vec::new(), by_address: HashMap::new(), inflow }
    }

    /// Adds a carrier.
    pub fn add_carrier(&mut self, carrier: Box<dyn Carrier>) -> CarrierIndex {
        let line = Line { carrier, full_until: None, congested_until: None, failures: 0 };
        self.lines.push(line);
        CarrierIndex(self.lines.len() - 1)
    }

    /// Adds a peer that is reached by `way`; its datagrams are as large as that carries.
    pub fn add_peer(&mut self, mut config: Config, way: Way) -> PeerIndex {
        let size = self.datagram_max(way);
        config.datagram_max = size;
        let index = self.peers.len();
        self.by_address.insert(way.address, index);
        let session = Session::new(config);
        let peer = Peer { session, ways: vec![way], sizes: vec![size], current: 0 };
        self.peers.push(Some(Box::new(peer)));
        PeerIndex(index)
    }

    /// Forgets a peer and its session: what it sends from now on is a stranger's.
    pub fn remove_peer(&mut self, peer: PeerIndex) {
        self.by_address.retain(|_, index| *index != peer.0);
        if let Some(place) = self.peers.get_mut(peer.0) {
            *place = None;
        }
    }

    /// Whether the peer is there.
    pub fn has(&self, peer: PeerIndex) -> bool {
        self.peers.get(peer.0).is_some_and(Option::is_some)
    }

    fn peer(&self, peer: PeerIndex) -> &Peer {
        self.peers[peer.0].as_deref().expect("a peer that was not removed")
    }

    fn peer_mut(&mut self, peer: PeerIndex) -> &mut Peer {
        self.peers[peer.0].as_deref_mut().expect("a peer that was not removed")
    }

    /// Adds another way to a peer, not used yet, but listened to.
    pub fn add_way(&mut self, peer: PeerIndex, way: Way) {
        let size = self.datagram_max(way);
        self.by_address.insert(way.address, peer.0);
        let peer = self.peer_mut(peer);
        peer.ways.push(way);
        peer.sizes.push(size);
    }

    /// The ways to a peer; the first is the one it was added with.
    pub fn ways(&self, peer: PeerIndex) -> &[Way] {
        &self.peer(peer).ways
    }

    /// Uses the way number `way` of [`Hub::ways`] from now on.
    pub fn use_way(&mut self, peer: PeerIndex, way: usize) {
        let peer = self.peer_mut(peer);
        peer.current = way;
        peer.session.set_datagram(peer.sizes[way]);
    }

    /// The set-up has shown how large a datagram the way in use carries: remembers it for that way.
    pub fn note_size(&mut self, peer: PeerIndex) {
        let peer = self.peer_mut(peer);
        peer.sizes[peer.current] = peer.session.datagram();
    }

    /// The largest datagram that the way number `way` carries.
    pub fn size_of(&self, peer: PeerIndex, way: usize) -> DatagramSize {
        self.peer(peer).sizes[way]
    }

    /// Which way is used, and what carries it.
    pub fn current(&self, peer: PeerIndex) -> (usize, CarrierKind) {
        let peer = self.peer(peer);
        let line = &self.lines[peer.ways[peer.current].carrier.0];
        (peer.current, line.carrier.kind())
    }

    /// The session with a peer.
    ///
    /// # Panics
    /// The peer was removed.
    pub fn session(&mut self, peer: PeerIndex) -> &mut Session {
        &mut self.peer_mut(peer).session
    }

    /// All peers that were ever added; [`Hub::has`] tells which of them are there.
    pub fn indices(&self) -> impl Iterator<Item = PeerIndex> + use<> {
        (0..self.peers.len()).map(PeerIndex)
    }

    /// Now.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// How often a carrier could not be used.
    pub fn failures(&self) -> u64 {
        self.lines.iter().map(|line| line.failures).sum()
    }

    fn datagram_max(&self, way: Way) -> DatagramSize {
        self.lines[way.carrier.0].carrier.datagram_max(&way.address)
    }

    /// Takes what has come; how many datagrams. Bytes that are the next to be read are offered to `taker` first, which
    /// says how many it took; the others wait in their session.
    pub fn receive(&mut self, taker: Taker<'_>) -> usize {
        let mut taken = 0;
        for line in &mut self.lines {
            // Read at most once in each call: answers must not wait until the wire is silent.
            let mut now = None;
            // Datagrams come in trains of one peer.
            let mut latest: Option<(Address, usize)> = None;
            let result = line.carrier.receive(&mut |from, datagram| {
                let now = *now.get_or_insert_with(|| self.clock.now());
                let peer = match latest {
                    Some((address, peer)) if address == from => peer,
                    _ => match self.by_address.get(&from) {
                        Some(peer) => *peer,
                        None => return,
                    },
                };
                latest = Some((from, peer));
                let Some(there) = self.peers[peer].as_deref_mut() else { return };
                self.inflow.count(datagram, now);
                let mut take = |channel, bytes: &[u8]| taker(PeerIndex(peer), channel, bytes);
                there.session.receive_with(datagram, now, &mut take);
            });
            match result {
                Ok(count) => taken += count,
                Err(_) => line.failures += 1,
            }
        }
        taken
    }

    /// Sends what is to be sent; whether there was anything.
    pub fn transmit(&mut self) -> bool {
        let mut any = false;
        for peer in self.peers.iter_mut().flatten() {
            let way = peer.ways[peer.current];
            let line = &mut self.lines[way.carrier.0];
            any |= line.transmit(&way.address, &mut peer.session, &self.clock);
        }
        any
    }

    /// Sends one datagram by a way that need not be the one in use; whether it was taken.
    pub fn send_by(&mut self, peer: PeerIndex, way: usize, datagram: &[u8]) -> bool {
        let way = self.peer(peer).ways[way];
        let line = &mut self.lines[way.carrier.0];
        let mut once = Some(datagram);
        let sent = line.carrier.send(&way.address, &mut |out: &mut [u8]| {
            let datagram = once.take()?;
            out.get_mut(..datagram.len())?.copy_from_slice(datagram);
            Some(datagram.len())
        });
        sent.is_ok() && once.is_none()
    }

    /// Waits until something has come, something can be sent, one of `also` is readable, or `limit` has passed.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn wait(&mut self, limit: Option<Duration>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        let now = self.clock.now();
        // What is due for a carrier that takes nothing waits for the carrier.
        let line_of = |peer: &Peer| &self.lines[peer.ways[peer.current].carrier.0];
        let free = |peer: &&Peer| line_of(peer).full_until.is_none();
        let peers = self.peers.iter().flatten().map(|peer| &**peer);
        let deadlines = peers.filter(free).filter_map(|p| p.session.next_deadline());
        let busy = self.lines.iter().flat_map(|line| [line.congested_until, line.full_until]);
        let due = deadlines.chain(busy.flatten()).min().map(|due| due.since(now));
        self.poll([due, limit].into_iter().flatten().min(), PollFlags::IN, also)
    }

    /// Sleeps a little if there is nothing to be gained by looking again at once: bulk is on its way, or a carrier is full. `false` if
    /// that is not so. To be called when there was nothing to do.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn rest(&mut self) -> io::Result<bool> {
        let now = self.clock.now();
        let full = self.lines.iter().filter_map(|line| line.full_until).min();
        let full = full.map(|until| until.since(now)).filter(|span| !span.is_zero());
        let bulk = self.inflow.is_bulk(now).then_some(BULK_REST);
        let Some(span) = full.into_iter().chain(bulk).min() else { return Ok(false) };
        self.poll(Some(span), PollFlags::empty(), &[])?;
        Ok(true)
    }

    /// Waits for `flags` of all carriers, and until those that are full are not.
    fn poll(
        &mut self,
        span: Option<Duration>,
        flags: PollFlags,
        also: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let lines = self.lines.iter().map(|line| {
            let full = if line.full_until.is_some() { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::from_borrowed_fd(line.carrier.descriptor(), flags | full)
        });
        let also = also.iter().map(|also| PollFd::from_borrowed_fd(*also, PollFlags::IN));
        let mut descriptors: Vec<PollFd<'_>> = lines.chain(also).collect();
        let span = span.map(|span| Timespec {
            tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: span.subsec_nanos().into(),
        });
        match poll(&mut descriptors, span.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let writable = |descriptor: &PollFd<'_>| descriptor.revents().contains(PollFlags::OUT);
        let writable: Vec<bool> = descriptors.iter().map(writable).collect();
        for (line, _) in self.lines.iter_mut().zip(writable).filter(|(_, writable)| *writable) {
            line.full_until = None;
        }
        Ok(())
    }
}

impl Line {
    fn transmit(&mut self, to: &Address, session: &mut Session, clock: &Clock) -> bool {
        let now = clock.now();
        let busy = [self.congested_until, self.full_until];
        if busy.into_iter().flatten().any(|until| until > now) {
            return false;
        }
        let mut outlet = Outlet { session, clock, now, count: 0 };
        let result = self.carrier.send(to, &mut outlet);
        let (now, any) = (outlet.now, outlet.count > 0);
        self.full_until = matches!(result, Ok(Sent::Full)).then(|| now + FULL_PAUSE);
        self.congested_until = matches!(result, Ok(Sent::Congested)).then(|| now + CONGESTED_PAUSE);
        self.failures += u64::from(result.is_err());
        any
    }
}

/// A session as a source of datagrams.
struct Outlet<'a> {
    session: &'a mut Session,
    clock: &'a Clock,
    now: Moment,
    count: u32,
}

impl Outlet<'_> {
    /// The clock costs as much as a short datagram: it is read once for a train.
    fn count(&mut self) {
        self.count += 1;
        if self.count.is_multiple_of(32) {
            self.now = self.clock.now();
        }
    }
}

impl Source for Outlet<'_> {
    fn next(&mut self, out: &mut [u8]) -> Option<usize> {
        let length = self.session.transmit(self.now, out)?;
        self.count();
        Some(length)
    }

    fn plan(&mut self) -> Option<Planned> {
        let planned = self.session.plan(self.now)?;
        self.count();
        Some(planned)
    }

    fn pieces(&self, planned: &Planned) -> (&[u8], &[u8]) {
        self.session.pieces(planned)
    }
}

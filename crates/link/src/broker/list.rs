//! What a broker tells of its connections.

use super::error::BrokerError;
use super::table::{Entry, Place};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use skein_link_core::negotiate::LIST;
use skein_link_core::ring::host::Memory;
use skein_link_core::ring::{Direction, Hello, Phase, Reach, Reason, Role};
use std::collections::BTreeMap;
use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;

/// The path that bytes take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Shared memory, in at least one direction.
    Ring,
    /// The light protocol to another host.
    Light,
    /// TCP.
    Tcp,
}

/// A connection, as its segment shows it, or the kernel if it has none. The programs write what is in a segment: for looking at, not
/// for billing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connection {
    /// The project on whose socket it asked.
    pub project: String,
    /// The smaller address.
    pub low: String,
    /// The greater address.
    pub high: String,
    /// The processes that asked for the ends, low and high; 0: that end has not asked.
    pub pids: [u32; 2],
    /// Where the bytes go.
    pub path: Path,
    /// Why it is on TCP; `none` if it is not.
    pub reason: String,
    /// Bytes that went over the rings, from low to high and back.
    pub ring_bytes: [u64; 2],
    /// Bytes and bells over TCP since the link was agreed, in the same order; of a connection that was refused, all that its peer
    /// has acknowledged and all that came. `None`: not known.
    pub tcp_bytes: Option<[u64; 2]>,
    /// How often the receiver of each direction slept and was woken by the kernel.
    pub wakeups: [u64; 2],
}

impl Connection {
    /// Its two addresses, by which lists are sorted.
    pub fn ends(&self) -> (String, String) {
        (self.low.clone(), self.high.clone())
    }
}

/// Connections and bytes since the broker began, those that have ended included. The programs write the figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Connections that had shared memory of their own: to programs of this host.
    pub ring_connections: u64,
    /// The same, to programs of other hosts.
    pub light_connections: u64,
    /// Connections that have ended without: they asked, and stayed on TCP.
    #[serde(default)]
    pub tcp_connections: u64,
    /// Bytes that went over rings within this host.
    pub ring_bytes: u64,
    /// Bytes that went over the light protocol, both directions.
    pub light_bytes: u64,
    /// Bytes and bells over TCP of connections whose ends have both asked, since they agreed.
    #[serde(default)]
    pub tcp_bytes: u64,
    /// How often a receiver slept and was woken by the kernel.
    pub wakeups: u64,
    /// Ends that went back to TCP for good, or were cut, by the reason's word.
    pub steps_back: BTreeMap<String, u64>,
}

impl Totals {
    /// Adds a connection that has ended.
    pub(crate) fn add_ended(&mut self, shared: &Shared) {
        let before = self.ring_connections + self.light_connections;
        self.add(shared);
        let has_left_tcp = self.ring_connections + self.light_connections > before;
        self.tcp_connections += u64::from(!has_left_tcp);
    }

    /// Adds a connection.
    pub(crate) fn add(&mut self, shared: &Shared) {
        let segment = shared.memory.segment();
        let roles = [Role::Low, Role::High];
        let bytes = roles.map(|role| segment.pipe(role).direction().head());
        let bytes = bytes[0].saturating_add(bytes[1]);
        let (connections, sum) = match segment.reach() {
            Reach::Near => (&mut self.ring_connections, &mut self.ring_bytes),
            Reach::Far => (&mut self.light_connections, &mut self.light_bytes),
        };
        // Counted once it has taken another path than TCP.
        *connections += u64::from(bytes > 0);
        *sum = sum.saturating_add(bytes);
        for role in roles {
            let sleeps = segment.pipe(role).direction().sleeps();
            self.wakeups = self.wakeups.saturating_add(sleeps);
            let shown = segment.pipe(role).direction().shown_tcp();
            self.tcp_bytes = self.tcp_bytes.saturating_add(shown);
            match segment.header().left(role) {
                Reason::None => {}
                reason => *self.steps_back.entry(reason.word().to_owned()).or_default() += 1,
            }
        }
    }
}

/// What belongs to a connection.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) memory: Arc<Memory>,
    /// It was sent back to TCP; ends that have not asked yet get nothing.
    pub(crate) is_revoked: bool,
}

pub(crate) fn describe(place: &Place, entry: &Entry<Shared>) -> Connection {
    let segment = entry.shared.memory.segment();
    let header = segment.header();
    let directions = [Role::Low, Role::High].map(|role| segment.pipe(role).direction());
    let on_ring = directions.iter().any(|direction| direction.phase().on_ring());
    // What one direction has chosen, whatever the other one does.
    let chosen = |dir: &Direction| dir.preference().word().filter(|_| !dir.phase().on_ring());
    let chosen = directions.into_iter().find_map(chosen);
    let (path, reason) = match (segment.reach() == Reach::Far, on_ring) {
        _ if chosen.is_some() => (Path::Tcp, chosen.unwrap_or_default()),
        (true, true) => (Path::Light, "none"),
        (false, true) => (Path::Ring, "none"),
        (_, false) => (Path::Tcp, why_not(entry)),
    };
    let left = [Role::Low, Role::High].map(|role| header.left(role));
    let left = left.into_iter().find(|reason| *reason != Reason::None);
    Connection {
        project: place.project.to_string(),
        low: place.key.low.to_string(),
        high: place.key.high.to_string(),
        pids: entry.ends.map(|end| end.map_or(0, |end| end.pid)),
        path,
        reason: left.map_or(reason, Reason::word).to_owned(),
        ring_bytes: directions.map(Direction::head),
        tcp_bytes: Some(directions.map(Direction::shown_tcp)),
        wakeups: directions.map(Direction::sleeps),
    }
}

fn why_not(entry: &Entry<Shared>) -> &'static str {
    let segment = entry.shared.memory.segment();
    let header = segment.header();
    let has_begun = [Role::Low, Role::High]
        .into_iter()
        .any(|role| segment.pipe(role).direction().phase() != Phase::default());
    let hellos = [header.hello(Role::Low), header.hello(Role::High)];
    if hellos.contains(&Hello::Gone) {
        "closed"
    } else if hellos.contains(&Hello::None) || hellos.contains(&Hello::Absent) {
        "peer-not-there"
    } else if hellos == [Hello::Confirmed; 2] && has_begun {
        // For want of room, or by a choice that only the other host knows.
        "sender"
    } else if hellos == [Hello::Confirmed; 2] {
        "quiet"
    } else {
        "agreeing"
    }
}

/// Asks the broker on a socket for its connections, those that it has refused among them.
///
/// # Errors
/// [`BrokerError::Ask`], [`BrokerError::Answer`].
pub fn connections(socket: &FilePath) -> Result<Vec<Connection>, BrokerError> {
    let failed = |source: rustix::io::Errno| BrokerError::Ask {
        path: socket.to_owned(),
        source: io::Error::from(source),
    };
    let address = SocketAddrUnix::new(socket).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC;
    let asker = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let asker = asker.map_err(failed)?;
    let patience = Some(std::time::Duration::from_secs(5));
    rustix::net::sockopt::set_socket_timeout(&asker, rustix::net::sockopt::Timeout::Recv, patience)
        .map_err(failed)?;
    rustix::net::connect(&asker, &address).map_err(failed)?;
    rustix::net::send(&asker, &LIST, SendFlags::NOSIGNAL).map_err(failed)?;
    let mut found = Vec::new();
    let mut packet = vec![0; 4096];
    loop {
        let (len, _) =
            rustix::net::recv(&asker, &mut packet[..], RecvFlags::empty()).map_err(failed)?;
        if len == 0 {
            return Ok(found);
        }
        let connection = serde_json::from_slice(&packet[..len]);
        found.push(connection.map_err(|_| BrokerError::Answer { path: socket.to_owned() })?);
    }
}

//! The daemon between two hosts: from rings to the light protocol and back.
//!
//! ```text
//!  broker ── open(key, Local) ──▶ Daemon ── Connection: frames ──▶ Hub ── Session ──▶ Carrier
//!                                   │                               ▲
//!                                   └── Choice: which carrier ──────┘
//! ```
//!
//! One thread does everything, so a byte passes no lock on its way. It looks for work for some microseconds while traffic
//! flows, and sleeps otherwise. The two ends of a connection find each other by its two addresses; the node with the
//! smaller id opens the channel. Until both are there nothing is taken from any ring, and an end that waits in vain
//! stays on TCP without noticing. Once they are, a lost session ends the connection with an error: bytes on the way
//! are known to no one else.

mod clock;
mod config;
mod connection;
mod daemon;
mod frame;
mod hub;
mod inflow;
mod path;
mod peers;
mod spin;
mod status;

pub use clock::Clock;
pub use config::{Ethernet, NodeConfig, PORT, PeerConfig, agent_id, shared_key};
pub use hub::{CarrierIndex, Hub, PeerIndex, Taker, Way};
pub use status::PeerStatus;

use crate::carrier::CarrierError;
use crate::place::own_namespace;
use crate::remote::{Local, Meeting, Remote, Unreached};
use daemon::{Command, Daemon};
use rustix::event::{EventfdFlags, eventfd};
use status::Shared;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

/// 1024: a burst of programs' connections between two rounds of the thread; beyond it they stay on TCP.
const COMMANDS_WAITING_MAX: usize = 1024;

/// A node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its carrier.
    #[error("setting up the light protocol")]
    Carrier(#[from] CarrierError),
    /// Its thread.
    #[error("starting the node's thread")]
    Thread(#[source] io::Error),
    /// Two peers have one name or one address.
    #[error("peer {name} has the name or the address of this node or of another peer")]
    PeerTwice {
        /// The one that was refused.
        name: String,
    },
    /// Its thread has ended.
    #[error("the node has stopped")]
    Stopped,
}

impl NodeError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Carrier(error) => error.code(),
            Self::Thread(_) => "LINK_NODE_THREAD",
            Self::PeerTwice { .. } => "LINK_PEER_TWICE",
            Self::Stopped => "LINK_NODE_STOPPED",
        }
    }
}

/// The peers as those who ask know them.
#[derive(Debug, Default)]
struct Peers {
    by_name: BTreeMap<String, (PeerIndex, PeerConfig)>,
    /// Where programs are: of two peers that claim one address the first has it.
    by_address: HashMap<IpAddr, PeerIndex>,
}

impl Peers {
    fn index_addresses(&mut self) {
        self.by_address.clear();
        for (index, peer) in self.by_name.values() {
            let all = std::iter::once(peer.socket.ip()).chain(peer.addresses.iter().copied());
            for address in all {
                self.by_address.entry(address).or_insert(*index);
            }
        }
    }
}

/// The light protocol of a host. Dropping it says goodbye to the peers and resets what is on the way.
#[derive(Debug)]
pub struct Node {
    commands: SyncSender<Command>,
    wake: OwnedFd,
    shared: Arc<Shared>,
    name: String,
    socket: SocketAddr,
    /// Where it runs; `None` on a kernel that does not tell.
    namespace: Option<u64>,
    peers: RwLock<Peers>,
    /// Held while peers are added or removed: one change at a time.
    changing: Mutex<()>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts the node in the calling thread's network namespace.
    ///
    /// # Errors
    /// Its address is taken, the system gives no thread, or [`NodeError::PeerTwice`].
    pub fn start(config: &NodeConfig) -> Result<Self, NodeError> {
        let (commands, inbox) = sync_channel(COMMANDS_WAITING_MAX);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).map_err(|errno| NodeError::Thread(errno.into()))?;
        let its_wake = wake.try_clone().map_err(NodeError::Thread)?;
        let shared = Arc::new(Shared::default());
        let daemon = Daemon::new(config, inbox, its_wake, shared.clone())?;
        let thread = std::thread::Builder::new()
            .name("skein-light".to_owned())
            .spawn(move || daemon.run())
            .map_err(NodeError::Thread)?;
        let node = Self {
            commands,
            wake,
            shared,
            name: config.name.clone(),
            socket: config.socket,
            namespace: own_namespace(),
            peers: RwLock::default(),
            changing: Mutex::default(),
            thread: Some(thread),
        };
        config.peers.iter().try_for_each(|peer| node.add_peer(peer.clone()))?;
        Ok(node)
    }

    /// Another peer, from now on.
    ///
    /// # Errors
    /// [`NodeError::PeerTwice`], [`NodeError::Stopped`].
    pub fn add_peer(&self, peer: PeerConfig) -> Result<(), NodeError> {
        let _one_at_a_time = self.changing();
        self.add(peer)
    }

    /// A peer is none any more. Connections over it end with an error, as if it had died, and those that were not agreed
    /// yet stay on TCP. Whether there was one of that name.
    pub fn remove_peer(&self, name: &str) -> bool {
        let _one_at_a_time = self.changing();
        self.remove(name)
    }

    /// Brings the peers in line with `wanted`: one that is as it was stays, with its connections; one that is at another
    /// address now is another one.
    ///
    /// # Errors
    /// The first of [`Node::add_peer`]'s; the other peers are there then.
    pub fn set_peers(&self, wanted: Vec<PeerConfig>) -> Result<(), NodeError> {
        let _one_at_a_time = self.changing();
        let is_wanted = |peer: &PeerConfig| wanted.contains(peer);
        let known = self.peers_now();
        let gone = known.by_name.values().filter(|(_, peer)| !is_wanted(peer));
        let gone: Vec<String> = gone.map(|(_, peer)| peer.name.clone()).collect();
        let is_known = |peer: &PeerConfig| {
            known.by_name.get(&peer.name).is_some_and(|(_, before)| before == peer)
        };
        let fresh: Vec<PeerConfig> =
            wanted.iter().filter(|peer| !is_known(peer)).cloned().collect();
        drop(known);
        for name in gone {
            self.remove(&name);
        }
        fresh.into_iter().map(|peer| self.add(peer)).fold(Ok(()), Result::and)
    }

    fn add(&self, peer: PeerConfig) -> Result<(), NodeError> {
        let taken = {
            let peers = self.peers_now();
            let mut sockets = peers.by_name.values().map(|(_, other)| other.socket);
            peer.name == self.name
                || peer.socket == self.socket
                || peers.by_name.contains_key(&peer.name)
                || sockets.any(|socket| socket == peer.socket)
        };
        if taken {
            return Err(NodeError::PeerTwice { name: peer.name });
        }
        let (answer, inbox) = sync_channel(1);
        let command = Command::Add { peer: peer.clone(), answer };
        self.commands.send(command).map_err(|_| NodeError::Stopped)?;
        self.wake();
        let index = inbox.recv().map_err(|_| NodeError::Stopped)?;
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.by_name.insert(peer.name.clone(), (index, peer));
        peers.index_addresses();
        Ok(())
    }

    fn remove(&self, name: &str) -> bool {
        let removed = {
            let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
            let removed = peers.by_name.remove(name);
            peers.index_addresses();
            removed
        };
        let Some((index, _)) = removed else { return false };
        // A node that has stopped has no peers.
        let _ = self.commands.send(Command::Remove(index));
        self.wake();
        true
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers_now(&self) -> RwLockReadGuard<'_, Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of each peer, with its name. One that was added this moment may be missing.
    pub fn peers(&self) -> Vec<(String, PeerStatus)> {
        let statuses = self.shared.peers();
        let peers = self.peers_now();
        let known = peers.by_name.iter();
        known.filter_map(|(name, (at, _))| Some((name.clone(), *statuses.get(at)?))).collect()
    }

    /// Connections that were ended with an error.
    pub fn aborts(&self) -> u64 {
        self.shared.aborts()
    }

    /// Connections that were let go because their other end has not come ([`NodeConfig::meet_within`]).
    pub fn unmet(&self) -> u64 {
        self.shared.unmet()
    }

    fn command(&self, command: Command) {
        // A node that is full or gone takes no connection, which then stays on TCP.
        if self.commands.try_send(command).is_ok() {
            self.wake();
        }
    }

    /// The peer on whose host an address is.
    fn index_of(&self, address: SocketAddr) -> Option<PeerIndex> {
        self.peers_now().by_address.get(&address.ip()).copied()
    }

    fn wake(&self) {
        // Full means that it is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Remote for Node {
    fn reaches(&self, peer: SocketAddr) -> bool {
        self.index_of(peer).is_some_and(|index| self.shared.is_up(index))
    }

    fn why_not(&self, peer: SocketAddr) -> Unreached {
        match self.index_of(peer) {
            Some(_) => Unreached::Away,
            None => Unreached::NoNode,
        }
    }

    fn namespace(&self) -> Option<u64> {
        self.namespace
    }

    fn open(&self, meeting: Meeting, peer: SocketAddr, local: Box<dyn Local>) {
        if let Some(index) = self.index_of(peer) {
            self.command(Command::Open { meeting, peer: index, local });
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Waits for room: a node that is not told would never end.
        let _ = self.commands.send(Command::Stop);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

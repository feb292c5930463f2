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
mod path;
mod spin;
mod status;

pub use clock::Clock;
pub use config::{Ethernet, NodeConfig, PORT, PeerConfig, agent_id, shared_key};
pub use hub::{CarrierIndex, Hub, PeerIndex, Taker, Way};
pub use status::PeerStatus;

use crate::carrier::CarrierError;
use crate::remote::{Local, Meeting, Remote};
use daemon::{Command, Daemon};
use rustix::event::{EventfdFlags, eventfd};
use status::Shared;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
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
}

impl NodeError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Carrier(error) => error.code(),
            Self::Thread(_) => "LINK_NODE_THREAD",
        }
    }
}

/// The light protocol of a host. Dropping it says goodbye to the peers and resets what is on the way.
#[derive(Debug)]
pub struct Node {
    commands: SyncSender<Command>,
    wake: OwnedFd,
    shared: Arc<Shared>,
    peers: HashMap<IpAddr, PeerIndex>,
    names: Vec<String>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts the node in the calling thread's network namespace.
    ///
    /// # Errors
    /// Its address is taken, or the system gives no thread.
    pub fn start(config: &NodeConfig) -> Result<Self, NodeError> {
        let (commands, inbox) = sync_channel(COMMANDS_WAITING_MAX);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).map_err(|errno| NodeError::Thread(errno.into()))?;
        let its_wake = wake.try_clone().map_err(NodeError::Thread)?;
        let shared = Arc::new(Shared::default());
        let daemon = Daemon::new(config, inbox, its_wake, shared.clone())?;
        let mut peers = HashMap::new();
        for (index, peer) in daemon.peers().zip(&config.peers) {
            peers.insert(peer.socket.ip(), index);
            peers.extend(peer.addresses.iter().map(|address| (*address, index)));
        }
        let names = config.peers.iter().map(|peer| peer.name.clone()).collect();
        let thread = std::thread::Builder::new()
            .name("skein-light".to_owned())
            .spawn(move || daemon.run())
            .map_err(NodeError::Thread)?;
        Ok(Self { commands, wake, shared, peers, names, thread: Some(thread) })
    }

    /// What is known of each peer, with its name.
    pub fn peers(&self) -> Vec<(String, PeerStatus)> {
        self.names.iter().cloned().zip(self.shared.peers()).collect()
    }

    /// Connections that were ended with an error.
    pub fn aborts(&self) -> u64 {
        self.shared.aborts()
    }

    fn command(&self, command: Command) {
        // A node that is full or gone takes no connection, which then stays on TCP.
        if self.commands.try_send(command).is_ok() {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }
}

impl Remote for Node {
    fn reaches(&self, peer: SocketAddr) -> bool {
        self.peers.get(&peer.ip()).is_some_and(|index| self.shared.is_up(*index))
    }

    fn open(&self, meeting: Meeting, peer: SocketAddr, local: Box<dyn Local>) {
        if let Some(index) = self.peers.get(&peer.ip()) {
            self.command(Command::Open { meeting, peer: *index, local });
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

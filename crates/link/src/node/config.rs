//! What a node is told.

use sha2::{Digest, Sha256};
use skein_link_core::light::{AgentId, Check, Key};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// UDP port of the light protocol, unless told otherwise.
pub const PORT: u16 = 4077;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its name: the same that it has in its own configuration.
    pub name: String,
    /// Where its light protocol listens.
    pub socket: SocketAddr,
    /// Addresses of programs on it.
    pub addresses: Vec<IpAddr>,
}

/// What a node is told.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// This node's name.
    pub name: String,
    /// Where its light protocol listens.
    pub socket: SocketAddr,
    /// The secret of the cluster's nodes: no stranger gets a session. Each pair of nodes uses a key of its own that is derived
    /// from it and both names.
    pub key: Key,
    /// The others, to begin with. Nobody else is answered.
    pub peers: Vec<PeerConfig>,
    /// Whether datagrams carry a check of their own.
    pub check: Check,
    /// How long it looks for work before it sleeps, at most; zero on a machine with one processor.
    pub spin_max: Duration,
    /// Whether Ethernet is tried besides UDP. Needs CAP_NET_RAW.
    pub ethernet: Ethernet,
    /// How long one end of a connection waits for the other: until then its program stays on TCP, and afterwards too.
    pub meet_within: Duration,
}

/// The two ends of a connection move about as many bytes, but count calls of their own: one that speaks seldom takes minutes
/// to ask. A waiting end costs its segment.
const MEET_WITHIN: Duration = Duration::from_secs(300);

/// Whether to use the carrier straight on Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ethernet {
    /// Where it works and is not slower.
    Probe,
    /// Never.
    Never,
}

impl NodeConfig {
    /// For a node that spins up to 20 microseconds and probes its paths.
    pub fn new(name: impl Into<String>, socket: SocketAddr, key: Key) -> Self {
        let several = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        Self {
            name: name.into(),
            socket,
            key,
            peers: Vec::new(),
            check: Check::Carrier,
            spin_max: if several { Duration::from_micros(20) } else { Duration::ZERO },
            ethernet: Ethernet::Probe,
            meet_within: MEET_WITHIN,
        }
    }
}

/// The key of a secret of any length: its SHA-256.
pub fn shared_key(secret: &[u8]) -> Key {
    Key::new(Sha256::digest(secret).into())
}

/// The key of a pair of nodes, the same at both: a proof made for one pair is none for another.
pub(super) fn pair_key(key: &Key, one: AgentId, other: AgentId) -> Key {
    let (low, high) = (one.min(other).0.to_be_bytes(), one.max(other).0.to_be_bytes());
    key.derive(&[b"skein link pair", &low, &high])
}

/// The id of a node in the protocol: the first 64 bits of its name's SHA-256.
pub fn agent_id(name: &str) -> AgentId {
    let hash = Sha256::digest(name.as_bytes());
    AgentId(hash.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte)))
}

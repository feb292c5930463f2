//! Wire types of the link.

use serde::{Deserialize, Serialize};

/// A connection of two programs that has asked for the link, as one node sees it: a connection between two nodes is told by
/// both. Each pair is in the order of the addresses: of the low end and the high one, or from low to high and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Link {
    /// The node.
    pub node: String,
    /// The smaller address.
    pub low: String,
    /// The greater one.
    pub high: String,
    /// Processes that hold the ends; 0: not on this node, or it has not asked.
    pub pids: [u32; 2],
    /// Where its bytes go: `ring`, `light` or `tcp`.
    pub path: String,
    /// Why it is on TCP; `none` if it is not.
    pub reason: String,
    /// Bytes over shared memory or the light protocol.
    pub ring_bytes: [u64; 2],
    /// Bytes over TCP: since the ends agreed, or all of a connection that never may take another path. Missing if not known.
    pub tcp_bytes: Option<[u64; 2]>,
    /// How often the receiver slept and was woken.
    pub wakeups: [u64; 2],
}

/// The link's connections of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkList {
    /// Node by node, in the order of their addresses.
    pub links: Vec<Link>,
    /// Nodes that did not answer.
    pub silent: Vec<String>,
}

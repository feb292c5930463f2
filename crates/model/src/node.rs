//! A node: one host that runs machines.

use crate::name::NodeName;
use crate::time::Timestamp;
use crate::units::CpuMilli;
use crate::wire_key::WireKey;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What a node is and offers. Written by its agent when it joins, and by an operator who cordons it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// Memory that machines may reserve, MiB.
    pub memory_mib: u64,
    /// Processor that machines may reserve.
    pub cpu: CpuMilli,
    /// Machines it may hold at most.
    pub machines_max: u32,
    /// Relative speed of one core; 1.0 is the reference. Used by the placement algorithm `fastest`.
    pub performance: f64,
    /// How it runs machines: `kvm` or `tcg`.
    pub accel: String,
    /// Version of its VMM.
    pub vmm: String,
    /// Its number, 1 to 65,534, unlike those of the other nodes: what it has in the networks of machines is named by it.
    #[serde(default)]
    pub number: u16,
    /// Where other nodes send what is for its machines. Nodes that share it are on one host.
    #[serde(default = "no_underlay")]
    pub underlay: Ipv4Addr,
    /// UDP port for that.
    #[serde(default)]
    pub vxlan_port: u16,
    /// Its public key if it encrypts what it sends to other nodes; its secret never leaves its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire_key: Option<WireKey>,
    /// UDP port of its light protocol, at the same address; 0: it has none.
    #[serde(default)]
    pub light_port: u16,
    /// When it joined.
    pub joined_at: Timestamp,
}

impl NodeRecord {
    /// Its address on the encrypted way between nodes, if it has one there: 100.126 and its number.
    pub fn wire_address(&self) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(100, 126, high, low)
    }
}

/// Of a record that an older release wrote: nothing is sent there.
const fn no_underlay() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

/// Whether new machines may be placed on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum NodeState {
    /// Its agent lives, machines may be placed.
    Ready,
    /// Its agent lives, nothing new is placed.
    Cordoned,
    /// Its agent's lease ended.
    Lost,
}

/// What an agent reports of its node: measured, never used to place. Not stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which node.
    pub name: NodeName,
    /// When it was measured.
    pub at: Timestamp,
    /// Share of the node's processors in use, 0 to 1.
    pub cpu_used: f64,
    /// Memory in use, MiB.
    pub memory_used_mib: u64,
    /// Machines whose process runs.
    pub machines: u32,
    /// Jobs in service on its machines.
    pub in_service: u32,
}

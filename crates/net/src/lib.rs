//! Networks of machines on one node.
//!
//! This crate owns what a node's kernel holds for machines to talk: a network namespace, a bridge
//! in it, one tap for each machine, and the addresses. It hands out sockets that live inside the
//! namespace, so that the node can reach its machines while nothing else on the host can.
//!
//! ```text
//!   host                     │  namespace skein-NAME
//!                            │
//!   agent ── Connector ──────┼─ TCP socket ── skbr0 (gateway address, fixed MAC)
//!                            │                 ├── sk…0a000002 ── tap fd ── QEMU ── machine
//!                            │                 └── sk…0a000003 ── tap fd ── QEMU ── machine
//! ```
//!
//! What it never does: start processes, decide which machine gets which address (the control plane
//! does), or touch an interface, namespace or table that is not its own.
//!
//! **A tap lives as long as somebody holds its descriptor.** The kernel removes it with the last
//! holder, so nothing leaks when everything is killed, and a QEMU that outlives its agent keeps its
//! network: the next [`NodeNetwork::open`] finds the namespace and the taps in it and goes on.

mod answer;
mod capture;
mod connector;
mod desired;
mod error;
mod events;
mod firewall;
mod holder;
mod host;
mod kernel;
mod monitor;
mod names;
mod namespace;
mod netfilter;
mod netlink;
mod network;
mod node;
mod plan;
mod port;
mod service;
mod setup;
mod tap;
mod thread;
mod trace;
mod transfer;
mod wire;

pub use answer::{Answer4, Directory, DnsAnswer, Way, advertisement, answer_dns, answer4, answer6};
pub use capture::{Capture, CaptureOptions, pcap_header, pcap_record};
pub use connector::{CONNECT_TIMEOUT_DEFAULT, Connector};
pub use desired::{
    Balance, Desired, DesiredNetwork, DhcpSettings, Direction, DnsRecord, DnsSettings, Exit,
    GatewayService, GroupName, HostInterface, InvalidDesired, Ipv6Range, LocalPort, Log,
    NetworkKind, NodeNumber, OtherNames, PortLimits, PortRange, Publication, RULES_MAX, Rate,
    RemotePort, Route, Rule, RuleGroup, RuleId, RulePeer, RuleProtocol, Transport, Underlay,
    VXLAN_OVERHEAD_BYTES, VXLAN_PORT_DEFAULT, Vni, WIRE_OVERHEAD_BYTES, Wake,
};
pub use error::NetError;
pub use events::{EVENTS_WAITING_MAX, NetworkEvent};
pub use host::{HostError, check_host, check_shared_host};
pub use names::{InterfaceName, InvalidName, NetworkName, PortLabel};
pub use network::{NetworkSpec, NodeNetwork, Opened, PORTS_MAX};
pub use node::{Applied, NodeNetworks, NodeNetworksConfig, TABLE_PREFIX, sweep_tables};
pub use port::{Peers, Port, PortInfo, PortSpec, Unplugged};
pub use trace::{Counter, Hop, Payload, Place, Probe, Trace, trace};
pub use transfer::Connection;
pub use wire::{check_encryption, open_wire_key, renew_wire_key};

//! What can go wrong with a network.

use crate::desired::{HostInterface, Vni};
use crate::host::HostError;
use crate::names::{InterfaceName, NetworkName};
use skein_model::Subnet;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Why an operation on a network failed. The text says what to do where a user can do something.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// This host cannot carry networks of machines.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A namespace or interface of our name exists that we did not make.
    #[error(
        "namespace {path} holds {interface}, which is not ours: \
         remove it (ip netns delete) or choose another name for the cloud"
    )]
    ExistsForeign {
        /// File of the namespace.
        path: PathBuf,
        /// The first foreign interface in it.
        interface: String,
    },
    /// The file of the namespace is there but is no namespace and not empty.
    #[error("{path} is in the way and is not a network namespace: remove it")]
    FileForeign {
        /// The file.
        path: PathBuf,
    },
    /// Another process has opened this network.
    #[error("network {name} is in use by another process: stop the other agent of this node first")]
    Busy {
        /// The network.
        name: NetworkName,
    },
    /// Machines still run with addresses that the new range does not hold.
    #[error(
        "network {name} cannot become {cidr}: a machine runs at {address}; \
         stop the machines of this node first"
    )]
    InUse {
        /// The network.
        name: NetworkName,
        /// The range asked for.
        cidr: Subnet,
        /// The address of a running machine.
        address: Ipv4Addr,
    },
    /// The address cannot belong to a machine of this network.
    #[error("{address} is no machine's address in {cidr}, whose gateway has {gateway}")]
    AddressOutside {
        /// The address asked for.
        address: Ipv4Addr,
        /// The network.
        cidr: Subnet,
        /// The gateway's address.
        gateway: Ipv4Addr,
    },
    /// A tap for this address exists; its holder may be a machine that has not ended yet.
    #[error("address {address} is still plugged in: its tap {tap} has a holder")]
    PortExists {
        /// The address asked for.
        address: Ipv4Addr,
        /// The tap that is in the way.
        tap: InterfaceName,
    },
    /// The bridge is full.
    #[error(
        "network {name} has {max} ports, which is all that a bridge can have: add a node",
        max = crate::network::PORTS_MAX
    )]
    PortLimit {
        /// The network.
        name: NetworkName,
    },
    /// The process has no file descriptors left.
    #[error("{action}: no file descriptor left; raise the limit (ulimit -n, LimitNOFILE=)")]
    Descriptors {
        /// What was tried.
        action: &'static str,
    },
    /// Reading or changing the namespace's file or mount failed.
    #[error("{action} {path}")]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused to make a tap.
    #[error("creating tap {tap}")]
    Tap {
        /// The tap.
        tap: InterfaceName,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a request about interfaces.
    #[error("{action} {subject}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// On which interface, address or network.
        subject: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No such network was applied.
    #[error("network {vni} is not on this node")]
    NetworkUnknown {
        /// The network.
        vni: Vni,
    },
    /// The network has no such port on this node.
    #[error("network {vni} has no port {address} on this node")]
    PortUnknown {
        /// The network.
        vni: Vni,
        /// The address asked for.
        address: Ipv4Addr,
    },
    /// The host interface that a bridged network is to be attached to does not exist.
    #[error("the host has no interface {interface}: make it, or name another for the network")]
    AttachMissing {
        /// The interface.
        interface: HostInterface,
    },
    /// Somebody else on this host uses the network's identifier.
    #[error(
        "VXLAN identifier {vni} is in use on UDP port {port} of this host: \
         give the node a port of its own"
    )]
    TunnelTaken {
        /// The identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
    /// The kernel refused rules.
    #[error("writing or reading rules")]
    Rules {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A node's secret cannot be used.
    #[error("the node's key for encryption in {path}")]
    WireKey {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The encrypted way between nodes is not what it should be; nothing is sent meanwhile.
    #[error("{action} the encrypted way between nodes")]
    Encryption {
        /// What was tried.
        action: &'static str,
        /// The answer of the kernel or of wireguard-go.
        source: io::Error,
    },
    /// The kernel does not show what was done: somebody else undoes it.
    #[error("network {name} does not become what it should be: somebody else changes it")]
    Unsettled {
        /// The network.
        name: NetworkName,
    },
    /// The network's thread has ended, because the network was closed or the thread crashed.
    #[error("network is closed")]
    Closed,
}

impl NetError {
    /// Stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Host(error) => error.code(),
            Self::ExistsForeign { .. } | Self::FileForeign { .. } => "NETWORK_EXISTS_FOREIGN",
            Self::Busy { .. } => "NETWORK_BUSY",
            Self::InUse { .. } => "NETWORK_IN_USE",
            Self::AddressOutside { .. } => "ADDRESS_OUTSIDE",
            Self::PortExists { .. } => "PORT_EXISTS",
            Self::PortLimit { .. } => "PORT_LIMIT",
            Self::Descriptors { .. } => "DESCRIPTORS_EXHAUSTED",
            Self::Namespace { .. } => "NAMESPACE_FAILED",
            Self::Tap { .. } => "TAP_FAILED",
            Self::Netlink { .. } => "NETLINK_FAILED",
            Self::NetworkUnknown { .. } => "NETWORK_UNKNOWN",
            Self::PortUnknown { .. } => "PORT_UNKNOWN",
            Self::AttachMissing { .. } => "ATTACH_MISSING",
            Self::TunnelTaken { .. } => "TUNNEL_TAKEN",
            Self::Rules { .. } => "RULES_FAILED",
            Self::WireKey { .. } => "WIRE_KEY_UNUSABLE",
            Self::Encryption { .. } => "ENCRYPTION_FAILED",
            Self::Unsettled { .. } => "NETWORK_UNSETTLED",
            Self::Closed => "NETWORK_CLOSED",
        }
    }
}

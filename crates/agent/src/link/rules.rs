//! Which connections of programs may leave TCP, by the rules of the cloud's networks.
//!
//! - Programs of the node itself are under the host's own firewall. The kernel has let their connection through, and the broker sends it
//!   back to TCP when the host's rules change; the cloud's networks have no say in it.
//! - In any other network namespace the addresses may be those of ports. If an end has the address of a port in a network of the
//!   project on whose socket was asked, then that network must let TCP connections through between the two, from one side at
//!   least; where it does not, or does not any more, the bytes stay on TCP.

use crate::networks;
use skein_link::broker::{Guard, Place};
use skein_link::remote::ConnectionKey;
use skein_model::ProjectName;
use skein_net::{Payload, Probe, Transport, Vni};
use skein_registry::{Mirror, View};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Judges by the records as they are.
pub(super) struct Rules {
    pub(super) mirror: Mirror,
    /// The network namespace of the node's own programs.
    pub(super) namespace: Option<u64>,
}

impl Guard for Rules {
    fn allows(&self, place: &Place) -> bool {
        if Some(place.namespace) == self.namespace {
            return true;
        }
        let Ok(project) = place.project.parse() else { return false };
        self.mirror.read(|view| lets_through(view, &project, &place.key))
    }
}

/// Whether the project's networks let TCP through between the two ends, from one to the other or back. Ends of which neither is
/// a port's are none of theirs.
fn lets_through(view: &View, project: &ProjectName, key: &ConnectionKey) -> bool {
    let ends = [key.low.ip(), key.high.ip()];
    let networks: BTreeSet<Vni> = view
        .ports
        .values()
        .filter(|port| port.value.project == *project)
        .filter(|port| {
            let six = port.value.ipv6.map(IpAddr::from);
            ends.contains(&IpAddr::from(port.value.ipv4))
                || six.is_some_and(|ip| ends.contains(&ip))
        })
        .filter_map(|port| networks::vni(port.value.vni))
        .collect();
    if networks.is_empty() {
        return true;
    }
    let nodes = networks::of_all_nodes(view);
    let arrives = |from: SocketAddr, to: SocketAddr| {
        let payload = Payload::Port(Transport::Tcp, to.port());
        let probe = Probe { source: from.ip(), destination: to.ip(), payload };
        networks.iter().any(|network| skein_net::trace(&nodes, *network, &probe).arrives())
    };
    arrives(key.low, key.high) || arrives(key.high, key.low)
}

#[cfg(test)]
mod tests;

//! Ports: a machine's plug in a network.

use crate::names::{InterfaceName, PortLabel};
use skein_model::MacAddr;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

/// Whether a machine may talk to others of its network on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// To all that are [`Peers::Reachable`] too, and to the gateway.
    Reachable,
    /// To the gateway only, if the other is isolated as well.
    Isolated,
}

/// What to plug in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// The machine's address: a host address of the network, not the gateway's.
    pub address: Ipv4Addr,
    /// The machine's MAC address; frames from any other are dropped.
    pub mac: MacAddr,
    /// Whose port it is.
    pub label: PortLabel,
    /// Whom it may talk to.
    pub peers: Peers,
}

/// A port with its tap. Dropping it closes this process's descriptor, and with the last one the tap
/// goes; [`crate::NodeNetwork::unplug`] also removes what the bridge knows of it. Closing the last
/// descriptor blocks for about 15 ms, so drop an unused port away from the runtime's threads.
#[derive(Debug)]
pub struct Port {
    /// The machine's end: each read and write is one Ethernet frame behind a virtio-net header of
    /// 10 bytes (QEMU may choose 12). Blocking, closed on exec; pass a duplicate to QEMU as
    /// `-netdev tap,fd=N`.
    pub tap: OwnedFd,
    /// The host's end.
    pub name: InterfaceName,
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The machine's MAC address.
    pub mac: MacAddr,
}

/// A port that exists, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// The tap.
    pub name: InterfaceName,
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The machine's MAC address.
    pub mac: MacAddr,
    /// Whose port it is.
    pub label: PortLabel,
    /// Whom it may talk to.
    pub peers: Peers,
    /// Process ids of the tap's holders that this process may see; QEMU, and this process until it
    /// gives up its own descriptor.
    pub holders: Vec<u32>,
}

/// What [`crate::NodeNetwork::unplug`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplugged {
    /// The tap was there and was removed; whoever holds it reads errors from now on.
    Removed,
    /// The tap was gone already.
    Absent,
}

/// What a port is, kept as the alias of its tap: `MAC PEERS LABEL`.
pub(crate) fn alias(mac: MacAddr, peers: Peers, label: &PortLabel) -> String {
    let peers = match peers {
        Peers::Reachable => "reachable",
        Peers::Isolated => "isolated",
    };
    format!("{mac} {peers} {label}")
}

/// The inverse of [`alias`]; `None` for any other text.
pub(crate) fn parse_alias(text: &str) -> Option<(MacAddr, Peers, PortLabel)> {
    let mut words = text.split(' ');
    let mac = words.next()?.parse().ok()?;
    let peers = match words.next()? {
        "reachable" => Peers::Reachable,
        "isolated" => Peers::Isolated,
        _ => return None,
    };
    let label = words.next()?.parse().ok()?;
    words.next().is_none().then_some((mac, peers, label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_alias_tells_the_port_and_fits(
            octets: [u8; 6], isolated: bool, label in "[!-~]{1,128}",
        ) {
            let Ok(mac) = MacAddr::new(octets) else { return Ok(()) };
            let peers = if isolated { Peers::Isolated } else { Peers::Reachable };
            let label: PortLabel = label.parse().unwrap();
            let text = alias(mac, peers, &label);
            // IFALIASZ is 256 with the closing zero.
            prop_assert!(text.len() < 256);
            prop_assert_eq!(parse_alias(&text), Some((mac, peers, label)));
        }

        #[test]
        fn any_alias_is_answered(text in "(02:00:00:00:00:01 )?(isolated |reachable )?\\PC{0,20}") {
            if let Some((mac, peers, label)) = parse_alias(&text) {
                prop_assert_eq!(alias(mac, peers, &label).to_lowercase(), text.to_lowercase());
            }
        }
    }
}

//! What the rules of a network are: from what is desired to tables of the kernel. Pure.
//!
//! ```text
//!   machine ─ tap ─▶ bridge table: is this who it says it is? ─▶ inet table: may it? ─▶ machine
//!                    MAC, address, ARP, ND, DHCP, limits         groups, state, counters
//! ```
//! The kernel follows connections of bridged packets only in the families of IP (`br_netfilter`
//! hands them over), so the first question is answered in the bridge family and the second in the
//! family `inet`. A packet that a machine sends to another of the same node answers both; one for
//! another node is judged as sent here and as received there.
//!
//! Packets of a connection that both ends have agreed on take a shorter way where the kernel can (`shortcut`).
//!
//! Membership stands in sets and maps: a change of one member changes elements, never rules.

mod bridge;
mod host;
mod inet;
mod policy;
mod published;
mod shortcut;
mod steps;

pub(crate) use host::{HostRules, Way, host_rules};
pub(crate) use policy::{Deciding, Judgement, Packet, Policy};
pub(crate) use shortcut::{ANSWER, KNOWN};

use crate::desired::{Desired, DesiredNetwork, GroupName, NetworkKind, Transport};
use crate::names::InterfaceName;
use crate::netfilter::{Family, Ruleset};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// The name of our tables in a network's namespace.
pub(crate) const TABLE: &str = "skein";
/// The group that rules log to, within a network's namespace.
pub(crate) const LOG_GROUP: u16 = 7531;

/// What the rules of a network depend on besides the network itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// What the names of the network's taps begin with.
    pub(crate) taps: String,
    /// This node in the network.
    pub(crate) router: Option<(Ipv4Addr, [u8; 6])>,
    /// Where nodes receive VXLAN: no machine may send there.
    pub(crate) tunnels: BTreeSet<(Ipv4Addr, u16)>,
    /// Where connections wait for a machine, by what they came to.
    pub(crate) waiting: BTreeMap<(Transport, u16), u16>,
    /// Whether the kernel can do what the short way between machines needs.
    pub(crate) has_shortcut: bool,
}

impl Surroundings {
    /// Those of a network on the node of `desired`.
    pub(crate) fn of(desired: &Desired, taps: String) -> Self {
        let nodes = std::iter::once(&desired.underlay).chain(&desired.peers);
        let number = desired.underlay.number;
        Self {
            taps,
            router: Some((number.router_address(), number.router_mac())),
            tunnels: nodes.map(|node| (node.address, node.vxlan_port)).collect(),
            waiting: BTreeMap::new(),
            has_shortcut: false,
        }
    }
}

/// The rules of a network on this node.
pub(crate) fn rules(
    network: &DesiredNetwork,
    tap: impl Fn(Ipv4Addr) -> InterfaceName,
    around: &Surroundings,
) -> Ruleset {
    let bridge = bridge::table(network, &tap, around);
    let inet = inet::table(network, around);
    let mut rules = Ruleset::from([
        ((Family::Bridge, TABLE.to_owned()), bridge),
        ((Family::Inet, TABLE.to_owned()), inet),
    ]);
    if shortens(network, around) {
        rules.insert((Family::Device, TABLE.to_owned()), shortcut::table(network, &tap, around));
    }
    rules
}

/// The part of the rules that only newer kernels have.
pub(crate) fn shortcut_alone(network: &DesiredNetwork, around: &Surroundings) -> Ruleset {
    let none = |_| InterfaceName::bridge();
    let bare = DesiredNetwork { ports: Vec::new(), ..network.clone() };
    Ruleset::from([((Family::Device, TABLE.to_owned()), shortcut::table(&bare, &none, around))])
}

/// Whether connections of a network take the short way. On the operator's segment packets would leave with our mark.
fn shortens(network: &DesiredNetwork, around: &Surroundings) -> bool {
    around.has_shortcut && !matches!(network.kind, NetworkKind::Bridged { .. })
}

/// A short name for a set of groups, the same for the same groups. Machines with equal groups share
/// their chains.
pub(crate) fn profile(groups: &BTreeSet<&GroupName>) -> String {
    let mut digest = Sha256::new();
    for group in groups {
        digest.update(group.as_str().as_bytes());
        digest.update([0]);
    }
    digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All addresses of the ports of a network with the groups of each, local ones first.
pub(crate) fn members(
    network: &DesiredNetwork,
) -> impl Iterator<Item = (IpAddr, &[GroupName])> + '_ {
    let local = network.ports.iter().map(|p| (p.address, p.ipv6, p.groups.as_slice()));
    let remote = network.remote_ports.iter().map(|p| (p.address, p.ipv6, p.groups.as_slice()));
    local.chain(remote).flat_map(|(address, ipv6, groups)| {
        let both = [Some(IpAddr::V4(address)), ipv6.map(IpAddr::V6)];
        both.into_iter().flatten().map(move |address| (address, groups))
    })
}

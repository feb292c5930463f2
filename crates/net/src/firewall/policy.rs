//! The same rules as a function: what becomes of the first packet of a connection, and why. Whoever
//! changes the tables changes this; a test compares both with real packets.

use super::inet::{closes_egress, tag};
use super::members;
use crate::desired::{
    DesiredNetwork, Direction, Exit, GroupName, LocalPort, NetworkKind, Rule, RulePeer,
    RuleProtocol,
};
use crate::port::Peers;
use skein_model::AddressRange;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// What of a packet decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Number of the transport protocol.
    pub(crate) protocol: u8,
    /// Destination port, or type of ICMP.
    pub(crate) port: u16,
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Deciding {
    /// A rule, by the name of its counter.
    Rule(String),
    /// Nobody limits what the port sends.
    EgressOpen,
    /// No rule of the port's groups allows it.
    Closed(Direction),
    /// A port that must not talk to others.
    Isolated,
    /// Nobody has the address.
    Nobody,
    /// The network has no way out.
    NoExit,
    /// The network is wide open to its segment.
    Segment,
    /// The receiver's own node decides.
    Elsewhere,
    /// The node decided by which it came in.
    Entered,
    /// It leaves the network.
    Leaves,
}

/// Whether a step lets a packet on, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) allowed: bool,
    pub(crate) by: Deciding,
}

impl Judgement {
    fn yes(by: Deciding) -> Self {
        Self { allowed: true, by }
    }

    fn no(by: Deciding) -> Self {
        Self { allowed: false, by }
    }
}

/// A network's rules, ready to be asked.
#[derive(Debug)]
pub(crate) struct Policy<'a> {
    network: &'a DesiredNetwork,
    local: BTreeMap<IpAddr, &'a LocalPort>,
    remote: BTreeSet<IpAddr>,
    groups_of: BTreeMap<IpAddr, &'a [GroupName]>,
}

impl<'a> Policy<'a> {
    pub(crate) fn new(network: &'a DesiredNetwork) -> Self {
        let mut local = BTreeMap::new();
        for port in &network.ports {
            local.insert(IpAddr::V4(port.address), port);
            local.extend(port.ipv6.map(|address| (IpAddr::V6(address), port)));
        }
        let remote = network.remote_ports.iter();
        let remote = remote.flat_map(|port| [Some(port.address.into()), port.ipv6.map(IpAddr::V6)]);
        Self {
            network,
            local,
            remote: remote.flatten().collect(),
            groups_of: members(network).collect(),
        }
    }

    /// Whether this node lets the packet through, all steps together.
    pub(crate) fn allows(&self, packet: &Packet) -> bool {
        self.isolation(packet).is_none_or(|judgement| judgement.allowed)
            && self.egress(packet).is_none_or(|judgement| judgement.allowed)
            && self.ingress(packet).allowed
    }

    /// Whether a machine of the network has this address.
    pub(crate) fn is_machine(&self, address: IpAddr) -> bool {
        self.local.contains_key(&address) || self.remote.contains(&address)
    }

    /// Ports that talk to nobody of their network; `None` if this is about none of them.
    pub(crate) fn isolation(&self, packet: &Packet) -> Option<Judgement> {
        let isolated = |address: &IpAddr| {
            self.local.get(address).is_some_and(|port| port.peers == Peers::Isolated)
        };
        let (from, to) = (&packet.source, &packet.destination);
        let inside = |address: &IpAddr| self.is_inside(*address);
        let cut = isolated(from) && inside(to) || isolated(to) && inside(from);
        cut.then(|| Judgement::no(Deciding::Isolated))
    }

    /// What the sender's groups say; `None` if the sender is not on this node.
    pub(crate) fn egress(&self, packet: &Packet) -> Option<Judgement> {
        let port = self.local.get(&packet.source)?;
        let groups: BTreeSet<_> = port.groups.iter().collect();
        if !closes_egress(self.network, &groups) {
            return Some(Judgement::yes(Deciding::EgressOpen));
        }
        Some(self.judge(Direction::Egress, &groups, packet, packet.destination))
    }

    /// What the receiver's groups say, or what is there besides machines of this node.
    pub(crate) fn ingress(&self, packet: &Packet) -> Judgement {
        if self.is_entered(packet.source) && self.is_machine(packet.destination) {
            return Judgement::yes(Deciding::Entered);
        }
        if let Some(port) = self.local.get(&packet.destination) {
            let groups = port.groups.iter().collect();
            return self.judge(Direction::Ingress, &groups, packet, packet.source);
        }
        if self.remote.contains(&packet.destination) {
            return Judgement::yes(Deciding::Elsewhere);
        }
        match self.network.kind {
            NetworkKind::Bridged { .. } => Judgement::yes(Deciding::Segment),
            _ if self.is_inside(packet.destination) => Judgement::no(Deciding::Nobody),
            NetworkKind::Nat(Exit::Here { .. } | Exit::Via(_)) if packet.source.is_ipv4() => {
                Judgement::yes(Deciding::Leaves)
            }
            NetworkKind::Nat(_) | NetworkKind::Isolated => Judgement::no(Deciding::NoExit),
        }
    }

    /// Whether an address is a node's, which speaks for clients that it has let in; on the operator's segment anybody may have it.
    pub(crate) fn is_entered(&self, source: IpAddr) -> bool {
        !matches!(self.network.kind, NetworkKind::Bridged { .. }) && is_router(source)
    }

    /// Whether a client outside gets through to a machine, here or on another node, by a published port of this one.
    pub(crate) fn lets_in(&self, packet: &Packet) -> bool {
        let groups = self.groups_of.get(&packet.destination);
        groups.is_some_and(|groups| self.admits(groups, packet))
    }

    /// Whether a client outside gets through to a machine of these groups, whatever its address.
    pub(crate) fn admits(&self, groups: &[GroupName], packet: &Packet) -> bool {
        let groups = groups.iter().collect();
        self.judge(Direction::Ingress, &groups, packet, packet.source).allowed
    }

    fn judge(
        &self,
        direction: Direction,
        groups: &BTreeSet<&GroupName>,
        packet: &Packet,
        peer: IpAddr,
    ) -> Judgement {
        // In the order of the chains: groups by name, rules as they stand.
        for name in groups {
            let group = self.network.groups.iter().find(|group| group.name == **name);
            let rules = group.into_iter().flat_map(|group| &group.rules);
            let found = rules
                .filter(|rule| rule.direction == direction)
                .find(|rule| self.matches(rule, packet, peer));
            if let Some(rule) = found {
                return Judgement::yes(Deciding::Rule(tag(name, rule)));
            }
        }
        Judgement::no(Deciding::Closed(direction))
    }

    fn matches(&self, rule: &Rule, packet: &Packet, peer: IpAddr) -> bool {
        let icmp = if packet.source.is_ipv4() { ICMP } else { ICMP6 };
        let protocol = match rule.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Tcp(ports) => packet.protocol == TCP && ports.contains(packet.port),
            RuleProtocol::Udp(ports) => packet.protocol == UDP && ports.contains(packet.port),
            RuleProtocol::Number(number) => packet.protocol == number,
            RuleProtocol::Icmp(kind) => {
                let of_kind = kind.is_none_or(|kind| u16::from(kind) == packet.port);
                packet.protocol == icmp && of_kind
            }
        };
        let of_group =
            |group| self.groups_of.get(&peer).is_some_and(|groups| groups.contains(group));
        protocol
            && match &rule.peer {
                RulePeer::Any => true,
                RulePeer::Range(range) => range.contains(peer),
                RulePeer::Group(group) => of_group(group),
            }
    }

    /// Whether an address is of the network's ranges.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let length = self.network.cidr.prefix_len();
                let base = AddressRange::new(self.network.cidr.network().into(), length);
                base.is_ok_and(|range| range.contains(v4.into()))
            }
            IpAddr::V6(_) => self.network.ipv6.is_some_and(|range| range.prefix.contains(address)),
        }
    }
}

/// Whether an address is a node's within networks ([`crate::NodeNumber::router_address`]).
fn is_router(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[..2] == [100, 127])
}

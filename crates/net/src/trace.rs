//! What would happen to a packet, hop by hop, and what rules have counted.

use crate::desired::{
    Desired, DesiredNetwork, Direction, Exit, NetworkKind, NodeNumber, RuleProtocol, Transport,
};
use crate::firewall::{Deciding, Judgement, Packet, Policy};
use crate::netfilter::RuleCounter;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// What a rule, or the lack of one, has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// `rule GROUP in|out ID` (connections), `closed to-…|from-…` (packets that no rule allowed),
    /// `drop WHY` (packets that never may).
    pub name: String,
    /// Packets; for a rule: connections that it let through.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
}

/// One for each name.
pub(crate) fn counters(all: Vec<RuleCounter>) -> Vec<Counter> {
    let mut by_name: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for RuleCounter { tag, packets, bytes } in all {
        let sum = by_name.entry(tag).or_default();
        *sum = (sum.0 + packets, sum.1 + bytes);
    }
    let counter = |(name, (packets, bytes))| Counter { name, packets, bytes };
    by_name.into_iter().map(counter).collect()
}

/// A packet to follow: the first of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// A machine's address, or one outside.
    pub source: IpAddr,
    /// A machine's address, or one outside.
    pub destination: IpAddr,
    /// What it is.
    pub payload: Payload,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// TCP or UDP to a port.
    Port(Transport, u16),
    /// ICMP or ICMPv6 of a type.
    Icmp(u8),
    /// Another protocol, by number.
    Number(u8),
}

impl Payload {
    /// As rules see it.
    fn packet(self, source: IpAddr, destination: IpAddr) -> Packet {
        let icmp = if source.is_ipv4() { 1 } else { 58 };
        let (protocol, port) = match self {
            Self::Port(Transport::Tcp, port) => (6, port),
            Self::Port(Transport::Udp, port) => (17, port),
            Self::Icmp(kind) => (icmp, u16::from(kind)),
            Self::Number(number) => (number, 0),
        };
        Packet { source, destination, protocol, port }
    }
}

impl From<RuleProtocol> for Payload {
    /// A packet that a rule is about.
    fn from(protocol: RuleProtocol) -> Self {
        match protocol {
            RuleProtocol::Any => Self::Port(Transport::Tcp, 1),
            RuleProtocol::Tcp(ports) => Self::Port(Transport::Tcp, ports.first()),
            RuleProtocol::Udp(ports) => Self::Port(Transport::Udp, ports.first()),
            RuleProtocol::Icmp(kind) => Self::Icmp(kind.unwrap_or(8)),
            RuleProtocol::Number(number) => Self::Number(number),
        }
    }
}

/// One hop of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Where it is.
    pub at: Place,
    /// Whether it goes on.
    pub passes: bool,
    /// What decides, in words that name the rule.
    pub why: String,
}

/// Where a packet is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The sender's tap.
    Tap(Ipv4Addr),
    /// What the sender's groups let out, on this node.
    Egress(NodeNumber),
    /// What the receiver's groups let in, on this node.
    Ingress(NodeNumber),
    /// From one node to another.
    Tunnel(NodeNumber, NodeNumber),
    /// What this node itself answers in the network.
    Gateway(NodeNumber),
    /// Out of the network, at this node.
    Exit(NodeNumber),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(address) => write!(f, "port of {address}"),
            Self::Egress(node) => write!(f, "egress on node {}", node.get()),
            Self::Ingress(node) => write!(f, "ingress on node {}", node.get()),
            Self::Tunnel(from, to) => write!(f, "tunnel from node {} to {}", from.get(), to.get()),
            Self::Gateway(node) => write!(f, "gateway on node {}", node.get()),
            Self::Exit(node) => write!(f, "exit at node {}", node.get()),
        }
    }
}

/// What would become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// In the order of the way; only the last can be where it ends.
    pub hops: Vec<Hop>,
}

impl Trace {
    /// Whether it would arrive.
    pub fn arrives(&self) -> bool {
        self.hops.last().is_some_and(|hop| hop.passes)
    }
}

/// Follows a packet through a network, given what each node of it should be: the sender's node
/// judges what leaves, the receiver's what arrives. The nodes come in any order; the network is that
/// of `vni` in each. Connections that exist are not looked at: this is about new ones.
pub fn trace(nodes: &[Desired], vni: crate::desired::Vni, probe: &Probe) -> Trace {
    let networks = nodes.iter().filter_map(|node| {
        let network = node.networks.iter().find(|network| network.vni == vni)?;
        Some((node.underlay.number, &**network))
    });
    let networks: Vec<_> = networks.collect();
    let mut way = Way { nodes, hops: Vec::new() };
    way.follow(&networks, probe);
    Trace { hops: way.hops }
}

struct Way<'a> {
    nodes: &'a [Desired],
    hops: Vec<Hop>,
}

impl Way<'_> {
    fn follow(&mut self, nodes: &[(NodeNumber, &DesiredNetwork)], probe: &Probe) {
        let of = |address: IpAddr| {
            nodes.iter().find(|(_, network)| {
                network.ports.iter().any(|port| {
                    IpAddr::V4(port.address) == address
                        || port.ipv6.map(IpAddr::V6) == Some(address)
                })
            })
        };
        let packet = probe.payload.packet(probe.source, probe.destination);
        let (from, to) = (of(probe.source), of(probe.destination));
        let Some((node, network)) = from.or(to) else {
            if let Some((node, _)) = nodes.first() {
                self.stop(Place::Exit(*node), "neither end is a machine of the network");
            }
            return;
        };
        if from.is_some() {
            if let IpAddr::V4(address) = probe.source {
                self.pass(Place::Tap(address), "its own address");
            }
            // What machines ask their gateway is no connection of theirs to anybody: no group limits it.
            if to.is_none() && is_gateway(network, packet.destination) {
                return self.ask_gateway(*node, network, &packet);
            }
            if !self.leave(*node, &Policy::new(network), &packet) {
                return;
            }
        }
        match to {
            Some((there, network)) => {
                if from.is_some() && there != node {
                    self.pass(Place::Tunnel(*node, *there), "the receiver runs there");
                }
                self.arrive(*there, &Policy::new(network), &packet);
            }
            None => self.go_out(*node, network, &packet),
        }
    }

    fn ask_gateway(&mut self, node: NodeNumber, network: &DesiredNetwork, packet: &Packet) {
        match gateway_answers(network, packet) {
            true => self.pass(Place::Gateway(node), "the node answers this itself"),
            false => self.stop(Place::Gateway(node), "the node answers nothing there"),
        }
    }

    /// Whether a port of this node is open there, for whichever network.
    fn is_published(&self, node: NodeNumber, packet: &Packet) -> bool {
        let at = self.nodes.iter().find(|desired| desired.underlay.number == node);
        let open = at.into_iter().flat_map(|desired| &desired.networks);
        open.flat_map(|network| &network.publications).any(|publication| {
            let protocol = number(publication.protocol);
            let here = publication.address.is_none_or(|at| packet.destination == IpAddr::V4(at));
            here && (protocol, publication.port) == (packet.protocol, packet.port)
        })
    }

    /// Whether it goes to the addresses where nodes talk to each other, which machines must not: not to any node's tunnels,
    /// nor to the node by which they leave.
    fn is_for_nodes(&self, exit: NodeNumber, packet: &Packet) -> bool {
        let mut places = self.nodes.iter().map(|node| &node.underlay);
        places.any(|place| {
            let to_tunnels = (packet.protocol, packet.port) == (17, place.vxlan_port);
            packet.destination == IpAddr::V4(place.address) && (to_tunnels || place.number == exit)
        })
    }

    fn leave(&mut self, node: NodeNumber, policy: &Policy<'_>, packet: &Packet) -> bool {
        if let Some(judgement) = policy.isolation(packet) {
            self.judge(Place::Egress(node), &judgement);
            return false;
        }
        let judgement = policy.egress(packet);
        judgement.is_none_or(|judgement| {
            self.judge(Place::Egress(node), &judgement);
            judgement.allowed
        })
    }

    fn arrive(&mut self, node: NodeNumber, policy: &Policy<'_>, packet: &Packet) {
        if let Some(judgement) = policy.isolation(packet) {
            return self.judge(Place::Ingress(node), &judgement);
        }
        self.judge(Place::Ingress(node), &policy.ingress(packet));
    }

    fn go_out(&mut self, node: NodeNumber, network: &DesiredNetwork, packet: &Packet) {
        let judgement = Policy::new(network).ingress(packet);
        if !judgement.allowed {
            return self.judge(Place::Exit(node), &judgement);
        }
        let exit = match network.kind {
            NetworkKind::Nat(Exit::Via(exit)) if exit != node => {
                self.pass(Place::Tunnel(node, exit), "the network's exit is there");
                exit
            }
            _ => node,
        };
        let is_nat = matches!(network.kind, NetworkKind::Nat(_));
        match is_nat && self.is_for_nodes(exit, packet) && !self.is_published(exit, packet) {
            true => self.stop(Place::Exit(exit), "machines do not reach the nodes there"),
            false => self.judge(Place::Exit(exit), &judgement),
        }
    }

    fn judge(&mut self, at: Place, judgement: &Judgement) {
        let why = words(&judgement.by);
        self.hops.push(Hop { at, passes: judgement.allowed, why });
    }

    fn pass(&mut self, at: Place, why: &str) {
        self.hops.push(Hop { at, passes: true, why: why.to_owned() });
    }

    fn stop(&mut self, at: Place, why: &str) {
        self.hops.push(Hop { at, passes: false, why: why.to_owned() });
    }
}

/// Whether an address is a node's own in the network: the gateway's, or one of those at which nodes reach each other and
/// their host there.
fn is_gateway(network: &DesiredNetwork, address: IpAddr) -> bool {
    let bridged = matches!(network.kind, NetworkKind::Bridged { .. });
    let six = network.ipv6.map(|range| IpAddr::V6(range.gateway));
    let inner = matches!(address, IpAddr::V4(v4) if is_inner(v4));
    !bridged && (inner || address == IpAddr::V4(network.gateway) || Some(address) == six)
}

/// 100.64.0.0/10: shared address space (RFC 6598), of which nodes take theirs within networks.
fn is_inner(address: Ipv4Addr) -> bool {
    address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64
}

fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

/// Whether the node answers what machines ask it: names, addresses, echoes, and services it was told of.
fn gateway_answers(network: &DesiredNetwork, packet: &Packet) -> bool {
    if matches!(packet.destination, IpAddr::V4(v4) if is_inner(v4)) {
        return false;
    }
    let is_service = network
        .gateway_services
        .iter()
        .any(|service| (number(service.protocol), service.port) == (packet.protocol, packet.port));
    match (packet.protocol, packet.port) {
        (6 | 17, 53) | (17, 67) | (1, 8) => true,
        (17, 547) | (58, _) => packet.destination.is_ipv6(),
        _ => is_service,
    }
}

fn words(by: &Deciding) -> String {
    match by {
        Deciding::Rule(tag) => tag.clone(),
        Deciding::EgressOpen => "no group limits what it sends".to_owned(),
        Deciding::Closed(Direction::Ingress) => "no rule of its groups lets this in".to_owned(),
        Deciding::Closed(Direction::Egress) => "no rule of its groups lets this out".to_owned(),
        Deciding::Isolated => "the port is isolated from others of its network".to_owned(),
        Deciding::Nobody => "no machine has this address".to_owned(),
        Deciding::NoExit => "the network has no way out".to_owned(),
        Deciding::Segment => "the host's segment takes it".to_owned(),
        Deciding::Elsewhere => "the receiver's node decides".to_owned(),
        Deciding::Entered => "the node by which it came in has decided".to_owned(),
        Deciding::Leaves => "under the network's outside address".to_owned(),
    }
}

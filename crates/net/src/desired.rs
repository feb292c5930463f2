//! What the networks of one node should be: the contract between the control plane, which writes
//! it, and [`crate::NodeNetworks`], which makes the kernel agree. Pure; no IO, no clock.
//!
//! A [`Desired`] is whole: what is not in it is removed. Applying it twice changes nothing. Every
//! node gets its own: ports of machines that run there are [`LocalPort`]s, all others of the same
//! network are [`RemotePort`]s. Everything a node derives (interface names, the gateway's MAC
//! address, router addresses) depends only on what stands here, so that all nodes agree.

use crate::names::{InvalidName, PortLabel};
use crate::port::Peers;
use skein_model::{AddressRange, MacAddr, Subnet, WireKey};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

mod check;

pub use check::InvalidDesired;

/// All networks of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// This node on the network between nodes.
    pub underlay: Underlay,
    /// The other nodes that share a network with this one; more do no harm.
    pub peers: Vec<Underlay>,
    /// The networks that have a machine, a publication or an exit here. Networks that did not
    /// change should be the same `Arc`: comparing them then costs nothing.
    pub networks: Vec<Arc<DesiredNetwork>>,
}

impl Desired {
    /// The other nodes that this one can talk to.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Underlay> {
        let own = &self.underlay;
        self.peers.iter().filter(|peer| peer.talks_to(own) && peer.number != own.number)
    }

    /// A node without networks.
    pub fn new(underlay: Underlay) -> Self {
        Self { underlay, peers: Vec::new(), networks: Vec::new() }
    }

    /// The node with this number that this one can talk to, this one included.
    pub fn node(&self, number: NodeNumber) -> Option<&Underlay> {
        std::iter::once(&self.underlay).chain(self.peers()).find(|node| node.number == number)
    }
}

/// A node on the network between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underlay {
    /// Which node; never given to another while packets of the old one may be under way.
    pub number: NodeNumber,
    /// Where it receives VXLAN. Several nodes may share an address if their ports differ.
    pub address: Ipv4Addr,
    /// UDP port of VXLAN: [`VXLAN_PORT_DEFAULT`] unless nodes share a host's network namespace. Where traffic is encrypted,
    /// WireGuard has this port.
    pub vxlan_port: u16,
    /// The node's public key if it encrypts what it sends to other nodes. Nodes that do talk only to nodes that do.
    pub wire: Option<WireKey>,
}

impl Underlay {
    /// Where the node's tunnels are, for others and for itself.
    pub(crate) fn tunnel_end(&self) -> SocketAddrV4 {
        match self.wire {
            Some(_) => SocketAddrV4::new(self.number.wire_address(), VXLAN_PORT_DEFAULT),
            None => SocketAddrV4::new(self.address, self.vxlan_port),
        }
    }

    /// Whether two nodes can talk: both encrypt, or neither does.
    pub fn talks_to(&self, other: &Self) -> bool {
        self.wire.is_some() == other.wire.is_some()
    }
}

/// The port that IANA gave VXLAN (RFC 7348, section 4).
pub const VXLAN_PORT_DEFAULT: u16 = 4789;

/// The number of a node in the cloud, 1 to 65,534: its router address and MAC derive from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNumber(u16);

impl NodeNumber {
    /// The node `number`; `None` for 0 and 65,535.
    pub fn new(number: u16) -> Option<Self> {
        (1..u16::MAX).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The node's own address in every network, from the range for addresses between carriers and
    /// their customers (100.64.0.0/10, RFC 6598) that no network of machines should use. Traffic
    /// that one node sends through another's exit or machines comes from here.
    pub fn router_address(self) -> Ipv4Addr {
        let [high, low] = self.0.to_be_bytes();
        Ipv4Addr::new(100, 127, high, low)
    }

    /// The node's address on the encrypted way between nodes, which stands in a namespace of its own.
    pub fn wire_address(self) -> Ipv4Addr {
        let [high, low] = self.0.to_be_bytes();
        Ipv4Addr::new(100, 126, high, low)
    }

    /// The MAC address that goes with [`NodeNumber::router_address`].
    pub fn router_mac(self) -> [u8; 6] {
        let [high, low] = self.0.to_be_bytes();
        [0x02, 0x53, 0x4b, 0x52, high, low]
    }
}

/// The VXLAN network identifier of a network, 1 to 16,777,215 (RFC 7348): unique in the cloud, and
/// the network's name on each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The identifier `number`; `None` if it is 0 or longer than 24 bits.
    pub fn new(number: u32) -> Option<Self> {
        (1..1 << 24).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The MAC address of the network's gateway: the same on every node, so that a machine that
    /// moves keeps its neighbour.
    pub fn gateway_mac(self) -> [u8; 6] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [0x02, 0x53, 0x4b, a, b, c]
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredNetwork {
    /// Which network.
    pub vni: Vni,
    /// What it is to the world outside.
    pub kind: NetworkKind,
    /// Its IPv4 range.
    pub cidr: Subnet,
    /// The gateway's address: this node's in kinds NAT and isolated, the operator's router in a
    /// bridged network.
    pub gateway: Ipv4Addr,
    /// Its IPv6 range, if it has one.
    pub ipv6: Option<Ipv6Range>,
    /// The largest packet of a machine, in bytes: 1,280 to 9,216. VXLAN needs
    /// [`VXLAN_OVERHEAD_BYTES`] more between nodes.
    pub mtu: u16,
    /// Machines of this node.
    pub ports: Vec<LocalPort>,
    /// Machines of other nodes.
    pub remote_ports: Vec<RemotePort>,
    /// Every rule group of a local port, of a machine that is waited for ([`Wake`]), or that a rule of such a group names.
    pub groups: Vec<RuleGroup>,
    /// What DHCP tells besides addresses.
    pub dhcp: DhcpSettings,
    /// What DNS answers inside.
    pub dns: DnsSettings,
    /// What this node opens to the outside.
    pub publications: Vec<Publication>,
    /// Ports of the gateway's address that machines may connect to, for listeners made with
    /// [`crate::Connector`]. DHCP and DNS need not be here.
    pub gateway_services: Vec<GatewayService>,
}

/// What VXLAN adds to a packet over IPv4: Ethernet, VXLAN, UDP and IPv4 headers, 14 + 8 + 8 + 20.
pub const VXLAN_OVERHEAD_BYTES: u16 = 50;

/// What WireGuard adds to a packet, at most: its header and seal, padding, UDP and IPv4 headers, 32 + 15 + 8 + 20, rounded up
/// as its own tools do.
pub const WIRE_OVERHEAD_BYTES: u16 = 80;

/// What a network is to the world outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkKind {
    /// Machines reach the outside under another address.
    Nat(Exit),
    /// Nothing leaves.
    Isolated,
    /// Machines are on a segment of the operator's.
    Bridged {
        /// A bridge of the host, which the network becomes a port of; or another interface, which
        /// the network takes for itself.
        attach: HostInterface,
    },
}

impl DesiredNetwork {
    /// Whether connections come in here although the network leaves by another node: their answers must leave here too.
    pub(crate) fn answers_back(&self) -> bool {
        matches!(self.kind, NetworkKind::Nat(Exit::Via(_))) && !self.publications.is_empty()
    }
}

/// Where packets for the outside leave a NAT network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// On this node.
    Here {
        /// The address they get; it must be routed to this node. `None`: whichever the node itself
        /// would use.
        source: Option<Ipv4Addr>,
    },
    /// On another node, through the overlay.
    Via(NodeNumber),
}

/// An IPv6 range of a network. Machines send everything to the gateway, which knows where each
/// address is; the range is not announced as on-link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Range {
    /// The range, of length 64.
    pub prefix: AddressRange,
    /// This node's address in it, the same on all nodes.
    pub gateway: Ipv6Addr,
}

/// An interface of the host: 1 to 15 printable characters without space and slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostInterface(Box<str>);

impl HostInterface {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostInterface {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let good = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
        let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
        if fits && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Interface { text: text.chars().take(80).collect() })
        }
    }
}

impl fmt::Display for HostInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The plug of a machine that runs on this node, or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPort {
    /// Its address: what the port is called within its network.
    pub address: Ipv4Addr,
    /// Its IPv6 address, in the network's range.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Whose it is.
    pub label: PortLabel,
    /// The name DHCP gives the machine: one label, without dots.
    pub host_name: String,
    /// The rule groups it belongs to. What any of them allows is allowed.
    pub groups: Vec<GroupName>,
    /// Whether it may talk to other machines of the network at all.
    pub peers: Peers,
    /// What it may send and receive.
    pub limits: PortLimits,
}

/// The plug of a machine that runs on another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePort {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The rule groups it belongs to.
    pub groups: Vec<GroupName>,
    /// Where it runs; one of the peers of [`Desired`].
    pub node: NodeNumber,
}

/// Limits of a port. What exceeds them is dropped and counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortLimits {
    /// What the machine sends.
    pub sends: Rate,
    /// What the machine receives.
    pub receives: Rate,
}

/// A limit in both measures; `None` is without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bits of Ethernet frames per second, at least 8,000.
    pub bits_per_second: Option<u64>,
    /// Frames per second, at least 1. A large TCP segment that the host passes whole counts once.
    pub packets_per_second: Option<u64>,
}

/// The name of a rule group in its network: 1 to 63 characters of a-z, 0-9, '-' and '_'.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(Arc<str>);

impl GroupName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Group { text: text.chars().take(80).collect() })
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A named list of what is allowed. Its members are the ports that name it.
///
/// A port receives nothing that no rule of its groups allows. It sends everything, unless one of
/// its groups has a rule for [`Direction::Egress`]: then only what such rules allow. Replies always
/// pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleGroup {
    /// Its name.
    pub name: GroupName,
    /// What it allows, in any order. At most [`RULES_MAX`].
    pub rules: Vec<Rule>,
}

/// Rules of one group: a change of the group is programmed at once, in one message of some 700
/// bytes a rule.
pub const RULES_MAX: usize = 1_000;

/// What one rule allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its number in its group: what counters and traces call it.
    pub id: RuleId,
    /// Towards the machine or from it.
    pub direction: Direction,
    /// Which packets.
    pub protocol: RuleProtocol,
    /// The other end.
    pub peer: RulePeer,
    /// Whether each new connection is told (at most ten a second).
    pub log: Log,
}

/// The number of a rule in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// Which way a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the machine.
    Ingress,
    /// By the machine.
    Egress,
}

/// Whether matches are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Log {
    /// They are only counted.
    #[default]
    No,
    /// Each is told as an event of the node ([`crate::NetworkEvent::RuleMatched`]).
    Yes,
}

/// Which packets a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleProtocol {
    /// All.
    Any,
    /// TCP to these ports.
    Tcp(PortRange),
    /// UDP to these ports.
    Udp(PortRange),
    /// ICMP, for IPv6 ICMPv6; of one type, or of all with `None`.
    Icmp(Option<u8>),
    /// Another protocol, by its number (IANA's protocol numbers).
    Number(u8),
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// From `first` to `last`; `None` if they are in the wrong order.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// One port.
    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// The lowest.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is among them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// The other end of what a rule allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulePeer {
    /// Anything.
    Any,
    /// Addresses of a range; packets of the other family do not match.
    Range(AddressRange),
    /// The members of a group.
    Group(GroupName),
}

/// What DHCP tells the machines of a network besides their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpSettings {
    /// How long a lease lasts, 60 seconds to a week.
    pub lease: Duration,
    /// Resolvers; empty: the gateway (kinds NAT and isolated), or none (bridged).
    pub resolvers: Vec<Ipv4Addr>,
    /// Routes besides the default route.
    pub routes: Vec<Route>,
}

impl Default for DhcpSettings {
    fn default() -> Self {
        // An hour: half of it passes before a machine asks again.
        Self { lease: Duration::from_secs(3600), resolvers: Vec::new(), routes: Vec::new() }
    }
}

/// A route that DHCP tells (RFC 3442).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// An IPv4 range.
    pub to: AddressRange,
    /// The next hop, an address of the network.
    pub via: Ipv4Addr,
}

/// What DNS answers inside a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// The network's own domain, such as `web.blue.internal`: given by DHCP as domain name.
    pub domain: String,
    /// Domains that machines try, in this order. Empty: only `domain`.
    pub search: Vec<String>,
    /// Names without a final dot, lower case, with what they lead to. Several addresses are
    /// answered in turns.
    pub records: Vec<DnsRecord>,
    /// What becomes of names that end neither in a domain above nor in `internal`.
    pub others: OtherNames,
}

/// A name and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsRecord {
    /// Such as `web-1.web.blue.internal`.
    pub name: String,
    /// Addresses of either family; none: the name exists and has no address now.
    pub addresses: Vec<IpAddr>,
}

/// What becomes of names that are not the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherNames {
    /// The node's own resolvers are asked.
    Forward,
    /// They are refused.
    Refuse,
}

/// A port of this node that leads into a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// On which address of the node; `None`: on all, loopback included.
    pub address: Option<Ipv4Addr>,
    /// Which protocol.
    pub protocol: Transport,
    /// Which port of the node.
    pub port: u16,
    /// Which port of the machine.
    pub target_port: u16,
    /// The machines that take connections; local ones see the client's address, others
    /// this node's router address. Rule groups of the machines still decide, on this node, by the client's address.
    pub backends: Vec<Ipv4Addr>,
    /// Which of them takes a connection.
    pub balance: Balance,
    /// Who is told when a connection comes and no machine is there ([`crate::NetworkEvent::Wake`]); it is held
    /// until there is one. `None`: it is refused. TCP only.
    pub wake: Option<Wake>,
}

/// The machine that a connection waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wake {
    /// Who is told to start it.
    pub label: PortLabel,
    /// The rule groups that it will belong to, all of them in [`DesiredNetwork::groups`]: whom they would refuse waits for
    /// nothing, and nobody is told.
    pub groups: Vec<GroupName>,
}

/// Which of several machines takes a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Balance {
    /// The next one.
    #[default]
    Turns,
    /// One client's address comes to the same one, through every node, as long as that one is among them.
    Clients,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the gateway's address that machines may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayService {
    /// Which protocol.
    pub protocol: Transport,
    /// Which port.
    pub port: u16,
}

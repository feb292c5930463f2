//! What must hold of a network before the kernel hears of it.

use super::{
    Desired, DesiredNetwork, Direction, GroupName, NetworkKind, NodeNumber, Publication, RULES_MAX,
    Rate, RuleId, RulePeer, Transport, Vni,
};
use skein_model::MacAddr;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Largest packet that is allowed, in bytes: what network cards call jumbo frames.
const MTU_MAX: u16 = 9_216;
/// Smallest, in bytes: what IPv6 needs (RFC 8200, section 5).
const MTU_MIN: u16 = 1_280;
/// Longest name in DNS, in bytes (RFC 1035, section 3.1, without the root).
const DNS_NAME_BYTES_MAX: usize = 253;
const DNS_LABEL_BYTES_MAX: usize = 63;

/// Why a network cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDesired {
    /// The same network twice.
    #[error("network {vni} is there twice")]
    NetworkTwice {
        /// Which.
        vni: Vni,
    },
    /// The gateway cannot have its address.
    #[error("network {vni}: the gateway's address {address} is not one of its range")]
    Gateway {
        /// Which network.
        vni: Vni,
        /// The address given.
        address: IpAddr,
    },
    /// Packets of this size cannot be.
    #[error("network {vni}: an MTU of {mtu} is not possible: choose 1280 to 9216")]
    Mtu {
        /// Which network.
        vni: Vni,
        /// Bytes.
        mtu: u16,
    },
    /// The IPv6 range is not of length 64.
    #[error("network {vni}: its IPv6 range must have a length of 64")]
    Ipv6Range {
        /// Which network.
        vni: Vni,
    },
    /// A machine cannot have this address, or two have it.
    #[error("network {vni}: address {address} is outside its range, the gateway's, or there twice")]
    Address {
        /// Which network.
        vni: Vni,
        /// The address.
        address: IpAddr,
    },
    /// Two machines have one MAC address, or one has the gateway's.
    #[error("network {vni}: MAC address {mac} is there twice")]
    MacTwice {
        /// Which network.
        vni: Vni,
        /// The MAC address.
        mac: MacAddr,
    },
    /// A port, rule or publication names a group that is not there.
    #[error("network {vni}: group {group} is not there, twice there, or has too many rules")]
    Group {
        /// Which network.
        vni: Vni,
        /// The group.
        group: GroupName,
    },
    /// Two rules of a group have one number.
    #[error("network {vni}: group {group} has rule {} twice", id.0)]
    RuleTwice {
        /// Which network.
        vni: Vni,
        /// The group.
        group: GroupName,
        /// The number.
        id: RuleId,
    },
    /// A name that DNS or DHCP cannot carry.
    #[error("network {vni}: {name:?} is no name that DNS can carry")]
    Name {
        /// Which network.
        vni: Vni,
        /// The name, cut to 80 characters.
        name: String,
    },
    /// A node that is not known.
    #[error("network {vni}: node {} is neither this node nor one of its peers", node.get())]
    Node {
        /// Which network.
        vni: Vni,
        /// The number given.
        node: NodeNumber,
    },
    /// A limit that would let nothing through.
    #[error("network {vni}: the limit of port {address} is below 8,000 bit/s or 1 packet/s")]
    Limit {
        /// Which network.
        vni: Vni,
        /// Whose.
        address: Ipv4Addr,
    },
    /// A publication that cannot be.
    #[error("network {vni}: port {port} cannot be published: {why}")]
    Publication {
        /// Which network.
        vni: Vni,
        /// The port of the node.
        port: u16,
        /// Why.
        why: &'static str,
    },
    /// A lease that is too short or too long, or a route that IPv4 does not have.
    #[error("network {vni}: DHCP cannot tell this lease or route")]
    Dhcp {
        /// Which network.
        vni: Vni,
    },
}

impl InvalidDesired {
    /// Which network it is about.
    pub fn vni(&self) -> Vni {
        match self {
            Self::NetworkTwice { vni }
            | Self::Gateway { vni, .. }
            | Self::Mtu { vni, .. }
            | Self::Ipv6Range { vni }
            | Self::Address { vni, .. }
            | Self::MacTwice { vni, .. }
            | Self::Group { vni, .. }
            | Self::RuleTwice { vni, .. }
            | Self::Name { vni, .. }
            | Self::Node { vni, .. }
            | Self::Limit { vni, .. }
            | Self::Publication { vni, .. }
            | Self::Dhcp { vni } => *vni,
        }
    }

    /// Stable code of this failure.
    pub fn code(&self) -> &'static str {
        "NETWORK_INVALID"
    }
}

impl Desired {
    /// The networks that are all right, and what is wrong with the others: one bad network does not
    /// stop the rest.
    pub fn check(&self) -> (Vec<&std::sync::Arc<DesiredNetwork>>, Vec<InvalidDesired>) {
        let nodes = std::iter::once(&self.underlay).chain(&self.peers);
        let nodes: BTreeSet<NodeNumber> = nodes.map(|node| node.number).collect();
        let (mut good, mut bad, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for network in &self.networks {
            if !seen.insert(network.vni) {
                bad.push(InvalidDesired::NetworkTwice { vni: network.vni });
                continue;
            }
            match network.check(|number| nodes.contains(&number)) {
                Ok(()) => good.push(network),
                Err(error) => bad.push(error),
            }
        }
        (good, bad)
    }
}

impl DesiredNetwork {
    /// Whether it can be, given which nodes there are.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, is_node: impl Fn(NodeNumber) -> bool) -> Result<(), InvalidDesired> {
        let vni = self.vni;
        if !self.cidr.is_host(self.gateway) {
            return Err(InvalidDesired::Gateway { vni, address: self.gateway.into() });
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(InvalidDesired::Mtu { vni, mtu: self.mtu });
        }
        if let Some(range) = self.ipv6 {
            if range.prefix.prefix_len() != 64 {
                return Err(InvalidDesired::Ipv6Range { vni });
            }
            if !range.prefix.contains(range.gateway.into()) {
                return Err(InvalidDesired::Gateway { vni, address: range.gateway.into() });
            }
        }
        self.check_nodes(is_node)?;
        self.check_addresses()?;
        self.check_groups()?;
        self.check_names()?;
        let lease = self.dhcp.lease.as_secs();
        let routes = self.dhcp.routes.iter();
        if !(60..=604_800).contains(&lease) || routes.clone().any(|r| r.to.network().is_ipv6()) {
            return Err(InvalidDesired::Dhcp { vni });
        }
        self.publications.iter().try_for_each(|publication| self.check_publication(publication))
    }

    fn check_nodes(&self, is_node: impl Fn(NodeNumber) -> bool) -> Result<(), InvalidDesired> {
        let exit = match self.kind {
            NetworkKind::Nat(super::Exit::Via(node)) => Some(node),
            _ => None,
        };
        let named = self.remote_ports.iter().map(|port| port.node).chain(exit);
        match named.into_iter().find(|node| !is_node(*node)) {
            Some(node) => Err(InvalidDesired::Node { vni: self.vni, node }),
            None => Ok(()),
        }
    }

    fn check_addresses(&self) -> Result<(), InvalidDesired> {
        let vni = self.vni;
        let mut addresses = BTreeSet::from([IpAddr::V4(self.gateway)]);
        addresses.extend(self.ipv6.map(|range| IpAddr::V6(range.gateway)));
        let mut macs = BTreeSet::from([vni.gateway_mac()]);
        let local = self.ports.iter().map(|p| (p.address, p.ipv6, p.mac));
        let remote = self.remote_ports.iter().map(|p| (p.address, p.ipv6, p.mac));
        for (address, ipv6, mac) in local.chain(remote) {
            if !self.cidr.is_host(address) || !addresses.insert(address.into()) {
                return Err(InvalidDesired::Address { vni, address: address.into() });
            }
            if let Some(address) = ipv6.map(IpAddr::V6) {
                let inside = self.ipv6.is_some_and(|range| range.prefix.contains(address));
                if !inside || !addresses.insert(address) {
                    return Err(InvalidDesired::Address { vni, address });
                }
            }
            if !macs.insert(mac.octets()) {
                return Err(InvalidDesired::MacTwice { vni, mac });
            }
        }
        let good = |rate: &Rate| {
            rate.bits_per_second.is_none_or(|bits| bits >= 8_000)
                && rate.packets_per_second.is_none_or(|packets| packets >= 1)
        };
        match self.ports.iter().find(|p| !good(&p.limits.sends) || !good(&p.limits.receives)) {
            Some(port) => Err(InvalidDesired::Limit { vni, address: port.address }),
            None => Ok(()),
        }
    }

    fn check_groups(&self) -> Result<(), InvalidDesired> {
        let vni = self.vni;
        let mut names = BTreeSet::new();
        for group in &self.groups {
            let missing = || InvalidDesired::Group { vni, group: group.name.clone() };
            if !names.insert(&group.name) || group.rules.len() > RULES_MAX {
                return Err(missing());
            }
            let mut ids = BTreeSet::new();
            for rule in &group.rules {
                if !ids.insert((rule.id, rule.direction == Direction::Egress)) {
                    let group = group.name.clone();
                    return Err(InvalidDesired::RuleTwice { vni, group, id: rule.id });
                }
            }
        }
        let of_ports = self.ports.iter().flat_map(|port| &port.groups);
        let of_rules = self.groups.iter().flat_map(|group| &group.rules);
        let of_rules = of_rules.filter_map(|rule| match &rule.peer {
            RulePeer::Group(group) => Some(group),
            RulePeer::Any | RulePeer::Range(_) => None,
        });
        let waited = self.publications.iter().filter_map(|publication| publication.wake.as_ref());
        let waited = waited.flat_map(|wake| &wake.groups);
        match of_ports.chain(waited).chain(of_rules).find(|group| !names.contains(group)) {
            Some(group) => Err(InvalidDesired::Group { vni, group: group.clone() }),
            None => Ok(()),
        }
    }

    fn check_names(&self) -> Result<(), InvalidDesired> {
        let vni = self.vni;
        let wrong =
            |name: &str| InvalidDesired::Name { vni, name: name.chars().take(80).collect() };
        let domains = self.dns.search.iter().chain([&self.dns.domain]);
        for name in domains.chain(self.dns.records.iter().map(|record| &record.name)) {
            if !is_dns_name(name) {
                return Err(wrong(name));
            }
        }
        match self.ports.iter().find(|port| !is_dns_label(&port.host_name)) {
            Some(port) => Err(wrong(&port.host_name)),
            None => Ok(()),
        }
    }

    fn check_publication(&self, publication: &Publication) -> Result<(), InvalidDesired> {
        let wrong =
            |why| Err(InvalidDesired::Publication { vni: self.vni, port: publication.port, why });
        let known = |address: &Ipv4Addr| {
            self.ports.iter().any(|port| port.address == *address)
                || self.remote_ports.iter().any(|port| port.address == *address)
        };
        let twice = self.publications.iter().filter(|other| {
            other.port == publication.port
                && other.protocol == publication.protocol
                && (other.address == publication.address || other.address.is_none())
        });
        if publication.port == 0 || publication.target_port == 0 {
            return wrong("port 0 is none");
        }
        if twice.count() > 1 {
            return wrong("it is published twice");
        }
        if !matches!(self.kind, NetworkKind::Nat(_)) {
            return wrong("only networks of kind nat have a way in");
        }
        if publication.wake.is_some() && publication.protocol == Transport::Udp {
            return wrong("only TCP can wait for a machine");
        }
        if !publication.backends.iter().all(known) {
            return wrong("a backend is no machine of the network");
        }
        Ok(())
    }
}

fn is_dns_name(name: &str) -> bool {
    name.len() <= DNS_NAME_BYTES_MAX && name.split('.').all(is_dns_label)
}

/// Letters, digits and hyphens (RFC 1123, section 2.1), and underscores as services use them.
fn is_dns_label(label: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=DNS_LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(good)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

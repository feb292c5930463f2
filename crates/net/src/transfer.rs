//! Connections that the kernel follows: which of them the rules forbid by now, and how they go along
//! when a machine moves.

use crate::desired::{DesiredNetwork, NetworkKind, Publication, Transport};
use crate::firewall::{Packet, Policy};
use crate::netfilter::{Flow, Tuple};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// `TCP_CONNTRACK_ESTABLISHED`.
const TCP_ESTABLISHED: u8 = 3;
/// Bit of a status: its destination was translated (`IPS_DST_NAT`).
const TRANSLATED: u32 = 32;

/// A connection of a machine, as one node knows it and another can take it over. Without it, the
/// first segment that arrives there would belong to no connection and be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    original: Tuple,
    reply: Tuple,
    timeout: u32,
    tcp_state: Option<u8>,
}

impl Connection {
    /// Who opened it, as the machine sees them.
    pub fn client(&self) -> IpAddr {
        self.reply.destination
    }

    /// Whom it leads to behind translation, and to which port.
    pub fn server(&self) -> (IpAddr, u16) {
        (self.reply.source, self.reply.source_port)
    }

    /// Whether it is one of TCP that is open in both directions (`TCP_CONNTRACK_ESTABLISHED`).
    pub fn is_established(&self) -> bool {
        self.original.protocol == TCP && self.tcp_state == Some(TCP_ESTABLISHED)
    }

    /// As 28 numbers that another node understands: see [`Connection::from_text`].
    pub fn to_text(&self) -> String {
        let tuple = |t: &Tuple| {
            let Tuple { source, destination, source_port, destination_port, .. } = t;
            format!("{source} {destination} {source_port} {destination_port}")
        };
        let state = self.tcp_state.unwrap_or(0);
        let (original, reply) = (tuple(&self.original), tuple(&self.reply));
        format!("{} {original} {reply} {} {state}", self.original.protocol, self.timeout)
    }

    /// The inverse of [`Connection::to_text`]; `None` for any other text.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let protocol = words.next()?.parse().ok()?;
        let mut tuple = || -> Option<Tuple> {
            Some(Tuple {
                source: words.next()?.parse().ok()?,
                destination: words.next()?.parse().ok()?,
                protocol,
                source_port: words.next()?.parse().ok()?,
                destination_port: words.next()?.parse().ok()?,
            })
        };
        let (original, reply) = (tuple()?, tuple()?);
        let timeout = words.next()?.parse().ok()?;
        let state: u8 = words.next()?.parse().ok()?;
        let tcp_state = (protocol == TCP && state > 0).then_some(state);
        let one_family = |t: &Tuple| t.source.is_ipv4() == t.destination.is_ipv4();
        let sane = one_family(&original) && one_family(&reply) && words.next().is_none();
        sane.then_some(Self { original, reply, timeout, tcp_state })
    }

    pub(crate) fn flow(&self) -> Flow {
        let (original, reply) = (self.original, self.reply);
        // Seen both ways and assured.
        let status = 2 | 4;
        Flow { original, reply, status, timeout: self.timeout, tcp_state: self.tcp_state }
    }
}

impl From<Flow> for Connection {
    fn from(flow: Flow) -> Self {
        let Flow { original, reply, timeout, tcp_state, .. } = flow;
        Self { original, reply, timeout, tcp_state }
    }
}

impl Packet {
    /// The packet that opened a connection, as rules saw it: behind translation.
    pub(crate) fn opening(flow: &Flow) -> Self {
        let Tuple { source, protocol, destination_port, .. } = flow.original;
        let port = match protocol {
            TCP | UDP => flow.reply.source_port,
            // Type and code.
            _ => destination_port >> 8,
        };
        Self { source, destination: flow.reply.source, protocol, port }
    }
}

/// Whether a connection must end, because what it does is forbidden now. What the node itself takes
/// part in is not judged.
pub(crate) fn stale(flow: &Flow, network: &DesiredNetwork, policy: &Policy<'_>) -> bool {
    let packet = Packet::opening(flow);
    let known = |address| policy.is_machine(address);
    let translated = flow.status & TRANSLATED != 0;
    if translated && !is_published(flow, network) {
        return true;
    }
    let own = [Some(IpAddr::V4(network.gateway)), network.ipv6.map(|r| IpAddr::V6(r.gateway))];
    if own.contains(&Some(packet.source)) || own.contains(&Some(packet.destination)) {
        return false;
    }
    // That of a machine that is gone: who gets its address next shall not have its connections.
    let bridged = matches!(network.kind, NetworkKind::Bridged { .. });
    let gone = |address| !bridged && policy.is_inside(address) && !known(address);
    if gone(packet.source) || gone(packet.destination) {
        return true;
    }
    if !known(packet.source) && !known(packet.destination) {
        return false;
    }
    if translated && known(packet.destination) && !policy.lets_in(&packet) {
        return true;
    }
    // Nodes speak for clients of what they publish; those were judged there.
    if policy.is_entered(packet.source) {
        return false;
    }
    !policy.allows(&packet)
}

/// Whether `after` may forbid a connection that `before` let through. Not when machines, groups and ways in only came along,
/// which is what happens most: to read all connections takes the kernel milliseconds, however few there are.
pub(crate) fn may_forbid(before: &DesiredNetwork, after: &DesiredNetwork) -> bool {
    let same = before.kind == after.kind
        && before.cidr == after.cidr
        && before.gateway == after.gateway
        && before.ipv6 == after.ipv6;
    let kept = before.ports.iter().all(is_among(&after.ports, |port| port.address))
        && before.remote_ports.iter().all(is_among(&after.remote_ports, |port| port.address))
        && before.groups.iter().all(is_among(&after.groups, |group| group.name.clone()))
        && before.publications.iter().all(|old| {
            after.publications.iter().any(|new| {
                let place = |p: &Publication| (p.address, p.protocol, p.port, p.target_port);
                place(new) == place(old)
                    && (new.wake.is_some() || old.wake.is_none())
                    && old.backends.iter().all(|backend| new.backends.contains(backend))
            })
        });
    // A group without rules of its own until now says something of its members from now on.
    let old: BTreeSet<_> = before.groups.iter().map(|group| &group.name).collect();
    let named = before.ports.iter().flat_map(|port| &port.groups);
    let mut new = after.groups.iter().filter(|group| !old.contains(&group.name));
    let named: BTreeSet<_> = named.collect();
    // A neighbour on the segment may turn out to be a machine.
    let bridged = matches!(after.kind, NetworkKind::Bridged { .. });
    bridged || !same || !kept || new.any(|group| named.contains(&group.name))
}

/// Whether things are among `all` just as they are; they are told apart by `key`.
fn is_among<'a, T: PartialEq, K: Ord + 'a>(
    all: &'a [T],
    key: impl Fn(&T) -> K + 'a,
) -> impl Fn(&T) -> bool + 'a {
    let by_key: BTreeMap<K, &T> = all.iter().map(|one| (key(one), one)).collect();
    move |one| by_key.get(&key(one)) == Some(&one)
}

/// Whether a connection that came from outside is still open to it.
fn is_published(flow: &Flow, network: &DesiredNetwork) -> bool {
    let open = |publication: &Publication| {
        let protocol = match publication.protocol {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        let own = |address: &std::net::Ipv4Addr| flow.reply.source == IpAddr::V4(*address);
        let waiting = publication.wake.is_some() && !publication.backends.iter().any(own);
        protocol == flow.original.protocol
            && publication.port == flow.original.destination_port
            && (publication.backends.iter().any(own) || waiting)
    };
    network.publications.iter().any(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{
        DhcpSettings, Direction, DnsSettings, Exit, GroupName, LocalPort, Log, OtherNames,
        PortLimits, PortRange, RemotePort, Rule, RuleGroup, RuleId, RulePeer, RuleProtocol, Vni,
    };
    use crate::{NodeNumber, Peers};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use skein_model::MacAddr;
    use std::net::Ipv4Addr;

    /// The first machines of 10.0.0.0/24, and one address outside.
    fn address(number: u8) -> Ipv4Addr {
        if number < 6 { Ipv4Addr::new(10, 0, 0, 2 + number) } else { Ipv4Addr::new(9, 9, 9, 9) }
    }

    fn mac(address: Ipv4Addr) -> MacAddr {
        let [a, b, c, d] = address.octets();
        MacAddr::new([2, 0, a, b, c, d]).expect("a MAC address")
    }

    fn group(number: u8) -> GroupName {
        format!("g{number}").parse().expect("a name")
    }

    fn groups() -> impl Strategy<Value = Vec<GroupName>> {
        vec(0u8..3, 0..3).prop_map(|numbers| numbers.into_iter().map(group).collect())
    }

    fn rules() -> impl Strategy<Value = RuleGroup> {
        let peer = prop_oneof![
            Just(RulePeer::Any),
            (0u8..3).prop_map(|number| RulePeer::Group(group(number))),
        ];
        let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
        let ports = (79u16..81).prop_map(|p| RuleProtocol::Tcp(PortRange::new(p, p + 1).unwrap()));
        let rule = (direction, prop_oneof![Just(RuleProtocol::Any), ports], peer);
        let rule = rule.prop_map(|(direction, protocol, peer)| Rule {
            id: RuleId(1),
            direction,
            protocol,
            peer,
            log: Log::No,
        });
        (0u8..3, vec(rule, 0..2))
            .prop_map(|(number, rules)| RuleGroup { name: group(number), rules })
    }

    fn port(address: Ipv4Addr, groups: Vec<GroupName>, isolated: bool) -> LocalPort {
        let peers = if isolated { Peers::Isolated } else { Peers::Reachable };
        LocalPort {
            address,
            ipv6: None,
            mac: mac(address),
            label: "m".parse().expect("a label"),
            host_name: "m".to_owned(),
            groups,
            peers,
            limits: PortLimits::default(),
        }
    }

    fn network() -> impl Strategy<Value = DesiredNetwork> {
        let ports = vec((0u8..6, any::<bool>(), groups(), prop::bool::weighted(0.1)), 0..5);
        let publications = vec((80u16..82, vec(0u8..6, 0..3), any::<bool>()), 0..2);
        (ports, vec(rules(), 0..3), publications).prop_map(|(machines, mut groups, published)| {
            groups.sort_by(|a, b| a.name.cmp(&b.name));
            groups.dedup_by(|a, b| a.name == b.name);
            let (mut ports, mut remote_ports) = (Vec::new(), Vec::new());
            for (number, here, groups, isolated) in machines {
                let at = address(number);
                ports.retain(|port: &LocalPort| port.address != at);
                remote_ports.retain(|port: &RemotePort| port.address != at);
                if here {
                    ports.push(port(at, groups, isolated));
                } else {
                    let (mac, node) = (mac(at), NodeNumber::new(2).unwrap());
                    remote_ports.push(RemotePort { address: at, ipv6: None, mac, groups, node });
                }
            }
            let publications = published.into_iter().map(|(port, backends, wakes)| Publication {
                address: None,
                protocol: Transport::Tcp,
                port,
                target_port: 80,
                backends: backends.into_iter().map(address).collect(),
                balance: crate::desired::Balance::default(),
                wake: wakes.then(|| {
                    let label = "s".parse().expect("a label");
                    crate::desired::Wake { label, groups: Vec::new() }
                }),
            });
            DesiredNetwork {
                vni: Vni::new(7).unwrap(),
                kind: NetworkKind::Nat(Exit::Here { source: None }),
                cidr: "10.0.0.0/24".parse().expect("a range"),
                gateway: Ipv4Addr::new(10, 0, 0, 1),
                ipv6: None,
                mtu: 1500,
                ports,
                remote_ports,
                groups,
                dhcp: DhcpSettings::default(),
                dns: DnsSettings {
                    domain: "n.p.internal".to_owned(),
                    search: Vec::new(),
                    records: Vec::new(),
                    others: OtherNames::Refuse,
                },
                publications: publications.collect(),
                gateway_services: Vec::new(),
            }
        })
    }

    /// `before` with more of what `more` has.
    fn joined(before: &DesiredNetwork, more: DesiredNetwork) -> DesiredNetwork {
        let mut after = before.clone();
        let taken = |at| before.ports.iter().any(|p| p.address == at);
        let remote = |at| before.remote_ports.iter().any(|p| p.address == at);
        let free = |at| !taken(at) && !remote(at);
        after.ports.extend(more.ports.into_iter().filter(|port| free(port.address)));
        after.remote_ports.extend(more.remote_ports.into_iter().filter(|port| free(port.address)));
        let known = |name: &GroupName| before.groups.iter().any(|group| group.name == *name);
        after.groups.extend(more.groups.into_iter().filter(|group| !known(&group.name)));
        after.publications.extend(more.publications);
        after
    }

    fn flow() -> impl Strategy<Value = Flow> {
        (0u8..7, 0u8..7, 79u16..83, any::<bool>()).prop_map(|(from, to, port, translated)| {
            let tuple = |source: Ipv4Addr, destination: Ipv4Addr, ports: (u16, u16)| Tuple {
                source: source.into(),
                destination: destination.into(),
                protocol: TCP,
                source_port: ports.0,
                destination_port: ports.1,
            };
            let asked = if translated { Ipv4Addr::new(192, 0, 2, 1) } else { address(to) };
            let behind = if translated { 80 } else { port };
            Flow {
                original: tuple(address(from), asked, (40_000, port)),
                reply: tuple(address(to), address(from), (behind, 40_000)),
                status: if translated { TRANSLATED } else { 0 },
                timeout: 60,
                tcp_state: Some(TCP_ESTABLISHED),
            }
        })
    }

    proptest! {
        /// Or a connection would live on that the rules forbid.
        #[test]
        fn what_need_not_be_read_holds_nothing_forbidden(
            before in network(),
            more in network(),
            joins: bool,
            flows in vec(flow(), 1..20),
        ) {
            let after = if joins { joined(&before, more) } else { more };
            if may_forbid(&before, &after) {
                return Ok(());
            }
            let (old, new) = (Policy::new(&before), Policy::new(&after));
            for flow in flows {
                let forbidden = stale(&flow, &after, &new) && !stale(&flow, &before, &old);
                prop_assert!(!forbidden, "{flow:?}");
            }
        }
    }

    #[test]
    fn machines_that_come_along_need_no_reading() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut grown = 0;
        for _ in 0..200 {
            let (before, more) = (network().new_tree(&mut runner), network().new_tree(&mut runner));
            let (before, more) = (before.unwrap().current(), more.unwrap().current());
            let after = joined(&before, more);
            grown += usize::from(after != before && !may_forbid(&before, &after));
            let fewer = DesiredNetwork { ports: Vec::new(), ..before.clone() };
            assert!(before.ports.is_empty() || may_forbid(&before, &fewer));
        }
        assert!(grown > 50, "{grown}");
    }

    proptest! {
        #[test]
        fn text_tells_all(a: u32, b: u32, ports: (u16, u16), timeout: u32, state in 1u8..12) {
            let [source, destination] = [a, b].map(|ip| IpAddr::V4(Ipv4Addr::from(ip)));
            let original = Tuple {
                source, destination, protocol: TCP, source_port: ports.0, destination_port: ports.1,
            };
            let reply = Tuple {
                source: destination, destination: source, protocol: TCP,
                source_port: ports.1, destination_port: ports.0,
            };
            let connection = Connection { original, reply, timeout, tcp_state: Some(state) };
            prop_assert_eq!(Connection::from_text(&connection.to_text()), Some(connection));
        }

        #[test]
        fn any_text_is_answered(text in "([0-9]{1,5} |10.0.0.1 |::1 ){0,12}") {
            let _ = Connection::from_text(&text);
        }
    }
}

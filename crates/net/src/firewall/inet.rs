//! What may go where: rule groups, state of connections, the ways in and out of a network.
//!
//! ```text
//!   forward ─ reply? accept ─▶ from-PROFILE ─ out-GROUP … ─▶ deliver ─▶ to-PROFILE ─ in-GROUP … ─▶ accept
//!                              (senders here)                            (receivers here)
//! ```
//! A profile is a set of groups; machines with the same groups share its chains.

use super::shortcut::{AGREED, ANSWER};
use super::steps::{
    ESTABLISHED, FAMILY_4, FAMILY_6, ICMP, ICMP6, INVALID, RELATED, Steps, TCP, UDP, base, chain,
    nat,
};
use super::{LOG_GROUP, Surroundings, members, profile, published};
use crate::desired::{
    DesiredNetwork, Direction, Exit, GroupName, Log, NetworkKind, Rule, RuleGroup, RulePeer,
    RuleProtocol, Transport,
};
use crate::names::{BRIDGE, UPLINK};
use crate::netfilter::{
    Chain, DataKind, Element, Expression, Field, HookPoint, Key, KeyField, Learning, NatKind,
    Policy, RuleText, Set, Table, Verdict, log_limit,
};
use crate::port::Peers;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Bytes of the headers of IPv4 and TCP, and of IPv6 and TCP, without options.
const HEADERS_4: u16 = 40;
const HEADERS_6: u16 = 60;
/// Bits of TCP's flags: SYN and RST.
const SYN_RST: u8 = 0x06;
const SYN: u8 = 0x02;
/// `IPS_ASSURED`: it was answered, and by TCP both ends agreed on it.
const STATUS_ASSURED: u32 = 4;
/// `IPS_DST_NAT`.
const STATUS_PUBLISHED: u32 = 32;

/// Connections that one machine has begun and that are still known, at most: the node has so many for all its machines
/// together (262,144 unless it is set otherwise), and each takes some 400 bytes of its memory.
const CONNECTIONS_MAX: u32 = 16_384;
/// Addresses whose connections are counted, at most: all of a network with 16 bits for hosts.
const COUNTED_MAX: u32 = 65_536;

/// Priority of translation (`NF_IP_PRI_NAT_SRC`).
const NAT_SOURCE: i32 = 100;
/// Addresses of nodes within networks ([`crate::NodeNumber::router_address`]), and their mask.
const ROUTERS: ([u8; 4], [u8; 4]) = ([100, 127, 0, 0], [255, 255, 0, 0]);
/// Priority of what decides about routes (`NF_IP_PRI_MANGLE`): connections are known by then.
const BEFORE_ROUTES: i32 = -150;

pub(super) fn table(network: &DesiredNetwork, around: &Surroundings) -> Table {
    let mut table = Table::default();
    address_sets(&mut table, network, around);
    profiles(&mut table, network);
    for group in &network.groups {
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = group_rules(network, group, direction);
            table.chains.insert(group_chain(direction, &group.name), chain(rules));
        }
    }
    let chains = [
        ("clamp", clamp(network)),
        ("forward", forward(network, around)),
        ("deliver", deliver(network)),
        ("input", input(network, around)),
    ];
    table.chains.extend(chains.map(|(name, chain)| (name.to_owned(), chain)));
    if matches!(network.kind, NetworkKind::Nat(_)) {
        published::publications(&mut table, network, around);
    }
    if network.answers_back() {
        table.chains.insert("answers".to_owned(), answers());
    }
    if !matches!(network.kind, NetworkKind::Bridged { .. }) {
        let postrouting = postrouting(network, around);
        table.chains.insert("postrouting".to_owned(), postrouting);
    }
    table
}

/// Marks what machines answer to those who came from outside by this node: routes are asked for it in a table of its own.
fn answers() -> Chain {
    let mark = published_alone(Steps::new().family(FAMILY_4).input(BRIDGE))
        .then(Expression::Meta { key: Key::Mark, to: 0 })
        .then(Expression::Raise { register: 0, bits: ANSWER })
        .then(Expression::SetMark { from: 0 });
    base(HookPoint::Prerouting, BEFORE_ROUTES, Policy::Accept, vec![mark.rule()])
}

/// Of connections that came from outside, alone.
fn published_alone(steps: Steps) -> Steps {
    let published = STATUS_PUBLISHED.to_ne_bytes().to_vec();
    steps
        .then(Expression::ConnectionStatus { to: 0 })
        .then(Expression::Mask { register: 0, mask: published.clone() })
        .then(Expression::Equal { register: 0, value: published })
}

pub(super) fn group_chain(direction: Direction, group: &GroupName) -> String {
    match direction {
        Direction::Ingress => format!("in-{group}"),
        Direction::Egress => format!("out-{group}"),
    }
}

/// What a rule's counter is called.
pub(super) fn tag(group: &GroupName, rule: &Rule) -> String {
    let direction = match rule.direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    };
    format!("rule {group} {direction} {}", rule.id.0)
}

fn address_sets(table: &mut Table, network: &DesiredNetwork, around: &Surroundings) {
    let mut add = |name: &str, key: KeyField, addresses: Vec<Vec<u8>>| {
        let mut set = Set::new(&[key], DataKind::None);
        addresses.iter().for_each(|address| set.insert(&[address], Element::Present));
        table.sets.insert(name.to_owned(), set);
    };
    let remote = &network.remote_ports;
    let v4 = |address: &Ipv4Addr| address.octets().to_vec();
    add("remote4", KeyField::Ip4, remote.iter().map(|port| v4(&port.address)).collect());
    let v6 = remote.iter().filter_map(|port| port.ipv6);
    add("remote6", KeyField::Ip6, v6.map(|address| address.octets().to_vec()).collect());
    let isolated = || network.ports.iter().filter(|port| port.peers == Peers::Isolated);
    add("isolated4", KeyField::Ip4, isolated().map(|port| v4(&port.address)).collect());
    let v6 = isolated().filter_map(|port| port.ipv6);
    add("isolated6", KeyField::Ip6, v6.map(|address| address.octets().to_vec()).collect());
    for group in named_groups(network) {
        let of_group = |is_v4: bool| {
            let members = members(network).filter(move |(address, _)| address.is_ipv4() == is_v4);
            members
                .filter(|(_, groups)| groups.contains(group))
                .map(|(address, _)| octets(address))
                .collect()
        };
        add(&member_set(4, group), KeyField::Ip4, of_group(true));
        add(&member_set(6, group), KeyField::Ip6, of_group(false));
    }
    let counting = Learning { stays_ms: None, elements_max: COUNTED_MAX };
    for (name, key) in [("connections4", KeyField::Ip4), ("connections6", KeyField::Ip6)] {
        let set = Set::learning(&[key], DataKind::None, counting);
        table.sets.insert(name.to_owned(), set);
    }
    let mut services = Set::new(&[KeyField::Protocol, KeyField::Port], DataKind::None);
    for service in &network.gateway_services {
        let key: [&[u8]; 2] = [&[number(service.protocol)], &service.port.to_be_bytes()];
        services.insert(&key, Element::Present);
    }
    table.sets.insert("services".to_owned(), services);
    let mut tunnels = Set::new(&[KeyField::Ip4, KeyField::Port], DataKind::None);
    for (address, port) in &around.tunnels {
        tunnels.insert(&[&address.octets(), &port.to_be_bytes()], Element::Present);
    }
    table.sets.insert("tunnels".to_owned(), tunnels);
}

/// The groups that some rule names.
fn named_groups(network: &DesiredNetwork) -> BTreeSet<&GroupName> {
    let rules = network.groups.iter().flat_map(|group| &group.rules);
    rules
        .filter_map(|rule| match &rule.peer {
            RulePeer::Group(group) => Some(group),
            RulePeer::Any | RulePeer::Range(_) => None,
        })
        .collect()
}

fn member_set(family: u8, group: &GroupName) -> String {
    format!("members{family}-{group}")
}

/// The map from machines of other nodes that take connections from outside to the chains that judge those here.
const BEHIND: &str = "behind4";

/// The maps from machines to chains, and the chains.
fn profiles(table: &mut Table, network: &DesiredNetwork) {
    let maps = [("from4", KeyField::Ip4), ("from6", KeyField::Ip6)];
    let maps = maps.into_iter().chain([("to4", KeyField::Ip4), ("to6", KeyField::Ip6)]);
    let mut maps: Vec<_> =
        maps.map(|(name, key)| (name, Set::new(&[key], DataKind::Verdict))).collect();
    for port in &network.ports {
        let groups: BTreeSet<_> = port.groups.iter().collect();
        let profile = profile(&groups);
        let (from, to) = (format!("from-{profile}"), format!("to-{profile}"));
        let v4 = port.address.octets();
        let v6 = port.ipv6.map(|address| address.octets());
        let mut point = |map: usize, address: &[u8], chain: &str| {
            maps[map].1.insert(&[address], Element::Verdict(Verdict::Goto(chain.to_owned())));
        };
        if closes_egress(network, &groups) {
            point(0, &v4, &from);
            v6.iter().for_each(|v6| point(1, v6, &from));
            let rules = profile_rules(Direction::Egress, &groups, &from);
            table.chains.entry(from).or_insert_with(|| chain(rules));
        }
        point(2, &v4, &to);
        v6.iter().for_each(|v6| point(3, v6, &to));
        let rules = profile_rules(Direction::Ingress, &groups, &to);
        table.chains.entry(to).or_insert_with(|| chain(rules));
    }
    let mut behind = Set::new(&[KeyField::Ip4], DataKind::Verdict);
    let published: BTreeSet<_> = network.publications.iter().flat_map(|p| &p.backends).collect();
    for port in network.remote_ports.iter().filter(|port| published.contains(&port.address)) {
        let groups: BTreeSet<_> = port.groups.iter().collect();
        let to = format!("to-{}", profile(&groups));
        behind.insert(&[&port.address.octets()], Element::Verdict(Verdict::Goto(to.clone())));
        let rules = profile_rules(Direction::Ingress, &groups, &to);
        table.chains.entry(to).or_insert_with(|| chain(rules));
    }
    maps.push((BEHIND, behind));
    table.sets.extend(maps.into_iter().map(|(name, set)| (name.to_owned(), set)));
}

/// Whether some group says what its members may send.
pub(super) fn closes_egress(network: &DesiredNetwork, groups: &BTreeSet<&GroupName>) -> bool {
    let of_port = network.groups.iter().filter(|group| groups.contains(&group.name));
    of_port.flat_map(|group| &group.rules).any(|rule| rule.direction == Direction::Egress)
}

fn profile_rules(direction: Direction, groups: &BTreeSet<&GroupName>, name: &str) -> Vec<RuleText> {
    let jumps = groups.iter().map(|group| Steps::new().jump(&group_chain(direction, group)));
    let end = Steps::new().counted(format!("closed {name}"), Verdict::Drop);
    jumps.chain([end]).collect()
}

fn group_rules(network: &DesiredNetwork, group: &RuleGroup, direction: Direction) -> Vec<RuleText> {
    let verdict = match direction {
        Direction::Ingress => Verdict::Accept,
        Direction::Egress => Verdict::Goto("deliver".to_owned()),
    };
    let mut texts = Vec::new();
    for rule in group.rules.iter().filter(|rule| rule.direction == direction) {
        for matching in matches(network, rule) {
            let tag = tag(&group.name, rule);
            if rule.log == Log::Yes {
                let log = Expression::Log { prefix: tag.clone(), group: LOG_GROUP };
                texts.push(matching.clone().then(log_limit()).then(log).rule());
            }
            texts.push(matching.counted(tag, verdict.clone()));
        }
    }
    texts
}

/// What a rule matches, for each family in which it matches something.
fn matches(network: &DesiredNetwork, rule: &Rule) -> Vec<Steps> {
    let is_v6 = network.ipv6.is_some();
    let families: &[u8] = match (&rule.peer, rule.protocol) {
        (RulePeer::Range(range), _) if range.network().is_ipv4() => &[FAMILY_4],
        (RulePeer::Range(_), _) => &[FAMILY_6],
        (RulePeer::Any, protocol) if !matches!(protocol, RuleProtocol::Icmp(_)) => &[0],
        _ if is_v6 => &[FAMILY_4, FAMILY_6],
        _ => &[FAMILY_4],
    };
    families.iter().map(|family| matching(*family, rule)).collect()
}

/// `family` 0: either.
fn matching(family: u8, rule: &Rule) -> Steps {
    let steps = if family == 0 { Steps::new() } else { Steps::new().family(family) };
    let steps = match rule.protocol {
        RuleProtocol::Any => steps,
        RuleProtocol::Tcp(ports) => steps.protocol(TCP).ports(ports.first(), ports.last()),
        RuleProtocol::Udp(ports) => steps.protocol(UDP).ports(ports.first(), ports.last()),
        RuleProtocol::Number(number) => steps.protocol(number),
        RuleProtocol::Icmp(kind) => {
            let steps = steps.protocol(if family == FAMILY_6 { ICMP6 } else { ICMP });
            match kind {
                Some(kind) => steps.field(Field::ICMP_TYPE, &[kind]),
                None => steps,
            }
        }
    };
    let field = match (rule.direction, family) {
        (Direction::Ingress, FAMILY_6) => Field::IP6_SOURCE,
        (Direction::Ingress, _) => Field::IP4_SOURCE,
        (Direction::Egress, FAMILY_6) => Field::IP6_DESTINATION,
        (Direction::Egress, _) => Field::IP4_DESTINATION,
    };
    match &rule.peer {
        RulePeer::Any => steps,
        RulePeer::Range(range) if range.is_everything() => steps,
        RulePeer::Range(range) => {
            let address = octets(range.network());
            steps.masked(field, &mask(range.prefix_len(), address.len()), &address)
        }
        RulePeer::Group(group) => {
            let set = member_set(if family == FAMILY_6 { 6 } else { 4 }, group);
            steps.member(field, set)
        }
    }
}

fn mask(length: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| {
            let bits = usize::from(length).saturating_sub(at * 8).min(8);
            u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(0)
        })
        .collect()
}

/// Lowers what the two ends of a connection tell each other of their largest segments.
fn clamp(network: &DesiredNetwork) -> Chain {
    let to = |family: u8, headers: u16| {
        let size = network.mtu.saturating_sub(headers).to_be_bytes().to_vec();
        Steps::new()
            .family(family)
            .then(Expression::Immediate { value: size, to: 0 })
            .then(Expression::ClampSegments { from: 0 })
            .rule()
    };
    let six = network.ipv6.map(|_| to(FAMILY_6, HEADERS_6));
    chain(std::iter::once(to(FAMILY_4, HEADERS_4)).chain(six).collect())
}

/// Of packets between machines, and between machines and the outside.
fn forward(network: &DesiredNetwork, around: &Surroundings) -> Chain {
    let opening = Steps::new().protocol(TCP).masked(Field::TCP_FLAGS, &[SYN_RST], &[SYN]);
    // Most packets end here: both ends have spoken, so sizes are agreed on too.
    let assured = STATUS_ASSURED.to_ne_bytes().to_vec();
    let known = Steps::new()
        .then(Expression::ConnectionStatus { to: 0 })
        .then(Expression::Mask { register: 0, mask: assured })
        .then(Expression::NotEqual { register: 0, value: vec![0; 4] });
    let mut rules = Vec::new();
    if super::shortens(network, around) {
        // Tells the interface that sends it that the next packet may take the short way.
        let agreed = known
            .clone()
            .then(Expression::Meta { key: Key::Mark, to: 0 })
            .then(Expression::NotEqual { register: 0, value: vec![0; 4] })
            .then(Expression::Raise { register: 0, bits: AGREED })
            .then(Expression::SetMark { from: 0 });
        rules.push(agreed.accept());
    }
    rules.extend([known.accept(), opening.jump("clamp")]);
    rules.push(Steps::new().state(ESTABLISHED | RELATED).accept());
    rules.push(Steps::new().state(INVALID).drop("invalid"));
    rules.extend(crowded(network));
    // A machine that could send to the tunnels could speak for every network.
    let tunnel = Steps::new()
        .family(FAMILY_4)
        .protocol(UDP)
        .then(Expression::Load { field: Field::IP4_DESTINATION, to: 0 })
        .then(Expression::Load { field: Field::DESTINATION_PORT, to: 1 })
        .then(Expression::In { register: 0, set: "tunnels".to_owned() });
    rules.push(tunnel.drop("tunnel"));
    let (net, len) = (network.cidr.network().octets(), network.cidr.prefix_len());
    let inside = |steps: Steps, field| steps.masked(field, &mask(len, 4), &net);
    let v4 = || Steps::new().family(FAMILY_4);
    let from = v4().member(Field::IP4_SOURCE, "isolated4");
    rules.push(inside(from, Field::IP4_DESTINATION).drop("isolated"));
    let to = v4().member(Field::IP4_DESTINATION, "isolated4");
    rules.push(inside(to, Field::IP4_SOURCE).drop("isolated"));
    if let Some(range) = network.ipv6 {
        let prefix = octets(range.prefix.network());
        let inside = |steps: Steps, field| steps.masked(field, &mask(64, 16), &prefix);
        let v6 = || Steps::new().family(FAMILY_6);
        let from = v6().member(Field::IP6_SOURCE, "isolated6");
        rules.push(inside(from, Field::IP6_DESTINATION).drop("isolated"));
        let to = v6().member(Field::IP6_DESTINATION, "isolated6");
        rules.push(inside(to, Field::IP6_SOURCE).drop("isolated"));
    }
    if !matches!(network.kind, NetworkKind::Bridged { .. }) {
        // Nodes speak for clients that they have let in. On the operator's segment anybody may have such an address.
        let entered = v4().input(BRIDGE).masked(Field::IP4_SOURCE, &ROUTERS.1, &ROUTERS.0);
        rules.push(entered.accept());
    }
    rules.push(Steps::new().family(FAMILY_4).verdict_map(Field::IP4_SOURCE, "from4").rule());
    rules.push(Steps::new().family(FAMILY_6).verdict_map(Field::IP6_SOURCE, "from6").rule());
    rules.push(Steps::new().goto("deliver"));
    base(HookPoint::Forward, 0, Policy::Drop, rules)
}

/// Drops what a machine begins while it has too many connections.
fn crowded(network: &DesiredNetwork) -> impl Iterator<Item = RuleText> {
    let rule = |steps: Steps, field, set: &str| {
        let (set, connections_max) = (set.to_owned(), CONNECTIONS_MAX);
        let steps = steps.then(Expression::Load { field, to: 0 });
        steps.then(Expression::Crowded { key: 0, set, connections_max }).drop("connections")
    };
    let (net, len) = (network.cidr.network().octets(), network.cidr.prefix_len());
    let from = Steps::new().family(FAMILY_4).masked(Field::IP4_SOURCE, &mask(len, 4), &net);
    let four = rule(from, Field::IP4_SOURCE, "connections4");
    let six = network.ipv6.map(|range| {
        let prefix = octets(range.prefix.network());
        let from = Steps::new().family(FAMILY_6).masked(Field::IP6_SOURCE, &mask(64, 16), &prefix);
        rule(from, Field::IP6_SOURCE, "connections6")
    });
    std::iter::once(four).chain(six)
}

/// Of packets whose sender may send them.
fn deliver(network: &DesiredNetwork) -> Chain {
    let v4 = || Steps::new().family(FAMILY_4);
    let v6 = || Steps::new().family(FAMILY_6);
    let mut rules = vec![
        v4().input(UPLINK).verdict_map(Field::IP4_DESTINATION, BEHIND).rule(),
        v4().verdict_map(Field::IP4_DESTINATION, "to4").rule(),
        v6().verdict_map(Field::IP6_DESTINATION, "to6").rule(),
        v4().member(Field::IP4_DESTINATION, "remote4").accept(),
        v6().member(Field::IP6_DESTINATION, "remote6").accept(),
    ];
    let (net, len) = (network.cidr.network().octets(), network.cidr.prefix_len());
    let nobody = v4().masked(Field::IP4_DESTINATION, &mask(len, 4), &net);
    match network.kind {
        NetworkKind::Nat(_) => {
            rules.push(nobody.drop("nobody"));
            rules.push(v4().input(BRIDGE).accept());
        }
        NetworkKind::Bridged { .. } => rules.push(v4().accept()),
        NetworkKind::Isolated => {}
    }
    rules.push(Steps::new().drop("outside"));
    chain(rules)
}

/// Of packets to the node itself.
fn input(network: &DesiredNetwork, around: &Surroundings) -> Chain {
    let inside = || Steps::new().input(BRIDGE);
    let udp = |port: u16| inside().protocol(UDP).ports(port, port);
    let mut rules = vec![
        Steps::new().input("lo").accept(),
        Steps::new().state(ESTABLISHED | RELATED).accept(),
        Steps::new().state(INVALID).drop("invalid"),
        udp(67).accept(),
        udp(53).accept(),
        inside().protocol(TCP).ports(53, 53).accept(),
        inside().protocol(ICMP).field(Field::ICMP_TYPE, &[8]).accept(),
    ];
    if network.ipv6.is_some() {
        rules.push(udp(547).accept());
        rules.push(inside().protocol(ICMP6).accept());
    }
    let service = inside()
        .then(Expression::Meta { key: Key::TransportProtocol, to: 0 })
        .then(Expression::Load { field: Field::DESTINATION_PORT, to: 1 })
        .then(Expression::In { register: 0, set: "services".to_owned() });
    rules.push(service.accept());
    let outside = || Steps::new().input(UPLINK).protocol(TCP);
    let waiting: BTreeSet<_> = around.waiting.values().collect();
    rules.extend(waiting.into_iter().map(|port| outside().ports(*port, *port).accept()));
    rules.push(outside().then(Expression::Reject).rule());
    rules.push(Steps::new().drop("node"));
    base(HookPoint::Input, 0, Policy::Drop, rules)
}

/// Under which address a connection goes on.
fn postrouting(network: &DesiredNetwork, around: &Surroundings) -> Chain {
    let mut rules = Vec::new();
    if matches!(network.kind, NetworkKind::Nat(Exit::Here { .. })) {
        rules
            .push(Steps::new().family(FAMILY_4).output(UPLINK).then(Expression::Masquerade).rule());
    }
    if let Some((router, _)) = around.router {
        // The gateway's address is on every node: what this one asks of another's machine would be
        // answered there.
        let own = Steps::new()
            .family(FAMILY_4)
            .output(BRIDGE)
            .field(Field::IP4_SOURCE, &network.gateway.octets())
            .member(Field::IP4_DESTINATION, "remote4")
            .then(Expression::Immediate { value: router.octets().to_vec(), to: 0 })
            .then(Expression::Nat { kind: NatKind::Source, address: 0, port: None });
        rules.push(own.rule());
        // The machine's own node would answer the client past this one.
        let steps = published_alone(Steps::new().family(FAMILY_4).output(BRIDGE))
            .member(Field::IP4_DESTINATION, "remote4")
            .then(Expression::Immediate { value: router.octets().to_vec(), to: 0 })
            .then(Expression::Nat { kind: NatKind::Source, address: 0, port: None });
        rules.push(steps.rule());
    }
    nat(HookPoint::Postrouting, NAT_SOURCE, rules)
}

pub(super) fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_their_length() {
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(9, 4), [255, 128, 0, 0]);
        assert_eq!(mask(32, 4), [255; 4]);
        assert_eq!(mask(64, 16)[..], [[255; 8], [0; 8]].concat()[..]);
    }
}

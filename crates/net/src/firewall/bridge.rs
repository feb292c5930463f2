//! Who may send what at a tap: nobody gets anything through under a MAC address, IPv4 or IPv6
//! address that is not its own, nor plays gateway, DHCP server or router.

use super::Surroundings;
use super::steps::{ICMP6, Steps, UDP, base, chain, padded};
use crate::desired::{DesiredNetwork, LocalPort, NetworkKind, Rate};
use crate::names::{InterfaceName, UPLINK, VXLAN};
use crate::netfilter::{
    Chain, DataKind, Element, Expression, Field, HookPoint, Key, KeyField, Limit, Policy, RuleText,
    Set, Table,
};
use std::net::{Ipv4Addr, Ipv6Addr};

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// What QEMU announces a machine with after it moved.
const REVERSE_ARP: [u8; 2] = [0x80, 0x35];
/// The lowest bit of the first octet tells groups of receivers from one.
const GROUP_BIT: [u8; 1] = [1];
const DESTINATION_FIRST: Field = Field::Link { offset: 0, len: 1 };

/// Before everything else that looks at bridged packets, `br_netfilter` included (priority 0).
const FIRST: i32 = -300;
/// After everything that could still drop a packet.
const LAST: i32 = 300;

/// Questions that the node answers itself (ARP, DHCP, ND, router solicitations), per port: a
/// machine that boots asks some ten of them.
const QUESTIONS_PER_SECOND: u64 = 50;
const QUESTIONS_BURST: u32 = 100;

/// A burst of this many milliseconds of the rate passes at once; of bytes, a whole second's more, which the kernel's bucket
/// holds whatever it is told (`nft_limit_init`: unit × (rate + burst) / rate).
const BURST_MS: u64 = 50;
/// The least burst, in bytes: a large segment of TCP that the host passes whole, twice.
const BURST_BYTES_MIN: u64 = 2 * 65_536;
/// The least burst, in packets.
const BURST_PACKETS_MIN: u64 = 32;

/// The solicitations and advertisements that stay between a machine and the node (RFC 4861), and
/// reports of group membership (RFC 2710, 3810).
const ND_TYPES: [u8; 7] = [130, 131, 132, 133, 135, 136, 143];
/// Router advertisement and redirect: only gateways send these.
const ROUTER_TYPES: [u8; 2] = [134, 137];

pub(super) fn table(
    network: &DesiredNetwork,
    tap: &impl Fn(Ipv4Addr) -> InterfaceName,
    around: &Surroundings,
) -> Table {
    let mut table = Table::default();
    sets(&mut table, network, tap);
    let chains = [
        ("prerouting", prerouting(network, around, &table)),
        ("reserved", reserved(around)),
        ("machine", machine(&table)),
        ("arp", arp()),
        ("ip4", ip4()),
        ("udp4", udp4()),
        ("dhcp", dhcp()),
        ("stranger4", stranger4()),
        ("ip6", ip6(network)),
        ("icmp6", icmp6()),
        ("udp6", udp6()),
        ("link-local", link_local(network)),
        ("postrouting", postrouting(&table)),
    ];
    table.chains.extend(chains.map(|(name, chain)| (name.to_owned(), chain)));
    table
}

/// Maps from a port to its limits, with what they are for.
const LIMITS: [&str; 4] = [SENDS[0], SENDS[1], RECEIVES[0], RECEIVES[1]];
const SENDS: [&str; 2] = ["sends-bits", "sends-packets"];
const RECEIVES: [&str; 2] = ["receives-bits", "receives-packets"];

fn sets(table: &mut Table, network: &DesiredNetwork, tap: &impl Fn(Ipv4Addr) -> InterfaceName) {
    use KeyField::{InterfaceName as Name, Ip4, Ip6, Mac};
    let mut macs = Set::new(&[Name, Mac], DataKind::None);
    let mut ip4 = Set::new(&[Name, Mac, Ip4], DataKind::None);
    let mut ip6 = Set::new(&[Name, Mac, Ip6], DataKind::None);
    let mut questions = Set::new(&[Name], DataKind::Limit);
    let mut limits = LIMITS.map(|_| Set::new(&[Name], DataKind::Limit));
    for port in &network.ports {
        let tap = tap(port.address);
        let (name, mac) = (padded(tap.as_str()), port.mac.octets());
        macs.insert(&[&name, &mac], Element::Present);
        ip4.insert(&[&name, &mac, &port.address.octets()], Element::Present);
        if let Some(address) = port.ipv6 {
            ip6.insert(&[&name, &mac, &address.octets()], Element::Present);
        }
        let limit = Limit::Packets { per_second: QUESTIONS_PER_SECOND, burst: QUESTIONS_BURST };
        let own = format!("questions-{tap}");
        questions.insert(&[&name], Element::Limit(own.clone()));
        table.limits.insert(own, limit);
        for ((map, set), limit) in LIMITS.iter().zip(&mut limits).zip(limits_of(port)) {
            let Some((rate, limit)) = limit else { continue };
            // A limit cannot be changed, so its value is part of its name.
            let own = format!("{map}-{rate}-{tap}");
            set.insert(&[&name], Element::Limit(own.clone()));
            table.limits.insert(own, limit);
        }
    }
    let named = [("macs", macs), ("ip4", ip4), ("ip6", ip6), ("questions", questions)];
    table.sets.extend(named.map(|(name, set)| (name.to_owned(), set)));
    table.sets.extend(LIMITS.map(str::to_owned).into_iter().zip(limits));
}

/// In the order of [`LIMITS`], each with its rate.
fn limits_of(port: &LocalPort) -> [Option<(u64, Limit)>; 4] {
    let bits = |rate: Rate| {
        rate.bits_per_second.map(|bits| {
            let per_second = bits / 8;
            let burst = (per_second.saturating_mul(BURST_MS) / 1000).max(BURST_BYTES_MIN);
            (bits, Limit::Bytes { per_second, burst: burst.try_into().unwrap_or(u32::MAX) })
        })
    };
    let packets = |rate: Rate| {
        rate.packets_per_second.map(|per_second| {
            let burst = (per_second.saturating_mul(BURST_MS) / 1000).max(BURST_PACKETS_MIN);
            let burst = burst.try_into().unwrap_or(u32::MAX);
            (per_second, Limit::Packets { per_second, burst })
        })
    };
    let (sends, receives) = (port.limits.sends, port.limits.receives);
    [bits(sends), packets(sends), bits(receives), packets(receives)]
}

/// Whether what a port sends is limited, and what it receives.
pub(super) fn limited(port: &LocalPort) -> [bool; 2] {
    let is_limited = |rate: Rate| rate != Rate::default();
    [is_limited(port.limits.sends), is_limited(port.limits.receives)]
}

fn prerouting(network: &DesiredNetwork, around: &Surroundings, table: &Table) -> Chain {
    let mut rules = Vec::new();
    if over(table, Key::InputName, SENDS).next().is_none() {
        // Most frames end here: one look tells that it is a machine's own. UDP may be a question to the node.
        let own = Steps::new()
            .field(Field::ETHER_TYPE, &IPV4)
            .then(Expression::Meta { key: Key::TransportProtocol, to: 0 })
            .then(Expression::NotEqual { register: 0, value: vec![UDP] });
        rules.push(own.and(identity(Field::ETHER_SOURCE, Field::IP4_SOURCE, "ip4")).accept());
    }
    rules.push(Steps::new().input_like(&around.taps).goto("machine"));
    if let Some((_, mac)) = around.router {
        // The bridge hands up only what is for its own MAC address, which all nodes share.
        let gateway = network.vni.gateway_mac().to_vec();
        let rule = Steps::new()
            .input(VXLAN)
            .field(Field::ETHER_DESTINATION, &mac)
            .then(Expression::Immediate { value: gateway, to: 0 })
            .then(Expression::Store { from: 0, offset: 0, len: 6 })
            .then(Expression::Immediate { value: vec![0], to: 0 })
            .then(Expression::SetPacketType { from: 0 });
        rules.push(rule.accept());
    }
    if matches!(network.kind, NetworkKind::Bridged { .. }) {
        // The operator's segment has its own routers; IPv6 of a bridged network would be theirs.
        let foreign = Steps::new().input(UPLINK).field(Field::ETHER_TYPE, &IPV6);
        rules.push(foreign.drop("uplink-ipv6"));
    }
    base(HookPoint::Prerouting, FIRST, Policy::Accept, rules)
}

/// Frames for the first addresses of IEEE 802.1D's reserved block, which are not bridged: behind this hook the kernel would
/// hand them to the port's own IP stack, where nobody asks who sent them.
fn reserved(around: &Surroundings) -> Chain {
    let frames = Steps::new().input_like(&around.taps).masked(
        Field::ETHER_DESTINATION,
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0],
        &[0x01, 0x80, 0xc2, 0, 0, 0],
    );
    base(HookPoint::Input, FIRST, Policy::Accept, vec![frames.drop("reserved")])
}

/// The rules for limits that some port has: a frame of a network without any meets none.
fn over<'a>(
    table: &Table,
    interface: Key,
    maps: [&'a str; 2],
) -> impl Iterator<Item = RuleText> + use<'a> {
    let used = |map: &str| table.sets.get(map).is_some_and(|set| !set.elements.is_empty());
    let used = maps.map(|map| used(map).then_some(map));
    used.into_iter().flatten().map(move |map| {
        Steps::new()
            .then(Expression::Meta { key: interface, to: 0 })
            .then(Expression::ObjectMap { register: 0, map: map.to_owned() })
            .drop(&format!("limit-{map}"))
    })
}

/// What is sent under another's MAC address.
fn forged() -> RuleText {
    Steps::new()
        .then(Expression::Meta { key: Key::InputName, to: 0 })
        .then(Expression::Load { field: Field::ETHER_SOURCE, to: 4 })
        .then(Expression::NotIn { register: 0, set: "macs".to_owned() })
        .drop("spoofed-mac")
}

/// What a machine sends. IPv4 comes first, because most frames are of it and one look tells all of its identity.
fn machine(table: &Table) -> Chain {
    let limits = over(table, Key::InputName, SENDS);
    let kinds = [
        Steps::new().field(Field::ETHER_TYPE, &IPV4).goto("ip4"),
        forged(),
        Steps::new().field(Field::ETHER_TYPE, &ARP).goto("arp"),
        Steps::new().field(Field::ETHER_TYPE, &IPV6).goto("ip6"),
        Steps::new().field(Field::ETHER_TYPE, &REVERSE_ARP).accept(),
        // Everything else, frames with a VLAN tag among it.
        Steps::new().drop("ether-type"),
    ];
    chain(limits.chain(kinds).collect())
}

/// Drops questions beyond what the node answers.
fn questions() -> RuleText {
    Steps::new()
        .then(Expression::Meta { key: Key::InputName, to: 0 })
        .then(Expression::ObjectMap { register: 0, map: "questions".to_owned() })
        .drop("limit-questions")
}

/// Input name, MAC address and address in the registers of a key.
fn identity(mac: Field, address: Field, set: &str) -> Steps {
    Steps::new()
        .then(Expression::Meta { key: Key::InputName, to: 0 })
        .then(Expression::Load { field: mac, to: 4 })
        .then(Expression::Load { field: address, to: 6 })
        .then(Expression::In { register: 0, set: set.to_owned() })
}

fn owner(mac: Field) -> Steps {
    Steps::new()
        .then(Expression::Meta { key: Key::InputName, to: 0 })
        .then(Expression::Load { field: mac, to: 4 })
        .then(Expression::In { register: 0, set: "macs".to_owned() })
}

fn arp() -> Chain {
    let probe = owner(Field::ARP_SENDER_MAC).field(Field::ARP_SENDER_IP, &[0; 4]);
    chain(vec![
        questions(),
        identity(Field::ARP_SENDER_MAC, Field::ARP_SENDER_IP, "ip4").accept(),
        // Asking whether an address is free (RFC 5227).
        probe.accept(),
        Steps::new().drop("spoofed-arp"),
    ])
}

fn ip4() -> Chain {
    chain(vec![
        Steps::new().protocol(UDP).goto("udp4"),
        identity(Field::ETHER_SOURCE, Field::IP4_SOURCE, "ip4").accept(),
        Steps::new().goto("stranger4"),
    ])
}

fn udp4() -> Chain {
    let server = Steps::new().ports(68, 68).field(Field::SOURCE_PORT, &67_u16.to_be_bytes());
    chain(vec![
        Steps::new().ports(67, 67).goto("dhcp"),
        server.drop("spoofed-dhcp"),
        identity(Field::ETHER_SOURCE, Field::IP4_SOURCE, "ip4").accept(),
        Steps::new().goto("stranger4"),
    ])
}

/// Counts what exactly is false about a sender.
fn stranger4() -> Chain {
    chain(vec![forged(), Steps::new().drop("spoofed-ip4")])
}

/// Questions of a machine to a DHCP server: only in its own name, whatever its address is by now.
fn dhcp() -> Chain {
    let unset = owner(Field::DHCP_CLIENT_MAC).field(Field::IP4_SOURCE, &[0; 4]);
    let renewing = identity(Field::DHCP_CLIENT_MAC, Field::IP4_SOURCE, "ip4");
    let false_name = Steps::new().drop("spoofed-dhcp");
    chain(vec![forged(), questions(), unset.accept(), renewing.accept(), false_name])
}

fn ip6(network: &DesiredNetwork) -> Chain {
    if network.ipv6.is_none() {
        return chain(vec![Steps::new().drop("no-ipv6")]);
    }
    let kinds =
        vec![Steps::new().protocol(ICMP6).goto("icmp6"), Steps::new().protocol(UDP).goto("udp6")];
    chain(kinds.into_iter().chain(own6()).collect())
}

/// Under a machine's own address to anybody, otherwise only what stays on the link.
fn own6() -> [RuleText; 2] {
    let own = identity(Field::ETHER_SOURCE, Field::IP6_SOURCE, "ip6");
    [own.accept(), Steps::new().goto("link-local")]
}

fn icmp6() -> Chain {
    let of = |kind: u8| Steps::new().field(Field::ICMP_TYPE, &[kind]);
    let routers = ROUTER_TYPES.iter().map(|kind| of(*kind).drop("spoofed-router"));
    let neighbours = ND_TYPES.iter().map(|kind| of(*kind).goto("link-local"));
    chain(routers.chain(neighbours).chain(own6()).collect())
}

fn udp6() -> Chain {
    let server = Steps::new().ports(546, 546).field(Field::SOURCE_PORT, &547_u16.to_be_bytes());
    let dhcp = [server.drop("spoofed-dhcp"), Steps::new().ports(547, 547).goto("link-local")];
    chain(dhcp.into_iter().chain(own6()).collect())
}

/// What a machine says to the node about itself never reaches another machine.
fn link_local(network: &DesiredNetwork) -> Chain {
    let gateway = network.vni.gateway_mac();
    let scope = Field::Network { offset: 8, len: 2 };
    let within = |steps: Steps| steps.masked(scope, &[0xff, 0xc0], &[0xfe, 0x80]);
    let unset = |steps: Steps| steps.field(Field::IP6_SOURCE, &Ipv6Addr::UNSPECIFIED.octets());
    let to_group = || Steps::new().masked(DESTINATION_FIRST, &GROUP_BIT, &GROUP_BIT);
    let to_gateway = || Steps::new().field(Field::ETHER_DESTINATION, &gateway);
    let own = |steps: Steps| steps.and(identity(Field::ETHER_SOURCE, Field::IP6_SOURCE, "ip6"));
    chain(vec![
        questions(),
        within(to_gateway()).accept(),
        within(to_group()).accept(),
        unset(to_group()).accept(),
        own(to_gateway()).accept(),
        own(to_group()).accept(),
        Steps::new().drop("spoofed-ip6"),
    ])
}

/// What a machine receives; and nothing that is for many crosses to another node.
fn postrouting(table: &Table) -> Chain {
    let crossing = Steps::new().masked(DESTINATION_FIRST, &GROUP_BIT, &GROUP_BIT).output(VXLAN);
    let limits = over(table, Key::OutputName, RECEIVES);
    let rules = std::iter::once(crossing.drop("multicast-between-nodes")).chain(limits);
    base(HookPoint::Postrouting, LAST, Policy::Accept, rules.collect())
}

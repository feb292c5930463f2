//! The rules in the node's own namespace: how networks reach the outside, and the outside them.
//!
//! They stand in one table of ours, and only look at what comes from or goes to our interfaces,
//! ports that were published, and VXLAN.

use super::steps::{ESTABLISHED, RELATED, Steps, TCP, UDP, base, nat};
use crate::desired::Transport;
use crate::names::HOST_PREFIX;
use crate::netfilter::{
    DataKind, Element, Expression, Family, Field, HookPoint, Key, KeyField, NatKind, Policy,
    Ruleset, Set, Table,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Before translation, where the filter of other tables stands.
const FILTER: i32 = 0;
const NAT_DESTINATION: i32 = -100;
const NAT_SOURCE: i32 = 100;
/// `RTN_LOCAL`: an address of this host.
const ROUTE_LOCAL: u32 = 2;
const LOOPBACK: Field = Field::Network { offset: 12, len: 1 };

/// The way into one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// The host's end.
    pub(crate) interface: String,
    /// The network's address on it.
    pub(crate) transit: Ipv4Addr,
    /// Under which address its machines go out; `None`: the host's choice.
    pub(crate) source: Option<Ipv4Addr>,
    /// What is open, and on which address; `None`: on all.
    pub(crate) open: BTreeSet<(Option<Ipv4Addr>, Transport, u16)>,
}

/// Everything the host's rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostRules {
    pub(crate) ways: Vec<Way>,
    /// The UDP port of VXLAN, and who may send there.
    pub(crate) tunnel: Option<(u16, BTreeSet<Ipv4Addr>)>,
}

/// The table called `name` in the node's namespace.
pub(crate) fn host_rules(name: &str, host: &HostRules) -> Ruleset {
    let mut table = Table::default();
    maps(&mut table, host);
    let chains = [
        ("prerouting", nat(HookPoint::Prerouting, NAT_DESTINATION, published())),
        ("output", nat(HookPoint::Output, NAT_DESTINATION, published())),
        ("postrouting", nat(HookPoint::Postrouting, NAT_SOURCE, leaving())),
        ("input", base(HookPoint::Input, FILTER, Policy::Accept, input(host))),
        ("forward", base(HookPoint::Forward, FILTER, Policy::Accept, forward())),
    ];
    table.chains.extend(chains.map(|(name, chain)| (name.to_owned(), chain)));
    Ruleset::from([((Family::Ipv4, name.to_owned()), table)])
}

fn maps(table: &mut Table, host: &HostRules) {
    let address = || DataKind::Fields(vec![KeyField::Ip4]);
    let keys = [KeyField::Protocol, KeyField::Port];
    let mut everywhere = Set::new(&keys, address());
    let keys = [KeyField::Ip4, KeyField::Protocol, KeyField::Port];
    let mut at_address = Set::new(&keys, address());
    let mut sources = Set::new(&[KeyField::Ip4], address());
    let mut transits = Set::new(&[KeyField::Ip4], DataKind::None);
    let mut taken = BTreeMap::new();
    for way in &host.ways {
        transits.insert(&[&way.transit.octets()], Element::Present);
        if let Some(source) = way.source {
            let value = Element::Value(source.octets().to_vec());
            sources.insert(&[&way.transit.octets()], value);
        }
        for open @ (at, protocol, port) in &way.open {
            // Who came first keeps it; the control plane gives no port twice.
            if *taken.entry(*open).or_insert(way.transit) != way.transit {
                continue;
            }
            let number = match protocol {
                Transport::Tcp => [TCP],
                Transport::Udp => [UDP],
            };
            let value = Element::Value(way.transit.octets().to_vec());
            match at {
                Some(at) => {
                    at_address.insert(&[&at.octets(), &number, &port.to_be_bytes()], value);
                }
                None => everywhere.insert(&[&number, &port.to_be_bytes()], value),
            }
        }
    }
    let tunnel = host.tunnel.iter().flat_map(|(_, peers)| peers);
    let mut peers = Set::new(&[KeyField::Ip4], DataKind::None);
    tunnel.for_each(|peer| peers.insert(&[&peer.octets()], Element::Present));
    let named = [
        ("everywhere", everywhere),
        ("at-address", at_address),
        ("sources", sources),
        ("transits", transits),
        ("peers", peers),
    ];
    table.sets.extend(named.map(|(name, set)| (name.to_owned(), set)));
}

fn published() -> Vec<crate::netfilter::RuleText> {
    let local = || {
        let value = ROUTE_LOCAL.to_ne_bytes().to_vec();
        Steps::new()
            .then(Expression::DestinationKind { to: 0 })
            .then(Expression::Equal { register: 0, value })
    };
    let nat = |steps: Steps| {
        steps.then(Expression::Nat { kind: NatKind::Destination, address: 3, port: None }).rule()
    };
    let at_address = Steps::new()
        .then(Expression::Load { field: Field::IP4_DESTINATION, to: 0 })
        .then(Expression::Meta { key: Key::TransportProtocol, to: 1 })
        .then(Expression::Load { field: Field::DESTINATION_PORT, to: 2 })
        .then(Expression::Map { register: 0, map: "at-address".to_owned(), to: 3 });
    let everywhere = local()
        .then(Expression::Meta { key: Key::TransportProtocol, to: 0 })
        .then(Expression::Load { field: Field::DESTINATION_PORT, to: 1 })
        .then(Expression::Map { register: 0, map: "everywhere".to_owned(), to: 3 });
    vec![nat(at_address), nat(everywhere)]
}

fn leaving() -> Vec<crate::netfilter::RuleText> {
    let source = Steps::new()
        .output_not_like(HOST_PREFIX)
        .then(Expression::Load { field: Field::IP4_SOURCE, to: 0 })
        .then(Expression::Map { register: 0, map: "sources".to_owned(), to: 1 })
        .then(Expression::Nat { kind: NatKind::Source, address: 1, port: None });
    let other = Steps::new().output_not_like(HOST_PREFIX).member(Field::IP4_SOURCE, "transits");
    // From loopback, or from a network to what is published: answers must come back this way.
    let loopback = Steps::new().output_like(HOST_PREFIX).field(LOOPBACK, &[127]);
    let back = Steps::new().output_like(HOST_PREFIX).member(Field::IP4_SOURCE, "transits");
    vec![
        source.rule(),
        other.then(Expression::Masquerade).rule(),
        loopback.then(Expression::Masquerade).rule(),
        back.then(Expression::Masquerade).rule(),
    ]
}

/// Machines do not reach the node itself, and only nodes reach the tunnel.
fn input(host: &HostRules) -> Vec<crate::netfilter::RuleText> {
    let ours = || Steps::new().input_like(HOST_PREFIX);
    let mut rules =
        vec![ours().state(ESTABLISHED | RELATED).accept(), ours().drop("machine-to-node")];
    if let Some((port, _)) = &host.tunnel {
        let stranger = Steps::new()
            .protocol(UDP)
            .ports(*port, *port)
            .then(Expression::Load { field: Field::IP4_SOURCE, to: 0 })
            .then(Expression::NotIn { register: 0, set: "peers".to_owned() });
        rules.push(stranger.drop("tunnel-stranger"));
    }
    rules
}

/// From outside only what is published: others must not reach transit addresses by routing.
fn forward() -> Vec<crate::netfilter::RuleText> {
    let published = 32_u32.to_ne_bytes().to_vec();
    let new = Steps::new()
        .output_like(HOST_PREFIX)
        .state(8)
        .then(Expression::ConnectionStatus { to: 0 })
        .then(Expression::Mask { register: 0, mask: published })
        .then(Expression::Equal { register: 0, value: vec![0; 4] });
    vec![new.drop("not-published")]
}

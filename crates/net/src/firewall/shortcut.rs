//! The short way between two machines: once a connection has been let through and answered, its packets go from the
//! interface that received them to the one that sends them, past bridge and rules.
//!
//! ```text
//!   tap ─ ingress: known? ─────────────────────── yes ──────────────────────────▶ tap, tunnel
//!            │ no: note where it came from                                          ▲
//!            └▶ bridge ─ identity ─ rules, connections: agreed on? note it ─ egress: learn ┘
//! ```
//! What is known is only ever learned from a packet that took the long way: by the interface it came by, both MAC
//! addresses, both IP addresses, protocol and ports, so that nobody else's packet is taken for it. It is forgotten after
//! [`STAYS_MS`], and all of it when a rule, a port or a place changes; the next packet then takes the long way again.
//! What opens or ends a connection, fragments, frames with a VLAN tag, and all that has a bound always take the long way.
//!
//! It needs Linux 6.17 (chains for interfaces by the beginning of their names). Without it everything takes the long way.

use super::Surroundings;
use super::bridge::limited;
use super::steps::{Steps, TCP, UDP, at_devices, padded};
use crate::desired::DesiredNetwork;
use crate::names::{InterfaceName, VXLAN};
use crate::netfilter::{
    DataKind, Devices, Element, Expression, Field, HookPoint, Key, KeyField, Learning, Set, Table,
};
use std::net::Ipv4Addr;

/// The bit of a packet's mark that says: both ends of its connection have agreed on it. The others, but for [`ANSWER`], are
/// the index of the interface that received it.
pub(super) const AGREED: u32 = 1 << 31;
/// The bit of a packet's mark that says: it answers who came from outside by this node.
pub(crate) const ANSWER: u32 = 1 << 30;
/// The map of connections that are known.
pub(crate) const KNOWN: &str = "known";
/// How long a connection is known: shorter than any wait of the kernel's for a packet of it (30 s, of UDP), which must see
/// one now and then.
const STAYS_MS: u64 = 10_000;
/// Connections that can be known, both ways counted: some 10 MiB of the kernel's memory. Others take the long way.
const KNOWN_MAX: u32 = 131_072;
/// Interface, MAC addresses, IP addresses, protocol, ports.
const KEY_BYTES: u8 = 4 + 12 + 8 + 4 + 4;
/// In the registers of a key: where the protocol is, and what comes behind it.
const PROTOCOL_AT: u32 = 6;
const VALUE_AT: u32 = 8;

const IPV4: [u8; 2] = [0x08, 0x00];
const MACS: Field = Field::Link { offset: 0, len: 12 };
const ADDRESSES: Field = Field::Network { offset: 12, len: 8 };
/// Flags and offset of fragments, and what of them tells a fragment.
const FRAGMENT: Field = Field::Network { offset: 6, len: 2 };
const FRAGMENT_BITS: [u8; 2] = [0x3f, 0xff];
const PORTS: Field = Field::Transport { offset: 0, len: 4 };
/// FIN, SYN and RST.
const OPENS_OR_ENDS: [u8; 1] = [0x07];

/// The table of the family of devices.
pub(super) fn table(
    network: &DesiredNetwork,
    tap: &impl Fn(Ipv4Addr) -> InterfaceName,
    around: &Surroundings,
) -> Table {
    let mut table = Table::default();
    let mut slow = [(); 2].map(|()| Set::new(&[KeyField::InterfaceName], DataKind::None));
    for port in &network.ports {
        let name = padded(tap(port.address).as_str());
        for (set, is_limited) in slow.iter_mut().zip(limited(port)) {
            if is_limited {
                set.insert(&[&name], Element::Present);
            }
        }
    }
    let [senders, receivers] = slow;
    let learning = Learning { stays_ms: Some(STAYS_MS), elements_max: KNOWN_MAX };
    let to = DataKind::Fields(vec![KeyField::InterfaceIndex]);
    let known = Set::learning(&[KeyField::Bytes(KEY_BYTES)], to, learning);
    let sets = [("limited-senders", senders), ("limited-receivers", receivers), (KNOWN, known)];
    table.sets.extend(sets.map(|(name, set)| (name.to_owned(), set)));
    let devices = || vec![Devices::Like(around.taps.clone()), Devices::Named(VXLAN)];
    let chains = [
        ("ingress", at_devices(HookPoint::Ingress, devices(), ingress())),
        ("egress", at_devices(HookPoint::Egress, devices(), egress())),
    ];
    table.chains.extend(chains.map(|(name, chain)| (name.to_owned(), chain)));
    table
}

/// Loads the rest of the key behind the interface.
fn key(steps: Steps) -> Steps {
    steps
        .then(Expression::Load { field: MACS, to: 1 })
        .then(Expression::Load { field: ADDRESSES, to: 4 })
        .then(Expression::Meta { key: Key::TransportProtocol, to: PROTOCOL_AT })
        .then(Expression::Load { field: PORTS, to: 7 })
}

fn ingress() -> Vec<crate::netfilter::RuleText> {
    let of = |protocol: u8| {
        Steps::new().field(Field::ETHER_TYPE, &IPV4).protocol(protocol).masked(
            FRAGMENT,
            &FRAGMENT_BITS,
            &[0; 2],
        )
    };
    let send = |steps: Steps| {
        key(steps.then(Expression::Meta { key: Key::InputIndex, to: 0 }))
            .then(Expression::Map { register: 0, map: KNOWN.to_owned(), to: VALUE_AT })
            .then(Expression::SendBy { device: VALUE_AT })
            .rule()
    };
    let slow = Steps::new()
        .then(Expression::Meta { key: Key::InputName, to: 0 })
        .then(Expression::In { register: 0, set: "limited-senders".to_owned() });
    let note = Steps::new()
        .then(Expression::Meta { key: Key::InputIndex, to: 0 })
        .then(Expression::SetMark { from: 0 });
    vec![
        send(of(TCP).masked(Field::TCP_FLAGS, &OPENS_OR_ENDS, &[0])),
        send(of(UDP)),
        slow.accept(),
        note.rule(),
    ]
}

fn egress() -> Vec<crate::netfilter::RuleText> {
    let agreed = AGREED.to_ne_bytes().to_vec();
    let other = Steps::new()
        .then(Expression::Meta { key: Key::Mark, to: 0 })
        .then(Expression::Mask { register: 0, mask: agreed.clone() })
        .then(Expression::NotEqual { register: 0, value: agreed });
    let slow = Steps::new()
        .then(Expression::Meta { key: Key::OutputName, to: 0 })
        .then(Expression::In { register: 0, set: "limited-receivers".to_owned() });
    let source = Steps::new()
        .field(Field::ETHER_TYPE, &IPV4)
        .then(Expression::Meta { key: Key::Mark, to: 0 })
        .then(Expression::Mask { register: 0, mask: (!(AGREED | ANSWER)).to_ne_bytes().to_vec() });
    let learn = key(source)
        .then(Expression::Meta { key: Key::OutputIndex, to: VALUE_AT })
        .then(Expression::Learn { key: 0, value: VALUE_AT, map: KNOWN.to_owned() });
    vec![other.accept(), slow.accept(), learn.rule()]
}

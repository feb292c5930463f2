//! Changes and their expressions as messages of `nf_tables`.

use super::diff::{Change, Place};
use super::expression::{Expression, Field, Key, NatKind, Verdict};
use super::ruleset::{
    Chain, DataKind, Devices, Element, Hook, HookPoint, KeyField, Limit, Policy, RuleText, Set,
};
use super::wire::{ACK, APPEND, CREATE, Writer};

/// `NFNL_SUBSYS_NFTABLES << 8`.
pub(super) const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
pub(super) const NEW_TABLE: u16 = SUBSYSTEM;
pub(super) const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const DELETE_SET: u16 = SUBSYSTEM | 11;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
pub(super) const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;
pub(super) const GET_GENERATION: u16 = SUBSYSTEM | 16;
const NEW_OBJECT: u16 = SUBSYSTEM | 18;
const DELETE_OBJECT: u16 = SUBSYSTEM | 20;

/// `NFT_OBJECT_LIMIT`.
const OBJECT_LIMIT: u32 = 4;
/// First of the sixteen registers of four bytes (`NFT_REG32_00`).
const REGISTER_FIRST: u32 = 8;
/// Data type of maps to verdicts (`NFT_DATA_VERDICT`).
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// An attribute's length has 16 bits; the list of elements is one. Leaves room for the last one.
const ELEMENTS_BYTES_MAX: usize = 60_000;
/// As much of a packet as tells addresses and ports: IPv6 and TCP headers.
const LOG_BYTES: u32 = 80;
/// Lines of a rule that logs, per second and in a burst.
const LOG_PER_SECOND: u64 = 10;
/// `NFT_HASH_JENKINS`.
const JENKINS: u32 = 0;

/// One batch: all of it happens, or nothing. The identifiers of sets only matter within it.
pub(super) fn batch(changes: &[Change<'_>]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(BATCH_BEGIN, 0, 0, SUBSYSTEM >> 8);
    for (number, change) in (1..).zip(changes) {
        encode(&mut writer, change, number);
    }
    writer.message(BATCH_END, 0, 0, SUBSYSTEM >> 8);
    writer.finish()
}

/// Asks for the number of the ruleset's generation, and for an answer in any case.
pub(super) fn generation_request() -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(GET_GENERATION, ACK, 0, 0);
    writer.finish()
}

fn encode(writer: &mut Writer, change: &Change<'_>, number: u32) {
    match change {
        Change::AddTable((family, name)) => {
            writer.message(NEW_TABLE, CREATE, family.number(), 0);
            writer.text(1, name);
        }
        Change::RemoveTable((family, name)) => {
            writer.message(DELETE_TABLE, 0, family.number(), 0);
            writer.text(1, name);
        }
        Change::AddLimit(place, name, limit) => add_limit(writer, *place, name, *limit),
        Change::RemoveLimit((family, table), name) => {
            writer.message(DELETE_OBJECT, 0, family.number(), 0);
            writer.text(1, table);
            writer.text(2, name);
            writer.u32(3, OBJECT_LIMIT);
        }
        Change::AddSet(place, name, set) => add_set(writer, *place, name, set, number),
        Change::RemoveSet((family, table), name) => {
            writer.message(DELETE_SET, 0, family.number(), 0);
            writer.text(1, table);
            writer.text(2, name);
        }
        Change::AddElements(place, name, _, elements) => {
            let mut list = ElementList::new(writer, *place, name, NEW_ELEMENT, CREATE);
            elements.iter().for_each(|(key, element)| list.add(key, Some(element)));
            list.finish();
        }
        Change::RemoveElements(place, name, _, keys) => {
            let mut list = ElementList::new(writer, *place, name, DELETE_ELEMENT, 0);
            keys.iter().for_each(|key| list.add(key, None));
            list.finish();
        }
        Change::ClearSet((family, table), name) => {
            writer.message(DELETE_ELEMENT, 0, family.number(), 0);
            writer.text(1, table);
            writer.text(2, name);
        }
        Change::AddChain(place, name, chain) => add_chain(writer, *place, name, chain),
        Change::RemoveChain((family, table), name) => {
            writer.message(DELETE_CHAIN, 0, family.number(), 0);
            writer.text(1, table);
            writer.text(3, name);
        }
        Change::Flush((family, table), chain) => {
            writer.message(DELETE_RULE, 0, family.number(), 0);
            writer.text(1, table);
            writer.text(2, chain);
        }
        Change::AddRule(place, chain, rule) => add_rule(writer, *place, chain, rule),
    }
}

fn add_limit(writer: &mut Writer, (family, table): Place<'_>, name: &str, limit: Limit) {
    writer.message(NEW_OBJECT, CREATE, family.number(), 0);
    writer.text(1, table);
    writer.text(2, name);
    writer.u32(3, OBJECT_LIMIT);
    let nest = writer.open(4);
    let (per_second, burst, kind) = match limit {
        Limit::Packets { per_second, burst } => (per_second, burst, 0),
        Limit::Bytes { per_second, burst } => (per_second, burst, 1),
    };
    limit_attributes(writer, per_second, burst, kind, true);
    writer.close(nest);
}

/// `inverted`: matches what is over the limit.
fn limit_attributes(writer: &mut Writer, per_second: u64, burst: u32, kind: u32, inverted: bool) {
    writer.u64(1, per_second);
    writer.u64(2, 1);
    writer.u32(3, burst);
    writer.u32(4, kind);
    writer.u32(5, u32::from(inverted));
}

fn add_set(writer: &mut Writer, (family, table): Place<'_>, name: &str, set: &Set, id: u32) {
    const MAP: u32 = 8;
    const TIMEOUT: u32 = 0x10;
    const LEARNS: u32 = 0x20;
    const OBJECT: u32 = 0x40;
    writer.message(NEW_SET, CREATE, family.number(), 0);
    writer.text(1, table);
    writer.text(2, name);
    let flags = match set.data {
        DataKind::None => 0,
        DataKind::Verdict | DataKind::Fields(_) => MAP,
        DataKind::Limit => OBJECT,
    };
    let learns = set.learns.map_or(0, |learning| match learning.stays_ms {
        Some(_) => TIMEOUT | LEARNS,
        None => LEARNS,
    });
    writer.u32(3, flags | learns);
    writer.u32(4, type_of(&set.key));
    writer.u32(5, length_of(&set.key));
    match &set.data {
        DataKind::None => {}
        DataKind::Verdict => {
            writer.u32(6, VERDICT_TYPE);
            writer.u32(7, 0);
        }
        DataKind::Fields(fields) => {
            writer.u32(6, type_of(fields));
            writer.u32(7, length_of(fields));
        }
        DataKind::Limit => writer.u32(15, OBJECT_LIMIT),
    }
    if let Some(learning) = set.learns {
        let nest = writer.open(9);
        writer.u32(1, learning.elements_max);
        writer.close(nest);
        if let Some(stays_ms) = learning.stays_ms {
            writer.u64(11, stays_ms);
        }
    }
    writer.u32(10, id);
}

/// As the `nft` tool numbers concatenations: six bits a field.
fn type_of(fields: &[KeyField]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.number())
}

fn length_of(fields: &[KeyField]) -> u32 {
    let bytes: usize = match fields {
        [single] => single.bytes(),
        several => several.iter().map(|field| field.padded()).sum(),
    };
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Elements in as many messages as they need.
struct ElementList<'a> {
    writer: &'a mut Writer,
    place: Place<'a>,
    set: &'a str,
    kind: u16,
    flags: u16,
    open: Option<super::wire::Nest>,
}

impl<'a> ElementList<'a> {
    fn new(writer: &'a mut Writer, place: Place<'a>, set: &'a str, kind: u16, flags: u16) -> Self {
        Self { writer, place, set, kind, flags, open: None }
    }

    fn add(&mut self, key: &[u8], element: Option<&Element>) {
        if self.writer.message_len() > ELEMENTS_BYTES_MAX {
            self.close();
        }
        if self.open.is_none() {
            self.writer.message(self.kind, self.flags, self.place.0.number(), 0);
            self.writer.text(1, self.place.1);
            self.writer.text(2, self.set);
            self.open = Some(self.writer.open(3));
        }
        let item = self.writer.open(1);
        data(self.writer, 1, key);
        match element {
            None | Some(Element::Present) => {}
            Some(Element::Verdict(verdict)) => {
                let nest = self.writer.open(2);
                encode_verdict(self.writer, verdict);
                self.writer.close(nest);
            }
            Some(Element::Value(value)) => data(self.writer, 2, value),
            Some(Element::Limit(name)) => self.writer.text(9, name),
        }
        self.writer.close(item);
    }

    fn close(&mut self) {
        if let Some(nest) = self.open.take() {
            self.writer.close(nest);
        }
    }

    fn finish(mut self) {
        self.close();
    }
}

fn add_chain(writer: &mut Writer, (family, table): Place<'_>, name: &str, chain: &Chain) {
    writer.message(NEW_CHAIN, CREATE, family.number(), 0);
    writer.text(1, table);
    writer.text(3, name);
    let Some(Hook { point, priority, policy, is_nat, devices }) = &chain.hook else { return };
    let nest = writer.open(4);
    writer.u32(
        1,
        match point {
            HookPoint::Prerouting | HookPoint::Ingress => 0,
            HookPoint::Input | HookPoint::Egress => 1,
            HookPoint::Forward => 2,
            HookPoint::Output => 3,
            HookPoint::Postrouting => 4,
        },
    );
    writer.bytes(2, &priority.to_be_bytes());
    if !devices.is_empty() {
        let list = writer.open(4);
        for device in devices {
            match device {
                Devices::Named(name) => writer.text(1, name),
                Devices::Like(prefix) => writer.text(2, prefix),
            }
        }
        writer.close(list);
    }
    writer.close(nest);
    writer.u32(
        5,
        match policy {
            Policy::Drop => 0,
            Policy::Accept => 1,
        },
    );
    writer.text(7, if *is_nat { "nat" } else { "filter" });
}

fn add_rule(writer: &mut Writer, (family, table): Place<'_>, chain: &str, rule: &RuleText) {
    writer.message(NEW_RULE, CREATE | APPEND, family.number(), 0);
    writer.text(1, table);
    writer.text(2, chain);
    let list = writer.open(4);
    for step in &rule.steps {
        expression(writer, step);
    }
    writer.close(list);
    if let Some(tag) = &rule.tag {
        writer.bytes(7, tag.as_bytes());
    }
}

/// `NFTA_DATA_VALUE` within an attribute of type `kind`.
fn data(writer: &mut Writer, kind: u16, value: &[u8]) {
    let nest = writer.open(kind);
    writer.bytes(1, value);
    writer.close(nest);
}

fn encode_verdict(writer: &mut Writer, verdict: &Verdict) {
    let (code, chain): (i32, _) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    let nest = writer.open(2);
    writer.bytes(1, &code.to_be_bytes());
    if let Some(chain) = chain {
        writer.text(2, chain);
    }
    writer.close(nest);
}

fn register(number: u32) -> u32 {
    REGISTER_FIRST + number
}

/// One expression, as a nest of name and attributes.
fn expression(writer: &mut Writer, step: &Expression) {
    let item = writer.open(1);
    writer.text(1, name_of(step));
    let nest = writer.open(2);
    match step {
        Expression::Load { .. }
        | Expression::Store { .. }
        | Expression::Meta { .. }
        | Expression::SetPacketType { .. }
        | Expression::SetMark { .. }
        | Expression::ConnectionState { .. }
        | Expression::ConnectionStatus { .. }
        | Expression::DestinationKind { .. }
        | Expression::Immediate { .. } => loading(writer, step),
        Expression::Mask { .. }
        | Expression::Raise { .. }
        | Expression::Equal { .. }
        | Expression::NotEqual { .. }
        | Expression::Range { .. }
        | Expression::In { .. }
        | Expression::NotIn { .. }
        | Expression::Map { .. }
        | Expression::VerdictMap { .. }
        | Expression::ObjectMap { .. } => matching(writer, step),
        Expression::Turn { .. }
        | Expression::Hash { .. }
        | Expression::Limit { .. }
        | Expression::Counter
        | Expression::Log { .. }
        | Expression::Reject
        | Expression::ClampSegments { .. }
        | Expression::Nat { .. }
        | Expression::Masquerade
        | Expression::Learn { .. }
        | Expression::Crowded { .. }
        | Expression::SendBy { .. }
        | Expression::Redirect { .. }
        | Expression::Verdict(_) => acting(writer, step),
    }
    writer.close(nest);

    writer.close(item);
}

fn name_of(step: &Expression) -> &'static str {
    match step {
        Expression::Load { .. } | Expression::Store { .. } => "payload",
        Expression::Meta { .. } | Expression::SetPacketType { .. } | Expression::SetMark { .. } => {
            "meta"
        }
        Expression::ConnectionState { .. } | Expression::ConnectionStatus { .. } => "ct",
        Expression::DestinationKind { .. } => "fib",
        Expression::Immediate { .. } | Expression::Verdict(_) => "immediate",
        Expression::Mask { .. } | Expression::Raise { .. } => "bitwise",
        Expression::Equal { .. } | Expression::NotEqual { .. } => "cmp",
        Expression::Range { .. } => "range",
        Expression::In { .. }
        | Expression::NotIn { .. }
        | Expression::Map { .. }
        | Expression::VerdictMap { .. } => "lookup",
        Expression::ObjectMap { .. } => "objref",
        Expression::Learn { .. } | Expression::Crowded { .. } => "dynset",
        Expression::SendBy { .. } => "fwd",
        Expression::Turn { .. } => "numgen",
        Expression::Hash { .. } => "hash",
        Expression::Limit { .. } => "limit",
        Expression::Counter => "counter",
        Expression::Log { .. } => "log",
        Expression::Reject => "reject",
        Expression::ClampSegments { .. } => "exthdr",
        Expression::Nat { .. } => "nat",
        Expression::Masquerade => "masq",
        Expression::Redirect { .. } => "redir",
    }
}

fn loading(writer: &mut Writer, step: &Expression) {
    match step {
        Expression::Load { field, to } => {
            let (base, offset) = match field {
                Field::Link { offset, .. } => (0, *offset),
                Field::Network { offset, .. } => (1, *offset),
                Field::Transport { offset, .. } => (2, *offset),
            };
            writer.u32(1, register(*to));
            writer.u32(2, base);
            writer.u32(3, offset);
            writer.u32(4, field.len());
        }
        Expression::Store { from, offset, len } => {
            writer.u32(2, 0);
            writer.u32(3, *offset);
            writer.u32(4, *len);
            writer.u32(5, register(*from));
            // No checksum covers the Ethernet header.
            writer.u32(6, 0);
            writer.u32(7, 0);
            writer.u32(8, 0);
        }
        Expression::Meta { key, to } => {
            writer.u32(1, register(*to));
            writer.u32(
                2,
                match key {
                    Key::Mark => 3,
                    Key::InputIndex => 4,
                    Key::OutputIndex => 5,
                    Key::InputName => 6,
                    Key::OutputName => 7,
                    Key::Family => 15,
                    Key::TransportProtocol => 16,
                },
            );
        }
        Expression::SetPacketType { from } => {
            writer.u32(2, 19);
            writer.u32(3, register(*from));
        }
        Expression::SetMark { from } => {
            writer.u32(2, 3);
            writer.u32(3, register(*from));
        }
        Expression::ConnectionState { to } => {
            writer.u32(1, register(*to));
            writer.u32(2, 0);
        }
        Expression::ConnectionStatus { to } => {
            writer.u32(1, register(*to));
            writer.u32(2, 2);
        }
        Expression::DestinationKind { to } => {
            writer.u32(1, register(*to));
            writer.u32(2, 3);
            writer.u32(3, 2);
        }
        Expression::Immediate { value, to } => {
            writer.u32(1, register(*to));
            data(writer, 2, value);
        }
        _ => {}
    }
}

fn matching(writer: &mut Writer, step: &Expression) {
    match step {
        Expression::Mask { register: at, mask } => {
            writer.u32(1, register(*at));
            writer.u32(2, register(*at));
            writer.u32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            data(writer, 4, mask);
            data(writer, 5, &vec![0; mask.len()]);
        }
        // Clears the bits, then turns them.
        Expression::Raise { register: at, bits } => {
            writer.u32(1, register(*at));
            writer.u32(2, register(*at));
            writer.u32(3, 4);
            data(writer, 4, &(!bits).to_ne_bytes());
            data(writer, 5, &bits.to_ne_bytes());
        }
        Expression::Equal { register: at, value } => compare(writer, *at, 0, value),
        Expression::NotEqual { register: at, value } => compare(writer, *at, 1, value),
        Expression::Range { register: at, first, last } => {
            writer.u32(1, register(*at));
            writer.u32(2, 0);
            data(writer, 3, first);
            data(writer, 4, last);
        }
        Expression::In { register: at, set } => {
            writer.text(1, set);
            writer.u32(2, register(*at));
        }
        Expression::NotIn { register: at, set } => {
            writer.text(1, set);
            writer.u32(2, register(*at));
            writer.u32(5, 1);
        }
        Expression::Map { register: at, map, to } => {
            writer.text(1, map);
            writer.u32(2, register(*at));
            writer.u32(3, register(*to));
        }
        Expression::VerdictMap { register: at, map } => {
            writer.text(1, map);
            writer.u32(2, register(*at));
            writer.u32(3, 0);
        }
        Expression::ObjectMap { register: at, map } => {
            writer.u32(3, register(*at));
            writer.text(4, map);
        }
        _ => {}
    }
}

fn compare(writer: &mut Writer, at: u32, operation: u32, value: &[u8]) {
    writer.u32(1, register(at));
    writer.u32(2, operation);
    data(writer, 3, value);
}

fn acting(writer: &mut Writer, step: &Expression) {
    match step {
        Expression::Turn { modulus, to } => {
            writer.u32(1, register(*to));
            writer.u32(2, *modulus);
            writer.u32(3, 0);
        }
        Expression::Hash { from, len, seed, modulus, to } => {
            writer.u32(1, register(*from));
            writer.u32(2, register(*to));
            for (attribute, value) in [(3, *len), (4, *modulus), (5, *seed), (7, JENKINS)] {
                writer.u32(attribute, value);
            }
        }
        Expression::Limit { per_second, burst } => {
            limit_attributes(writer, *per_second, *burst, 0, false);
        }
        Expression::Counter => {
            writer.u64(1, 0);
            writer.u64(2, 0);
        }
        Expression::Log { prefix, group } => {
            writer.u16(1, *group);
            writer.text(2, prefix);
            writer.u32(3, LOG_BYTES);
        }
        // NFT_REJECT_TCP_RST; all else is dropped in silence by the chain's policy.
        Expression::Reject => {
            writer.u32(1, 1);
            writer.u8(2, 0);
        }
        Expression::ClampSegments { from } => {
            // The option of kind 2 (RFC 9293): two bytes from its third on.
            writer.u8(2, 2);
            writer.u32(3, 2);
            writer.u32(4, 2);
            // Flags must not be there when an option is written.
            writer.u32(6, 1);
            writer.u32(7, register(*from));
        }
        Expression::Nat { kind, address, port } => {
            writer.u32(
                1,
                match kind {
                    NatKind::Source => 0,
                    NatKind::Destination => 1,
                },
            );
            writer.u32(2, 2);
            writer.u32(3, register(*address));
            if let Some(port) = port {
                writer.u32(5, register(*port));
            }
        }
        Expression::Learn { key, value, map } => {
            writer.text(1, map);
            writer.u32(3, 0);
            writer.u32(4, register(*key));
            writer.u32(5, register(*value));
        }
        Expression::Crowded { key, set, connections_max } => {
            writer.text(1, set);
            writer.u32(3, 0);
            writer.u32(4, register(*key));
            let counting = writer.open(7);
            writer.text(1, "connlimit");
            let nest = writer.open(2);
            writer.u32(1, *connections_max);
            // NFT_CONNLIMIT_F_INV: what is over.
            writer.u32(2, 1);
            writer.close(nest);
            writer.close(counting);
        }
        Expression::SendBy { device } => writer.u32(1, register(*device)),
        Expression::Redirect { port } => writer.u32(1, register(*port)),
        Expression::Verdict(verdict) => {
            writer.u32(1, 0);
            let nest = writer.open(2);
            encode_verdict(writer, verdict);
            writer.close(nest);
        }
        _ => {}
    }
}

/// A limit in front of a log line.
pub(crate) fn log_limit() -> Expression {
    Expression::Limit { per_second: LOG_PER_SECOND, burst: 10 }
}

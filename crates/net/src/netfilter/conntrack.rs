//! Connections as the kernel follows them, read, forgotten and made over ctnetlink.

use super::wire::{ACK, Attributes, CREATE, DUMP, EXCLUSIVE, Writer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `NFNL_SUBSYS_CTNETLINK << 8`.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const GET_STATS: u16 = SUBSYSTEM | 5;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMP6: u8 = 58;
/// Bits of the status that may be given to a new entry: seen both ways, assured, confirmed
/// (`enum ip_conntrack_status`).
const STATUS_COPIED: u32 = 2 | 4 | 8;
/// State of TCP in which data flows (`TCP_CONNTRACK_ESTABLISHED`).
const TCP_ESTABLISHED: u8 = 3;
/// Accept segments outside the window: the entry does not know the window
/// (`IP_CT_TCP_FLAG_BE_LIBERAL`, with its mask).
const TCP_LIBERAL: [u8; 2] = [8, 8];

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tuple {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Number of the transport protocol.
    pub(crate) protocol: u8,
    /// For ICMP: the identifier.
    pub(crate) source_port: u16,
    /// For ICMP: type and code.
    pub(crate) destination_port: u16,
}

/// A connection that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// As it was opened.
    pub(crate) original: Tuple,
    /// As answers come; tells what addresses were translated to.
    pub(crate) reply: Tuple,
    /// Bits of its status.
    pub(crate) status: u32,
    /// Seconds until it is forgotten.
    pub(crate) timeout: u32,
    /// State of TCP.
    pub(crate) tcp_state: Option<u8>,
}

pub(super) fn list_request() -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(GET, DUMP, 0, 0);
    writer.finish()
}

pub(super) fn count_request() -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(GET_STATS, ACK, 0, 0);
    writer.finish()
}

pub(super) fn delete_request(tuple: &Tuple) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(DELETE, ACK, family(tuple), 0);
    write_tuple(&mut writer, 1, tuple);
    writer.finish()
}

pub(super) fn create_request(flow: &Flow) -> Vec<u8> {
    let mut writer = Writer::default();
    let flags = CREATE | EXCLUSIVE | ACK;
    writer.message(NEW, flags, family(&flow.original), 0);
    write_tuple(&mut writer, 1, &flow.original);
    write_tuple(&mut writer, 2, &flow.reply);
    writer.u32(3, flow.status & STATUS_COPIED | 8);
    writer.u32(7, flow.timeout);
    if flow.original.protocol == TCP {
        let info = writer.open(4);
        let tcp = writer.open(1);
        writer.u8(1, flow.tcp_state.unwrap_or(TCP_ESTABLISHED));
        writer.bytes(4, &TCP_LIBERAL);
        writer.bytes(5, &TCP_LIBERAL);
        writer.close(tcp);
        writer.close(info);
    }
    writer.finish()
}

/// `None` for an entry without addresses or ports that we know.
pub(super) fn parse(attributes: Attributes<'_>) -> Option<Flow> {
    let original = read_tuple(attributes.nested(1))?;
    Some(Flow {
        original,
        reply: read_tuple(attributes.nested(2))?,
        status: attributes.u32(3).unwrap_or(0),
        timeout: attributes.u32(7).unwrap_or(0),
        tcp_state: attributes.nested(4).nested(1).u8(1),
    })
}

fn family(tuple: &Tuple) -> u8 {
    if tuple.source.is_ipv4() { 2 } else { 10 }
}

fn write_tuple(writer: &mut Writer, kind: u16, tuple: &Tuple) {
    let nest = writer.open(kind);
    let addresses = writer.open(1);
    match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            writer.bytes(1, &source.octets());
            writer.bytes(2, &destination.octets());
        }
        (source, destination) => {
            writer.bytes(3, &to_v6(source).octets());
            writer.bytes(4, &to_v6(destination).octets());
        }
    }
    writer.close(addresses);
    let protocol = writer.open(2);
    writer.u8(1, tuple.protocol);
    let [kind, code] = tuple.destination_port.to_be_bytes();
    match tuple.protocol {
        ICMP => {
            writer.u16(4, tuple.source_port);
            writer.u8(5, kind);
            writer.u8(6, code);
        }
        ICMP6 => {
            writer.u16(7, tuple.source_port);
            writer.u8(8, kind);
            writer.u8(9, code);
        }
        _ => {
            writer.u16(2, tuple.source_port);
            writer.u16(3, tuple.destination_port);
        }
    }
    writer.close(protocol);
    writer.close(nest);
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn read_tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let addresses = attributes.nested(1);
    let v4 = |kind| Some(IpAddr::V4(Ipv4Addr::from(addresses.u32(kind)?)));
    let v6 = |kind| {
        let octets: [u8; 16] = addresses.find(kind)?.try_into().ok()?;
        Some(IpAddr::V6(octets.into()))
    };
    let ports = attributes.nested(2);
    let protocol = ports.u8(1)?;
    let pair = |id, kind, code| {
        let high = u16::from(ports.u8(kind).unwrap_or(0)) << 8;
        (ports.u16(id).unwrap_or(0), high | u16::from(ports.u8(code).unwrap_or(0)))
    };
    let (source_port, destination_port) = match protocol {
        ICMP => pair(4, 5, 6),
        ICMP6 => pair(7, 8, 9),
        _ => (ports.u16(2).unwrap_or(0), ports.u16(3).unwrap_or(0)),
    };
    let source = v4(1).or_else(|| v6(3))?;
    let destination = v4(2).or_else(|| v6(4))?;
    Some(Tuple { source, destination, protocol, source_port, destination_port })
}

#[cfg(test)]
mod tests {
    use super::super::wire::Messages;
    use super::*;
    use proptest::prelude::*;

    fn tuple(protocol: u8, source: IpAddr, destination: IpAddr, ports: (u16, u16)) -> Tuple {
        Tuple { source, destination, protocol, source_port: ports.0, destination_port: ports.1 }
    }

    proptest! {
        #[test]
        fn a_flow_is_read_as_it_was_written(
            protocol: u8, a: u32, b: u32, c: u128, d: u128, is_v6: bool, ports: (u16, u16),
        ) {
            let (source, destination) = if is_v6 {
                (IpAddr::V6(c.into()), IpAddr::V6(d.into()))
            } else {
                (IpAddr::V4(a.into()), IpAddr::V4(b.into()))
            };
            let original = tuple(protocol, source, destination, ports);
            let reply = tuple(protocol, destination, source, (ports.1, ports.0));
            let tcp_state = (protocol == TCP).then_some(3);
            let flow = Flow { original, reply, status: 14, timeout: 30, tcp_state };
            let bytes = create_request(&flow);
            let message = Messages(&bytes).next().unwrap();
            prop_assert_eq!(parse(message.attributes()), Some(flow));
        }

        #[test]
        fn any_entry_is_answered(bytes: Vec<u8>) {
            let _ = parse(Attributes(&bytes));
        }
    }
}

//! What rules log: packets with a prefix, over the netlink of netfilter's log
//! (linux/netfilter/nfnetlink_log.h).

use super::wire::{Attributes, Messages, Writer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `NFNL_SUBSYS_ULOG << 8`, packets.
const PACKET: u16 = 4 << 8;
/// Configuration.
const CONFIGURE: u16 = 4 << 8 | 1;
/// `NFULNL_CFG_CMD_BIND`.
const BIND: u8 = 1;
/// As much as tells addresses and ports: headers of IPv6 and TCP.
const COPY_BYTES: u32 = 80;
/// `NFULNL_COPY_PACKET`.
const COPY_PACKET: u8 = 2;

/// A packet that a rule logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) prefix: String,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

/// The requests that make a socket the reader of a group.
pub(crate) fn bind_log(group: u16) -> [Vec<u8>; 2] {
    let mut bind = Writer::default();
    bind.message(CONFIGURE, 0, 0, group);
    bind.u8(1, BIND);
    let mut mode = Writer::default();
    mode.message(CONFIGURE, 0, 0, group);
    let [a, b, c, d] = COPY_BYTES.to_be_bytes();
    mode.bytes(2, &[a, b, c, d, COPY_PACKET, 0]);
    [bind.finish(), mode.finish()]
}

/// The packets in what was received.
pub(crate) fn parse_log(bytes: &[u8]) -> Vec<Logged> {
    let packets = Messages(bytes).filter(|message| message.kind == PACKET);
    packets.filter_map(|message| logged(message.attributes())).collect()
}

fn logged(attributes: Attributes<'_>) -> Option<Logged> {
    let prefix = attributes.text(10)?.to_owned();
    let packet = attributes.find(9)?;
    let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, _) =
        match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 15) * 4;
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                    Some(Ipv4Addr::from(octets).into())
                };
                (address(12)?, address(16)?, *packet.get(9)?, packet.get(header..))
            }
            6 => {
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                    Some(Ipv6Addr::from(octets).into())
                };
                (address(8)?, address(24)?, *packet.get(6)?, packet.get(40..))
            }
            _ => return None,
        };
    let port = transport.and_then(|bytes| bytes.get(2..4)).filter(|_| matches!(protocol, 6 | 17));
    let port = port.map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    Some(Logged { prefix, source, destination, protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_packet_is_answered(packet: Vec<u8>) {
            let mut writer = Writer::default();
            writer.message(PACKET, 0, 2, 1);
            writer.text(10, "rule web in 1");
            writer.bytes(9, &packet);
            for logged in parse_log(&writer.finish()) {
                prop_assert_eq!(logged.prefix, "rule web in 1");
            }
        }
    }
}

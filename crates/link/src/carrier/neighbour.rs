//! What the kernel knows of the way to a peer: the route's MTU, and the Ethernet address if it is a neighbour.

use super::Mac;
use nix::sys::socket::{getsockopt, sockopt::IpMtu};
use skein_link_core::light::DatagramSize;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// The table of neighbours of the calling thread's network namespace.
const TABLE: &str = "/proc/thread-self/net/arp";
/// `ATF_COM` of linux/if_arp.h: the address is known.
const COMPLETE: u32 = 2;
/// Bytes of IPv4 and UDP, and of IPv6 and UDP.
const IPV4_UDP: usize = 28;
/// What every IPv6 path carries (RFC 8200, section 5), less 48 bytes of IPv6 and UDP.
const IPV6_LEAST: usize = 1280 - 48;

/// A peer on the same segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface it is reached by.
    pub interface: String,
    /// Its address there.
    pub mac: Mac,
    /// What a frame holds on the way to it.
    pub mtu: DatagramSize,
}

/// The neighbour with this address, if it is one and somebody has talked to it lately. IPv4 only.
pub fn neighbour_of(peer: IpAddr) -> Option<Neighbour> {
    let IpAddr::V4(peer) = peer else { return None };
    let (interface, mac) = find(&fs::read_to_string(TABLE).ok()?, peer)?;
    let mtu = DatagramSize::new(route_mtu(SocketAddr::new(peer.into(), 9))?);
    Some(Neighbour { interface, mac, mtu })
}

/// The largest datagram that fits into UDP towards `peer`, as far as this host knows.
pub fn datagram_in_udp(peer: SocketAddr) -> DatagramSize {
    let bytes = match peer {
        SocketAddr::V4(_) => route_mtu(peer).map(|mtu| mtu.saturating_sub(IPV4_UDP)),
        SocketAddr::V6(_) => Some(IPV6_LEAST),
    };
    bytes.map_or(DatagramSize::LEAST, DatagramSize::new)
}

/// The MTU of the route to `peer`. A socket that is connected and never used sends nothing.
fn route_mtu(peer: SocketAddr) -> Option<usize> {
    let socket = UdpSocket::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)).ok()?;
    socket.connect(peer).ok()?;
    usize::try_from(getsockopt(&socket, IpMtu).ok()?).ok()
}

/// Lines of `ADDRESS TYPE FLAGS MAC MASK INTERFACE`.
fn find(table: &str, peer: Ipv4Addr) -> Option<(String, Mac)> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let address: Ipv4Addr = fields.next()?.parse().ok()?;
        let flags = u32::from_str_radix(fields.nth(1)?.strip_prefix("0x")?, 16).ok()?;
        let mac = parse_mac(fields.next()?)?;
        let interface = fields.nth(1)?;
        (address == peer && flags & COMPLETE != 0).then(|| (interface.to_owned(), mac))
    })
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next()??;
    }
    bytes.next().is_none().then_some(Mac(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str =
        "IP address       HW type     Flags       HW address            Mask     Device
10.0.0.7         0x1         0x0         00:00:00:00:00:00     *        eth0
10.0.0.2         0x1         0x2         02:00:00:aa:bb:cc     *        eth1
";

    #[test]
    fn the_table_is_read() {
        let found = find(SAMPLE, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(found, Some(("eth1".to_owned(), Mac([2, 0, 0, 0xaa, 0xbb, 0xcc]))));
        assert_eq!(find(SAMPLE, Ipv4Addr::new(10, 0, 0, 7)), None, "incomplete");
        assert_eq!(find(SAMPLE, Ipv4Addr::new(10, 0, 0, 3)), None);
        assert_eq!(parse_mac("02:00:00:aa:bb"), None);
    }
}

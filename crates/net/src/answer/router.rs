//! Router advertisements (RFC 4861, section 4.2): the gateway is the router, addresses come from
//! DHCPv6, and nothing but the gateway is on the link.

use super::Directory;

const ADVERTISEMENT: u8 = 134;
/// Hops of packets to the outside.
const HOP_LIMIT: u8 = 64;
/// Addresses and the rest come from DHCPv6.
const FLAGS_MANAGED_OTHER: u8 = 0xc0;
/// How long the gateway is a router after this, in seconds: the most that RFC 4861 allows, so that
/// idle machines are woken seldom.
pub(crate) const LIFETIME_SECS: u16 = 9_000;

/// The advertisement of a network, without a checksum, which the kernel fills in; `None` if it has
/// no IPv6.
///
/// ```text
///   type code checksum | hop limit, flags, lifetime | reachable | retransmission |
///   option 1: MAC address of the gateway | option 5: MTU | option 3: prefix | option 25: resolver
/// ```
pub fn advertisement(directory: &Directory) -> Option<Vec<u8>> {
    let network = directory.network();
    let range = network.ipv6?;
    let mut bytes = vec![ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, FLAGS_MANAGED_OTHER];
    bytes.extend(LIFETIME_SECS.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([1, 1]);
    bytes.extend(network.vni.gateway_mac());
    bytes.extend([5, 1, 0, 0]);
    bytes.extend(u32::from(network.mtu).to_be_bytes());
    // Neither on-link nor for addresses of the machine's own choice.
    bytes.extend([3, 4, range.prefix.prefix_len(), 0]);
    bytes.extend(u32::from(LIFETIME_SECS).to_be_bytes());
    bytes.extend(u32::from(LIFETIME_SECS).to_be_bytes());
    bytes.extend([0; 4]);
    match range.prefix.network() {
        std::net::IpAddr::V6(prefix) => bytes.extend(prefix.octets()),
        std::net::IpAddr::V4(_) => return None,
    }
    // RFC 8106, section 5.1.
    bytes.extend([25, 3, 0, 0]);
    bytes.extend(u32::from(LIFETIME_SECS).to_be_bytes());
    bytes.extend(range.gateway.octets());
    Some(bytes)
}

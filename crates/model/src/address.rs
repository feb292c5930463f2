//! Addresses of networks and ports: what can be one is decided here, once, and trusted from then on.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A text that is no address of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form `A.B.C.D/P`.
    #[error("{text:?} is not a network: write it as A.B.C.D/P, for example 10.20.0.0/24")]
    Subnet {
        /// What was given, cut to 64 characters.
        text: String,
    },
    /// Too small for a gateway and a machine, or larger than any private range.
    #[error("a network of prefix length {prefix} cannot be used: choose 8 to 30")]
    Prefix {
        /// What was given, bits.
        prefix: u8,
    },
    /// Bits are set behind the prefix.
    #[error("{given} has bits behind its prefix: did you mean {meant}?")]
    HostBits {
        /// What was given.
        given: IpNet,
        /// The network that contains it.
        meant: IpNet,
    },
    /// A range that no machine can have an address in.
    #[error("{given} holds addresses that no machine can use: choose a private range")]
    Unusable {
        /// What was given.
        given: IpNet,
    },
    /// Not an IPv6 prefix of 64 bits.
    #[error("{text:?} is not an IPv6 prefix for a network: write it as fd00:20::/64")]
    Prefix6 {
        /// What was given, cut to 64 characters.
        text: String,
    },
    /// Neither an address nor a range.
    #[error("{text:?} is neither an address nor a range such as 10.0.0.0/8 or fd00::/8")]
    Range {
        /// What was given, cut to 64 characters.
        text: String,
    },
    /// Not six octets in hexadecimal, or a group address.
    #[error("{text:?} is not a MAC address of one machine: write it as 02:00:00:00:00:01")]
    Mac {
        /// What was given, cut to 64 characters.
        text: String,
    },
}

/// The first 64 characters: a hostile text must not become a hostile log line.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

macro_rules! as_text {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = AddressError;
            fn try_from(text: String) -> Result<Self, AddressError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

/// The IPv4 addresses of a network, such as `10.20.0.0/24`: prefix length 8 to 30, no bit set behind it, unicast only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(Ipv4Net);

as_text!(Subnet);

impl Subnet {
    /// Checked constructor.
    ///
    /// # Errors
    /// [`AddressError::Prefix`], [`AddressError::HostBits`], [`AddressError::Unusable`].
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, AddressError> {
        let bad = AddressError::Prefix { prefix };
        if !(8..=30).contains(&prefix) {
            return Err(bad);
        }
        let net = Ipv4Net::new(network, prefix).map_err(|_| bad)?;
        if net.trunc() != net {
            return Err(AddressError::HostBits { given: net.into(), meant: net.trunc().into() });
        }
        // The prefix has at least 8 bits, so the first octet decides for the whole range.
        if matches!(network.octets()[0], 0 | 127 | 224..=255) {
            return Err(AddressError::Unusable { given: net.into() });
        }
        Ok(Self(net))
    }

    /// The lowest address, which is the network's own.
    pub fn network(self) -> Ipv4Addr {
        self.0.network()
    }

    /// Prefix length, bits, 8 to 30.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// The broadcast address, the highest.
    pub fn broadcast(self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// Whether a machine or gateway can have `address`: all of it but the lowest and the highest.
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address) && address != self.network() && address != self.broadcast()
    }

    /// The gateway: the first host address, on every node alike.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network()) + 1)
    }

    /// How many machines can have an address: all hosts but the gateway, 1 to 16,777,213.
    pub fn machine_count(self) -> u32 {
        (1 << (32 - self.prefix_len())) - 3
    }

    /// The address of the machine number `index`, from 0; none from [`Subnet::machine_count`] on.
    pub fn machine(self, index: u32) -> Option<Ipv4Addr> {
        let offset = index.checked_add(2)?;
        (index < self.machine_count()).then(|| Ipv4Addr::from(u32::from(self.network()) + offset))
    }

    /// The number of a machine's address, the inverse of [`Subnet::machine`]; none for any other address.
    pub fn index_of(self, address: Ipv4Addr) -> Option<u32> {
        let index = u32::from(address).checked_sub(u32::from(self.network()))?.checked_sub(2)?;
        (index < self.machine_count()).then_some(index)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }
}

impl FromStr for Subnet {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let net: Ipv4Net = text.parse().map_err(|_| AddressError::Subnet { text: cut(text) })?;
        Self::new(net.addr(), net.prefix_len())
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The IPv6 addresses of a network: 64 bits of prefix, unicast, such as `fd00:20::/64`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix6(Ipv6Net);

as_text!(Prefix6);

impl Prefix6 {
    /// The lowest address.
    pub fn network(self) -> Ipv6Addr {
        self.0.network()
    }

    /// Prefix length, bits: always 64.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// The gateway: `::1` of the prefix.
    pub fn gateway(self) -> Ipv6Addr {
        self.host(1)
    }

    /// The address of the machine whose IPv4 address is `ipv4`: its 32 bits, behind the prefix and `0:5e:` (so that it
    /// is neither the gateway's nor one that a machine makes of its MAC address).
    pub fn machine(self, ipv4: Ipv4Addr) -> Ipv6Addr {
        self.host(0x5e_0000_0000 | u64::from(u32::from(ipv4)))
    }

    fn host(self, bits: u64) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.network()) | u128::from(bits))
    }
}

impl FromStr for Prefix6 {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Prefix6 { text: cut(text) };
        let net: Ipv6Net = text.parse().map_err(|_| bad())?;
        if net.prefix_len() != 64 {
            return Err(bad());
        }
        if net.trunc() != net {
            return Err(AddressError::HostBits { given: net.into(), meant: net.trunc().into() });
        }
        let address = net.network();
        let used_otherwise = address.is_multicast()
            || address.is_loopback()
            || address.is_unspecified()
            || address.is_unicast_link_local()
            || address.to_ipv4_mapped().is_some();
        if used_otherwise {
            Err(AddressError::Unusable { given: net.into() })
        } else {
            Ok(Self(net))
        }
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A range of addresses in a rule: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange(IpNet);

as_text!(AddressRange);

impl AddressRange {
    /// The range `network/prefix`.
    ///
    /// # Errors
    /// [`AddressError::Range`] if the family has no such length, [`AddressError::HostBits`].
    pub fn new(network: IpAddr, prefix: u8) -> Result<Self, AddressError> {
        let net = IpNet::new(network, prefix);
        let net = net.map_err(|_| AddressError::Range { text: format!("{network}/{prefix}") })?;
        Self::checked(net)
    }

    fn checked(net: IpNet) -> Result<Self, AddressError> {
        if net.trunc() != net {
            return Err(AddressError::HostBits { given: net, meant: net.trunc() });
        }
        Ok(Self(net))
    }

    /// Whether it has every address of its family.
    pub fn is_everything(self) -> bool {
        self.prefix_len() == 0
    }

    /// The lowest address.
    pub fn network(self) -> IpAddr {
        self.0.network()
    }

    /// Prefix length, bits: 0 to 32, or 0 to 128.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether `address` is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl FromStr for AddressRange {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = |_| AddressError::Range { text: cut(text) };
        let net = match text.contains('/') {
            true => text.parse::<IpNet>().map_err(bad)?,
            false => IpNet::from(
                text.parse::<IpAddr>().map_err(|_| AddressError::Range { text: cut(text) })?,
            ),
        };
        Self::checked(net)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The MAC address of a port: never a group address, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

as_text!(MacAddr);

impl MacAddr {
    /// The MAC address of the port at `address` of the network `vni`: `02`, the low octet of the VNI, then the address.
    /// Locally administered and unique in its network; a machine that moves with its address keeps it.
    pub const fn for_port(vni: u32, address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, vni as u8, a, b, c, d])
    }

    /// A MAC address from its six octets, in the order they are sent.
    ///
    /// # Errors
    /// [`AddressError::Mac`] for a group address (lowest bit of the first octet set) and for all zero.
    pub fn new(octets: [u8; 6]) -> Result<Self, AddressError> {
        if octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(AddressError::Mac { text: Self(octets).to_string() });
        }
        Ok(Self(octets))
    }

    /// The six octets, in the order they are sent.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = AddressError;

    /// Six two-digit hexadecimal octets separated by colons, upper or lower case.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Mac { text: cut(text) };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Self::new(octets).map_err(|_| bad())
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn subnets_are_checked() {
        let check = |text: &str, good: bool| {
            assert_eq!(text.parse::<Subnet>().is_ok(), good, "{text}");
        };
        check("10.20.0.0/24", true);
        check("192.168.7.0/30", true);
        check("10.0.0.0/8", true);
        check("10.20.0.1/24", false);
        check("10.20.0.0/31", false);
        check("10.0.0.0/7", false);
        check("127.0.0.0/8", false);
        check("224.0.0.0/24", false);
        check("10.20.0.0", false);
        check("fd00::/64", false);
        check("", false);
    }

    #[test]
    fn prefixes_are_checked() {
        let check = |text: &str, good: bool| {
            assert_eq!(text.parse::<Prefix6>().is_ok(), good, "{text}");
        };
        check("fd00:20::/64", true);
        check("2001:db8:0:1::/64", true);
        check("fd00:20::/48", false);
        check("fd00:20::1/64", false);
        check("fe80::/64", false);
        check("ff02::/64", false);
        check("10.0.0.0/24", false);
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for text in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "+2:00:00:00:00:01"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
        for text in
            ["01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02-00-00-00-00-01"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_have_lengths_of_their_family() {
        let four = IpAddr::from([10, 0, 0, 0]);
        assert!(AddressRange::new(four, 8).is_ok_and(|range| range.contains([10, 9, 9, 9].into())));
        assert!(AddressRange::new(four, 33).is_err());
        assert!(AddressRange::new(four, 6).is_err());
        let all = AddressRange::new([0_u16; 8].into(), 0);
        assert!(all.is_ok_and(|range| range.is_everything() && !range.contains(four)));
    }

    proptest! {
        #[test]
        fn the_machines_of_a_subnet_are_numbered(bits: u32, prefix in 8u8..=30, at: u32) {
            let network = Ipv4Addr::from(bits & (u32::MAX << (32 - prefix)));
            let Ok(subnet) = Subnet::new(network, prefix) else { return Ok(()) };
            let index = at % subnet.machine_count();
            let address = subnet.machine(index).unwrap();
            prop_assert_eq!(subnet.index_of(address), Some(index));
            prop_assert!(address != subnet.gateway());
            prop_assert_eq!(subnet.machine(subnet.machine_count()), None);
            prop_assert_eq!(subnet.index_of(subnet.gateway()), None);
            let broadcast = Ipv4Addr::from(u32::from(network) | (u32::MAX >> prefix));
            prop_assert_eq!(subnet.index_of(broadcast), None);
            prop_assert_eq!(subnet.broadcast(), broadcast);
            prop_assert!(subnet.is_host(address) && subnet.is_host(subnet.gateway()));
            prop_assert!(!subnet.is_host(network) && !subnet.is_host(broadcast));
            prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
        }

        #[test]
        fn overlapping_is_sharing_an_address(a: u32, b: u32, p in 8u8..=30, q in 8u8..=30) {
            let net = |bits: u32, prefix: u8| {
                Subnet::new(Ipv4Addr::from(bits & (u32::MAX << (32 - prefix))), prefix)
            };
            let (Ok(x), Ok(y)) = (net(a, p), net(b, q)) else { return Ok(()) };
            let inside = |s: Subnet, at: Ipv4Addr| AddressRange(IpNet::V4(s.0)).contains(at.into());
            prop_assert_eq!(x.overlaps(y), inside(x, y.network()) || inside(y, x.network()));
            prop_assert_eq!(x.overlaps(y), y.overlaps(x));
        }

        #[test]
        fn texts_are_read_back(octets: [u8; 6], v6: u128, bits in 0u8..=128) {
            if let Ok(mac) = MacAddr::new(octets) {
                prop_assert_eq!(mac.to_string().parse::<MacAddr>(), Ok(mac));
                prop_assert_eq!(mac.octets(), octets);
            }
            let range = AddressRange(IpNet::V6(Ipv6Net::new(v6.into(), bits).unwrap().trunc()));
            prop_assert_eq!(range.to_string().parse::<AddressRange>(), Ok(range));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = text.parse::<Subnet>();
            let _ = text.parse::<Prefix6>();
            let _ = text.parse::<AddressRange>();
            let _ = text.parse::<MacAddr>();
        }

        #[test]
        fn machines_of_a_prefix_differ_and_none_is_the_gateway(a: u32, b: u32) {
            let prefix: Prefix6 = "fd00:20::/64".parse().unwrap();
            let [x, y] = [a, b].map(|ip| prefix.machine(Ipv4Addr::from(ip)));
            prop_assert_eq!(x == y, a == b);
            prop_assert!(x != prefix.gateway());
        }
    }
}

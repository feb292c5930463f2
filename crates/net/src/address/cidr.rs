//! IPv4 networks.

use super::{InvalidAddress, cut};
use ipnet::Ipv4Net;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network for machines, such as `10.20.0.0/24`: prefix length 8 to 30, no bit set behind
/// the prefix, unicast addresses only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(Ipv4Net);

impl Cidr {
    /// The network `network/prefix`.
    ///
    /// # Errors
    /// [`InvalidAddress`] if the prefix is not 8 to 30, a bit behind it is set, or the range is not
    /// unicast.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, InvalidAddress> {
        if !(8..=30).contains(&prefix) {
            return Err(InvalidAddress::Prefix { prefix });
        }
        let net = Ipv4Net::new(network, prefix).map_err(|_| InvalidAddress::Prefix { prefix })?;
        if net.network() != network {
            let (given, network) = (network, net.network());
            return Err(InvalidAddress::HostBits { given, network, prefix });
        }
        // A prefix is at least 8 bits long, so the first octet decides for the whole range.
        if matches!(network.octets()[0], 0 | 127 | 224..=255) {
            return Err(InvalidAddress::Unusable { network, prefix });
        }
        Ok(Self(net))
    }

    /// The network's own address, the lowest.
    pub fn network(&self) -> Ipv4Addr {
        self.0.network()
    }

    /// Prefix length in bits, 8 to 30.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The broadcast address, the highest.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// How many addresses hosts can have: 2 to 16,777,214.
    pub fn host_count(&self) -> u32 {
        (1 << (32 - self.prefix_len())) - 2
    }

    /// The host address number `index`, counted from 0; `None` from [`Cidr::host_count`] on.
    pub fn host(&self, index: u32) -> Option<Ipv4Addr> {
        (index < self.host_count()).then(|| Ipv4Addr::from(u32::from(self.network()) + 1 + index))
    }

    /// The number of a host address, the inverse of [`Cidr::host`]; `None` for any other address.
    pub fn index_of(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.network()))?;
        (1..=self.host_count()).contains(&offset).then(|| offset - 1)
    }

    /// Whether a machine or gateway of this network can have `address`.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        self.index_of(address).is_some()
    }
}

impl FromStr for Cidr {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let net: Ipv4Net = text.parse().map_err(|_| InvalidAddress::Network { text: cut(text) })?;
        Self::new(net.addr(), net.prefix_len())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expect: Result<&str, &str>) {
        let got = text.parse::<Cidr>().map(|cidr| cidr.to_string()).map_err(|e| e.to_string());
        match expect {
            Ok(cidr) => assert_eq!(got.as_deref(), Ok(cidr), "{text}"),
            Err(part) => {
                let text_of_error = got.expect_err(text);
                assert!(text_of_error.contains(part), "{text}: {text_of_error}");
            }
        }
    }

    #[test]
    fn parses_networks_and_says_what_is_wrong() {
        check("10.20.0.0/24", Ok("10.20.0.0/24"));
        check("172.16.0.0/30", Ok("172.16.0.0/30"));
        check("10.0.0.0/8", Ok("10.0.0.0/8"));
        check("10.20.0.1/24", Err("did you mean 10.20.0.0/24?"));
        check("10.20.0.0/31", Err("choose 8 to 30"));
        check("0.0.0.0/0", Err("choose 8 to 30"));
        check("10.20.0.0/33", Err("write it as"));
        check("10.20.0.0", Err("write it as"));
        check("::/64", Err("write it as"));
        check("127.0.0.0/8", Err("private range"));
        check("224.0.0.0/24", Err("private range"));
        check("", Err("write it as"));
    }

    proptest! {
        #[test]
        fn hosts_and_indices_are_inverse(a in 1u8..=126, b: u32, prefix in 8u8..=30, at: u32) {
            let inside = u32::from_be_bytes([a, 0, 0, 0]) | (b & 0x00ff_ffff);
            let network = Ipv4Addr::from(inside & (u32::MAX << (32 - prefix)));
            let cidr = Cidr::new(network, prefix).unwrap();
            let index = at % cidr.host_count();
            let host = cidr.host(index).unwrap();
            prop_assert_eq!(cidr.index_of(host), Some(index));
            prop_assert!(cidr.is_host(host));
            prop_assert!(!cidr.is_host(cidr.network()));
            prop_assert!(!cidr.is_host(cidr.broadcast()));
            prop_assert_eq!(cidr.host(cidr.host_count()), None);
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,80}") {
            let _ = text.parse::<Cidr>();
        }

        #[test]
        fn addresses_outside_have_no_index(address: u32) {
            let cidr: Cidr = "10.20.0.0/24".parse().unwrap();
            let address = Ipv4Addr::from(address);
            let inside = address.octets()[..3] == [10, 20, 0] && !matches!(address.octets()[3], 0 | 255);
            prop_assert_eq!(cidr.is_host(address), inside);
        }
    }
}

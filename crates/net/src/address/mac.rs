//! MAC addresses of machines.

use super::{InvalidAddress, cut};
use crate::names::NetworkName;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The MAC address of one network device: never a group address, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The MAC address of the port at `address` in `network`: `02`, one octet of the network's key,
    /// then the address. Locally administered, unique within a network, and the same wherever and
    /// whenever it is computed, so that a machine that moves with its address keeps its MAC.
    pub fn for_port(network: &NetworkName, address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, network.key()[0], a, b, c, d])
    }

    /// A MAC address from its six octets, in the order they are sent.
    ///
    /// # Errors
    /// [`InvalidAddress::Mac`] for a group address (lowest bit of the first octet set) and for all
    /// zero.
    pub fn new(octets: [u8; 6]) -> Result<Self, InvalidAddress> {
        if octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(InvalidAddress::Mac { text: Self(octets).to_string() });
        }
        Ok(Self(octets))
    }

    /// The six octets, in the order they are sent.
    pub fn octets(&self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = InvalidAddress;

    /// Six two-digit hexadecimal octets separated by colons, upper or lower case.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress::Mac { text: cut(text) };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(invalid)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() {
            return Err(invalid());
        }
        Self::new(octets).map_err(|_| invalid())
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_port_has_a_local_unicast_mac_that_stays() {
        let network: NetworkName = "demo-n1".parse().unwrap();
        let mac = Mac::for_port(&network, Ipv4Addr::new(10, 20, 0, 7));
        assert_eq!(mac.octets()[0], 0x02);
        assert_eq!(mac.octets()[2..], [10, 20, 0, 7]);
        assert_eq!(mac, Mac::for_port(&network, Ipv4Addr::new(10, 20, 0, 7)));
    }

    #[test]
    fn refuses_what_is_no_mac() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "01:00:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "02-00-00-00-00-01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_octets_are_inverse(octets: [u8; 6]) {
            if let Ok(mac) = Mac::new(octets) {
                prop_assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
                prop_assert_eq!(mac.to_string().to_uppercase().parse::<Mac>().unwrap(), mac);
                prop_assert_eq!(mac.octets(), octets);
            }
        }

        #[test]
        fn ports_of_a_network_differ(a: u32, b: u32) {
            let network: NetworkName = "demo-n1".parse().unwrap();
            let [m, n] = [a, b].map(|ip| Mac::for_port(&network, Ipv4Addr::from(ip)));
            prop_assert_eq!(m == n, a == b);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = text.parse::<Mac>();
        }
    }
}

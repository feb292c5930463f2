//! Names of networks, of the interfaces in them, and of what a port belongs to. Pure.
//!
//! Everything this crate makes is found by its name after a crash, so names are computed, never
//! numbered:
//!
//! | thing | name |
//! | --- | --- |
//! | namespace of network `NAME` | `skein-NAME` |
//! | its bridge | `skbr0` |
//! | tap of address A.B.C.D | `sk`, five characters of the network's key, the address in hexadecimal |
//!
//! The network's key is in a tap's name because `/proc` shows the name of a tap but not its
//! namespace.

use sha2::{Digest, Sha256};
use skein_model::MacAddr;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Longest network name, in bytes: leaves room for the prefix in a file name and in messages.
const NETWORK_NAME_BYTES_MAX: usize = 63;
/// Longest label, in bytes: with a MAC address it fits into an interface's alias (255 bytes,
/// `IFALIASZ`).
const LABEL_BYTES_MAX: usize = 128;
/// What the file name of a namespace of ours begins with.
const NAMESPACE_PREFIX: &str = "skein-";
/// What the name of an interface of ours begins with.
const INTERFACE_PREFIX: &str = "sk";
/// The bridge of a network; each is alone in its namespace.
pub(crate) const BRIDGE: &str = "skbr0";
/// The tunnel to other nodes, in a network's namespace.
pub(crate) const VXLAN: &str = "skvx0";
/// The way to the host, in a network's namespace.
pub(crate) const UPLINK: &str = "skup0";
/// What the host's end of that way begins with.
pub(crate) const HOST_PREFIX: &str = "sku";
/// What the interface of a node's encrypted way begins with.
pub(crate) const WIRE_PREFIX: &str = "skw";
/// Characters of the network's key in a tap's name: 2 + 5 + 8 fill the 15 that Linux allows.
const KEY_CHARS: usize = 5;
const KEY_DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A name or label that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a network's name.
    #[error(
        "network name {text:?} is not valid: 1 to 63 characters of a-z, 0-9 and '-', \
         neither beginning nor ending with '-'"
    )]
    Network {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Not an interface of the host.
    #[error("{text:?} is no name of an interface: 1 to 15 printable characters without / and :")]
    Interface {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Not the name of a rule group.
    #[error("group name {text:?} is not valid: 1 to 63 characters of a-z, 0-9, '-' and '_'")]
    Group {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Not a label.
    #[error("label {text:?} is not valid: 1 to 128 printable ASCII characters without a space")]
    Label {
        /// What was given, cut to 80 characters.
        text: String,
    },
}

impl InvalidName {
    /// Stable code of this failure.
    pub fn code(&self) -> &'static str {
        "NAME_INVALID"
    }
}

/// The name of a network on this host, for example `CLOUD-NODE`: unique among all clouds on it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(Box<str>);

impl NetworkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file of the network's namespace below `/run/netns`, which is its name for `ip netns`.
    pub fn namespace(&self) -> String {
        format!("{NAMESPACE_PREFIX}{}", self.0)
    }

    /// The network whose namespace has this file name; `None` if it cannot be one of ours.
    pub(crate) fn of_namespace(file: &str) -> Option<Self> {
        file.strip_prefix(NAMESPACE_PREFIX)?.parse().ok()
    }

    /// The network `rest` of a group. A name that grew too long is cut, and told apart by its key.
    pub(crate) fn of_group(group: &NetworkName, rest: &str) -> Self {
        let whole = format!("{group}-{rest}");
        match whole.parse() {
            Ok(name) => name,
            Err(_) => {
                let digest = Sha256::digest(whole.as_bytes());
                let key: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                let kept: String = group.as_str().chars().take(32).collect();
                Self(format!("{}-{key}", kept.trim_end_matches('-')).into())
            }
        }
    }

    /// Whether this network is `group` or its name begins with `group` and a hyphen.
    pub fn is_within(&self, group: &NetworkName) -> bool {
        let rest = self.0.strip_prefix(group.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    /// The MAC address of the port at `address`, where no control plane says which: `02`, one octet of the network's key,
    /// then the address. Locally administered, unique within the network, and the same whenever it is computed.
    pub fn port_mac(&self, address: Ipv4Addr) -> MacAddr {
        MacAddr::for_port(u32::from(self.key()[0]), address)
    }

    /// Spreads networks evenly; the same on every host and in every version.
    pub(crate) fn key(&self) -> [u8; 4] {
        let digest = Sha256::digest(self.0.as_bytes());
        [digest[0], digest[1], digest[2], digest[3]]
    }
}

impl FromStr for NetworkName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let good = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if edges && (1..=NETWORK_NAME_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Network { text: text.chars().take(80).collect() })
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says whose a port is, for example a machine's id. The kernel keeps it with the tap (as the
/// interface's alias), so it is known again after a restart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortLabel(Box<str>);

impl PortLabel {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PortLabel {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let good = (1..=LABEL_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic());
        if good {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Label { text: text.chars().take(80).collect() })
        }
    }
}

impl fmt::Display for PortLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PortLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an interface of ours: 15 bytes at most, beginning with `sk`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// The bridge of a network.
    pub(crate) fn bridge() -> Self {
        Self(BRIDGE.into())
    }

    /// The tap of the machine at `address`.
    pub(crate) fn tap(network: &NetworkName, address: Ipv4Addr) -> Self {
        let key = tap_key(network);
        Self(format!("{INTERFACE_PREFIX}{key}{:08x}", u32::from(address)).into())
    }

    /// The host's end of the way into a network: `sku` and twelve characters of its key.
    pub(crate) fn host_end(network: &NetworkName) -> Self {
        Self(format!("{HOST_PREFIX}{}", long_key(network)).into())
    }

    /// The interface of a node's encrypted way: `skw` and twelve characters of the key of its networks' group, because the
    /// program that makes it is found by it on the whole host.
    pub(crate) fn wire(group: &NetworkName) -> Self {
        Self(format!("{WIRE_PREFIX}{}", long_key(group)).into())
    }

    /// One that is made to see whether it can be.
    pub(crate) fn wire_trial() -> Self {
        Self(format!("{WIRE_PREFIX}-trial").into())
    }

    /// The tunnel of a network.
    pub(crate) fn vxlan() -> Self {
        Self(VXLAN.into())
    }

    /// The network's end of the way to the host.
    pub(crate) fn uplink() -> Self {
        Self(UPLINK.into())
    }

    /// What the names of a network's taps begin with.
    pub(crate) fn tap_prefix(network: &NetworkName) -> String {
        format!("{INTERFACE_PREFIX}{}", tap_key(network))
    }

    /// The tap of the port at `address`.
    pub fn of_port(network: &NetworkName, address: Ipv4Addr) -> Self {
        Self::tap(network, address)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The address of the tap called `interface`, if it is one of `network`'s.
pub(crate) fn address_of_tap(network: &NetworkName, interface: &str) -> Option<Ipv4Addr> {
    let rest = interface.strip_prefix(INTERFACE_PREFIX)?;
    let hex = rest.strip_prefix(tap_key(network).as_str())?;
    let address = Ipv4Addr::from(u32::from_str_radix(hex, 16).ok()?);
    (InterfaceName::tap(network, address).as_str() == interface).then_some(address)
}

/// Sixty bits of the network's key, five at a time.
fn long_key(network: &NetworkName) -> String {
    let digest = Sha256::digest(network.as_str().as_bytes());
    let key = digest[..8].iter().fold(0_u64, |key, byte| key << 8 | u64::from(*byte));
    let digit = |place: u32| char::from(KEY_DIGITS[(key >> (5 * place)) as usize & 31]);
    (0..12).map(digit).collect()
}

/// The low 25 bits of the network's key, five at a time.
fn tap_key(network: &NetworkName) -> String {
    let key = u32::from_be_bytes(network.key());
    let digit = |place: usize| char::from(KEY_DIGITS[(key >> (5 * place)) as usize & 31]);
    (0..KEY_CHARS).rev().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> NetworkName {
        text.parse().unwrap()
    }

    #[test]
    fn names_stay_as_they_are() {
        // Taps of running machines carry these names: a new version must find them.
        let demo = network("demo-n1");
        assert_eq!(demo.namespace(), "skein-demo-n1");
        assert_eq!(InterfaceName::bridge().as_str(), "skbr0");
        let tap = InterfaceName::tap(&demo, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(tap.as_str(), "skpumix0a000002");
    }

    #[test]
    fn a_group_holds_whole_words() {
        assert!(network("demo").is_within(&network("demo")));
        assert!(network("demo-n1").is_within(&network("demo")));
        assert!(!network("demonstration").is_within(&network("demo")));
        assert!(!network("demo").is_within(&network("demo-n1")));
    }

    #[test]
    fn refuses_bad_names() {
        let long = "a".repeat(64);
        for text in ["", "-a", "a-", "A", "a/b", "..", "a b", "ä", &long] {
            assert!(text.parse::<NetworkName>().is_err(), "{text}");
        }
        let long = "a".repeat(129);
        for text in ["", " ", "a b", "a\n", "ä", &long] {
            assert!(text.parse::<PortLabel>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_tap_name_fits_and_tells_its_address(name in "[a-z0-9]{1,20}", ip: u32) {
            let (network, address) = (network(&name), Ipv4Addr::from(ip));
            let tap = InterfaceName::tap(&network, address);
            prop_assert_eq!(tap.as_str().len(), 15);
            prop_assert_eq!(address_of_tap(&network, tap.as_str()), Some(address));
        }

        #[test]
        fn any_interface_is_answered(text in "sk.{0,20}") {
            let network = network("demo");
            if let Some(address) = address_of_tap(&network, &text) {
                let tap = InterfaceName::tap(&network, address);
                prop_assert_eq!(tap.as_str(), text);
            }
        }

        #[test]
        fn a_namespace_tells_its_network(name in "[a-z0-9]{1,20}(-[a-z0-9]{1,20}){0,2}") {
            let network = network(&name);
            prop_assert_eq!(NetworkName::of_namespace(&network.namespace()), Some(network));
        }
    }
}

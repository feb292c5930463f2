//! Addresses: IPv4 networks, MAC addresses and the pool that hands addresses out. Pure; no IO, no
//! clock.

mod cidr;
mod mac;
mod pool;
mod prefix;

pub use cidr::Cidr;
pub use mac::Mac;
pub use pool::{AddressPool, PoolError, QUARANTINE_DEFAULT, Released};
pub use prefix::Prefix;

/// A text or value that is not an address of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not of the form `A.B.C.D/P`.
    #[error("{text:?} is not a network: write it as A.B.C.D/P, for example 10.20.0.0/24")]
    Network {
        /// What was given, cut to 64 characters.
        text: String,
    },
    /// Too small for a gateway and a machine, or larger than any private range.
    #[error("a network of prefix length {prefix} cannot be used: choose 8 to 30")]
    Prefix {
        /// The prefix length given, in bits.
        prefix: u8,
    },
    /// Bits are set behind the prefix.
    #[error("{given}/{prefix} is an address inside a network: did you mean {network}/{prefix}?")]
    HostBits {
        /// The address given.
        given: std::net::Ipv4Addr,
        /// The network that contains it.
        network: std::net::Ipv4Addr,
        /// Prefix length, in bits.
        prefix: u8,
    },
    /// A range that no machine can have an address in (0.0.0.0/8, loopback, multicast, reserved).
    #[error("{network}/{prefix} holds addresses that no machine can use: choose a private range")]
    Unusable {
        /// The network given.
        network: std::net::Ipv4Addr,
        /// Prefix length, in bits.
        prefix: u8,
    },
    /// Not a range of IPv4 or IPv6 addresses.
    #[error("{text:?} is not a range of addresses: write it as 10.0.0.0/8 or 2001:db8::/32")]
    Prefixed {
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

impl InvalidAddress {
    /// Stable code of this failure.
    pub fn code(&self) -> &'static str {
        "ADDRESS_INVALID"
    }
}

/// The first 64 characters: a hostile text must not become a hostile log line.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

//! Ranges of addresses of either family, for rules and routes.

use super::{InvalidAddress, cut};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A range of addresses such as `10.0.0.0/8`, `2001:db8::/32` or `0.0.0.0/0`: any length the family
/// has, no bit set behind it. A single address without a length is the range of only itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The range `address/length`.
    ///
    /// # Errors
    /// [`InvalidAddress`] if the family has no such length or a bit behind it is set.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, InvalidAddress> {
        let text = || InvalidAddress::Prefixed { text: format!("{address}/{length}") };
        if length > bits(address) || masked(address, length) != address {
            return Err(text());
        }
        Ok(Self { address, length })
    }

    /// The range of one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: bits(address) }
    }

    /// Its lowest address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length in bits, up to 32 or 128.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether `address` is of the same family and within.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && masked(address, self.length) == self.address
    }

    /// Whether it has every address of its family.
    pub fn is_everything(&self) -> bool {
        self.length == 0
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// `address` without the bits behind `length`, which is at most the family's.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

impl FromStr for Prefix {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress::Prefixed { text: cut(text) };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => {
                let good = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
                let length = if good {
                    length.parse().map_err(|_| invalid())?
                } else {
                    return Err(invalid());
                };
                (address, Some(length))
            }
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        Self::new(address, length.unwrap_or(bits(address))).map_err(|_| invalid())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_ranges_and_refuses_others() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), shown);
        }
        for text in ["", "10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "a/8"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_range_has_what_shares_its_bits(a: u32, b: u32, length in 0u8..=32) {
            let base = masked(IpAddr::V4(a.into()), length);
            let range = Prefix::new(base, length).unwrap();
            let same = length == 0 || (a ^ b) >> (32 - length) == 0;
            prop_assert_eq!(range.contains(IpAddr::V4(b.into())), same);
            prop_assert_eq!(range.to_string().parse::<Prefix>().unwrap(), range);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,60}") {
            let _ = text.parse::<Prefix>();
        }
    }
}

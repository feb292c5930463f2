//! The `key=value` words that command line and control lines are made of.

use core::net::Ipv4Addr;

use crate::cmdline::{Ipv4Network, Seed};
use crate::percent::hex_digit;

/// Splits a line into words and each word at its first `=`. Words without `=` have an empty value.
pub(crate) fn pairs(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split([' ', '\t', '\r', '\n'])
        .filter(|word| !word.is_empty())
        .map(|word| word.split_once('=').unwrap_or((word, "")))
}

/// An unsigned decimal number: digits only, no sign, no overflow.
pub(crate) fn number<T: core::str::FromStr>(text: &str) -> Option<T> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `A.B.C.D`.
pub(crate) fn address(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok()
}

/// `A.B.C.D/P`.
pub(crate) fn network(text: &str) -> Option<Ipv4Network> {
    let (address, prefix) = text.split_once('/')?;
    Ipv4Network::new(address.parse().ok()?, number(prefix)?)
}

/// 64 hexadecimal digits.
pub(crate) fn seed(text: &str) -> Option<Seed> {
    let digits = text.as_bytes();
    let mut seed = [0; 32];
    if digits.len() != 2 * seed.len() {
        return None;
    }
    for (byte, pair) in seed.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(Seed(seed))
}

/// A host name: 1 to 63 letters, digits, `-`, `_` or `.`, beginning with a letter or a digit.
pub(crate) fn host_name(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let good = (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(known);
    good.then_some(text)
}

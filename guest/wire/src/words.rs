//! The `key=value` words that command line and control lines are made of.

use core::net::Ipv4Addr;

use crate::cmdline::{Ipv4Network, Seed};
use crate::percent::hex_digit;

/// Splits a line into words and each word at its first `=`. Words without `=` have an empty value.
pub(crate) fn pairs(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line;
    core::iter::from_fn(move || {
        // All cuts are at ASCII characters, so they are between characters.
        let start = rest.bytes().position(|byte| !is_blank(byte))?;
        rest = &rest[start..];
        let end = rest.bytes().position(is_blank).unwrap_or(rest.len());
        let (word, next) = rest.split_at(end);
        rest = next;
        let equals = word.bytes().position(|byte| byte == b'=');
        Some(equals.map_or((word, ""), |at| (&word[..at], &word[at + 1..])))
    })
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// An unsigned decimal number: digits only, no sign, no overflow.
pub(crate) fn number<T: TryFrom<u64>>(text: &str) -> Option<T> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for byte in text.bytes() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    T::try_from(value).ok()
}

/// `A.B.C.D`: four numbers up to 255 without superfluous zeros. By hand, like [`pairs`], because it
/// runs while a machine boots: the standard parser is four times as many instructions.
pub(crate) fn address(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let (mut place, mut digits) = (0, 0);
    for byte in text.bytes() {
        if byte == b'.' {
            if digits == 0 {
                return None;
            }
            (place, digits) = (place + 1, 0);
            continue;
        }
        let digit = byte.wrapping_sub(b'0');
        let octet = octets.get_mut(place)?;
        if digit > 9 || (digits > 0 && *octet == 0) {
            return None;
        }
        *octet = octet.checked_mul(10)?.checked_add(digit)?;
        digits += 1;
    }
    (place == 3 && digits > 0).then(|| Ipv4Addr::from(octets))
}

/// `A.B.C.D/P`.
pub(crate) fn network(text: &str) -> Option<Ipv4Network> {
    let slash = text.bytes().position(|byte| byte == b'/')?;
    Ipv4Network::new(address(&text[..slash])?, number(&text[slash + 1..])?)
}

/// `xx:xx:xx:xx:xx:xx`, a unicast address other than zero.
pub(crate) fn mac(text: &str) -> Option<[u8; 6]> {
    let text = text.as_bytes();
    let mut mac = [0; 6];
    if text.len() != 17 {
        return None;
    }
    for (byte, part) in mac.iter_mut().zip(text.chunks(3)) {
        if part.get(2).is_some_and(|colon| *colon != b':') {
            return None;
        }
        *byte = hex_digit(part[0])? << 4 | hex_digit(part[1])?;
    }
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn words() {
        let split = |line| pairs(line).collect::<Vec<_>>();
        assert_eq!(split("a=b  c\t=d e==f\n"), [("a", "b"), ("c", ""), ("", "d"), ("e", "=f")]);
        assert_eq!(split(" é=ü "), [("é", "ü")]);
        assert_eq!(split(" \n"), []);
        assert_eq!(number::<u8>("255"), Some(255));
        for bad in ["", "256", "-1", "+1", "1 ", "18446744073709551616"] {
            assert_eq!(number::<u8>(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn addresses_are_those_of_the_standard_library(text in "[0-9.]{0,16}|([0-9]{1,3}\\.){3}[0-9]{1,3}") {
            prop_assert_eq!(address(&text), text.parse().ok());
        }

        #[test]
        fn numbers_are_those_of_the_standard_library(text in "[0-9]{0,21}") {
            prop_assert_eq!(number::<u64>(&text), text.parse().ok());
        }
    }
}

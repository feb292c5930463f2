//! Percent-encoding (RFC 3986, section 2.1) of text that must not contain blanks or line ends.

use alloc::string::String;
use alloc::vec::Vec;

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Encodes every byte but the unreserved ones of RFC 3986 (`A-Z a-z 0-9 - . _ ~`) as `%XX`.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

/// Decodes `%XX` sequences; other characters stand for themselves. `None` when a `%` is not
/// followed by two hexadecimal digits or the result is not UTF-8.
#[must_use]
pub fn percent_decode(text: &str) -> Option<String> {
    decode(text, false)
}

/// As [`percent_decode`], and `+` stands for a blank, as in the query part of a form.
pub(crate) fn form_decode(text: &str) -> Option<String> {
    decode(text, true)
}

fn decode(text: &str, plus_is_blank: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            b'+' if plus_is_blank => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

/// The value of one hexadecimal digit of either case.
pub(crate) fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn encodes_what_is_not_unreserved() {
        assert_eq!(percent_encode("a b%=é"), "a%20b%25%3D%C3%A9");
        assert_eq!(percent_decode("a%20b%25%3d%C3%A9").as_deref(), Some("a b%=é"));
        assert_eq!(form_decode("a+b%2B").as_deref(), Some("a b+"));
    }

    #[test]
    fn refuses_broken_sequences() {
        for text in ["%", "%2", "%zz", "%+1", "%ff"] {
            assert_eq!(percent_decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in ".*") {
            prop_assert_eq!(percent_decode(&percent_encode(&text)), Some(text));
        }

        #[test]
        fn decoding_never_panics(text in ".*") {
            let _ = percent_decode(&text);
            let _ = form_decode(&text);
        }
    }
}

//! The chunked transfer coding (RFC 9112, section 7.1).

use alloc::vec::Vec;

use crate::percent::hex_digit;

/// 256: a chunk-size line is at most 16 digits; the rest is room for extensions, which nobody uses.
const SIZE_LINE_MAX: usize = 256;

/// Where the decoder stands. `used` counts the bytes of the current line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size {
        size: usize,
        digits: u8,
        used: usize,
    },
    Extension {
        size: usize,
        used: usize,
    },
    SizeLf {
        size: usize,
    },
    Data {
        left: usize,
    },
    DataCr,
    DataLf,
    /// Inside the trailer section; `line` counts the bytes of the current line.
    Trailer {
        line: usize,
    },
    TrailerLf {
        line: usize,
    },
    Done,
}

/// What is wrong with a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed,
    BodyTooLarge,
    TrailerTooLarge,
}

/// Takes a chunked body apart, incrementally.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
    trailer_left: usize,
}

impl Decoder {
    /// `trailer_max`: bytes of trailer section that are read (and dropped).
    pub(super) fn new(trailer_max: usize) -> Self {
        Self { state: State::Size { size: 0, digits: 0, used: 0 }, trailer_left: trailer_max }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Appends decoded data to `body`, which never grows beyond `body_max`. Returns the bytes
    /// consumed; less than given only once the body is complete.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        body: &mut Vec<u8>,
        body_max: usize,
    ) -> Result<usize, Fault> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let take = left.min(bytes.len() - at);
                body.extend_from_slice(&bytes[at..at + take]);
                at += take;
                self.state =
                    if take == left { State::DataCr } else { State::Data { left: left - take } };
                continue;
            }
            self.state = self.step(bytes[at], body_max - body.len())?;
            at += 1;
        }
        Ok(at)
    }

    /// The state after one byte that is not data.
    fn step(&mut self, byte: u8, room: usize) -> Result<State, Fault> {
        Ok(match self.state {
            State::Size { size, digits, used } => match (byte, hex_digit(byte)) {
                (_, Some(digit)) => {
                    if digits == 15 {
                        return Err(Fault::Malformed);
                    }
                    State::Size {
                        size: size << 4 | usize::from(digit),
                        digits: digits + 1,
                        used: used + 1,
                    }
                }
                (b'\r', _) if digits > 0 => State::SizeLf { size },
                (b';' | b' ' | b'\t', _) if digits > 0 => State::Extension { size, used },
                _ => return Err(Fault::Malformed),
            },
            State::Extension { size, used } => match byte {
                b'\r' => State::SizeLf { size },
                b'\n' | 0 => return Err(Fault::Malformed),
                _ if used >= SIZE_LINE_MAX => return Err(Fault::Malformed),
                _ => State::Extension { size, used: used + 1 },
            },
            State::SizeLf { size } => match (byte, size) {
                (b'\n', 0) => State::Trailer { line: 0 },
                (b'\n', _) if size > room => return Err(Fault::BodyTooLarge),
                (b'\n', _) => State::Data { left: size },
                _ => return Err(Fault::Malformed),
            },
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => State::Size { size: 0, digits: 0, used: 0 },
            State::Trailer { line } => {
                self.trailer_left =
                    self.trailer_left.checked_sub(1).ok_or(Fault::TrailerTooLarge)?;
                match byte {
                    b'\r' => State::TrailerLf { line },
                    b'\n' | 0 => return Err(Fault::Malformed),
                    _ => State::Trailer { line: line + 1 },
                }
            }
            State::TrailerLf { line } => match (byte, line) {
                (b'\n', 0) => State::Done,
                (b'\n', _) => State::Trailer { line: 0 },
                _ => return Err(Fault::Malformed),
            },
            State::DataCr | State::DataLf | State::Data { .. } | State::Done => {
                return Err(Fault::Malformed);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<(Vec<u8>, usize, bool), Fault> {
        let mut decoder = Decoder::new(32);
        let mut body = Vec::new();
        let used = decoder.feed(bytes, &mut body, 20)?;
        Ok((body, used, decoder.is_done()))
    }

    #[test]
    fn decodes() {
        let check = |input: &[u8], expect: &[u8]| {
            assert_eq!(decode(input), Ok((expect.to_vec(), input.len(), true)), "{input:?}");
        };
        check(b"0\r\n\r\n", b"");
        check(b"3\r\nabc\r\n0\r\n\r\n", b"abc");
        check(b"3;a=b\r\nabc\r\n00A \r\n0123456789\r\n0\r\nx: y\r\n\r\n", b"abc0123456789");
        assert_eq!(decode(b"0\r\n\r\nGET"), Ok((Vec::new(), 5, true)));
        assert_eq!(decode(b"5\r\nab"), Ok((b"ab".to_vec(), 5, false)));
    }

    #[test]
    fn refuses() {
        for input in [
            &b"\r\n"[..],
            b"x\r\n",
            b"3\nabc",
            b"3\r\nabcd",
            b"3\r\nabc\n",
            b"-1\r\n",
            b"1\rx",
            b"1;\n",
            b"0000000000000000\r\n",
            b"0\r\n\n",
            b"0\r\nx\n\r\n",
            b"0\r\n\rx",
            b"fffffffffffffffff\r\n",
        ] {
            assert_eq!(decode(input), Err(Fault::Malformed), "{input:?}");
        }
        assert_eq!(decode(b"15\r\n"), Err(Fault::BodyTooLarge));
        assert_eq!(decode(b"fffffffffffffff\r\n"), Err(Fault::BodyTooLarge));
        let trailer = format!("0\r\nx: {}\r\n\r\n", "y".repeat(40));
        assert_eq!(decode(trailer.as_bytes()), Err(Fault::TrailerTooLarge));
        let extension = format!("1;{}\r\n", "y".repeat(300));
        assert_eq!(decode(extension.as_bytes()), Err(Fault::Malformed));
    }

    proptest! {
        #[test]
        fn cutting_does_not_matter(chunks in proptest::collection::vec("[a-z]{1,9}", 0..3), at in any::<prop::sample::Index>()) {
            let mut input = String::new();
            for chunk in &chunks {
                input += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
            }
            input += "0\r\n\r\n";
            let cut = at.index(input.len());
            let mut decoder = Decoder::new(0x20);
            let mut body = Vec::new();
            let bytes = input.as_bytes();
            let first = decoder.feed(&bytes[..cut], &mut body, 64).unwrap();
            prop_assert_eq!(first, cut);
            decoder.feed(&bytes[cut..], &mut body, 64).unwrap();
            prop_assert!(decoder.is_done());
            prop_assert_eq!(body, chunks.concat().into_bytes());
        }
    }

    use alloc::string::String;
}

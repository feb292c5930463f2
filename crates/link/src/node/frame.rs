//! What one node says to the other on the channel of a connection, in order with the connection's bytes.
//!
//! | first byte | what | body |
//! | --- | --- | --- |
//! | 1 | joined: the other end is there as well | none |
//! | 2 | bytes of the program | length 4, then so many |
//! | 3 | a change of path | phase 4, place in the TCP stream 8, place in the ring 8 |
//! | 4 | a bell is wanted | none |
//! | 5 | the end of this direction | none |
//!
//! Numbers are in network order.

use crate::remote::Switch;

/// Bytes of the longest head.
const HEAD_MAX: usize = 21;
/// Bytes in front of a piece of the stream.
pub(crate) const BYTES_HEAD: usize = 5;

/// Something between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Joined,
    /// Some of the program's bytes; the rest of a piece comes later.
    Bytes(&'a [u8]),
    Switch(Switch),
    Bell,
    End,
}

impl Frame<'_> {
    /// What goes on the channel, and how much of it. Bytes are preceded by [`bytes_head`] instead.
    pub(crate) fn head(&self) -> ([u8; HEAD_MAX], usize) {
        let mut head = [0; HEAD_MAX];
        let length = match self {
            Self::Joined => {
                head[0] = 1;
                1
            }
            Self::Bytes(bytes) => {
                head[..BYTES_HEAD].copy_from_slice(&bytes_head(bytes.len()));
                BYTES_HEAD
            }
            Self::Switch(switch) => {
                head[0] = 3;
                head[1..5].copy_from_slice(&switch.phase.to_be_bytes());
                head[5..13].copy_from_slice(&switch.tcp.to_be_bytes());
                head[13..21].copy_from_slice(&switch.ring.to_be_bytes());
                HEAD_MAX
            }
            Self::Bell => {
                head[0] = 4;
                1
            }
            Self::End => {
                head[0] = 5;
                1
            }
        };
        (head, length)
    }
}

/// What precedes `length` bytes of the program.
pub(crate) fn bytes_head(length: usize) -> [u8; BYTES_HEAD] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [2, length[0], length[1], length[2], length[3]]
}

/// The other node said something that means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nonsense;

/// Reads frames from pieces of a stream, however it is cut.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    head: [u8; HEAD_MAX],
    filled: usize,
    /// Bytes of the piece at hand that have not come yet.
    bytes_left: usize,
}

impl Decoder {
    /// Reads the next frame from `input`: the frame, if one is complete, and how much of `input` it took. Of
    /// [`Frame::Bytes`] the caller may keep fewer than it holds and give the rest again, after [`Decoder::give_back`].
    pub(crate) fn next<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<(Option<Frame<'a>>, usize), Nonsense> {
        if self.bytes_left > 0 {
            let length = self.bytes_left.min(input.len());
            self.bytes_left -= length;
            let frame = (length > 0).then(|| Frame::Bytes(&input[..length]));
            return Ok((frame, length));
        }
        let mut taken = 0;
        loop {
            let wanted = self.head_length()?;
            if self.filled == wanted {
                self.filled = 0;
                return Ok((self.complete(), taken));
            }
            let length = (wanted - self.filled).min(input.len() - taken);
            if length == 0 {
                return Ok((None, taken));
            }
            self.head[self.filled..][..length].copy_from_slice(&input[taken..][..length]);
            self.filled += length;
            taken += length;
        }
    }

    /// So many bytes of the last piece were not kept.
    pub(crate) fn give_back(&mut self, length: usize) {
        self.bytes_left += length;
    }

    fn head_length(&self) -> Result<usize, Nonsense> {
        Ok(match (self.filled, self.head[0]) {
            (0, _) | (_, 1 | 4 | 5) => 1,
            (_, 2) => BYTES_HEAD,
            (_, 3) => HEAD_MAX,
            _ => return Err(Nonsense),
        })
    }

    /// The frame whose head is complete; `None` for bytes, which follow.
    fn complete(&mut self) -> Option<Frame<'static>> {
        let [kind, rest @ ..] = &self.head;
        match kind {
            1 => Some(Frame::Joined),
            3 => {
                let [a, b, c, d, tail @ ..] = rest;
                let (tcp, ring) = tail.split_at(8);
                let number =
                    |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                Some(Frame::Switch(Switch {
                    phase: u32::from_be_bytes([*a, *b, *c, *d]),
                    tcp: number(tcp),
                    ring: number(ring),
                }))
            }
            4 => Some(Frame::Bell),
            5 => Some(Frame::End),
            _ => {
                let [a, b, c, d, ..] = rest;
                self.bytes_left = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let switch = Switch { phase: 7, tcp: 1 << 40, ring: 3 };
        let mut wire = Vec::new();
        for frame in [Frame::Joined, Frame::Bytes(b"hello"), Frame::Switch(switch)] {
            let (head, length) = frame.head();
            wire.extend_from_slice(&head[..length]);
            if let Frame::Bytes(bytes) = frame {
                wire.extend_from_slice(bytes);
            }
        }
        wire.extend_from_slice(&[4, 2, 0, 0, 0, 0, 5]);
        for cut in 1..=wire.len() {
            let (mut decoder, mut got, mut text) = (Decoder::default(), Vec::new(), Vec::new());
            for piece in wire.chunks(cut) {
                let mut rest = piece;
                loop {
                    let (frame, taken) = decoder.next(rest).expect("sense");
                    rest = &rest[taken..];
                    match frame {
                        Some(Frame::Bytes(bytes)) => {
                            // Keeps one byte at a time.
                            text.push(bytes[0]);
                            decoder.give_back(bytes.len() - 1);
                            rest = &piece[piece.len() - rest.len() - (bytes.len() - 1)..];
                        }
                        Some(Frame::Joined) => got.push("joined"),
                        Some(Frame::Switch(found)) => {
                            assert_eq!(found, switch);
                            got.push("switch");
                        }
                        Some(Frame::Bell) => got.push("bell"),
                        Some(Frame::End) => got.push("end"),
                        None if taken == 0 => break,
                        None => {}
                    }
                }
                assert!(rest.is_empty());
            }
            assert_eq!(text, b"hello");
            assert_eq!(got, ["joined", "switch", "bell", "end"], "cut {cut}");
        }
        assert_eq!(Decoder::default().next(&[9, 9]), Err(Nonsense));
    }
}

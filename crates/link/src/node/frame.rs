//! What one node says to the other on the channel of a connection, in order with the connection's bytes.
//!
//! | first byte | what | body |
//! | --- | --- | --- |
//! | 1 | joined: the other end is there as well | none |
//! | 2 | bytes of the program | length 4, then so many |
//! | 3 | `Switch` | phase 4, place in the TCP stream 8, place in the ring 8 |
//! | 4 | `Bell` | phase 4 |
//! | 5 | `End` | none |
//! | 6 | `Counts` | none |
//! | 7 | `Placed` | phase 4 |
//! | 8 | `Took` | place in the ring 8, phase 4 |
//! | 9 | `Rung`, it was sent | phase 4, place in the TCP stream 8 |
//! | 10 | `Rung`, it was not | phase 4 |
//! | 11 | `Refused`: no more | none |
//! | 12 | `Refused`: what was not read comes again on TCP | none |
//! | 13 | `Calm` | none |
//! | 14 | `Doubts` | none |
//! | 15 | `Gone` | none |
//! | 16 | `Resets` | none |
//!
//! The words are [`Note`]s. Numbers are in network order.

use crate::remote::Note;
use skein_link_core::ring::{Phase, Record, Refusal};

/// Bytes of the longest head.
pub(crate) const HEAD_MAX: usize = 21;
/// Bytes in front of a piece of the stream.
pub(crate) const BYTES_HEAD: usize = 5;

/// Something between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Joined,
    /// Some of the program's bytes; the rest of a piece comes later.
    Bytes(&'a [u8]),
    Note(Note),
}

/// Writes a head.
#[derive(Default)]
struct Head {
    bytes: [u8; HEAD_MAX],
    length: usize,
}

impl Head {
    fn put(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self
    }

    fn kind(kind: u8) -> Self {
        Self::default().put(&[kind])
    }

    fn phase(self, phase: Phase) -> Self {
        self.put(&phase.0.to_be_bytes())
    }

    fn place(self, place: u64) -> Self {
        self.put(&place.to_be_bytes())
    }
}

fn head_of(note: &Note) -> Head {
    match note {
        Note::Switch { phase, record } => {
            Head::kind(3).phase(*phase).place(record.tcp).place(record.ring)
        }
        Note::Bell(phase) => Head::kind(4).phase(*phase),
        Note::End => Head::kind(5),
        Note::Counts => Head::kind(6),
        Note::Placed(phase) => Head::kind(7).phase(*phase),
        Note::Took { tail, seen } => Head::kind(8).place(*tail).phase(*seen),
        Note::Rung { phase, end: Some(end) } => Head::kind(9).phase(*phase).place(*end),
        Note::Rung { phase, end: None } => Head::kind(10).phase(*phase),
        // Nobody says that he wants the ring again.
        Note::Refused(Refusal::None | Refusal::NoMore) => Head::kind(11),
        Note::Refused(Refusal::Recall) => Head::kind(12),
        Note::Calm => Head::kind(13),
        Note::Doubts => Head::kind(14),
        Note::Gone => Head::kind(15),
        Note::Resets => Head::kind(16),
    }
}

impl Frame<'_> {
    /// What goes on the channel, and how much of it. Bytes are preceded by [`bytes_head`] instead.
    pub(crate) fn head(&self) -> ([u8; HEAD_MAX], usize) {
        let head = match self {
            Self::Joined => Head::kind(1),
            Self::Bytes(bytes) => Head::default().put(&bytes_head(bytes.len())),
            Self::Note(note) => head_of(note),
        };
        (head.bytes, head.length)
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
            (0, _) | (_, 1 | 5 | 6 | 11..=16) => 1,
            (_, 2 | 4 | 7 | 10) => BYTES_HEAD,
            (_, 3) => HEAD_MAX,
            (_, 8 | 9) => 13,
            _ => return Err(Nonsense),
        })
    }

    /// The frame whose head is complete; `None` for bytes, which follow.
    fn complete(&mut self) -> Option<Frame<'static>> {
        let number = |from: usize, to: usize| {
            self.head[from..to].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let phase = |from: usize| Phase(number(from, from + 4) as u32);
        let note = match self.head[0] {
            1 => return Some(Frame::Joined),
            3 => {
                let record = Record { tcp: number(5, 13), ring: number(13, 21) };
                Note::Switch { phase: phase(1), record }
            }
            4 => Note::Bell(phase(1)),
            5 => Note::End,
            6 => Note::Counts,
            7 => Note::Placed(phase(1)),
            8 => Note::Took { tail: number(1, 9), seen: phase(9) },
            9 => Note::Rung { phase: phase(1), end: Some(number(5, 13)) },
            10 => Note::Rung { phase: phase(1), end: None },
            11 => Note::Refused(Refusal::NoMore),
            12 => Note::Refused(Refusal::Recall),
            13 => Note::Calm,
            14 => Note::Doubts,
            15 => Note::Gone,
            16 => Note::Resets,
            _ => {
                self.bytes_left = phase(1).0 as usize;
                return None;
            }
        };
        Some(Frame::Note(note))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: [Note; 15] = [
        Note::Counts,
        Note::Switch { phase: Phase(7), record: Record { tcp: 1 << 40, ring: 3 } },
        Note::Placed(Phase(8)),
        Note::Took { tail: 1 << 50, seen: Phase(2) },
        Note::Bell(Phase(3)),
        Note::Rung { phase: Phase(3), end: Some(9) },
        Note::Rung { phase: Phase(3), end: None },
        Note::Refused(Refusal::NoMore),
        Note::Refused(Refusal::Recall),
        Note::Calm,
        Note::Doubts,
        Note::End,
        Note::Gone,
        Note::Resets,
        Note::Placed(Phase(u32::MAX)),
    ];

    #[test]
    fn frames_survive_any_cut() {
        let mut wire = vec![1];
        wire.extend(bytes_head(5));
        wire.extend(b"hello");
        for note in NOTES {
            let (head, length) = Frame::Note(note).head();
            wire.extend_from_slice(&head[..length]);
        }
        wire.extend(bytes_head(0));
        wire.push(5);
        for cut in 1..=wire.len() {
            let (mut decoder, mut got, mut text) = (Decoder::default(), Vec::new(), Vec::new());
            let mut joined = 0;
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
                        Some(Frame::Joined) => joined += 1,
                        Some(Frame::Note(note)) => got.push(note),
                        None if taken == 0 => break,
                        None => {}
                    }
                }
                assert!(rest.is_empty());
            }
            assert_eq!((text.as_slice(), joined), (&b"hello"[..], 1));
            let expect: Vec<_> = NOTES.into_iter().chain([Note::End]).collect();
            assert_eq!(got, expect, "cut {cut}");
        }
        assert_eq!(Decoder::default().next(&[99, 9]), Err(Nonsense));
    }
}

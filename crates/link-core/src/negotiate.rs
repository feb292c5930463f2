//! What a program's library and the broker say to each other, over a Unix socket of sequenced packets.
//!
//! ```text
//!  library ── Ask, with the TCP socket ──▶ broker        the broker looks at the socket itself and keeps no copy
//!  library ◀── Answer, with the segment ── broker        at once: the peer's end may ask later, or never
//! ```
//! Who wants to know sends [`LIST`] instead and gets a packet of JSON for each connection, then the end.
//!
//! Asks and answers are [`MESSAGE_LEN`] bytes, little-endian. What else is agreed - whether the peer is there, from which byte on a
//! direction is on the ring - is agreed in the segment, without the broker.

use crate::ring::Role;

/// Bytes of a message.
pub const MESSAGE_LEN: usize = 16;

/// Version of this protocol and of the segment's layout; both sides must have the same.
pub const VERSION: u32 = 2;

/// Asks the broker for its connections.
pub const LIST: [u8; MESSAGE_LEN] = *b"SkLs\x02\0\0\0\0\0\0\0\0\0\0\0";

const ASK: u32 = u32::from_le_bytes(*b"SkAs");
const ANSWER: u32 = u32::from_le_bytes(*b"SkAn");

/// A library asks for a segment for the socket that comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The process, as it sees itself; for display.
    pub pid: u32,
    /// The socket's number in that process.
    pub fd: u32,
}

/// The broker's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A segment comes along; this is the asker's role in it.
    Segment(Role),
    /// This connection stays on TCP for ever.
    Never,
    /// Not now; ask again after a while.
    Later,
}

/// A message that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the message is not one of this version")
    }
}

impl core::error::Error for Malformed {}

fn words(bytes: &[u8]) -> Result<[u32; 4], Malformed> {
    let bytes: &[u8; MESSAGE_LEN] = bytes.try_into().map_err(|_| Malformed)?;
    let word = |i: usize| {
        u32::from_le_bytes([bytes[i * 4], bytes[i * 4 + 1], bytes[i * 4 + 2], bytes[i * 4 + 3]])
    };
    Ok([word(0), word(1), word(2), word(3)])
}

fn bytes(words: [u32; 4]) -> [u8; MESSAGE_LEN] {
    let mut bytes = [0; MESSAGE_LEN];
    for (i, word) in words.iter().enumerate() {
        bytes[i * 4..i * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

impl Ask {
    /// As bytes.
    pub fn encode(self) -> [u8; MESSAGE_LEN] {
        bytes([ASK, VERSION, self.pid, self.fd])
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match words(bytes)? {
            [ASK, VERSION, pid, fd] => Ok(Self { pid, fd }),
            _ => Err(Malformed),
        }
    }
}

impl Answer {
    /// As bytes.
    pub fn encode(self) -> [u8; MESSAGE_LEN] {
        let (kind, role) = match self {
            Self::Segment(Role::Low) => (1, 0),
            Self::Segment(Role::High) => (1, 1),
            Self::Never => (2, 0),
            Self::Later => (3, 0),
        };
        bytes([ANSWER, VERSION, kind, role])
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match words(bytes)? {
            [ANSWER, VERSION, 1, 0] => Ok(Self::Segment(Role::Low)),
            [ANSWER, VERSION, 1, 1] => Ok(Self::Segment(Role::High)),
            [ANSWER, VERSION, 2, _] => Ok(Self::Never),
            [ANSWER, VERSION, 3, _] => Ok(Self::Later),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_come_back() {
        let ask = Ask { pid: 77, fd: 5 };
        assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
        for answer in
            [Answer::Segment(Role::Low), Answer::Segment(Role::High), Answer::Never, Answer::Later]
        {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Ask::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }
}

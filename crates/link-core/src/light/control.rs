//! What control datagrams say: one message each, its first byte says which.
//!
//! | byte | message | body |
//! | --- | --- | --- |
//! | 1 | hello | options 1, from 8, to 8, incarnation 8, nonce 16, datagram 2, proof 16; padded to a full datagram |
//! | 2 | welcome | as hello, then the caller's nonce 16, session 2, proof 16; padded |
//! | 3 | confirm | the answerer's nonce 16, proof 16; padded |
//! | 4 | ready | none |
//! | 5 | acknowledgement | edge 4, delay 2, notes 1, ranges 1, then for each range start 4, end 4 |
//! | 6 | reset | reason 1, first place 4 |
//! | 7 | reset heard | first place 4 |
//! | 8 | ping | number 4; padded to the size it proves |
//! | 9 | pong | number 4 |
//! | 10 | goodbye | none |
//!
//! An acknowledgement's cumulative place and rounded credit stand in the header, where data has them too.

use alloc::vec::Vec;
use core::ops::Range;

/// 32: at a thousand losses in a million frames a window has rarely more than two holes; 32 ranges are 256 bytes.
pub(crate) const RANGES_TOLD_MAX: usize = 32;
/// Bytes of a proof: HMAC-SHA-256, cut to its first half (RFC 2104, section 5).
pub(crate) const PROOF_BYTES: usize = 16;

/// Sixteen bytes used once.
pub(crate) type Nonce = [u8; 16];
/// What shows that the sender of a message knows the key.
pub(crate) type Proof = [u8; PROOF_BYTES];

/// Names an agent within a cluster. How it is made from a node's name is the shell's affair; both ends agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(pub u64);

/// Why a channel was ended before its streams were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// The program's side was aborted.
    Aborted,
    /// Who was called does not want it.
    Refused,
    /// The other end knows no such channel.
    Unknown,
    /// The other end broke the rules of the protocol.
    Violated,
    /// Nothing was heard of the peer for too long.
    PeerLost,
    /// The peer began anew and has forgotten its channels.
    PeerRestarted,
    /// The peer said goodbye.
    PeerLeft,
}

impl ResetReason {
    /// Stable code, for users.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Aborted => "LINK_CHANNEL_ABORTED",
            Self::Refused => "LINK_CHANNEL_REFUSED",
            Self::Unknown => "LINK_CHANNEL_UNKNOWN",
            Self::Violated => "LINK_PROTOCOL_VIOLATED",
            Self::PeerLost => "LINK_PEER_LOST",
            Self::PeerRestarted => "LINK_PEER_RESTARTED",
            Self::PeerLeft => "LINK_PEER_LEFT",
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Aborted => 1,
            Self::Refused => 2,
            Self::Unknown => 3,
            Self::Violated => 4,
            Self::PeerLost => 5,
            Self::PeerRestarted => 6,
            Self::PeerLeft => 7,
        }
    }

    const fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Aborted,
            2 => Self::Refused,
            3 => Self::Unknown,
            4 => Self::Violated,
            5 => Self::PeerLost,
            6 => Self::PeerRestarted,
            7 => Self::PeerLeft,
            _ => return None,
        })
    }
}

impl core::fmt::Display for ResetReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Aborted => "aborted by the other end",
            Self::Refused => "refused by the other end",
            Self::Unknown => "not known to the other end",
            Self::Violated => "ended because the protocol was violated",
            Self::PeerLost => "ended because nothing was heard of the peer",
            Self::PeerRestarted => "ended because the peer began anew",
            Self::PeerLeft => "ended because the peer left",
        })
    }
}

/// Who calls whom, and with what wishes: the common part of hello and welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Introduction {
    /// Whether every datagram shall carry a check of its own.
    pub(crate) checked: bool,
    pub(crate) from: AgentId,
    pub(crate) to: AgentId,
    /// Chosen at random when the agent starts.
    pub(crate) incarnation: u64,
    pub(crate) nonce: Nonce,
    /// The largest datagram the sender takes, header included.
    pub(crate) datagram_max: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Hello { who: Introduction, proof: Proof },
    Welcome(Welcome),
    Confirm { nonce: Nonce, proof: Proof },
    Ready,
    Acknowledge(Acknowledgement),
    Reset { reason: ResetReason, first: u32 },
    ResetHeard { first: u32 },
    Ping { number: u32 },
    Pong { number: u32 },
    Goodbye,
}

/// The answer to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) who: Introduction,
    pub(crate) caller_nonce: Nonce,
    pub(crate) session: u16,
    pub(crate) proof: Proof,
}

/// What a receiver says about a channel, beside the place in the header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    /// The place behind the last byte it takes, modulo 2^32.
    pub(crate) edge: u32,
    /// How long it waited before it said so, microseconds.
    pub(crate) delay_micros: u16,
    /// Whether something came twice since the last acknowledgement.
    pub(crate) duplicates: bool,
    /// What came beyond the first hole.
    pub(crate) ranges: Vec<Range<u32>>,
}

impl Message {
    /// Appends the message.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { who, proof } => {
                Self::write_hello(who, out);
                out.extend_from_slice(proof);
            }
            Self::Welcome(welcome) => {
                welcome.write_proven(out);
                out.extend_from_slice(&welcome.proof);
            }
            Self::Confirm { nonce, proof } => {
                out.push(3);
                out.extend_from_slice(nonce);
                out.extend_from_slice(proof);
            }
            Self::Ready => out.push(4),
            Self::Acknowledge(told) => told.write(out),
            Self::Reset { reason, first } => {
                out.extend_from_slice(&[6, reason.number()]);
                out.extend_from_slice(&first.to_be_bytes());
            }
            Self::ResetHeard { first } => write_numbered(7, *first, out),
            Self::Ping { number } => write_numbered(8, *number, out),
            Self::Pong { number } => write_numbered(9, *number, out),
            Self::Goodbye => out.push(10),
        }
    }

    /// The part of a hello that its proof covers.
    pub(crate) fn write_hello(who: &Introduction, out: &mut Vec<u8>) {
        out.push(1);
        who.write(out);
    }

    /// Reads a message; what follows it is padding.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        Some(match input.u8()? {
            1 => Self::Hello { who: Introduction::read(&mut input)?, proof: input.array()? },
            2 => Self::Welcome(Welcome {
                who: Introduction::read(&mut input)?,
                caller_nonce: input.array()?,
                session: input.u16()?,
                proof: input.array()?,
            }),
            3 => Self::Confirm { nonce: input.array()?, proof: input.array()? },
            4 => Self::Ready,
            5 => Self::Acknowledge(Acknowledgement::read(&mut input)?),
            6 => Self::Reset { reason: ResetReason::of(input.u8()?)?, first: input.u32()? },
            7 => Self::ResetHeard { first: input.u32()? },
            8 => Self::Ping { number: input.u32()? },
            9 => Self::Pong { number: input.u32()? },
            10 => Self::Goodbye,
            _ => return None,
        })
    }
}

impl Welcome {
    /// The part that the proof covers.
    pub(crate) fn write_proven(&self, out: &mut Vec<u8>) {
        out.push(2);
        self.who.write(out);
        out.extend_from_slice(&self.caller_nonce);
        out.extend_from_slice(&self.session.to_be_bytes());
    }
}

fn write_numbered(code: u8, number: u32, out: &mut Vec<u8>) {
    out.push(code);
    out.extend_from_slice(&number.to_be_bytes());
}

impl Introduction {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.checked));
        out.extend_from_slice(&self.from.0.to_be_bytes());
        out.extend_from_slice(&self.to.0.to_be_bytes());
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.datagram_max.to_be_bytes());
    }

    fn read(input: &mut Input<'_>) -> Option<Self> {
        Some(Self {
            checked: input.u8()? & 1 == 1,
            from: AgentId(input.u64()?),
            to: AgentId(input.u64()?),
            incarnation: input.u64()?,
            nonce: input.array()?,
            datagram_max: input.u16()?,
        })
    }
}

impl Acknowledgement {
    fn write(&self, out: &mut Vec<u8>) {
        let ranges = &self.ranges[..self.ranges.len().min(RANGES_TOLD_MAX)];
        out.push(5);
        out.extend_from_slice(&self.edge.to_be_bytes());
        out.extend_from_slice(&self.delay_micros.to_be_bytes());
        out.extend_from_slice(&[u8::from(self.duplicates), ranges.len() as u8]);
        for range in ranges {
            out.extend_from_slice(&range.start.to_be_bytes());
            out.extend_from_slice(&range.end.to_be_bytes());
        }
    }

    fn read(input: &mut Input<'_>) -> Option<Self> {
        let (edge, delay_micros, notes) = (input.u32()?, input.u16()?, input.u8()?);
        let count = usize::from(input.u8()?);
        if count > RANGES_TOLD_MAX {
            return None;
        }
        let ranges = (0..count).map(|_| Some(input.u32()?..input.u32()?)).collect::<Option<_>>()?;
        Some(Self { edge, delay_micros, duplicates: notes & 1 == 1, ranges })
    }
}

/// Bytes not read yet.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(message: Message) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        for cut in 0..bytes.len() {
            let got = Message::read(&bytes[..cut]);
            assert_eq!(got, None, "{cut} bytes of {message:?}");
        }
        bytes.extend([0; 7]);
        assert_eq!(Message::read(&bytes), Some(message));
    }

    #[test]
    fn messages_survive() {
        let who = Introduction {
            checked: true,
            from: AgentId(1),
            to: AgentId(u64::MAX),
            incarnation: 7,
            nonce: [9; 16],
            datagram_max: 1500,
        };
        check(Message::Hello { who, proof: [1; 16] });
        check(Message::Welcome(Welcome {
            who,
            caller_nonce: [2; 16],
            session: 77,
            proof: [3; 16],
        }));
        check(Message::Confirm { nonce: [4; 16], proof: [5; 16] });
        check(Message::Ready);
        let ranges = vec![5..9, 3..u32::MAX];
        let told = Acknowledgement { edge: 3, delay_micros: 400, duplicates: true, ranges };
        check(Message::Acknowledge(told));
        for number in 0..=255 {
            if let Some(reason) = ResetReason::of(number) {
                check(Message::Reset { reason, first: 12 });
            }
        }
        check(Message::ResetHeard { first: 1 });
        check(Message::Ping { number: 1 });
        check(Message::Pong { number: 1 });
        check(Message::Goodbye);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::read(&bytes);
        }
    }
}

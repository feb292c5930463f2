//! The sixteen bytes in front of every datagram: eight fields, the channel number last.
//!
//! ```text
//!  0        1        2        3        4        5        6        7
//! +----+----+--------+--------+--------+--------+--------+--------+--------+
//! |kind|flag| credit |      length     |             sequence              |
//! +----+----+--------+--------+--------+--------+--------+--------+--------+
//! |          acknowledgement           |     session     |     channel     |
//! +--------+--------+--------+---------+--------+--------+--------+--------+
//!  8        9        10       11       12       13       14       15
//! ```
//!
//! Numbers are in network order. `length` is needed because Ethernet pads short frames to 60 bytes.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;

/// The two kinds of datagram. The number on the wire carries the version of the protocol: a later, incompatible one
/// takes other numbers, and its datagrams are not taken for ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A piece of a channel's stream.
    Data,
    /// Something the two ends say to each other; the first byte after the header says what.
    Control,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Control => 2,
        }
    }
}

/// The four flags of a data datagram. A control datagram has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The sender has heard nothing on this channel yet: `acknowledgement` is where both directions begin counting.
    pub const OPEN: Self = Self(1);
    /// The stream ends behind this datagram's last byte; the end itself takes one sequence number.
    pub const FINISH: Self = Self(2);
    /// The sender has no more at the moment.
    pub const PUSH: Self = Self(4);
    /// Acknowledge at once.
    pub const ASK: Self = Self(8);

    /// Whether all of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These, and `other` if `when`.
    #[must_use]
    pub const fn with_if(self, when: bool, other: Self) -> Self {
        if when { self.with(other) } else { self }
    }
}

/// How many bytes beyond `acknowledgement` the sender of a datagram takes on its channel, in eight bits: a mantissa of
/// three bits and an exponent of five, rounded down, so that never more is promised than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credit(u8);

impl Credit {
    /// No room.
    pub const NONE: Self = Self(0);

    /// The largest credit that promises no more than `bytes`.
    pub const fn of(bytes: u64) -> Self {
        if bytes < 8 {
            return Self(bytes as u8);
        }
        // The mantissa's leading one is implied: 8 to 15, shifted left by the exponent.
        let exponent = bytes.ilog2() - 3;
        if exponent >= 31 {
            return Self(0xff);
        }
        let mantissa = (bytes >> exponent) as u8 & 0x7;
        Self(((exponent as u8 + 1) << 3) | mantissa)
    }

    /// What is promised, bytes.
    pub const fn bytes(self) -> u64 {
        let (exponent, mantissa) = (self.0 >> 3, (self.0 & 0x7) as u64);
        match exponent {
            0 => mantissa,
            _ => (8 + mantissa) << (exponent - 1),
        }
    }
}

/// Number of a channel within a session. Zero is the session itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u16);

impl ChannelId {
    /// What concerns no channel.
    pub const SESSION: Self = Self(0);
}

impl core::fmt::Display for ChannelId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Tag of a session, in each of its datagrams: those of a former session are not taken. Zero while none is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionTag(pub u16);

/// The header of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Data or control.
    pub kind: Kind,
    /// Flags of a data datagram.
    pub flags: Flags,
    /// Room for more on this channel.
    pub credit: Credit,
    /// Bytes after the header; what follows them is padding of the carrier, or the check.
    pub length: u16,
    /// Place of the first byte in the stream, modulo 2^32.
    pub sequence: u32,
    /// Place of the first byte of the opposite direction that has not come yet, modulo 2^32.
    pub acknowledgement: u32,
    /// The session.
    pub session: SessionTag,
    /// The channel.
    pub channel: ChannelId,
}

impl Header {
    /// The header of a control datagram of `length` bytes about the session as a whole.
    pub const fn control(session: SessionTag, channel: ChannelId, length: u16) -> Self {
        Self {
            kind: Kind::Control,
            flags: Flags::NONE,
            credit: Credit::NONE,
            length,
            sequence: 0,
            acknowledgement: 0,
            session,
            channel,
        }
    }

    /// Writes it into the first sixteen bytes of `out`.
    pub fn write(&self, out: &mut [u8; HEADER_BYTES]) {
        out[0] = (self.kind.code() << 4) | self.flags.0;
        out[1] = self.credit.0;
        out[2..4].copy_from_slice(&self.length.to_be_bytes());
        out[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        out[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        out[12..14].copy_from_slice(&self.session.0.to_be_bytes());
        out[14..16].copy_from_slice(&self.channel.0.to_be_bytes());
    }

    /// Reads a datagram: its header, and all that follows it. `None` if it is too short, of another version, or says
    /// that it is longer than it is.
    pub fn read(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = datagram.split_first_chunk::<HEADER_BYTES>()?;
        let kind = match head[0] >> 4 {
            1 => Kind::Data,
            2 => Kind::Control,
            _ => return None,
        };
        let u16_at = |place: usize| u16::from_be_bytes([head[place], head[place + 1]]);
        let u32_at = |place: usize| {
            u32::from_be_bytes([head[place], head[place + 1], head[place + 2], head[place + 3]])
        };
        let header = Self {
            kind,
            flags: Flags(head[0] & 0xf),
            credit: Credit(head[1]),
            length: u16_at(2),
            sequence: u32_at(4),
            acknowledgement: u32_at(8),
            session: SessionTag(u16_at(12)),
            channel: ChannelId(u16_at(14)),
        };
        (rest.len() >= usize::from(header.length)).then_some((header, rest))
    }
}

/// The place nearest to `near` whose low 32 bits are `low`. Right while both ends are less than 2^31 bytes apart,
/// which a window of at most 2^30 ensures.
pub(crate) const fn widen(low: u32, near: u64) -> u64 {
    let ahead = low.wrapping_sub(near as u32) as i32;
    near.wrapping_add_signed(ahead as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes() {
        let header = Header {
            kind: Kind::Data,
            flags: Flags::PUSH.with(Flags::OPEN),
            credit: Credit::of(1 << 20),
            length: 0x0102,
            sequence: 0x0304_0506,
            acknowledgement: 0x0708_090a,
            session: SessionTag(0x0b0c),
            channel: ChannelId(0x0d0e),
        };
        let mut bytes = [0; HEADER_BYTES];
        header.write(&mut bytes);
        assert_eq!(bytes, [0x15, 0x90, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert!(Header::read(&bytes).is_none(), "258 bytes are promised and none are there");
        let mut datagram = bytes.to_vec();
        datagram.extend([0; 0x0102]);
        assert_eq!(Header::read(&datagram).map(|(header, _)| header), Some(header));
        datagram[0] = 0x35;
        assert!(Header::read(&datagram).is_none(), "kind 3 is no kind");
    }

    #[test]
    fn places_are_widened() {
        for (low, near, expect) in [
            (5, 0, 5),
            (5, 1 << 32, (1 << 32) + 5),
            (0xffff_fff0, 1 << 32, (1 << 32) - 16),
            (3, (1 << 32) - 2, (1 << 32) + 3),
        ] {
            assert_eq!(widen(low, near), expect, "{low} near {near}");
        }
    }

    proptest! {
        #[test]
        fn credit_never_promises_more(bytes in 0_u64..1 << 34) {
            let promised = Credit::of(bytes).bytes();
            prop_assert!(promised <= bytes);
            prop_assert!(promised >= bytes - bytes / 8, "{} of {}", promised, bytes);
        }

        #[test]
        fn any_header_survives(bytes in any::<[u8; HEADER_BYTES]>()) {
            let mut datagram = bytes.to_vec();
            datagram.resize(HEADER_BYTES + usize::from(u16::MAX), 0);
            if let Some((header, _)) = Header::read(&datagram) {
                let mut again = [0; HEADER_BYTES];
                header.write(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}

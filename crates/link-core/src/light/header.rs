//! The bytes in front of every datagram: eight fields, the channel number last.
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
//! Numbers are in network order. `length` is needed because Ethernet pads short frames to 60 bytes. Data of 32 bytes and
//! more leave it out, for they are in no short frame: what follows moves up, which makes fourteen bytes, and the payload
//! reaches to the end of the datagram, or to the check there. They have a kind of their own on the wire.

/// Bytes of a header that says the length: of control, and of data of less than 32 bytes.
pub const HEADER_BYTES_MAX: usize = 16;
/// Bytes of a header that leaves the length out: of all other data.
pub const HEADER_BYTES_MIN: usize = HEADER_BYTES_MAX - LENGTH_BYTES;

/// Bytes of the length.
const LENGTH_BYTES: usize = 2;
/// Bytes of sequence, acknowledgement, session and channel.
const PLACES_BYTES: usize = 12;
/// Datagrams of less than 46 bytes, 60 without addresses and type, are padded by Ethernet.
const PADDED_BELOW: usize = 60 - 14;
/// Data of so many bytes and more do not say their length: the least that is never padded.
pub(crate) const UNSAID_LENGTH_MIN: usize = PADDED_BELOW - HEADER_BYTES_MIN;

/// Kinds on the wire. They carry the version of the protocol: a later, incompatible one takes other numbers, and its
/// datagrams are not taken for ours. 1 and 2 were those of the first, in which all said their length. One wrong bit makes none of
/// them another.
mod code {
    pub(super) const DATA: u8 = 3;
    pub(super) const CONTROL: u8 = 5;
    pub(super) const DATA_TO_THE_END: u8 = 6;
}

/// The two kinds of datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A piece of a channel's stream.
    Data,
    /// Something the two ends say to each other; the first byte after the header says what.
    Control,
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

    /// Those of a datagram, whose header may be wrong otherwise; none of a control datagram.
    pub fn of(datagram: &[u8]) -> Self {
        match datagram.first() {
            Some(first) if first >> 4 != code::CONTROL => Self(first & 0xf),
            _ => Self::NONE,
        }
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
    /// Bytes of the payload; what follows them is the check, and padding of the carrier.
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

    /// Whether the length is left out on the wire.
    const fn ends_with_datagram(&self) -> bool {
        matches!(self.kind, Kind::Data) && self.length as usize >= UNSAID_LENGTH_MIN
    }

    /// Its bytes on the wire.
    pub const fn bytes(&self) -> usize {
        if self.ends_with_datagram() { HEADER_BYTES_MIN } else { HEADER_BYTES_MAX }
    }

    /// Writes it into the first [`Header::bytes`] bytes of `out`; how many those are.
    pub fn write(&self, out: &mut [u8; HEADER_BYTES_MAX]) -> usize {
        let bytes = self.bytes();
        let code = match self.kind {
            Kind::Control => code::CONTROL,
            Kind::Data if self.ends_with_datagram() => code::DATA_TO_THE_END,
            Kind::Data => code::DATA,
        };
        out[0] = (code << 4) | self.flags.0;
        out[1] = self.credit.0;
        if bytes == HEADER_BYTES_MAX {
            out[2..4].copy_from_slice(&self.length.to_be_bytes());
        }
        let places = &mut out[bytes - PLACES_BYTES..bytes];
        places[..4].copy_from_slice(&self.sequence.to_be_bytes());
        places[4..8].copy_from_slice(&self.acknowledgement.to_be_bytes());
        places[8..10].copy_from_slice(&self.session.0.to_be_bytes());
        places[10..].copy_from_slice(&self.channel.0.to_be_bytes());
        bytes
    }

    /// Reads a datagram that ends with a check of `check_bytes`: its header, and its payload. `None` if it is too short,
    /// of another version, says that it is longer than it is, or has not the form that one of its length has.
    pub fn read(datagram: &[u8], check_bytes: usize) -> Option<(Self, &[u8])> {
        let (&[first, credit], rest) = datagram.split_first_chunk()?;
        let kind = match first >> 4 {
            code::DATA | code::DATA_TO_THE_END => Kind::Data,
            code::CONTROL => Kind::Control,
            _ => return None,
        };
        let (length, rest) = match first >> 4 {
            code::DATA_TO_THE_END => {
                let behind = PLACES_BYTES + check_bytes;
                (u16::try_from(rest.len().checked_sub(behind)?).ok()?, rest)
            }
            _ => {
                let (length, rest) = rest.split_first_chunk::<LENGTH_BYTES>()?;
                (u16::from_be_bytes(*length), rest)
            }
        };
        let (places, rest) = rest.split_first_chunk::<PLACES_BYTES>()?;
        let u16_at = |place: usize| u16::from_be_bytes([places[place], places[place + 1]]);
        let u32_at = |place: usize| {
            let bytes = [places[place], places[place + 1], places[place + 2], places[place + 3]];
            u32::from_be_bytes(bytes)
        };
        let header = Self {
            kind,
            flags: Flags(first & 0xf),
            credit: Credit(credit),
            length,
            sequence: u32_at(0),
            acknowledgement: u32_at(4),
            session: SessionTag(u16_at(8)),
            channel: ChannelId(u16_at(10)),
        };
        // A short one without a length may have been padded, and its payload would be what nobody sent.
        let has_its_form = header.ends_with_datagram() == (first >> 4 == code::DATA_TO_THE_END);
        let payload = rest.get(..usize::from(length)).filter(|_| has_its_form)?;
        Some((header, payload))
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

    fn header(kind: Kind, length: u16) -> Header {
        Header {
            kind,
            flags: Flags::PUSH.with(Flags::OPEN),
            credit: Credit::of(1 << 20),
            length,
            sequence: 0x0304_0506,
            acknowledgement: 0x0708_090a,
            session: SessionTag(0x0b0c),
            channel: ChannelId(0x0d0e),
        }
    }

    /// The datagram of a header, with a payload of ones and `behind` bytes after it.
    fn datagram(header: &Header, behind: usize) -> Vec<u8> {
        let mut head = [0; HEADER_BYTES_MAX];
        let bytes = header.write(&mut head);
        let mut datagram = head[..bytes].to_vec();
        datagram.resize(bytes + usize::from(header.length), 1);
        datagram.resize(datagram.len() + behind, 0);
        datagram
    }

    #[test]
    fn the_bytes() {
        let control = datagram(&header(Kind::Control, 0x0102), 0);
        let places = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
        assert_eq!(control[..4], [0x55, 0x90, 1, 2]);
        assert_eq!(control[4..16], places);
        let short = datagram(&header(Kind::Data, 31), 0);
        assert_eq!(short[..4], [0x35, 0x90, 0, 31]);
        assert_eq!(short[4..16], places);
        let long = datagram(&header(Kind::Data, 32), 0);
        assert_eq!(long[..2], [0x65, 0x90]);
        assert_eq!(long[2..14], places);
        assert_eq!(long.len(), 46, "as long as what Ethernet pads to");
    }

    #[test]
    fn what_is_read() {
        for (kind, length) in [(Kind::Control, 0x0102), (Kind::Data, 31), (Kind::Data, 32)] {
            let header = header(kind, length);
            let payload = vec![1; usize::from(length)];
            let expect = Some((header, &payload[..]));
            assert_eq!(Header::read(&datagram(&header, 0), 0), expect);
            assert_eq!(Header::read(&datagram(&header, 4), 4), expect, "before a check");
            assert_eq!(Flags::of(&datagram(&header, 0)).has(Flags::PUSH), kind == Kind::Data);
        }
        let padded = |length| datagram(&header(Kind::Data, length), 15);
        assert_eq!(Header::read(&padded(31), 0).map(|(_, payload)| payload.len()), Some(31));
        let mut short = datagram(&header(Kind::Control, 0x0102), 0);
        short.pop();
        assert_eq!(Header::read(&short, 0), None, "a byte less than is said");
        for (kind, why) in [(1, "the first version"), (2, "the first version"), (4, "no kind")] {
            short[0] = kind << 4;
            assert_eq!(Header::read(&short, 0), None, "{why}");
        }
    }

    /// What Ethernet may have padded says its length, and nothing else does.
    #[test]
    fn each_length_has_one_form() {
        let (least, most) = (HEADER_BYTES_MIN, usize::from(u16::MAX) + HEADER_BYTES_MIN);
        let to_the_end = |bytes: usize| vec![code::DATA_TO_THE_END << 4; bytes];
        for (bytes, check, fits) in [
            (0, 0, false),
            (1, 0, false),
            (least, 0, false),
            (least, 4, false),
            (PADDED_BELOW - 1, 0, false),
            (PADDED_BELOW, 0, true),
            (PADDED_BELOW, 1, false),
            (PADDED_BELOW + 4, 4, true),
            (most, 0, true),
            (most + 1, 0, false),
        ] {
            assert_eq!(Header::read(&to_the_end(bytes), check).is_some(), fits, "{bytes}");
        }
        let mut long = datagram(&header(Kind::Data, 32), 0);
        long.splice(2..2, [0, 32]);
        long[0] = code::DATA << 4;
        assert_eq!(Header::read(&long, 0), None, "it need not say its length");
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

        /// Who reads a datagram and writes it again writes the same.
        #[test]
        fn any_datagram_survives(
            kind in prop_oneof![Just(code::DATA), Just(code::CONTROL), Just(code::DATA_TO_THE_END)],
            mut bytes in proptest::collection::vec(any::<u8>(), 1..200),
            length in 0_u8..40,
            check in prop_oneof![Just(0_usize), Just(4)],
        ) {
            bytes[0] = (kind << 4) | (bytes[0] & 0xf);
            if let Some(low) = bytes.get_mut(2..4).filter(|_| kind != code::DATA_TO_THE_END) {
                low.copy_from_slice(&[0, length]);
            }
            if let Some((header, payload)) = Header::read(&bytes, check) {
                let mut head = [0; HEADER_BYTES_MAX];
                let length = header.write(&mut head);
                let again = [&head[..length], payload].concat();
                prop_assert_eq!(payload.len(), usize::from(header.length));
                prop_assert_eq!(&again[..], &bytes[..again.len()]);
            }
        }
    }
}

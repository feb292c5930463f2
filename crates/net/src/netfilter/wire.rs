//! Netlink messages as bytes: a writer that keeps lengths and padding right, and a reader that
//! believes no length.
//!
//! ```text
//!   message   = length u32 | type u16 | flags u16 | sequence u32 | port u32 | body
//!   body      = family u8 | version u8 | resource u16 (network order) | attributes
//!   attribute = length u16 | type u16 | value, padded to 4 bytes
//! ```
//! Headers are in the host's byte order, values of netfilter's attributes in the network's.

/// Bytes of a netlink header.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of a netlink header with netfilter's own behind it.
const BODY_AT: usize = HEADER_BYTES + 4;
/// The value is a list of attributes.
const NESTED: u16 = 1 << 15;
/// Bits of a type that are flags.
const TYPE_MASK: u16 = 0x3fff;

/// `NLMSG_ERROR`: the answer to one message.
pub(super) const KIND_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a list.
pub(super) const KIND_DONE: u16 = 3;

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
pub(super) const ACK: u16 = 4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_APPEND`.
pub(super) const APPEND: u16 = 0x800;

/// Messages one behind the other, written in place.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Where the message at hand begins.
    start: usize,
    /// Messages so far; each carries its number as sequence.
    count: u32,
}

/// A list of attributes that is being written.
#[must_use = "a nest must be closed"]
pub(super) struct Nest(usize);

impl Writer {
    /// Begins a message of `kind`; the one before is complete.
    pub(super) fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.start = self.bytes.len();
        self.count += 1;
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.seal();
    }

    /// Adds an attribute to the message or nest at hand.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let nest = self.open_raw(kind);
        self.bytes.extend(value);
        self.close(nest);
    }

    /// A text with a closing zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let nest = self.open_raw(kind);
        self.bytes.extend(value.as_bytes());
        self.bytes.push(0);
        self.close(nest);
    }

    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(super) fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Begins a list of attributes.
    pub(super) fn open(&mut self, kind: u16) -> Nest {
        self.open_raw(kind | NESTED)
    }

    /// Ends the list.
    pub(super) fn close(&mut self, Nest(at): Nest) {
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
        self.seal();
    }

    /// Bytes of the message at hand.
    pub(super) fn message_len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Bytes of all messages.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// All messages.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn open_raw(&mut self, kind: u16) -> Nest {
        let at = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        Nest(at)
    }

    fn seal(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// A message that was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    /// Behind the netlink header.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind netfilter's header.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(BODY_AT - HEADER_BYTES..).unwrap_or_default())
    }
}

/// Messages one behind the other; ends at the first that is not whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32::from_ne_bytes(self.0.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(self.0.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(self.0.get(8..12)?.try_into().ok()?);
        let payload = self.0.get(HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, payload })
    }
}

/// Attributes one behind the other; ends at the first that is not whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first of this type.
    pub(super) fn find(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find_map(|(kind, value)| (kind == wanted).then_some(value))
    }

    /// The attributes within the first of this type; none if there is none.
    pub(super) fn nested(self, wanted: u16) -> Attributes<'a> {
        Attributes(self.find(wanted).unwrap_or_default())
    }

    /// The text of the first of this type, up to its zero.
    pub(super) fn text(self, wanted: u16) -> Option<&'a str> {
        let value = self.find(wanted)?;
        std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
    }

    pub(super) fn u8(self, wanted: u16) -> Option<u8> {
        self.find(wanted)?.first().copied()
    }

    pub(super) fn u16(self, wanted: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.find(wanted)?.try_into().ok()?))
    }

    pub(super) fn u32(self, wanted: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(wanted)?.try_into().ok()?))
    }

    pub(super) fn u64(self, wanted: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(wanted)?.try_into().ok()?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.message(0x0a09, ACK, 1, 10);
        writer.text(1, "skein");
        let nest = writer.open(3);
        writer.u32(1, 7);
        writer.u8(2, 9);
        writer.close(nest);
        writer.message(0x0a0c, 0, 7, 0);
        writer.u64(5, 1 << 40);
        let bytes = writer.finish();
        let messages: Vec<_> = Messages(&bytes).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].kind, messages[0].sequence), (0x0a09, 1));
        assert_eq!(messages[0].payload[..4], [1, 0, 0, 10]);
        let attributes = messages[0].attributes();
        assert_eq!(attributes.text(1), Some("skein"));
        assert_eq!(attributes.nested(3).u32(1), Some(7));
        assert_eq!(attributes.nested(3).u8(2), Some(9));
        assert_eq!(messages[1].attributes().u64(5), Some(1 << 40));
        assert_eq!(messages[1].attributes().u32(5), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            for message in Messages(&bytes) {
                for (kind, value) in message.attributes() {
                    let inner = Attributes(value);
                    let _ = (inner.u32(kind), inner.text(kind), inner.nested(kind).count());
                }
            }
        }
    }
}

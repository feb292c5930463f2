//! Whether what comes is bulk, for which it is better to rest than to look.
//!
//! The frames of a full wire of 1 Gbit/s come every 12 microseconds: who looks for the next one always finds it, and never sleeps.
//! That takes a processor, and where processors are few, it takes it from the program that is to read the bytes, or from the
//! sender: with both ends on one processor that others wanted too, half of the wire stood still. A thread that
//! rests finds some frames at a time, and is given the processor sooner when it wants it.

use skein_link_core::light::{Flags, Header, Moment};
use std::time::Duration;

/// How long to rest. The kernel adds up to 50 microseconds to it (`timerslack_ns`): then 8 frames have come at 1 Gbit/s, and
/// 80 at 10 Gbit/s, where the window of a channel holds 1,400.
pub(super) const BULK_REST: Duration = Duration::from_micros(50);
/// So long is counted.
const SPAN: Duration = Duration::from_millis(1);
/// So many bytes in that time are bulk: half a wire of 1 Gbit/s. Small messages that go to and fro as fast as they can bring less.
const BULK: usize = 60_000;

/// What has come of late, from all peers.
#[derive(Debug, Default)]
pub(super) struct Inflow {
    since: Moment,
    bytes: usize,
    was_bulk: bool,
    /// The latest datagram was the last that its sender had.
    is_over: bool,
}

impl Inflow {
    /// A datagram has come.
    pub(super) fn count(&mut self, datagram: &[u8], now: Moment) {
        if now.since(self.since) >= SPAN {
            self.was_bulk = self.bytes >= BULK && now.since(self.since) < SPAN * 2;
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += datagram.len();
        let header = Header::read(datagram).map(|(header, _)| header);
        self.is_over = header.is_none_or(|header| header.flags.has(Flags::PUSH));
    }

    /// Whether more of a stream is on its way.
    pub(super) fn is_bulk(&self, now: Moment) -> bool {
        self.was_bulk && !self.is_over && now.since(self.since) < SPAN * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_link_core::light::{ChannelId, Credit, HEADER_BYTES, Kind, SessionTag};

    fn datagram(length: u16, flags: Flags) -> Vec<u8> {
        let header = Header {
            kind: Kind::Data,
            flags,
            credit: Credit::of(0),
            length,
            sequence: 0,
            acknowledgement: 0,
            session: SessionTag(1),
            channel: ChannelId(1),
        };
        let mut bytes = [0; HEADER_BYTES].to_vec();
        header.write((&mut bytes[..]).try_into().unwrap());
        bytes.resize(HEADER_BYTES + usize::from(length), 0);
        bytes
    }

    /// Datagrams of so many bytes, one every so often, for so many milliseconds.
    fn come(inflow: &mut Inflow, from: u64, millis: u64, length: u16, every_micros: u64) -> Moment {
        let datagram = datagram(length, Flags::NONE);
        let times = (0..millis * 1000).step_by(every_micros as usize);
        let moment = |micros: u64| Moment::from_nanos(from + micros * 1000);
        times.map(moment).inspect(|now| inflow.count(&datagram, *now)).last().unwrap()
    }

    #[test]
    fn a_stream_is_bulk_until_it_ends() {
        let mut inflow = Inflow::default();
        let now = come(&mut inflow, 1 << 40, 3, 1484, 12);
        assert!(inflow.is_bulk(now));
        assert!(!inflow.is_bulk(now + SPAN * 2), "nothing comes any more");
        inflow.count(&datagram(300, Flags::PUSH), now);
        assert!(!inflow.is_bulk(now), "its sender has no more");
        // A pause, and the stream again: it has to show itself.
        let now = come(&mut inflow, (1 << 40) + 50_000_000, 1, 1484, 12);
        assert!(!inflow.is_bulk(now));
    }

    #[test]
    fn messages_are_no_bulk() {
        let mut inflow = Inflow::default();
        let now = come(&mut inflow, 1 << 40, 10, 64, 5);
        assert!(!inflow.is_bulk(now));
        let now = come(&mut inflow, 1 << 41, 10, 1484, 100);
        assert!(!inflow.is_bulk(now));
    }
}

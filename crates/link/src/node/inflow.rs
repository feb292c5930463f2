//! Whether what comes is bulk, for which it is better to rest than to look.
//!
//! The frames of a full wire of 1 Gbit/s come every 12 microseconds: who looks for the next one always finds it, and never sleeps.
//! That takes a processor, and where processors are few, it takes it from the program that is to read the bytes, or from the
//! sender: with both ends on one processor that others wanted too, half of the wire stood still. A thread that
//! rests finds some frames at a time, and is given the processor sooner when it wants it.

use skein_link_core::light::{Flags, Moment};
use std::ops::Range;
use std::time::Duration;

/// How long to rest. The kernel adds up to 50 microseconds to it (`timerslack_ns`): then 8 frames have come at 1 Gbit/s, of
/// the 1,400 that the window of a channel holds.
pub(super) const BULK_REST: Duration = Duration::from_micros(50);
/// So long is counted.
const SPAN: Duration = Duration::from_millis(1);
/// So many bytes in that time are a stream for which it pays to rest. From half a wire of 1 Gbit/s: small messages that go to and fro as
/// fast as they can bring less. Up to half a wire of 10 Gbit/s: from there on it is the processor that limits, and looks are hardly
/// ever in vain.
const BULK: Range<usize> = 60_000..600_000;

/// What has come of late, from all peers.
#[derive(Debug, Default)]
pub(super) struct Inflow {
    since: Moment,
    bytes: usize,
    was_bulk: bool,
    /// One of the datagrams was the last that its sender had: messages come, however large they are, and who waits for the end of one
    /// shall not wait for a rest.
    has_ended: bool,
}

impl Inflow {
    /// A datagram has come.
    pub(super) fn count(&mut self, datagram: &[u8], now: Moment) {
        if now.since(self.since) >= SPAN {
            let in_time = now.since(self.since) < SPAN * 2;
            self.was_bulk = BULK.contains(&self.bytes) && !self.has_ended && in_time;
            (self.since, self.bytes, self.has_ended) = (now, 0, false);
        }
        self.bytes += datagram.len();
        self.has_ended |= Flags::of(datagram).has(Flags::PUSH);
    }

    /// Whether more of a stream is on its way.
    pub(super) fn is_bulk(&self, now: Moment) -> bool {
        self.was_bulk && !self.has_ended && now.since(self.since) < SPAN * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_link_core::light::{ChannelId, Credit, HEADER_BYTES_MAX, Header, Kind, SessionTag};

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
        let mut head = [0; HEADER_BYTES_MAX];
        let mut bytes = vec![0; header.write(&mut head) + usize::from(length)];
        bytes[..header.bytes()].copy_from_slice(&head[..header.bytes()]);
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
        let now = come(&mut inflow, 1 << 40, 3, 1486, 12);
        assert!(inflow.is_bulk(now));
        assert!(!inflow.is_bulk(now + SPAN * 2), "nothing comes any more");
        inflow.count(&datagram(300, Flags::PUSH), now);
        assert!(!inflow.is_bulk(now), "its sender has no more");
        // A pause, and the stream again: it has to show itself.
        let now = come(&mut inflow, (1 << 40) + 50_000_000, 1, 1486, 12);
        assert!(!inflow.is_bulk(now));
    }

    #[test]
    fn messages_are_no_bulk() {
        let mut inflow = Inflow::default();
        // Large ones, one after the other.
        for message in 0..10 {
            let now = come(&mut inflow, (1 << 39) + message * 1_010_000, 1, 1486, 12);
            inflow.count(&datagram(300, Flags::PUSH), now);
            assert!(!inflow.is_bulk(now));
        }
        let now = come(&mut inflow, 1 << 40, 10, 64, 5);
        assert!(!inflow.is_bulk(now));
        let now = come(&mut inflow, 1 << 41, 10, 1486, 100);
        assert!(!inflow.is_bulk(now));
    }

    #[test]
    fn what_the_processor_limits_is_not_rested_for() {
        let mut inflow = Inflow::default();
        let now = come(&mut inflow, 1 << 40, 10, 1486, 1);
        assert!(!inflow.is_bulk(now));
    }
}

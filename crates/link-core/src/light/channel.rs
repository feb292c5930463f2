//! One channel: both directions, and what is owed to the peer.

use super::config::OPENING_BYTES_MAX;
use super::control::ResetReason;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::time::Moment;
use alloc::vec::Vec;

/// Who opened a channel, and how far the opening is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// We did, and the peer has not answered: each datagram carries the flag.
    Calling,
    /// We did, and the peer has answered.
    Called,
    /// The peer did, and its opening has not come completely.
    Incoming,
    /// The peer did.
    Announced,
}

#[derive(Debug)]
pub(crate) struct Channel {
    /// Where both directions begin counting.
    pub(crate) first: u32,
    pub(crate) opening: Opening,
    pub(crate) outbound: Outbound,
    pub(crate) inbound: Inbound,
    /// It stands in the queue of those that have something to send.
    pub(crate) is_ready: bool,
    /// It stands in the queue of those that acknowledge at once.
    pub(crate) acknowledge_now: bool,
    /// It stands in the queue of those that acknowledge later.
    pub(crate) acknowledge_later: bool,
    /// The program was told that there is something to read and has not read since.
    pub(crate) told_readable: bool,
    /// The program found no room and wants to be told.
    pub(crate) wants_room: bool,
    /// The program was told of the end.
    pub(crate) told_finished: bool,
}

impl Channel {
    pub(crate) fn new(
        first: u32,
        opening: Opening,
        credit: u64,
        window: u64,
        spares: &mut Spares,
    ) -> Self {
        let place = Self::place_of(first);
        Self {
            first,
            opening,
            outbound: Outbound::new(place, credit, window, spares.take()),
            inbound: Inbound::new(place, window, spares.take()),
            is_ready: false,
            acknowledge_now: false,
            acknowledge_later: false,
            told_readable: false,
            wants_room: false,
            told_finished: false,
        }
    }

    /// The place with the low bits `first`. Places begin above 2^32, so that no low bits, however wrong, mean a place
    /// below zero.
    fn place_of(first: u32) -> u64 {
        (1 << 32) + u64::from(first)
    }

    /// Where both directions begin.
    pub(crate) fn beginning(&self) -> u64 {
        Self::place_of(self.first)
    }

    /// Takes the opening off the stream, once all of it is there.
    pub(crate) fn take_opening(
        &mut self,
        payload_max: usize,
    ) -> Result<Option<Vec<u8>>, ResetReason> {
        let (first, second) = self.inbound.slices();
        let mut bytes = first.iter().chain(second).copied();
        let (Some(high), Some(low)) = (bytes.next(), bytes.next()) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > OPENING_BYTES_MAX {
            return Err(ResetReason::Violated);
        }
        let opening: Vec<u8> = bytes.take(length).collect();
        if opening.len() < length {
            return Ok(None);
        }
        self.inbound.consume(2 + length, payload_max);
        self.opening = Opening::Announced;
        Ok(Some(opening))
    }

    /// Whether both directions have ended and everybody knows.
    pub(crate) fn is_over(&self) -> bool {
        self.outbound.is_done() && self.inbound.is_done()
    }
}

/// 32 buffers, of sixteen channels: memory that is fresh from the system costs more to touch first than a short stream
/// costs to send.
const SPARES_MAX: usize = 32;

/// Memory of streams that are over.
#[derive(Debug, Default)]
pub(crate) struct Spares(Vec<Vec<u8>>);

impl Spares {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    /// Keeps the memory of a channel.
    pub(crate) fn keep(&mut self, channel: Channel) {
        for spare in [channel.outbound.into_spare(), channel.inbound.into_spare()] {
            if self.0.len() < SPARES_MAX && !spare.is_empty() {
                self.0.push(spare);
            }
        }
    }
}

/// A channel that was reset and whose peer has not said that it knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grave {
    pub(crate) reason: ResetReason,
    pub(crate) first: u32,
    pub(crate) told: u32,
    pub(crate) tell_at: Moment,
}

/// A channel that ended well: its number rests until nothing of it can be on the way, and what the peer repeats
/// because our last acknowledgement was lost is acknowledged again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rest {
    pub(crate) first: u32,
    /// The last acknowledgement.
    pub(crate) place: u32,
}

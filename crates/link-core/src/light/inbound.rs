//! The receiving half of a channel: what came, what is missing, and how much more is taken.
//!
//! The edge it promises never goes back and moves in large steps only (RFC 813, section 4): otherwise a slow reader
//! makes the sender cut its stream into crumbs.

use super::buffer::Buffer;
use super::control::{Acknowledgement, RANGES_TOLD_MAX};
use super::header::Credit;
use super::ranges::{Added, Ranges};
use super::time::Moment;
use alloc::vec::Vec;

/// What a piece of the stream was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The next in turn; all before it is there.
    Next,
    /// The next in turn, with something beyond it still missing or now filled.
    Filled,
    /// It leaves a hole before it.
    Hole,
    /// It was there.
    Duplicate,
    /// Beyond what was promised, or one hole too many: dropped.
    Outside,
    /// It contradicts what the peer said of the stream's end.
    Contradiction,
}

#[derive(Debug)]
pub(crate) struct Inbound {
    buffer: Buffer,
    /// The first byte that has not come.
    next: u64,
    beyond: Ranges,
    /// Where the stream ends, once that is known.
    finish: Option<u64>,
    /// What the peer was told it may send up to.
    edge: u64,
    window: u64,
    duplicates: bool,
    /// Bytes that came in turn since the last acknowledgement.
    owed_bytes: u64,
    /// When the latest datagram came that was not acknowledged.
    owed_since: Option<Moment>,
    /// Datagrams that came out of turn since a hole was told.
    out_of_turn: u32,
}

impl Inbound {
    pub(crate) fn new(first: u64, window: u64, spare: Vec<u8>) -> Self {
        Self {
            buffer: Buffer::at(first, spare),
            next: first,
            beyond: Ranges::default(),
            finish: None,
            edge: first + window,
            window,
            duplicates: false,
            owed_bytes: 0,
            owed_since: None,
            out_of_turn: 0,
        }
    }

    /// Its memory, for another stream.
    pub(crate) fn into_spare(self) -> Vec<u8> {
        self.buffer.into_spare()
    }

    /// Offers bytes that come in turn to `taker`, if nothing before them waits to be read and nothing behind them is
    /// there; how many it took. The rest is to be accepted.
    pub(crate) fn pass(
        &mut self,
        start: u64,
        payload: &[u8],
        taker: impl FnOnce(&[u8]) -> usize,
    ) -> usize {
        let end = start + payload.len() as u64;
        let ahead = self.buffer.base() < self.next || self.has_holes() || self.finish.is_some();
        if start != self.next || ahead || end > self.edge {
            return 0;
        }
        let taken = taker(payload).min(payload.len());
        self.next += taken as u64;
        self.owed_bytes += taken as u64;
        self.buffer.advance(self.next);
        taken
    }

    /// Takes a piece of the stream.
    pub(crate) fn accept(
        &mut self,
        start: u64,
        payload: &[u8],
        finish: bool,
        now: Moment,
    ) -> Arrival {
        let end = start + payload.len() as u64;
        let known = self.finish.is_some_and(|at| end > at || (finish && end != at));
        // The end takes a place of its own, also among what came beyond a hole.
        let told = end + u64::from(self.finish == Some(end));
        let passed = end < self.next || self.beyond.iter().any(|have| have.end > told);
        if known || (finish && passed) {
            return Arrival::Contradiction;
        }
        if end > self.edge {
            return Arrival::Outside;
        }
        if finish {
            self.finish = Some(end);
        }
        self.owed_since = Some(now);
        let new_end = finish && end == self.next;
        let nothing_left = payload.is_empty() && start == self.next;
        if end <= self.next && !new_end && !nothing_left {
            self.duplicates = true;
            return Arrival::Duplicate;
        }
        let fresh = start.max(self.next);
        let payload = &payload[(fresh - start) as usize..];
        if start > self.next {
            return self.accept_beyond(start, payload, finish);
        }
        self.owed_bytes += payload.len() as u64;
        if !payload.is_empty() {
            self.buffer.put(fresh, payload);
            self.next = end;
        }
        if self.beyond.is_empty() {
            return Arrival::Next;
        }
        while let Some(end) = self.beyond.take_at(self.next) {
            let end = self.finish.map_or(end, |finish| end.min(finish));
            self.next = self.next.max(end);
        }
        self.out_of_turn = 0;
        Arrival::Filled
    }

    fn accept_beyond(&mut self, start: u64, payload: &[u8], finish: bool) -> Arrival {
        let end = start + payload.len() as u64 + u64::from(finish);
        match self.beyond.add(start..end) {
            Added::New => {
                if !payload.is_empty() {
                    self.buffer.put(start, payload);
                }
                Arrival::Hole
            }
            Added::Known => {
                self.duplicates = true;
                Arrival::Duplicate
            }
            Added::Full => Arrival::Outside,
        }
    }

    /// Counts a datagram out of turn. Whether it is to be told at once: the first few are, so that the sender knows the
    /// hole and that it is no mere disorder, then every eighth.
    pub(crate) fn tell_hole(&mut self) -> bool {
        self.out_of_turn += 1;
        self.out_of_turn <= 4 || self.out_of_turn.is_multiple_of(8)
    }

    /// The place to acknowledge: the end of the stream takes one.
    pub(crate) fn place(&self) -> u64 {
        self.next + u64::from(self.finish == Some(self.next))
    }

    /// Bytes to be acknowledged that were not yet.
    pub(crate) fn owed_bytes(&self) -> u64 {
        self.owed_bytes
    }

    /// Whether anything came that was not acknowledged yet.
    pub(crate) fn is_owing(&self) -> bool {
        self.owed_since.is_some()
    }

    /// Whether there is more to tell than fits into a data datagram's header.
    pub(crate) fn must_be_told(&self) -> bool {
        self.has_holes() || self.duplicates
    }

    pub(crate) fn has_holes(&self) -> bool {
        !self.beyond.is_empty()
    }

    /// Bytes that can be read.
    pub(crate) fn readable(&self) -> usize {
        (self.next - self.buffer.base()) as usize
    }

    /// What can be read, in two pieces.
    pub(crate) fn slices(&self) -> (&[u8], &[u8]) {
        self.buffer.slices(self.buffer.base(), self.readable())
    }

    /// The program has taken `length` bytes. Whether the peer is to be told of the room: it had hardly any left, and
    /// now has a quarter of the window or eight datagrams more.
    pub(crate) fn consume(&mut self, length: usize, payload_max: usize) -> bool {
        let base = self.buffer.base() + length.min(self.readable()) as u64;
        self.buffer.advance(base);
        let gained = self.buffer.base() + self.window - self.edge;
        let left = self.edge - self.next;
        gained >= self.step(payload_max) && left <= self.window / 2
    }

    fn step(&self, payload_max: usize) -> u64 {
        (self.window / 4).min(8 * payload_max as u64)
    }

    /// Whether the stream is read to its end.
    pub(crate) fn is_done(&self) -> bool {
        self.finish == Some(self.buffer.base())
    }

    /// Whether all of the stream has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.finish == Some(self.next)
    }

    /// The place and credit of a data datagram's header. If nothing is missing, they are an acknowledgement.
    pub(crate) fn piggyback(&mut self, payload_max: usize) -> (u64, Credit) {
        if !self.has_holes() {
            self.settle();
        }
        let place = self.place();
        let edge = self.promise(payload_max);
        (place, Credit::of(edge.saturating_sub(place)))
    }

    /// The edge to promise: what there is room for, if that is worth a step, or what was promised.
    fn promise(&mut self, payload_max: usize) -> u64 {
        let room = self.buffer.base() + self.window;
        if room >= self.edge + self.step(payload_max) {
            self.edge = room;
        }
        self.edge
    }

    fn settle(&mut self) {
        self.owed_bytes = 0;
        self.owed_since = None;
    }

    /// Place, credit and everything else there is to tell.
    pub(crate) fn acknowledgement(
        &mut self,
        payload_max: usize,
        now: Moment,
    ) -> (u64, Credit, Acknowledgement) {
        let waited = self.owed_since.map_or(0, |since| now.since(since).as_micros());
        self.settle();
        let (place, edge) = (self.place(), self.promise(payload_max));
        let told = Acknowledgement {
            edge: edge as u32,
            delay_micros: u16::try_from(waited).unwrap_or(u16::MAX),
            duplicates: core::mem::take(&mut self.duplicates),
            ranges: self
                .beyond
                .iter()
                .take(RANGES_TOLD_MAX)
                .map(|range| range.start as u32..range.end as u32)
                .collect(),
        };
        (place, Credit::of(edge.saturating_sub(place)), told)
    }
}

//! The sending half of a channel: what is to be sent, what is on the way, what has arrived.
//!
//! Each datagram that was sent leaves a record until its bytes are acknowledged, singly (selective repeat). A record
//! counts as lost when something that was *sent* sufficiently later has arrived, so a repetition is judged like a first
//! transmission.

use super::buffer::Buffer;
use super::time::Moment;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

/// 4: a request written in a few pieces goes out without waiting, and who writes single bytes sends at most four
/// datagrams in a round trip; the rest gathers (after Minshall's variant of Nagle's algorithm, RFC 896).
const SMALL_OUTSTANDING_MAX: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Flying,
    Lost,
    Arrived,
}

#[derive(Debug, Clone)]
struct Record {
    start: u64,
    length: u32,
    /// It carries the end of the stream, which takes one place.
    finish: bool,
    small: bool,
    fate: Fate,
    again: bool,
    /// Its number among all transmissions of the session.
    order: u64,
    at: Moment,
}

impl Record {
    fn end(&self) -> u64 {
        self.start + u64::from(self.length) + u64::from(self.finish)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    No,
    /// The end is known and was not sent yet.
    Asked,
    Sent,
}

/// What to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes.
    Send { start: u64, length: usize, finish: bool, last: bool, again: bool },
    /// Nothing now: an acknowledgement, or the program, has to come first.
    Nothing,
    /// Something, but the session's window is full.
    WindowFull,
}

/// What an acknowledgement changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Bytes that are known to have arrived and were not before.
    pub(crate) arrived: u64,
    /// Of those, what was counted as on the way.
    pub(crate) landed: u64,
    /// When the latest of them was sent, if it was sent only once.
    pub(crate) sent_at: Option<Moment>,
    /// Something advanced.
    pub(crate) progress: bool,
}

/// What the search for losses found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Bytes no longer on the way.
    pub(crate) bytes: u64,
    /// The highest transmission number among them.
    pub(crate) order: Option<u64>,
    /// When to look again.
    pub(crate) look_again: Option<Moment>,
}

#[derive(Debug)]
pub(crate) struct Outbound {
    buffer: Buffer,
    records: VecDeque<Record>,
    /// The first place never sent.
    next: u64,
    /// Behind the last byte the program gave.
    written: u64,
    finish: Finish,
    /// Behind the last byte the peer takes.
    edge: u64,
    window: u64,
    lost: usize,
    small: u32,
    again: usize,
    highest_order: Option<u64>,
    /// Something was passed over by what was sent later.
    suspicious: bool,
}

impl Outbound {
    /// A stream that begins at `first`; the peer takes `credit` bytes before it says more.
    pub(crate) fn new(first: u64, credit: u64, window: u64, spare: Vec<u8>) -> Self {
        Self {
            buffer: Buffer::at(first, spare),
            records: VecDeque::new(),
            next: first,
            written: first,
            finish: Finish::No,
            edge: first + credit,
            window,
            lost: 0,
            small: 0,
            again: 0,
            highest_order: None,
            suspicious: false,
        }
    }

    /// Takes as much of `bytes` as there is room for; how much.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        if self.finish != Finish::No {
            return 0;
        }
        let length = bytes.len().min(self.room());
        if length > 0 {
            self.buffer.put(self.written, &bytes[..length]);
            self.written += length as u64;
        }
        length
    }

    /// Bytes the program may write.
    pub(crate) fn room(&self) -> usize {
        self.window.saturating_sub(self.queued()) as usize
    }

    /// Ends the stream behind what was written.
    pub(crate) fn finish(&mut self) {
        if self.finish == Finish::No {
            self.finish = Finish::Asked;
        }
    }

    /// Whether all of it, and its end, has arrived.
    pub(crate) fn is_done(&self) -> bool {
        self.finish == Finish::Sent && self.records.is_empty()
    }

    /// Whether the peer would have to acknowledge something.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.records.is_empty()
    }

    /// Whether the program's bytes wait for credit, with nothing on the way that would bring some.
    pub(crate) fn is_starved(&self) -> bool {
        self.records.is_empty() && self.next < self.written && self.next >= self.edge
    }

    /// The place to probe at when starved.
    pub(crate) fn next_place(&self) -> u64 {
        self.next
    }

    /// Whether the place with these low bits was sent and has not been acknowledged, or is the next.
    pub(crate) fn has_sent(&self, low: u32) -> bool {
        let place = super::header::widen(low, self.next);
        (self.buffer.base()..=self.next).contains(&place)
    }

    /// Bytes given by the program that have not arrived yet.
    pub(crate) fn queued(&self) -> u64 {
        self.written - self.buffer.base()
    }

    /// The bytes that [`Piece::Send`] told, in two pieces.
    pub(crate) fn slices(&self, start: u64, length: usize) -> (&[u8], &[u8]) {
        self.buffer.slices(start, length)
    }

    /// What to send, in datagrams of at most `payload_max` bytes, with `allowed` bytes left of the session's window and
    /// `idle` if nothing of the session is on the way.
    pub(crate) fn next_piece(
        &mut self,
        payload_max: usize,
        allowed: u64,
        idle: bool,
        stamp: (u64, Moment),
    ) -> Piece {
        if self.lost > 0 {
            return self.repeat(payload_max, allowed, idle, stamp);
        }
        let waiting = self.written - self.next;
        let open = self.edge.saturating_sub(self.next);
        let length = waiting.min(open).min(payload_max as u64);
        let last = length == waiting;
        let finish = last && self.finish == Finish::Asked;
        if length == 0 && !finish {
            return Piece::Nothing;
        }
        let small = (length as usize) < payload_max;
        let must_wait = small
            && !finish
            && match last {
                // What the program gave last: it goes unless many such are out.
                true => self.small >= SMALL_OUTSTANDING_MAX,
                // Cut short by the peer's credit: a silly window (RFC 813, section 4).
                false => !self.records.is_empty(),
            };
        if must_wait {
            return Piece::Nothing;
        }
        if length > allowed && !idle {
            return Piece::WindowFull;
        }
        let (order, at) = stamp;
        let start = self.next;
        self.records.push_back(Record {
            start,
            length: length as u32,
            finish,
            small,
            fate: Fate::Flying,
            again: false,
            order,
            at,
        });
        self.small += u32::from(small);
        self.next += length + u64::from(finish);
        if finish {
            self.finish = Finish::Sent;
            self.written = self.next;
        }
        Piece::Send { start, length: length as usize, finish, last, again: false }
    }

    /// Sends the first lost record again; one that is too long for the path now is cut.
    fn repeat(
        &mut self,
        payload_max: usize,
        allowed: u64,
        idle: bool,
        stamp: (u64, Moment),
    ) -> Piece {
        let Some(place) = self.records.iter().position(|record| record.fate == Fate::Lost) else {
            self.lost = 0;
            return Piece::Nothing;
        };
        let record = &mut self.records[place];
        let length = (record.length as usize).min(payload_max);
        if length as u64 > allowed && !idle {
            return Piece::WindowFull;
        }
        if length < record.length as usize {
            let mut rest = record.clone();
            rest.start += length as u64;
            rest.length -= length as u32;
            rest.small = false;
            record.length = length as u32;
            record.finish = false;
            self.again += usize::from(rest.again);
            self.records.insert(place + 1, rest);
        } else {
            self.lost -= 1;
        }
        let record = &mut self.records[place];
        self.again += usize::from(!record.again);
        record.again = true;
        record.fate = Fate::Flying;
        (record.order, record.at) = stamp;
        let piece = Piece::Send {
            start: record.start,
            length: record.length as usize,
            finish: record.finish,
            last: self.lost == 0 && self.next == self.written,
            again: true,
        };
        self.suspicious = true;
        piece
    }

    /// The peer takes bytes up to `edge`. An edge never goes back. Returns whether there is more room now.
    pub(crate) fn extend(&mut self, edge: u64) -> bool {
        // A window of more than the places that can be told apart is nobody's.
        let edge = edge.min(self.next + (1 << 30));
        let more = edge > self.edge;
        self.edge = self.edge.max(edge);
        more
    }

    /// Everything below `place` has arrived, and `ranges` beyond it. `None` if that cannot be: it was never sent.
    pub(crate) fn acknowledge(
        &mut self,
        place: u64,
        ranges: impl Iterator<Item = Range<u64>>,
    ) -> Option<Heard> {
        if place > self.next {
            return None;
        }
        let mut heard = Heard::default();
        let mut latest: Option<(u64, Option<Moment>)> = None;
        while let Some(record) = self.records.front_mut() {
            if record.end() > place {
                if record.start < place {
                    // Cut when it was repeated on a narrower path, and only the first part came.
                    let cut = (place - record.start) as u32;
                    (record.start, record.length) = (place, record.length.saturating_sub(cut));
                    heard.progress = true;
                    if record.fate == Fate::Flying {
                        heard.landed += u64::from(cut);
                    }
                }
                break;
            }
            let Some(record) = self.records.pop_front() else { break };
            heard.progress = true;
            self.small -= u32::from(record.small);
            self.again -= usize::from(record.again);
            self.lost -= usize::from(record.fate == Fate::Lost);
            land(&record, &mut heard, &mut latest);
        }
        self.buffer.advance(place.min(self.written));
        for range in ranges {
            if range.start >= range.end || range.end > self.next {
                return None;
            }
            self.mark(range, &mut heard, &mut latest);
        }
        if let Some((order, sent_at)) = latest {
            heard.sent_at = sent_at;
            self.highest_order = self.highest_order.max(Some(order));
        }
        self.suspicious |= self.again > 0;
        Some(heard)
    }

    fn mark(
        &mut self,
        range: Range<u64>,
        heard: &mut Heard,
        latest: &mut Option<(u64, Option<Moment>)>,
    ) {
        let from = self.records.partition_point(|record| record.start < range.start);
        for record in self.records.iter_mut().skip(from) {
            if record.end() > range.end {
                break;
            }
            if record.fate != Fate::Arrived {
                self.lost -= usize::from(record.fate == Fate::Lost);
                land(record, heard, latest);
                record.fate = Fate::Arrived;
                heard.progress = true;
                self.suspicious = true;
            }
        }
    }

    /// Whether anything may have been passed over.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspicious
    }

    /// Finds what was passed over by at least `reorder` transmissions, or by one for as long as `patience`.
    pub(crate) fn find_lost(&mut self, reorder: u64, patience: Duration, now: Moment) -> Losses {
        let mut losses = Losses::default();
        let Some(highest) = self.highest_order.filter(|_| self.suspicious) else { return losses };
        let mut passed_over = false;
        for record in &mut self.records {
            if record.fate != Fate::Flying || record.order > highest {
                continue;
            }
            let due = record.at + patience;
            if record.order + reorder <= highest || due <= now {
                record.fate = Fate::Lost;
                self.lost += 1;
                losses.bytes += u64::from(record.length);
                losses.order = losses.order.max(Some(record.order));
            } else {
                passed_over = true;
                losses.look_again = Some(losses.look_again.map_or(due, |at| at.min(due)));
            }
        }
        self.suspicious = passed_over || self.again > 0;
        losses
    }

    /// Takes the oldest record that was sent before `before` for lost; how many bytes are no longer on the way.
    pub(crate) fn give_up_oldest(&mut self, before: Moment) -> Option<u64> {
        let flying = |record: &&mut Record| record.fate == Fate::Flying && record.at <= before;
        let record = self.records.iter_mut().find(flying)?;
        record.fate = Fate::Lost;
        self.lost += 1;
        Some(u64::from(record.length))
    }

    /// Its memory, for another stream.
    pub(crate) fn into_spare(self) -> Vec<u8> {
        self.buffer.into_spare()
    }

    /// Bytes on the way.
    pub(crate) fn in_flight(&self) -> u64 {
        let flying = self.records.iter().filter(|record| record.fate == Fate::Flying);
        flying.map(|record| u64::from(record.length)).sum()
    }
}

/// Counts a record that has arrived.
fn land(record: &Record, heard: &mut Heard, latest: &mut Option<(u64, Option<Moment>)>) {
    if record.fate == Fate::Arrived {
        return;
    }
    heard.arrived += u64::from(record.length);
    if record.fate == Fate::Flying {
        heard.landed += u64::from(record.length);
    }
    if latest.is_none_or(|(order, _)| order < record.order) {
        *latest = Some((record.order, (!record.again).then_some(record.at)));
    }
}

//! What goes to the peer.

use super::super::channel::Opening;
use super::super::check::{CHECK_BYTES, crc32c};
use super::super::config::{DatagramSize, check_bytes};
use super::super::control::Message;
use super::super::header::{
    ChannelId, Credit, Flags, HEADER_BYTES_MAX, HEADER_BYTES_MIN, Header, Kind,
};
use super::super::outbound::Piece;
use super::super::time::Moment;
use super::timers::Class;
use super::{Outgoing, Session, State};
use alloc::vec::Vec;

/// 16: so many datagrams one channel sends before the next has its turn; enough for a carrier to send them as one piece.
const TURN_DATAGRAMS: u32 = 16;

impl Session {
    /// Writes the next datagram into `out`, which holds [`Session::datagram`] bytes or more; its length. `None` if there
    /// is nothing to send now.
    pub fn transmit(&mut self, now: Moment, out: &mut [u8]) -> Option<usize> {
        self.on_time(now);
        if let State::Calling(call) = &mut self.state
            && call.due <= now
        {
            let (message, size) = call.next(&self.config, now);
            return self.tell_setup(&message, size.get(), out);
        }
        if let Some(outgoing) = self.outbox.pop_front() {
            return self.tell(&outgoing, out);
        }
        if !self.is_established() {
            return None;
        }
        self.tell_acknowledgement(now, out)
            .or_else(|| self.tell_starved(out))
            .or_else(|| self.tell_data(now, out))
    }

    /// Makes a datagram of `size` that the peer answers with [`Event::Proved`](super::Event::Proved), to be sent by any
    /// way: its number and length. `None` without a session.
    pub fn prove(&mut self, size: DatagramSize, out: &mut [u8]) -> Option<(u32, usize)> {
        if !self.is_established() {
            return None;
        }
        self.pings = self.pings.wrapping_add(1);
        let number = Class::Proves.number(self.pings);
        let outgoing = Outgoing {
            message: Message::Ping { number },
            channel: ChannelId::SESSION,
            session: self.agreed.tag,
            places: (0, 0),
            padded: Some(size),
        };
        Some((number, self.tell(&outgoing, out)?))
    }

    fn tell_setup(&mut self, message: &Message, size: usize, out: &mut [u8]) -> Option<usize> {
        let mut body = Vec::with_capacity(size);
        message.write(&mut body);
        body.resize((size - HEADER_BYTES_MAX).max(body.len()), 0);
        let header = Header::control(super::SessionTag(0), ChannelId::SESSION, body.len() as u16);
        self.counters.control_sent += 1;
        compose(&header, &body, false, out)
    }

    fn tell(&mut self, outgoing: &Outgoing, out: &mut [u8]) -> Option<usize> {
        if outgoing.session.0 == 0 {
            let size = outgoing.padded.map_or(0, |size| size.get());
            return self.tell_setup(&outgoing.message, size.max(HEADER_BYTES_MAX), out);
        }
        let mut body = Vec::new();
        outgoing.message.write(&mut body);
        if let Some(size) = outgoing.padded {
            let around = HEADER_BYTES_MAX + check_bytes(self.agreed.checked);
            body.resize((size.get() - around).max(body.len()), 0);
        }
        let mut header = Header::control(outgoing.session, outgoing.channel, body.len() as u16);
        (header.acknowledgement, header.sequence) = outgoing.places;
        self.counters.control_sent += 1;
        compose(&header, &body, self.agreed.checked, out)
    }

    fn tell_acknowledgement(&mut self, now: Moment, out: &mut [u8]) -> Option<usize> {
        let payload_max = self.payload_max();
        while let Some(id) = self.acknowledge_now.pop_front() {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            if !channel.acknowledge_now {
                continue;
            }
            channel.acknowledge_now = false;
            let sequence = channel.outbound.next_place() as u32;
            let (place, credit, told) = channel.inbound.acknowledgement(payload_max, now);
            let mut body = Vec::new();
            Message::Acknowledge(told).write(&mut body);
            let header = Header {
                credit,
                sequence,
                acknowledgement: place as u32,
                ..Header::control(self.agreed.tag, ChannelId(id), body.len() as u16)
            };
            self.counters.control_sent += 1;
            return compose(&header, &body, self.agreed.checked, out);
        }
        None
    }

    /// Asks for credit on a channel that has none left and nothing on the way.
    fn tell_starved(&mut self, out: &mut [u8]) -> Option<usize> {
        while let Some(id) = self.starved.pop_front() {
            let Some(channel) = self.channels.get(&id) else { continue };
            if channel.outbound.is_starved() {
                let start = channel.outbound.next_place();
                let planned = self.plan_piece(id, (start, 0), Flags::ASK)?;
                return self.write_planned(&planned, out);
            }
        }
        None
    }

    fn tell_data(&mut self, now: Moment, out: &mut [u8]) -> Option<usize> {
        let around = HEADER_BYTES_MIN + check_bytes(self.agreed.checked);
        let room = out.len().saturating_sub(around);
        let planned = self.plan_data(now, room)?;
        self.write_planned(&planned, out)
    }

    /// Plans the next datagram of a channel without copying its payload, for a carrier that takes pieces: it sends
    /// [`Planned::head`] and then what [`Session::pieces`] gives. `None` if there is none, or something else goes first:
    /// then [`Session::transmit`] has it.
    pub fn plan(&mut self, now: Moment) -> Option<Planned> {
        self.on_time(now);
        let other = !self.outbox.is_empty()
            || !self.acknowledge_now.is_empty()
            || !self.starved.is_empty()
            || self.agreed.checked;
        if other || !self.is_established() {
            return None;
        }
        self.plan_data(now, usize::MAX)
    }

    /// The payload of a planned datagram. It stays what it is until the session is told something.
    pub fn pieces(&self, planned: &Planned) -> (&[u8], &[u8]) {
        match self.channels.get(&planned.channel) {
            Some(channel) => channel.outbound.slices(planned.start, planned.length),
            None => (&[], &[]),
        }
    }

    fn plan_data(&mut self, now: Moment, room: usize) -> Option<Planned> {
        let payload_max = self.payload_max().min(room);
        while let Some(id) = self.ready.front().copied() {
            let allowed = self.congestion.window().saturating_sub(self.in_flight);
            // A probe goes out however full the window is: nothing else would ever empty it.
            let idle = self.in_flight == 0 || self.exempt > 0;
            let stamp = (self.order, now);
            let Some(channel) = self.channels.get_mut(&id) else {
                self.ready.pop_front();
                continue;
            };
            match channel.outbound.next_piece(payload_max, allowed, idle, stamp) {
                Piece::Nothing => {
                    channel.is_ready = false;
                    if self.probes == 0 && channel.outbound.is_starved() && idle {
                        self.probe_base = now;
                    }
                    self.ready.pop_front();
                    self.turn = 0;
                }
                Piece::WindowFull => return None,
                Piece::Send { start, length, finish, last, again } => {
                    self.count_sent(length, again, now);
                    let flags = Flags::NONE
                        .with_if(finish, Flags::FINISH)
                        .with_if(last, Flags::PUSH)
                        // What was missing is waited for, and so is the answer to a probe.
                        .with_if(again || self.probes > 0, Flags::ASK);
                    return self.plan_piece(id, (start, length), flags);
                }
            }
        }
        None
    }

    fn count_sent(&mut self, length: usize, again: bool, now: Moment) {
        self.turn += 1;
        if self.turn >= TURN_DATAGRAMS {
            self.turn = 0;
            self.ready.rotate_left(1);
        }
        self.order += 1;
        self.exempt = self.exempt.saturating_sub(1);
        self.in_flight += length as u64;
        self.probe_base = now;
        self.counters.data_repeated += u64::from(again);
    }

    /// Makes the header of a piece of a stream.
    fn plan_piece(
        &mut self,
        id: u16,
        (start, length): (u64, usize),
        flags: Flags,
    ) -> Option<Planned> {
        let payload_max = self.payload_max();
        let channel = self.channels.get_mut(&id)?;
        let opens = channel.opening == Opening::Calling;
        let (place, credit) = channel.inbound.piggyback(payload_max);
        if channel.acknowledge_now && !channel.inbound.must_be_told() {
            channel.acknowledge_now = false;
            self.acknowledge_now.retain(|other| *other != id);
        }
        let header = Header {
            kind: Kind::Data,
            flags: flags.with_if(opens, Flags::OPEN),
            credit: if opens { Credit::of(self.config.window()) } else { credit },
            length: length as u16,
            sequence: start as u32,
            acknowledgement: place as u32,
            session: self.agreed.tag,
            channel: ChannelId(id),
        };
        let mut head = [0; HEADER_BYTES_MAX];
        let head_bytes = header.write(&mut head);
        self.counters.data_sent += 1;
        Some(Planned { head, head_bytes, channel: id, start, length })
    }

    fn write_planned(&self, planned: &Planned, out: &mut [u8]) -> Option<usize> {
        let (head, rest) = out.split_at_mut_checked(planned.head_bytes)?;
        head.copy_from_slice(planned.head());
        let (first, second) = self.pieces(planned);
        rest.get_mut(..first.len())?.copy_from_slice(first);
        rest.get_mut(first.len()..planned.length)?.copy_from_slice(second);
        seal(planned.datagram_bytes(), self.agreed.checked, out)
    }
}

/// A data datagram whose payload is still where it was.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    head: [u8; HEADER_BYTES_MAX],
    head_bytes: usize,
    channel: u16,
    start: u64,
    length: usize,
}

impl Planned {
    /// Its header.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes]
    }

    /// Bytes of the whole datagram.
    pub fn datagram_bytes(&self) -> usize {
        self.head_bytes + self.length
    }
}

/// Puts a control datagram together.
fn compose(header: &Header, body: &[u8], checked: bool, out: &mut [u8]) -> Option<usize> {
    let (head, rest) = out.split_first_chunk_mut::<HEADER_BYTES_MAX>()?;
    header.write(head);
    rest.get_mut(..body.len())?.copy_from_slice(body);
    seal(HEADER_BYTES_MAX + body.len(), checked, out)
}

/// Appends the check, if one was agreed on.
fn seal(length: usize, checked: bool, out: &mut [u8]) -> Option<usize> {
    if !checked {
        return Some(length);
    }
    let check = crc32c(&out[..length]);
    out.get_mut(length..length + CHECK_BYTES)?.copy_from_slice(&check.to_be_bytes());
    Some(length + CHECK_BYTES)
}

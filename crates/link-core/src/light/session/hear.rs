//! What comes from the peer.

use super::super::channel::{Channel, Opening};
use super::super::check::{CHECK_BYTES, crc32c};
use super::super::config::{DatagramSize, check_bytes};
use super::super::control::{Acknowledgement, Introduction, Message, Nonce, Proof, ResetReason};
use super::super::header::{ChannelId, Flags, Header, Kind, widen};
use super::super::inbound::Arrival;
use super::super::setup::Answer;
use super::super::time::Moment;
use super::timers::Class;
use super::{Event, Loss, Outgoing, Session, State};
use core::time::Duration;

/// Datagrams that are acknowledged together while all goes well: RFC 813 asks for few, the sender's window must not run
/// dry for want of one.
const DATAGRAMS_PER_ACKNOWLEDGEMENT: u64 = 16;

/// Takes bytes of a channel at once; how many.
type Taker<'a> = &'a mut dyn FnMut(ChannelId, &[u8]) -> usize;

impl Session {
    /// Takes a datagram of the peer. Which one that is, the carrier knows by its address; that it is the peer of this
    /// session is shown by tag and proofs. Whatever it is, it is counted and does no harm.
    pub fn receive(&mut self, datagram: &[u8], now: Moment) {
        self.receive_with(datagram, now, &mut |_, _| 0);
    }

    /// The same; bytes that are the next to be read are offered to `taker` before they are kept. It says how many it has
    /// taken: those are read.
    pub fn receive_with(&mut self, datagram: &[u8], now: Moment, taker: Taker<'_>) {
        let behind = check_bytes(self.agreed.checked);
        let Some((header, payload)) = Header::read(datagram, behind) else {
            self.counters.malformed += 1;
            return;
        };
        if header.session.0 == 0 {
            match (header.kind, Message::read(payload)) {
                (Kind::Control, Some(message)) => self.hear_setup(message, now),
                _ => self.counters.malformed += 1,
            }
            return;
        }
        if !self.is_of_session(&header) {
            self.counters.foreign += 1;
            return;
        }
        if self.agreed.checked && !is_whole(datagram, &header) {
            self.counters.corrupt += 1;
            return;
        }
        self.counters.received += 1;
        self.last_heard = now;
        if self.stalled {
            self.stalled = false;
            self.events.push_back(Event::Resumed);
        }
        match header.kind {
            Kind::Data => self.hear_data(&header, payload, now, taker),
            Kind::Control => match Message::read(payload) {
                Some(message) => self.hear_control(&header, message, now),
                None => self.counters.malformed += 1,
            },
        }
    }

    /// Whether a datagram belongs to the session; its first one completes the set-up of the caller.
    fn is_of_session(&mut self, header: &Header) -> bool {
        match &self.state {
            State::Established => header.session == self.agreed.tag,
            State::Calling(call) => match call.confirming {
                Some((_, agreed)) if header.session == agreed.tag => {
                    self.agreed.checked = agreed.checked;
                    header.kind == Kind::Control
                }
                _ => false,
            },
            State::Idle => false,
        }
    }

    fn hear_setup(&mut self, message: Message, now: Moment) {
        match message {
            Message::Hello { who, proof } => self.hear_hello(who, &proof),
            Message::Welcome(welcome) => {
                let State::Calling(call) = &mut self.state else { return };
                if !call.on_welcome(&self.config, &welcome, now) {
                    self.counters.foreign += 1;
                }
            }
            Message::Confirm { nonce, proof } => self.hear_confirm(&nonce, &proof, now),
            Message::Ready
            | Message::Acknowledge(_)
            | Message::Reset { .. }
            | Message::ResetHeard { .. }
            | Message::Ping { .. }
            | Message::Pong { .. }
            | Message::Goodbye => self.counters.foreign += 1,
        }
    }

    fn hear_hello(&mut self, who: Introduction, proof: &Proof) {
        // Both call: the agent with the smaller id goes on, the other answers.
        let we_call = matches!(self.state, State::Calling(_)) && self.config.me < self.config.peer;
        if we_call && who.from == self.config.peer {
            return;
        }
        if !self.answer.as_ref().is_some_and(|answer| answer.is_to(&who)) {
            let nonce = self.nonce();
            match Answer::to(&self.config, who, proof, nonce, self.agreed.tag) {
                Some(answer) => self.answer = Some(answer),
                None => {
                    self.counters.foreign += 1;
                    return;
                }
            }
        }
        let Some(answer) = &self.answer else { return };
        let (message, size) = answer.message(&self.config);
        self.post_padded(message, size);
    }

    fn hear_confirm(&mut self, nonce: &Nonce, proof: &Proof, now: Moment) {
        let Some(answer) = &self.answer else { return };
        if !answer.is_confirmed(&self.config, nonce, proof) {
            self.counters.foreign += 1;
            return;
        }
        let agreed = answer.agreed;
        // A confirm that is repeated because our ready was lost changes nothing.
        if !(self.is_established() && self.agreed.tag == agreed.tag) {
            self.establish(agreed, now);
        }
        self.post(Message::Ready, ChannelId::SESSION, agreed.tag);
    }

    fn post_padded(&mut self, message: Message, size: DatagramSize) {
        self.post_whole(Outgoing {
            message,
            channel: ChannelId::SESSION,
            session: super::SessionTag(0),
            places: (0, 0),
            padded: Some(size),
        });
    }

    fn hear_control(&mut self, header: &Header, message: Message, now: Moment) {
        if let State::Calling(call) = &self.state {
            if let (Message::Ready, Some((_, agreed))) = (&message, call.confirming) {
                self.establish(agreed, now);
            }
            return;
        }
        let tag = self.agreed.tag;
        match message {
            Message::Ready => {}
            Message::Acknowledge(told) => self.hear_acknowledgement(header, &told, now),
            Message::Reset { reason, first } => self.hear_reset(header.channel, reason, first),
            Message::ResetHeard { first } => {
                if self.graves.get(&header.channel.0).is_some_and(|grave| grave.first == first) {
                    self.graves.remove(&header.channel.0);
                }
            }
            Message::Ping { number } => {
                self.post(Message::Pong { number }, ChannelId::SESSION, tag);
            }
            Message::Pong { number } => self.hear_pong(number),
            Message::Goodbye => {
                self.lose(Loss::Left, now);
            }
            Message::Hello { .. } | Message::Welcome(_) | Message::Confirm { .. } => {
                self.counters.malformed += 1;
            }
        }
    }

    fn hear_pong(&mut self, number: u32) {
        match Class::of(number) {
            // Large datagrams pass again.
            Class::Raises if number == Class::Raises.number(self.pings) => {
                self.datagram = self.agreed.datagram;
            }
            Class::Proves => self.events.push_back(Event::Proved { number }),
            Class::Raises | Class::KeepsAlive => {}
        }
    }

    fn hear_reset(&mut self, id: ChannelId, reason: ResetReason, first: u32) {
        let tag = self.agreed.tag;
        if let Some(channel) = self.channels.get(&id.0) {
            let ours = match reason {
                // Who knows nothing of the channel repeats a sequence number of ours: one that is on the way.
                ResetReason::Unknown => channel.outbound.has_sent(first),
                _ => channel.first == first,
            };
            if !ours {
                self.counters.foreign += 1;
                return;
            }
            self.remove(id.0);
            self.events.push_back(Event::Reset { channel: id, reason });
        }
        self.post(Message::ResetHeard { first }, id, tag);
    }

    fn hear_acknowledgement(&mut self, header: &Header, told: &Acknowledgement, now: Moment) {
        let id = header.channel.0;
        let Some(channel) = self.channels.get_mut(&id) else {
            if !self.resting.contains_key(&id) && !self.graves.contains_key(&id) {
                self.refuse_unknown(header.channel, header.sequence);
            }
            return;
        };
        let near = channel.outbound.next_place();
        let place = widen(header.acknowledgement, near);
        let edge = widen(told.edge, place);
        let ranges = told.ranges.iter().map(|range| {
            let start = widen(range.start, near);
            start..widen(range.end, start)
        });
        if channel.outbound.extend(edge) {
            self.make_ready(id);
        }
        let delay = Duration::from_micros(u64::from(told.delay_micros));
        self.take_acknowledgement(id, place, ranges, delay, now);
        if told.duplicates && self.doubted {
            self.doubted = false;
            self.disorder.on_mistake(self.round_trip.smoothed());
            self.congestion.on_spurious();
        }
        self.close_if_over(id, now);
    }

    /// Applies what the peer says has arrived.
    fn take_acknowledgement(
        &mut self,
        id: u16,
        place: u64,
        ranges: impl Iterator<Item = core::ops::Range<u64>>,
        delay: Duration,
        now: Moment,
    ) {
        let payload_max = self.payload_max() as u64;
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let Some(heard) = channel.outbound.acknowledge(place, ranges) else {
            self.break_off(id, now);
            return;
        };
        if channel.opening == Opening::Calling {
            channel.opening = Opening::Called;
        }
        self.in_flight -= heard.landed;
        if heard.progress {
            self.probes = 0;
            self.probe_base = now;
            self.congestion.on_acknowledged(heard.arrived, self.in_flight, payload_max);
        }
        if let Some(sent_at) = heard.sent_at {
            self.round_trip.on_sample(now.since(sent_at).saturating_sub(delay), now);
        }
        self.seek_losses(id, now);
        self.make_ready(id);
        if let Some(channel) = self.channels.get_mut(&id)
            && channel.wants_room
            && channel.outbound.room() > 0
        {
            channel.wants_room = false;
            self.events.push_back(Event::Writable(ChannelId(id)));
        }
    }

    /// Looks for what was passed over on one channel.
    pub(super) fn seek_losses(&mut self, id: u16, now: Moment) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if !channel.outbound.is_suspicious() {
            return;
        }
        let smoothed = self.round_trip.smoothed();
        let patience = smoothed + self.disorder.time(smoothed);
        let losses = channel.outbound.find_lost(self.disorder.datagrams(), patience, now);
        self.in_flight -= losses.bytes;
        if let Some(order) = losses.order {
            let datagram = self.payload_max() as u64;
            self.doubted = true;
            self.disorder.on_loss();
            self.congestion.on_lost(order, self.order, &self.round_trip, datagram);
            self.make_ready(id);
        }
        if let Some(at) = losses.look_again {
            self.look_again = Some(self.look_again.map_or(at, |have| have.min(at)));
        }
    }

    fn hear_data(&mut self, header: &Header, payload: &[u8], now: Moment, taker: Taker<'_>) {
        let id = header.channel.0;
        if !self.channels.contains_key(&id) && !self.admit(header) {
            return;
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let place = channel.inbound.place();
        let mut start = widen(header.sequence, place);
        if start < channel.beginning() {
            self.counters.superfluous += payload.len() as u64;
            return;
        }
        let finish = header.flags.has(Flags::FINISH);
        let mut rest = payload;
        if start == place && channel.opening != Opening::Incoming && !payload.is_empty() {
            let taken = channel.inbound.pass(start, payload, |bytes| taker(header.channel, bytes));
            start += taken as u64;
            rest = &payload[taken..];
        }
        let arrival = match payload.is_empty() && !finish {
            // A question only.
            true => Arrival::Duplicate,
            false => channel.inbound.accept(start, rest, finish, now),
        };
        let asked = finish || header.flags.has(Flags::ASK);
        let owed = DATAGRAMS_PER_ACKNOWLEDGEMENT * payload.len() as u64;
        let at_once = match arrival {
            Arrival::Next => asked || (owed > 0 && channel.inbound.owed_bytes() >= owed),
            Arrival::Filled | Arrival::Duplicate => true,
            Arrival::Hole => channel.inbound.tell_hole() || asked,
            Arrival::Outside => asked,
            Arrival::Contradiction => return self.break_off(id, now),
        };
        if matches!(arrival, Arrival::Duplicate | Arrival::Outside) {
            self.counters.superfluous += payload.len() as u64;
        }
        if at_once {
            self.acknowledge_at_once(id);
        } else {
            self.acknowledge_soon(id, now);
        }
        self.hear_piggyback(header, now);
        self.announce(id, now);
        self.close_if_over(id, now);
    }

    /// A data datagram acknowledges as well.
    fn hear_piggyback(&mut self, header: &Header, now: Moment) {
        let id = header.channel.0;
        // The peer has heard nothing: its place is where we began.
        if header.flags.has(Flags::OPEN) {
            return;
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let place = widen(header.acknowledgement, channel.outbound.next_place());
        if channel.outbound.extend(place + header.credit.bytes()) {
            self.make_ready(id);
        }
        self.take_acknowledgement(id, place, core::iter::empty(), Duration::ZERO, now);
    }

    fn acknowledge_soon(&mut self, id: u16, now: Moment) {
        let due = now + self.config.acknowledge_within;
        if let Some(channel) = self.channels.get_mut(&id)
            && !channel.acknowledge_later
            && !channel.acknowledge_now
        {
            channel.acknowledge_later = true;
            self.acknowledge_later.push_back((due, id));
        }
    }

    /// A datagram for a number without a channel: whether it opens one.
    fn admit(&mut self, header: &Header) -> bool {
        let id = header.channel.0;
        let first = header.acknowledgement;
        let opens = header.flags.has(Flags::OPEN);
        if let Some(rest) = self.resting.get(&id).copied() {
            if !opens || rest.first == first {
                self.acknowledge_rest(id, rest);
                return false;
            }
            self.resting.remove(&id);
        }
        if self.graves.contains_key(&id) {
            return false;
        }
        // Odd numbers are given by the agent with the smaller id.
        let theirs = (id & 1 == 1) == (self.config.peer < self.config.me);
        if !opens || id == 0 || !theirs {
            self.refuse_unknown(header.channel, header.sequence);
            return false;
        }
        if self.channels.len() >= self.config.channels_max {
            let refusal = Message::Reset { reason: ResetReason::Refused, first };
            self.post(refusal, header.channel, self.agreed.tag);
            return false;
        }
        let credit = header.credit.bytes();
        let window = self.config.window();
        let channel = Channel::new(first, Opening::Incoming, credit, window, &mut self.spares);
        self.channels.insert(id, channel);
        true
    }

    fn refuse_unknown(&mut self, channel: ChannelId, sequence: u32) {
        let refusal = Message::Reset { reason: ResetReason::Unknown, first: sequence };
        self.post(refusal, channel, self.agreed.tag);
    }

    /// Tells the program what came.
    fn announce(&mut self, id: u16, now: Moment) {
        let payload_max = self.payload_max();
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.opening == Opening::Incoming {
            match channel.take_opening(payload_max) {
                Ok(Some(opening)) => {
                    self.events.push_back(Event::Opened { channel: ChannelId(id), opening });
                }
                Ok(None) if channel.inbound.is_complete() => return self.break_off(id, now),
                Ok(None) => return,
                Err(_) => return self.break_off(id, now),
            }
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.inbound.readable() > 0 && !channel.told_readable {
            channel.told_readable = true;
            self.events.push_back(Event::Readable(ChannelId(id)));
        }
        if channel.inbound.is_complete() && !channel.told_finished {
            channel.told_finished = true;
            self.events.push_back(Event::Finished(ChannelId(id)));
        }
    }

    /// The peer broke the rules on this channel.
    fn break_off(&mut self, id: u16, now: Moment) {
        let announced = self.channels.get(&id).is_some_and(|c| c.opening != Opening::Incoming);
        self.reset(ChannelId(id), ResetReason::Violated, now);
        if announced {
            let reason = ResetReason::Violated;
            self.events.push_back(Event::Reset { channel: ChannelId(id), reason });
        }
    }
}

/// Whether the check behind a datagram is right.
fn is_whole(datagram: &[u8], header: &Header) -> bool {
    let (covered, behind) = datagram.split_at(header.bytes() + usize::from(header.length));
    let Some(check) = behind.first_chunk::<CHECK_BYTES>() else { return false };
    crc32c(covered) == u32::from_be_bytes(*check)
}

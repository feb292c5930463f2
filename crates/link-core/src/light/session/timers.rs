//! What is due when nothing comes.

use super::super::config::DatagramSize;
use super::super::control::Message;
use super::super::header::ChannelId;
use super::super::time::Moment;
use super::{Event, Loss, Outgoing, Session, State};
use alloc::vec::Vec;
use core::time::Duration;

/// A probe is never further away than this, however many stayed unanswered: half of what a stall takes.
const PROBE_MAX: Duration = Duration::from_millis(200);
/// Channels whose oldest datagram is sent again by one probe.
const PROBED_CHANNELS: usize = 8;
/// So many unanswered probes mean that the path has changed: the window falls to its least, and datagrams get smaller.
const PROBES_OF_SILENCE: u32 = 3;
/// How often the end of a channel is told to a peer that does not answer, and how long apart.
const GRAVE_TOLD_MAX: u32 = 20;
const GRAVE_PAUSE: Duration = Duration::from_millis(50);

/// What a ping is for, in the two highest bits of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    KeepsAlive,
    /// It is as large as the largest datagram that was agreed on.
    Raises,
    /// Somebody asked for it, to see whether some way carries it.
    Proves,
}

impl Class {
    /// The ping of this class with the count `pings`.
    pub(super) const fn number(self, pings: u32) -> u32 {
        let class = match self {
            Self::KeepsAlive => 0,
            Self::Raises => 1,
            Self::Proves => 2,
        };
        (class << 30) | (pings & 0x3fff_ffff)
    }

    pub(super) const fn of(number: u32) -> Self {
        match number >> 30 {
            1 => Self::Raises,
            2 => Self::Proves,
            _ => Self::KeepsAlive,
        }
    }
}

impl Session {
    /// When [`Session::transmit`] has to be called even though nothing came and nothing was written.
    pub fn next_deadline(&self) -> Option<Moment> {
        let call = match &self.state {
            State::Calling(call) => Some(call.due),
            State::Idle | State::Established => None,
        };
        if !self.is_established() {
            return call;
        }
        let later = self.acknowledge_later.front().map(|(due, _)| *due);
        let graves = self.graves.values().map(|grave| grave.tell_at).min();
        let rest = self.resting_until.front().map(|(until, _)| *until);
        let care = self.last_heard.max(self.last_ping) + self.care_interval();
        let candidates = [later, graves, rest, self.look_again, self.probe_due(), Some(care)];
        candidates.into_iter().flatten().min()
    }

    fn is_waiting(&self) -> bool {
        self.in_flight > 0
            || self
                .channels
                .values()
                .any(|channel| channel.outbound.is_waiting() || channel.outbound.is_starved())
    }

    fn probe_due(&self) -> Option<Moment> {
        self.is_waiting().then(|| {
            let patience = self.round_trip.patience() + self.config.acknowledge_within;
            let patience = patience.max(self.config.probe_min);
            let patience = patience.saturating_mul(1 << self.probes.min(16)).min(PROBE_MAX);
            self.probe_base + patience
        })
    }

    /// Whether nothing has answered for too long. The least that is waited is looked at first: it costs nothing to know.
    fn is_probe_due(&self, now: Moment) -> bool {
        self.probe_base + self.config.probe_min.min(PROBE_MAX) <= now
            && self.probe_due().is_some_and(|due| due <= now)
    }

    /// How often the peer is looked after: more often when it is missed.
    fn care_interval(&self) -> Duration {
        self.config.keep_alive.min(self.config.stalled_after)
    }

    pub(super) fn on_time(&mut self, now: Moment) {
        // A train of datagrams is made at one moment.
        if !self.is_established() || self.timed_at == now {
            return;
        }
        self.timed_at = now;
        while let Some((_, id)) = self.acknowledge_later.pop_front_if(|(due, _)| *due <= now) {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            channel.acknowledge_later = false;
            if channel.inbound.is_owing() {
                self.acknowledge_at_once(id);
            }
        }
        while let Some((_, id)) = self.resting_until.pop_front_if(|(until, _)| *until <= now) {
            self.resting.remove(&id);
        }
        if self.look_again.is_some_and(|at| at <= now) {
            self.look_again = None;
            let ids: Vec<u16> = self.channels.keys().copied().collect();
            for id in ids {
                self.seek_losses(id, now);
            }
        }
        if !self.graves.is_empty() {
            self.tell_graves(now);
        }
        if self.is_probe_due(now) {
            self.probe(now);
        }
        self.look_after(now);
    }

    fn tell_graves(&mut self, now: Moment) {
        let tag = self.agreed.tag;
        let mut told = Vec::new();
        self.graves.retain(|id, grave| {
            if grave.tell_at <= now {
                told.push((*id, grave.reason, grave.first));
                grave.told += 1;
                grave.tell_at = now + GRAVE_PAUSE;
            }
            grave.told < GRAVE_TOLD_MAX
        });
        for (id, reason, first) in told {
            self.post(Message::Reset { reason, first }, ChannelId(id), tag);
        }
    }

    /// Nothing has answered for too long: sends the oldest again, of each channel that waits.
    fn probe(&mut self, now: Moment) {
        self.probes += 1;
        self.counters.probes += 1;
        self.probe_base = now;
        let mut oldest = Vec::new();
        for (id, channel) in &mut self.channels {
            if oldest.len() < PROBED_CHANNELS
                && let Some(bytes) = channel.outbound.give_up_oldest(now)
            {
                self.in_flight -= bytes;
                oldest.push(*id);
            }
            if channel.outbound.is_starved() && self.starved.len() < PROBED_CHANNELS {
                self.starved.push_back(*id);
            }
        }
        self.exempt = oldest.len();
        for id in oldest {
            self.make_ready(id);
        }
        if self.probes.is_multiple_of(PROBES_OF_SILENCE) {
            self.congestion.on_silence(self.order, self.payload_max() as u64);
            self.datagram = self.datagram.smaller().unwrap_or(DatagramSize::LEAST);
        }
    }

    /// Keeps an idle session alive, notices a silent peer, and tries large datagrams again.
    fn look_after(&mut self, now: Moment) {
        let silent = now.since(self.last_heard);
        let narrowed = self.datagram < self.agreed.datagram;
        let interval = self.care_interval();
        if silent < interval.min(self.config.lost_after) && !narrowed {
            return;
        }
        if silent >= self.config.lost_after {
            return self.lose(Loss::Silent, now);
        }
        if silent >= self.config.stalled_after && !self.stalled {
            self.stalled = true;
            self.events.push_back(Event::Stalled);
        }
        let due = silent >= interval || narrowed;
        if due && now.since(self.last_ping) >= interval {
            self.last_ping = now;
            self.pings = self.pings.wrapping_add(1);
            let padded = (narrowed && silent < interval).then_some(self.agreed.datagram);
            let class = if padded.is_some() { Class::Raises } else { Class::KeepsAlive };
            let number = class.number(self.pings);
            self.post_whole(Outgoing {
                message: Message::Ping { number },
                channel: ChannelId::SESSION,
                session: self.agreed.tag,
                places: (0, 0),
                padded,
            });
        }
    }
}

//! The thread that joins programs' rings with channels.

use super::clock::Clock;
use super::config::{Ethernet, NodeConfig, PeerConfig, agent_id};
use super::connection::{Broken, Connection, Found, Opening, Phase};
use super::hub::{Hub, PeerIndex};
use super::path::{Choice, Interfaces, PROOF_WITHIN};
use super::peers::Own;
use super::spin::Spin;
use super::status::{PeerStatus, Shared};
use crate::carrier::{CarrierError, Udp};
use crate::remote::{Local, Meeting};
use rustix::event::epoll;
use rustix::io::Errno;
use skein_link_core::light::{ChannelId, Event, Moment, ResetReason};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::Duration;

/// 1024: connections of a peer whose program has not reached our broker yet; more are refused and stay on TCP.
const PARKED_MAX: usize = 1024;
/// How often the status is written down.
const STATUS_EVERY: Duration = Duration::from_millis(200);
/// The longest sleep: the status is written, and waiting ends are looked at.
const SLEEP_MAX: Duration = Duration::from_millis(200);
/// How long until it is tried again where a program was in the way. It may have been stopped there.
const STALL_PAUSE: Duration = Duration::from_millis(1);
/// A sleep shorter than this would have been better spent looking.
const SHORT_SLEEP: Duration = Duration::from_micros(50);
/// While there is always something to do, programs that sleep are looked at so often: a look costs a system call, and a
/// round some microseconds.
const ROUNDS_PER_LOOK: u32 = 32;
/// Programs woken at a time.
const WAKES: usize = 64;

/// What broker and agent ask for.
pub(super) enum Command {
    Open {
        meeting: Meeting,
        peer: PeerIndex,
        local: Box<dyn Local>,
    },
    /// There is another peer; the answer is its index.
    Add {
        peer: PeerConfig,
        answer: SyncSender<PeerIndex>,
    },
    /// A peer is none any more.
    Remove(PeerIndex),
    Stop,
}

/// A channel that a peer opened for a connection whose program is not here yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parked {
    pub(super) peer: PeerIndex,
    channel: ChannelId,
    until: Moment,
}

pub(super) struct Daemon {
    pub(super) hub: Hub,
    pub(super) own: Own,
    pub(super) smaller: BTreeMap<PeerIndex, bool>,
    pub(super) choices: BTreeMap<PeerIndex, Choice>,
    interfaces: Option<Interfaces>,
    commands: Receiver<Command>,
    command_wake: OwnedFd,
    wakes: OwnedFd,
    pub(super) connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    by_meeting: HashMap<Meeting, u64>,
    by_channel: HashMap<(PeerIndex, ChannelId), u64>,
    waiting: BTreeMap<u64, Moment>,
    pub(super) parked: HashMap<Meeting, Parked>,
    meet_within: Duration,
    /// Channels of which everything that comes is thrown away: races, and connections that are over.
    pub(super) races: BTreeSet<(PeerIndex, ChannelId)>,
    /// Connections that may have something to do.
    active: BTreeSet<u64>,
    spin: Spin,
    pub(super) shared: Arc<Shared>,
    pub(super) status_at: Moment,
    broken: Vec<(u64, Broken)>,
}

impl Daemon {
    pub(super) fn new(
        config: &NodeConfig,
        commands: Receiver<Command>,
        command_wake: OwnedFd,
        shared: Arc<Shared>,
    ) -> Result<Self, CarrierError> {
        let mut hub = Hub::new(Clock::start());
        let udp = hub.add_carrier(Box::new(Udp::open(config.socket)?));
        let own = Own {
            id: agent_id(&config.name),
            key: config.key.clone(),
            incarnation: rand::random(),
            check: config.check,
            udp,
        };
        let failed = |errno: Errno| CarrierError::Socket {
            action: "waiting for",
            subject: "programs".to_owned(),
            source: errno.into(),
        };
        let wakes = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        Ok(Self {
            hub,
            own,
            smaller: BTreeMap::new(),
            choices: BTreeMap::new(),
            interfaces: (config.ethernet == Ethernet::Probe).then(Interfaces::new),
            commands,
            command_wake,
            wakes,
            connections: BTreeMap::new(),
            next_connection: 0,
            by_meeting: HashMap::new(),
            by_channel: HashMap::new(),
            waiting: BTreeMap::new(),
            parked: HashMap::new(),
            meet_within: config.meet_within,
            races: BTreeSet::new(),
            active: BTreeSet::new(),
            spin: Spin::new(config.spin_max),
            shared,
            status_at: Moment::default(),
            broken: Vec::new(),
        })
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        let mut idle_since: Option<Moment> = None;
        let mut rounds = 0_u32;
        loop {
            let Some(commanded) = self.obey() else { return self.stop() };
            let worked = self.round() | commanded;
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(ROUNDS_PER_LOOK) {
                self.note_wakes();
            }
            let now = self.hub.now();
            if worked {
                if idle_since.take().is_some() {
                    self.spin.on_hit();
                }
                continue;
            }
            // Fails for want of memory only: then it looks.
            if self.hub.rest(&[self.wakes.as_fd()]).unwrap_or(false) {
                idle_since = None;
                // Rounds are slow then, and who sleeps has nothing to do with the stream.
                self.note_wakes();
                continue;
            }
            let since = *idle_since.get_or_insert(now);
            if now.since(since) < self.spin.budget() {
                std::hint::spin_loop();
                continue;
            }
            self.spin.on_miss();
            idle_since = None;
            self.sleep(now);
        }
    }

    /// One round of everything; whether there was anything to do.
    fn round(&mut self) -> bool {
        let mut worked = self.receive() > 0;
        worked |= self.handle_events();
        self.end_broken();
        worked |= self.pump();
        self.end_broken();
        worked |= self.hub.transmit();
        let now = self.hub.now();
        for (peer, choice) in &mut self.choices {
            let is_idle = || !self.by_channel.keys().any(|(other, _)| other == peer);
            choice.on_time(&mut self.hub, is_idle);
            worked |= choice.is_racing();
        }
        if self.status_at <= now {
            self.status_at = now + STATUS_EVERY;
            self.end_waiting(now);
            self.connections.values_mut().for_each(|connection| connection.local().beat());
            self.tell_status();
        }
        worked
    }

    /// Takes what came; what the programs' rings have room for goes there at once.
    fn receive(&mut self) -> usize {
        let Self { hub, connections, by_channel, races, broken, active, .. } = self;
        hub.receive(&mut |peer, channel, bytes| {
            if races.contains(&(peer, channel)) {
                return bytes.len();
            }
            let Some(id) = by_channel.get(&(peer, channel)) else { return 0 };
            active.insert(*id);
            let Some(connection) = connections.get_mut(id) else { return 0 };
            connection.feed(bytes).unwrap_or_else(|why| {
                broken.push((*id, why));
                bytes.len()
            })
        })
    }

    fn handle_events(&mut self) -> bool {
        let mut any = false;
        for peer in self.hub.indices() {
            if !self.hub.has(peer) {
                continue;
            }
            while let Some(event) = self.hub.session(peer).event() {
                any = true;
                self.handle(peer, &event);
                if let Some(choice) = self.choices.get_mut(&peer) {
                    choice.on_event(&mut self.hub, &event);
                }
            }
        }
        any
    }

    fn handle(&mut self, peer: PeerIndex, event: &Event) {
        match event {
            Event::Established { .. } => {
                self.hub.note_size(peer);
                self.shared.set_up(peer, true);
                // One end measures for itself; what it sends goes the way it has chosen.
                if let Some(choice) = self.choices.get_mut(&peer) {
                    choice.on_established(&mut self.hub, self.interfaces.as_mut());
                }
            }
            Event::Opened { channel, opening } => self.opened(peer, *channel, opening),
            Event::Readable(channel) => {
                if self.races.contains(&(peer, *channel)) {
                    self.throw_away(peer, *channel);
                } else if let Some(id) = self.by_channel.get(&(peer, *channel)) {
                    self.active.insert(*id);
                }
            }
            Event::Writable(channel) | Event::Finished(channel) => {
                self.active.extend(self.by_channel.get(&(peer, *channel)));
            }
            Event::Closed(channel) => {
                self.races.remove(&(peer, *channel));
            }
            Event::Reset { channel, reason } => self.reset(peer, *channel, *reason),
            Event::Stalled => {
                if let Some(choice) = self.choices.get_mut(&peer) {
                    choice.on_stalled(&mut self.hub);
                }
            }
            Event::Lost(_) => {
                self.shared.set_up(peer, false);
                self.parked.retain(|_, parked| parked.peer != peer);
                self.races.retain(|(other, _)| *other != peer);
                if let Some(choice) = self.choices.get_mut(&peer) {
                    choice.on_lost(&mut self.hub);
                }
            }
            Event::Resumed | Event::Proved { .. } => {}
        }
    }

    fn throw_away(&mut self, peer: PeerIndex, channel: ChannelId) {
        let now = self.hub.now();
        let session = self.hub.session(peer);
        let length = session.readable(channel).map_or(0, |(a, b)| a.len() + b.len());
        // A race that has just ended has no channel, and nothing to throw away.
        let _ = session.consume(channel, length, now);
    }

    /// The peer opened a channel.
    fn opened(&mut self, peer: PeerIndex, channel: ChannelId, opening: &[u8]) {
        let now = self.hub.now();
        match Opening::read(opening) {
            Some(Opening::Race) => {
                self.races.insert((peer, channel));
            }
            Some(Opening::Connection(meeting)) => {
                let id = self.by_meeting.get(&meeting).copied();
                let met = id.filter(|id| {
                    let connection = self.connections.get(id);
                    connection.is_some_and(|c| c.peer == peer && c.phase == Phase::Waiting)
                });
                match met {
                    Some(id) => self.meet(id, peer, channel),
                    None if self.parked.len() < PARKED_MAX
                        && !self.parked.contains_key(&meeting) =>
                    {
                        let parked = Parked { peer, channel, until: now + self.meet_within };
                        self.parked.insert(meeting, parked);
                    }
                    None => self.hub.session(peer).reset(channel, ResetReason::Refused, now),
                }
            }
            None => self.hub.session(peer).reset(channel, ResetReason::Violated, now),
        }
    }

    /// Both programs are there, and this is the node that was called.
    fn meet(&mut self, id: u64, peer: PeerIndex, channel: ChannelId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        self.waiting.remove(&id);
        self.by_channel.insert((peer, channel), id);
        self.active.insert(id);
        if let Err(why) = connection.join(channel) {
            self.broken.push((id, why));
            return;
        }
        let (head, length) = super::frame::Frame::Joined.head();
        // A fresh channel has room; one that is gone already is reset by its event.
        let _ = self.hub.session(peer).write(channel, &head[..length]);
    }

    fn reset(&mut self, peer: PeerIndex, channel: ChannelId, reason: ResetReason) {
        self.races.remove(&(peer, channel));
        self.parked.retain(|_, parked| (parked.peer, parked.channel) != (peer, channel));
        let Some(id) = self.by_channel.get(&(peer, channel)).copied() else { return };
        let Some(mut connection) = self.remove(id) else { return };
        // Before both were there nothing went over the channel: the program stays on TCP and notices nothing.
        if matches!(connection.phase, Phase::Joined(_)) {
            connection.local().abort(reason.code());
            self.shared.count_abort();
        } else {
            self.forget_unmet(connection);
        }
    }

    /// Lets go of a connection whose other end has not come.
    fn forget_unmet(&self, connection: Connection) {
        if !connection.is_forlorn() {
            // Its program is told before it is counted.
            drop(connection);
            self.shared.count_unmet();
        }
    }

    /// Lets every active connection do what it can.
    fn pump(&mut self) -> bool {
        let mut any = false;
        let ids: Vec<u64> = self.active.iter().copied().collect();
        for id in ids {
            let Some(connection) = self.connections.get_mut(&id) else {
                self.active.remove(&id);
                continue;
            };
            match connection.pump(&mut self.hub) {
                Ok(Found::Work) => any = true,
                Ok(Found::Nothing) => {}
                Ok(Found::Over) => {
                    any = true;
                    let over = self.remove(id);
                    // What the other end may still say is of no use to anybody.
                    self.races.extend(over.and_then(|c| Some((c.peer, c.channel()?))));
                }
                Err(why) => self.broken.push((id, why)),
            }
        }
        any
    }

    fn end_broken(&mut self) {
        let now = self.hub.now();
        for (id, why) in std::mem::take(&mut self.broken) {
            let Some(mut connection) = self.remove(id) else { continue };
            let code = match why {
                Broken::Program(_) => "LINK_RING_BROKEN",
                Broken::Nonsense => ResetReason::Violated.code(),
                Broken::Channel => ResetReason::Unknown.code(),
            };
            if let Some(channel) = connection.channel() {
                self.hub.session(connection.peer).reset(channel, ResetReason::Aborted, now);
            }
            connection.local().abort(code);
            self.shared.count_abort();
        }
    }

    /// Whoever has waited too long for the other end stays on TCP.
    fn end_waiting(&mut self, now: Moment) {
        let connections = &self.connections;
        let is_forlorn = |id| connections.get(id).is_some_and(Connection::is_forlorn);
        let late = self.waiting.iter().filter(|(id, until)| **until <= now || is_forlorn(id));
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        for id in late {
            self.waiting.remove(&id);
            let met = |connection: &Connection| matches!(connection.phase, Phase::Joined(_));
            if self.connections.get(&id).is_some_and(met) {
                continue;
            }
            let Some(connection) = self.remove(id) else { continue };
            if let Some(channel) = connection.channel() {
                self.hub.session(connection.peer).reset(channel, ResetReason::Refused, now);
            }
            self.forget_unmet(connection);
        }
        let hub = &mut self.hub;
        self.parked.retain(|_, parked| {
            if parked.until <= now {
                hub.session(parked.peer).reset(parked.channel, ResetReason::Refused, now);
            }
            parked.until > now
        });
    }

    /// Takes commands, before a round, which sends what they bring: whether there were any. `None`: the node shall stop.
    fn obey(&mut self) -> Option<bool> {
        let mut any = false;
        loop {
            match self.commands.try_recv() {
                Ok(Command::Open { meeting, peer, local }) => self.open(meeting, peer, local),
                Ok(Command::Add { peer, answer }) => {
                    // Who has asked waits for it.
                    let _ = answer.send(self.add_peer(&peer));
                }
                Ok(Command::Remove(peer)) => self.remove_peer(peer),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => return Some(any),
            }
            any = true;
        }
    }

    /// A program here has its end of a connection.
    fn open(&mut self, meeting: Meeting, peer: PeerIndex, local: Box<dyn Local>) {
        let now = self.hub.now();
        // The same two addresses again while the former connection drains, or a peer that was removed meanwhile: stays on TCP.
        if self.by_meeting.contains_key(&meeting) || !self.hub.has(peer) {
            return;
        }
        let calls = self.smaller.get(&peer).copied().unwrap_or(false);
        let phase = if calls {
            let opening = Opening::Connection(meeting.clone()).write();
            match self.hub.session(peer).open(&opening) {
                Ok(channel) => Phase::Calling(channel),
                Err(_) => return,
            }
        } else {
            Phase::Waiting
        };
        let id = self.next_connection;
        self.next_connection += 1;
        let parked = self.parked.remove(&meeting);
        self.by_meeting.insert(meeting.clone(), id);
        let connection = Connection::new(meeting, peer, phase, local);
        if let Err(why) = connection.register(&self.wakes, id) {
            self.broken.push((id, why));
        }
        if let Some(channel) = connection.channel() {
            self.by_channel.insert((peer, channel), id);
        }
        self.connections.insert(id, connection);
        self.waiting.insert(id, now + self.meet_within);
        if let Some(parked) = parked {
            if parked.peer == peer && !calls {
                self.meet(id, peer, parked.channel);
            } else {
                self.hub.session(parked.peer).reset(parked.channel, ResetReason::Refused, now);
            }
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.by_meeting.remove(&connection.meeting);
        if let Some(channel) = connection.channel() {
            self.by_channel.remove(&(connection.peer, channel));
        }
        self.waiting.remove(&id);
        self.active.remove(&id);
        // A descriptor that could not be registered cannot be removed.
        let _ = epoll::delete(&self.wakes, connection.wake());
        Some(connection)
    }

    fn sleep(&mut self, now: Moment) {
        // Who has something after all stays awake.
        let mut all_armed = true;
        let mut any_stalls = false;
        for id in std::mem::take(&mut self.active) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if !matches!(connection.phase, Phase::Joined(_)) {
                // Its program is not listened to before the other one is there.
                continue;
            }
            if !connection.listen() {
                all_armed = false;
                self.active.insert(id);
            } else if connection.stalls() {
                any_stalls = true;
                self.active.insert(id);
            }
        }
        if !all_armed {
            return;
        }
        // Poll fails for want of memory only; the next round tries again.
        let also = [self.wakes.as_fd(), self.command_wake.as_fd()];
        let proving = self.choices.values().any(Choice::is_proving);
        let limit = if proving { PROOF_WITHIN } else { SLEEP_MAX };
        let limit = if any_stalls { STALL_PAUSE } else { limit };
        let _ = self.hub.wait(Some(limit), &also);
        if self.hub.now().since(now) < SHORT_SLEEP {
            self.spin.on_short_sleep();
        }
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.command_wake, &mut count);
        self.note_wakes();
    }

    /// Programs that woke us become active.
    fn note_wakes(&mut self) {
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events: Vec<epoll::Event> = Vec::with_capacity(WAKES);
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.wakes, spare, Some(&zero)).is_err() {
            return;
        }
        for event in &events {
            let id = event.data.u64();
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.local().woken();
                self.active.insert(id);
            }
        }
    }

    fn tell_status(&mut self) {
        let statuses = self.choices.iter().map(|(peer, choice)| {
            let (_, carrier) = self.hub.current(*peer);
            let session = self.hub.session(*peer);
            let status = PeerStatus {
                is_up: session.is_established(),
                carrier,
                datagram_bytes: session.datagram().get(),
                round_trip: session.round_trip(),
                counters: session.counters(),
                rates: choice.rates,
                connections: self.by_channel.keys().filter(|(other, _)| other == peer).count(),
            };
            (*peer, status)
        });
        self.shared.set_peers(statuses.collect());
    }

    fn stop(mut self) {
        let now = self.hub.now();
        for connection in self.connections.values_mut() {
            if matches!(connection.phase, Phase::Joined(_)) {
                connection.local().abort(ResetReason::PeerLeft.code());
            }
        }
        for peer in self.hub.indices() {
            if !self.hub.has(peer) {
                continue;
            }
            self.hub.session(peer).leave(now);
            self.shared.set_up(peer, false);
        }
        self.hub.transmit();
    }
}

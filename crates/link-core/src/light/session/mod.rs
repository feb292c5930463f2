//! A session: the channels between two agents, and the path they share.
//!
//! ```text
//!            call            welcome, ready                silent, goodbye, begun anew
//!  Idle ───────────▶ Calling ─────────────▶ Established ───────────────────────────────▶ Idle, or Calling
//!    └──────────────── confirm of a peer's call ──▲                                      (if it called before)
//! ```
//!
//! No state is terminal: a session is the relation to one configured peer and lasts as long as its agent.

mod hear;
mod tell;
mod timers;

pub use tell::Planned;

use super::channel::{Channel, Grave, Opening, Rest, Spares};
use super::config::{Config, DatagramSize, OPENING_BYTES_MAX, payload_max};
use super::congestion::{Congestion, RoundTrip, WINDOW_START};
use super::control::{Message, Nonce, ResetReason};
use super::disorder::Disorder;
use super::header::{ChannelId, SessionTag};
use super::setup::{Agreed, Answer, Call};
use super::time::Moment;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

/// 256: one message for each of a burst of channels. What finds no room is repeated by who waits for it.
const OUTBOX_MAX: usize = 256;
/// How long the number of a channel that ended rests: far longer than a datagram lives on a local network.
const REST: Duration = Duration::from_secs(2);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Both ends know of each other; datagrams of this size pass.
    Established {
        /// The largest datagram.
        datagram: DatagramSize,
    },
    /// The peer opened a channel.
    Opened {
        /// Its number.
        channel: ChannelId,
        /// What the peer gave to [`Session::open`].
        opening: Vec<u8>,
    },
    /// There is something to read. It is said again only after everything was read.
    Readable(ChannelId),
    /// There is room again, after [`Session::write`] took less than it was given.
    Writable(ChannelId),
    /// The peer has ended its direction, and all its bytes are there.
    Finished(ChannelId),
    /// Both directions have ended, all bytes are read and acknowledged; the number means nothing any more.
    Closed(ChannelId),
    /// The channel is no more; bytes may be missing. Its number means nothing any more.
    Reset {
        /// Its number.
        channel: ChannelId,
        /// Why.
        reason: ResetReason,
    },
    /// Nothing was heard of the peer for a while although something was due.
    Stalled,
    /// The peer is heard again.
    Resumed,
    /// The peer has answered the datagram that [`Session::prove`] made.
    Proved {
        /// Its number.
        number: u32,
    },
    /// The session is over and so are its channels, each of which was reset.
    Lost(Loss),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing was heard for too long.
    Silent,
    /// The peer made a new session.
    Restarted,
    /// The peer said goodbye.
    Left,
}

impl Loss {
    const fn reason(self) -> ResetReason {
        match self {
            Self::Silent => ResetReason::PeerLost,
            Self::Restarted => ResetReason::PeerRestarted,
            Self::Left => ResetReason::PeerLeft,
        }
    }
}

/// What was asked of a channel cannot be done. (Its traits are written out: `thiserror` would bring the standard library.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelError {
    /// There is no session with the peer.
    NoSession,
    /// There is no such channel, or no longer.
    Unknown(ChannelId),
    /// All numbers are taken.
    Exhausted,
    /// The opening is longer than 400 bytes.
    OpeningTooLong(usize),
}

impl ChannelError {
    /// Stable code, for users.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoSession => "LINK_NO_SESSION",
            Self::Unknown(_) => "LINK_CHANNEL_UNKNOWN",
            Self::Exhausted => "LINK_CHANNELS_EXHAUSTED",
            Self::OpeningTooLong(_) => "LINK_OPENING_TOO_LONG",
        }
    }
}

impl core::fmt::Display for ChannelError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoSession => f.write_str("no session with the peer"),
            Self::Unknown(channel) => write!(f, "no channel {channel}"),
            Self::Exhausted => f.write_str("all channels are taken"),
            Self::OpeningTooLong(bytes) => {
                write!(f, "an opening of {bytes} bytes is longer than {OPENING_BYTES_MAX}")
            }
        }
    }
}

impl core::error::Error for ChannelError {}

/// What a session has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Data datagrams sent, repetitions included.
    pub data_sent: u64,
    /// Of those, repetitions.
    pub data_repeated: u64,
    /// Control datagrams sent.
    pub control_sent: u64,
    /// Datagrams taken.
    pub received: u64,
    /// Payload bytes that came twice or where nothing was promised.
    pub superfluous: u64,
    /// Datagrams that are none of ours: too short, of another version.
    pub malformed: u64,
    /// Datagrams of another session, or none.
    pub foreign: u64,
    /// Datagrams whose check was wrong.
    pub corrupt: u64,
    /// Probes after silence.
    pub probes: u64,
    /// Set-ups completed.
    pub established: u64,
    /// Messages not sent because too many waited.
    pub dropped: u64,
}

#[derive(Debug)]
enum State {
    Idle,
    Calling(Call),
    Established,
}

/// A message that waits to be sent.
#[derive(Debug)]
struct Outgoing {
    message: Message,
    channel: ChannelId,
    session: SessionTag,
    /// Place and sequence for the header, of acknowledgements.
    places: (u32, u32),
    /// Padded to this size.
    padded: Option<DatagramSize>,
}

/// The relation to one peer. See the module.
#[derive(Debug)]
pub struct Session {
    config: Config,
    state: State,
    /// Whether to call again when the session is lost.
    calls: bool,
    answer: Option<Answer>,
    agreed: Agreed,
    /// What passes now; smaller than agreed after a path has swallowed large ones.
    datagram: DatagramSize,
    nonces: u64,
    channels: BTreeMap<u16, Channel>,
    spares: Spares,
    graves: BTreeMap<u16, Grave>,
    resting: BTreeMap<u16, Rest>,
    resting_until: VecDeque<(Moment, u16)>,
    next_channel: u16,
    next_first: u32,
    events: VecDeque<Event>,
    outbox: VecDeque<Outgoing>,
    ready: VecDeque<u16>,
    /// Datagrams that the first of `ready` has sent in its turn.
    turn: u32,
    acknowledge_now: VecDeque<u16>,
    acknowledge_later: VecDeque<(Moment, u16)>,
    starved: VecDeque<u16>,
    order: u64,
    in_flight: u64,
    congestion: Congestion,
    round_trip: RoundTrip,
    disorder: Disorder,
    /// Something was repeated because it seemed lost, since a mistake was noticed.
    doubted: bool,
    look_again: Option<Moment>,
    probe_base: Moment,
    /// What was due was looked at then.
    timed_at: Moment,
    probes: u32,
    /// Datagrams that the window does not hold back.
    exempt: usize,
    last_heard: Moment,
    last_ping: Moment,
    pings: u32,
    stalled: bool,
    counters: Counters,
}

impl Session {
    /// A session that answers its peer's calls, and calls when told to.
    pub fn new(config: Config) -> Self {
        let datagram = config.datagram_max;
        let agreed = Agreed { tag: SessionTag(0), datagram, checked: false, peer_incarnation: 0 };
        Self {
            state: State::Idle,
            calls: false,
            answer: None,
            agreed,
            datagram,
            nonces: 0,
            channels: BTreeMap::new(),
            spares: Spares::default(),
            graves: BTreeMap::new(),
            resting: BTreeMap::new(),
            resting_until: VecDeque::new(),
            // Both ends choose numbers without asking: odd ones belong to the agent with the smaller id.
            next_channel: if config.me < config.peer { 1 } else { 2 },
            next_first: config.incarnation as u32,
            events: VecDeque::new(),
            outbox: VecDeque::new(),
            ready: VecDeque::new(),
            turn: 0,
            acknowledge_now: VecDeque::new(),
            acknowledge_later: VecDeque::new(),
            starved: VecDeque::new(),
            order: 0,
            in_flight: 0,
            congestion: Congestion::new(),
            round_trip: RoundTrip::new(),
            disorder: Disorder::new(),
            doubted: false,
            look_again: None,
            probe_base: Moment::default(),
            timed_at: Moment::default(),
            probes: 0,
            exempt: 0,
            last_heard: Moment::default(),
            last_ping: Moment::default(),
            pings: 0,
            stalled: false,
            counters: Counters::default(),
            config,
        }
    }

    /// Calls the peer, now and whenever the session is lost.
    pub fn call(&mut self, now: Moment) {
        self.calls = true;
        if matches!(self.state, State::Idle) {
            let nonce = self.nonce();
            self.state = State::Calling(Call::new(&self.config, nonce, now));
        }
    }

    /// Ends the session: the peer resets its channels at once, and so do we. Calls no more.
    pub fn leave(&mut self, now: Moment) {
        self.calls = false;
        if self.is_established() {
            let tag = self.agreed.tag;
            self.lose(Loss::Left, now);
            self.post(Message::Goodbye, ChannelId::SESSION, tag);
        }
        self.state = State::Idle;
    }

    /// Whether channels can be opened.
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established)
    }

    /// The next event, oldest first.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The smoothed round trip; a millisecond before the first measurement.
    pub fn round_trip(&self) -> Duration {
        self.round_trip.smoothed()
    }

    /// Bytes that may be on the way, and are.
    pub fn flight(&self) -> (u64, u64) {
        (self.congestion.window(), self.in_flight)
    }

    /// The largest datagram that is sent now.
    pub fn datagram(&self) -> DatagramSize {
        self.datagram
    }

    /// Datagrams go another way from now on, which carries this size.
    pub fn set_datagram(&mut self, size: DatagramSize) {
        self.agreed.datagram = size;
        self.datagram = size;
    }

    /// Opens a channel; the peer gets `opening` with it. Bytes may be written at once.
    ///
    /// # Errors
    /// No session, an opening of more than 400 bytes, or no number left.
    pub fn open(&mut self, opening: &[u8]) -> Result<ChannelId, ChannelError> {
        if !self.is_established() {
            return Err(ChannelError::NoSession);
        }
        if opening.len() > OPENING_BYTES_MAX {
            return Err(ChannelError::OpeningTooLong(opening.len()));
        }
        let id = self.free_number().ok_or(ChannelError::Exhausted)?;
        let window = self.config.window();
        // Until the peer has said what it takes, as much as its smallest window.
        let credit = WINDOW_START;
        let spares = &mut self.spares;
        let mut channel = Channel::new(self.next_first, Opening::Calling, credit, window, spares);
        // Far from where the last channel of this number was: its stragglers fall outside.
        self.next_first = self.next_first.wrapping_add(0x0133_7f01);
        channel.outbound.write(&(opening.len() as u16).to_be_bytes());
        channel.outbound.write(opening);
        self.channels.insert(id, channel);
        self.make_ready(id);
        Ok(ChannelId(id))
    }

    fn free_number(&mut self) -> Option<u16> {
        let parity = self.next_channel & 1;
        for _ in 0..=u16::MAX / 2 {
            let id = self.next_channel;
            self.next_channel = match self.next_channel.checked_add(2) {
                Some(next) => next,
                // Zero is the session itself.
                None => 2 - parity,
            };
            let taken = self.channels.contains_key(&id)
                || self.graves.contains_key(&id)
                || self.resting.contains_key(&id);
            if !taken {
                return Some(id);
            }
        }
        None
    }

    /// Gives bytes to be sent; takes as many as there is room for. After it took fewer, [`Event::Writable`] comes.
    ///
    /// # Errors
    /// No such channel.
    pub fn write(&mut self, channel: ChannelId, bytes: &[u8]) -> Result<usize, ChannelError> {
        let entry = self.channel(channel)?;
        let taken = entry.outbound.write(bytes);
        entry.wants_room = taken < bytes.len();
        self.make_ready(channel.0);
        Ok(taken)
    }

    /// Bytes that [`Session::write`] would take, and bytes that have not arrived yet.
    ///
    /// # Errors
    /// No such channel.
    pub fn room(&mut self, channel: ChannelId) -> Result<(usize, u64), ChannelError> {
        let entry = self.channel(channel)?;
        entry.wants_room = true;
        Ok((entry.outbound.room(), entry.outbound.queued()))
    }

    /// Ends our direction behind what was written.
    ///
    /// # Errors
    /// No such channel.
    pub fn finish(&mut self, channel: ChannelId) -> Result<(), ChannelError> {
        self.channel(channel)?.outbound.finish();
        self.make_ready(channel.0);
        Ok(())
    }

    /// Ends the channel; the peer learns why. Bytes on the way are lost.
    pub fn reset(&mut self, channel: ChannelId, reason: ResetReason, now: Moment) {
        if let Some(first) = self.remove(channel.0) {
            let grave = Grave { reason, first, told: 0, tell_at: now };
            self.graves.insert(channel.0, grave);
        }
    }

    /// What there is to read, in two pieces.
    ///
    /// # Errors
    /// No such channel.
    pub fn readable(&self, channel: ChannelId) -> Result<(&[u8], &[u8]), ChannelError> {
        let entry = self.channels.get(&channel.0).ok_or(ChannelError::Unknown(channel))?;
        Ok(match entry.opening {
            Opening::Incoming => (&[], &[]),
            Opening::Calling | Opening::Called | Opening::Announced => entry.inbound.slices(),
        })
    }

    /// The first `length` bytes of what was readable have been read.
    ///
    /// # Errors
    /// No such channel.
    pub fn consume(
        &mut self,
        channel: ChannelId,
        length: usize,
        now: Moment,
    ) -> Result<(), ChannelError> {
        let payload_max = self.payload_max();
        let entry = self.channel(channel)?;
        let worth_telling = entry.inbound.consume(length, payload_max);
        if entry.inbound.readable() == 0 {
            entry.told_readable = false;
        }
        if worth_telling {
            self.acknowledge_at_once(channel.0);
        }
        self.close_if_over(channel.0, now);
        Ok(())
    }

    /// Whether the peer has ended its direction and everything was read.
    pub fn is_finished(&self, channel: ChannelId) -> bool {
        self.channels.get(&channel.0).is_none_or(|entry| entry.inbound.is_done())
    }

    fn channel(&mut self, channel: ChannelId) -> Result<&mut Channel, ChannelError> {
        self.channels.get_mut(&channel.0).ok_or(ChannelError::Unknown(channel))
    }

    fn payload_max(&self) -> usize {
        payload_max(self.datagram, self.agreed.checked)
    }

    fn nonce(&mut self) -> Nonce {
        self.nonces += 1;
        self.config.key.nonce(&self.config.seed, self.nonces)
    }

    fn make_ready(&mut self, id: u16) {
        if let Some(channel) = self.channels.get_mut(&id)
            && !channel.is_ready
        {
            channel.is_ready = true;
            self.ready.push_back(id);
        }
    }

    fn acknowledge_at_once(&mut self, id: u16) {
        if let Some(channel) = self.channels.get_mut(&id)
            && !channel.acknowledge_now
        {
            channel.acknowledge_now = true;
            self.acknowledge_now.push_back(id);
        }
    }

    /// Queues a message about the session or a channel.
    fn post(&mut self, message: Message, channel: ChannelId, session: SessionTag) {
        self.post_whole(Outgoing { message, channel, session, places: (0, 0), padded: None });
    }

    fn post_whole(&mut self, outgoing: Outgoing) {
        if self.outbox.len() < OUTBOX_MAX {
            self.outbox.push_back(outgoing);
        } else {
            self.counters.dropped += 1;
        }
    }

    /// Forgets a channel; where it began.
    fn remove(&mut self, id: u16) -> Option<u32> {
        let channel = self.channels.remove(&id)?;
        self.in_flight -= channel.outbound.in_flight();
        // The queues skip numbers without a channel, but a later channel of this number must not be found in them.
        if channel.is_ready {
            self.ready.retain(|other| *other != id);
        }
        if channel.acknowledge_now {
            self.acknowledge_now.retain(|other| *other != id);
        }
        if channel.acknowledge_later {
            self.acknowledge_later.retain(|(_, other)| *other != id);
        }
        let first = channel.first;
        self.spares.keep(channel);
        Some(first)
    }

    fn close_if_over(&mut self, id: u16, now: Moment) {
        let Some(channel) = self.channels.get(&id).filter(|channel| channel.is_over()) else {
            return;
        };
        let place = channel.inbound.place() as u32;
        let rest = Rest { first: channel.first, place };
        let owing = channel.inbound.is_owing();
        self.remove(id);
        if owing {
            self.acknowledge_rest(id, rest);
        }
        self.resting.insert(id, rest);
        self.resting_until.push_back((now + REST, id));
        self.events.push_back(Event::Closed(ChannelId(id)));
    }

    fn acknowledge_rest(&mut self, id: u16, rest: Rest) {
        let told = super::control::Acknowledgement { edge: rest.place, ..Default::default() };
        let tag = self.agreed.tag;
        self.post_whole(Outgoing {
            message: Message::Acknowledge(told),
            channel: ChannelId(id),
            session: tag,
            places: (rest.place, rest.place),
            padded: None,
        });
    }

    /// Ends the session and all its channels.
    fn lose(&mut self, loss: Loss, now: Moment) {
        let channels = core::mem::take(&mut self.channels);
        let reset = |id| Event::Reset { channel: ChannelId(id), reason: loss.reason() };
        self.events.extend(channels.into_keys().map(reset));
        self.events.push_back(Event::Lost(loss));
        self.graves.clear();
        self.resting.clear();
        self.resting_until.clear();
        self.outbox.clear();
        self.ready.clear();
        self.acknowledge_now.clear();
        self.acknowledge_later.clear();
        self.starved.clear();
        self.in_flight = 0;
        self.probes = 0;
        self.exempt = 0;
        self.look_again = None;
        self.stalled = false;
        self.state = State::Idle;
        if self.calls {
            self.call(now);
        }
    }

    fn establish(&mut self, agreed: Agreed, now: Moment) {
        if self.is_established() {
            self.lose(Loss::Restarted, now);
        }
        self.state = State::Established;
        self.agreed = agreed;
        self.datagram = agreed.datagram;
        self.congestion = Congestion::new();
        self.round_trip = RoundTrip::new();
        self.disorder = Disorder::new();
        self.doubted = false;
        self.last_heard = now;
        self.last_ping = now;
        self.counters.established += 1;
        self.events.push_back(Event::Established { datagram: agreed.datagram });
    }
}

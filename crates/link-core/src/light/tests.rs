//! Two sessions and a wire between them that loses, doubles, delays, swaps and damages datagrams, in a time of its own.

use super::config::{Check, Config, DatagramSize};
use super::control::{AgentId, ResetReason};
use super::header::{ChannelId, HEADER_BYTES_MAX, Header};
use super::proof::Key;
use super::session::{Event, Loss, Session};
use super::time::Moment;
use core::time::Duration;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// How bad the wire is; rates are in 1,000.
#[derive(Debug, Clone, Copy)]
struct Faults {
    loss: u64,
    doubles: u64,
    disorder: u64,
    damage: u64,
    /// Larger datagrams are swallowed.
    passes: usize,
}

const GOOD: Faults = Faults { loss: 0, doubles: 0, disorder: 0, damage: 0, passes: 70_000 };
const DELAY: Duration = Duration::from_micros(50);
/// A datagram of full size takes 12 microseconds at 1 Gbit/s.
const NANOS_PER_BYTE: u64 = 8;

/// A frame of 60 bytes, without addresses and type.
const PADDED_TO: usize = 46;

/// What a program has of a channel.
#[derive(Debug, Default)]
struct Stream {
    to_send: Vec<u8>,
    sent: usize,
    finish: bool,
    got: Vec<u8>,
    ended: bool,
    closed: bool,
    reset: Option<ResetReason>,
}

struct End {
    session: Session,
    streams: BTreeMap<ChannelId, Stream>,
    openings: Vec<(ChannelId, Vec<u8>)>,
    losses: Vec<Loss>,
    stalls: u32,
    established: u32,
    /// The wire towards the other end is busy until then.
    busy: Moment,
    /// It does not read.
    lazy: bool,
}

impl End {
    fn new(config: Config) -> Self {
        Self {
            session: Session::new(config),
            streams: BTreeMap::new(),
            openings: Vec::new(),
            losses: Vec::new(),
            stalls: 0,
            established: 0,
            busy: Moment::default(),
            lazy: false,
        }
    }

    fn open(&mut self, opening: &[u8], bytes: Vec<u8>, finish: bool) -> ChannelId {
        let channel = self.session.open(opening).expect("a session");
        self.streams.insert(channel, Stream { to_send: bytes, finish, ..Stream::default() });
        channel
    }

    /// What a program does: handles events, writes, reads.
    fn work(&mut self, now: Moment) {
        while let Some(event) = self.session.event() {
            match event {
                Event::Established { .. } => self.established += 1,
                Event::Opened { channel, opening } => {
                    self.openings.push((channel, opening));
                    self.streams.entry(channel).or_default();
                }
                Event::Reset { channel, reason } => {
                    self.streams.entry(channel).or_default().reset = Some(reason);
                }
                Event::Closed(channel) => {
                    self.streams.entry(channel).or_default().closed = true;
                }
                Event::Finished(channel) => {
                    self.streams.entry(channel).or_default().ended = true;
                }
                Event::Lost(loss) => self.losses.push(loss),
                Event::Stalled => self.stalls += 1,
                Event::Readable(_) | Event::Writable(_) | Event::Resumed | Event::Proved { .. } => {
                }
            }
        }
        for (channel, stream) in &mut self.streams {
            if stream.reset.is_some() || stream.closed {
                continue;
            }
            if stream.sent < stream.to_send.len() {
                let rest = &stream.to_send[stream.sent..];
                stream.sent += self.session.write(*channel, rest).expect("a channel");
            }
            if stream.finish && stream.sent == stream.to_send.len() {
                self.session.finish(*channel).expect("a channel");
                stream.finish = false;
            }
            if !self.lazy {
                let (first, second) = self.session.readable(*channel).expect("a channel");
                let length = first.len() + second.len();
                stream.got.extend_from_slice(first);
                stream.got.extend_from_slice(second);
                self.session.consume(*channel, length, now).expect("a channel");
            }
        }
    }
}

struct World {
    now: Moment,
    ends: [End; 2],
    /// Datagrams on the way: when they arrive, in which order they were sent, to which end.
    wire: BTreeMap<(Moment, u64), (usize, Vec<u8>)>,
    faults: Faults,
    random: u64,
    sent: u64,
    history: Vec<(usize, Vec<u8>)>,
}

fn config(me: u64, peer: u64, incarnation: u64) -> Config {
    let seed = [incarnation as u8; 32];
    Config::new(AgentId(me), AgentId(peer), Key::new([7; 32]), incarnation, seed)
}

impl World {
    fn new(faults: Faults, seed: u64, check: Check, window: u32) -> Self {
        let end =
            |me, peer| End::new(Config { check, window, ..config(me, peer, 100 * me + seed % 50) });
        Self {
            now: Moment::from_nanos(1_000_000),
            ends: [end(1, 2), end(2, 1)],
            wire: BTreeMap::new(),
            faults,
            random: seed | 1,
            sent: 0,
            history: Vec::new(),
        }
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        // xorshift64, Marsaglia 2003.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < per_mille
    }

    fn send(&mut self, from: usize, mut datagram: Vec<u8>) {
        let end = &mut self.ends[from];
        end.busy = end.busy.max(self.now)
            + Duration::from_nanos(NANOS_PER_BYTE * (datagram.len() as u64 + 38));
        let arrives = end.busy + DELAY;
        let faults = self.faults;
        if datagram.len() > faults.passes || self.chance(faults.loss) {
            return;
        }
        if self.chance(faults.damage) {
            let place = self.random as usize % datagram.len();
            datagram[place] ^= 1 << (self.random % 8);
        }
        // As Ethernet does, with whatever its driver has there.
        if datagram.len() < PADDED_TO {
            datagram.resize(PADDED_TO, 0xa5);
        }
        let copies = 1 + usize::from(self.chance(faults.doubles));
        for _ in 0..copies {
            let late = match self.chance(faults.disorder) {
                true => Duration::from_micros(self.random % 300),
                false => Duration::ZERO,
            };
            self.sent += 1;
            self.wire.insert((arrives + late, self.sent), (1 - from, datagram.clone()));
        }
    }

    /// Lets both ends work and the next thing happen; `false` when nothing will ever happen by itself.
    fn step(&mut self) -> bool {
        let mut buffer = vec![0; 70_000];
        for from in 0..2 {
            self.ends[from].work(self.now);
            while let Some(length) = self.ends[from].session.transmit(self.now, &mut buffer) {
                assert!(length <= buffer.len());
                self.send(from, buffer[..length].to_vec());
                self.ends[from].work(self.now);
            }
        }
        let deadlines = self.ends.iter().filter_map(|end| end.session.next_deadline());
        let arrival = self.wire.keys().next().map(|(at, _)| *at);
        let Some(next) = deadlines.chain(arrival).min() else { return false };
        self.now = self.now.max(next);
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (to, datagram) = entry.remove();
            self.ends[to].session.receive(&datagram, self.now);
            self.history.push((to, datagram));
        }
        true
    }

    /// Runs until `done`, at most for `span` of the world's time.
    fn run(&mut self, span: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + span;
        while self.now <= end {
            if done(self) {
                return true;
            }
            if !self.step() {
                break;
            }
        }
        done(self)
    }

    fn establish(&mut self) {
        self.ends[0].session.call(self.now);
        self.ends[1].session.call(self.now);
        let up = |world: &Self| world.ends.iter().all(|end| end.session.is_established());
        assert!(self.run(Duration::from_secs(20), up), "no session");
    }

    /// Forgets all channels of before.
    fn forget(&mut self) {
        for end in &mut self.ends {
            end.streams.clear();
            end.openings.clear();
        }
    }

    /// Restarts the agent of an end.
    fn crash(&mut self, at: usize, incarnation: u64) {
        let me = at as u64 + 1;
        let config = Config { check: Check::EndToEnd, ..config(me, 3 - me, incarnation) };
        self.ends[at] = End::new(config);
        self.ends[at].session.call(self.now);
    }
}

fn bytes(length: usize, salt: u64) -> Vec<u8> {
    (0..length as u64)
        .map(|place| (place.wrapping_mul(0x9e37_79b9) >> 7) as u8 ^ salt as u8)
        .collect()
}

/// Sends `sizes` in both directions on as many channels, and checks that all arrives and everything is closed.
fn exchange(world: &mut World, sizes: &[(usize, usize)]) {
    let mut channels = Vec::new();
    for (number, (there, _)) in sizes.iter().enumerate() {
        let opener = number % 2;
        let opening = [number as u8; 3];
        let channel = world.ends[opener].open(&opening, bytes(*there, number as u64), true);
        channels.push((opener, channel));
    }
    let mut answered = BTreeSet::new();
    let deadline = world.now + Duration::from_secs(120);
    loop {
        world.step();
        for end in 0..2 {
            for (channel, opening) in std::mem::take(&mut world.ends[end].openings) {
                let number = usize::from(opening[0]);
                assert_eq!(opening, [number as u8; 3]);
                assert!(answered.insert(number), "channel {number} was opened twice");
                let stream = world.ends[end].streams.entry(channel).or_default();
                stream.to_send = bytes(sizes[number].1, 77 + number as u64);
                stream.finish = true;
            }
        }
        let over = |(opener, channel): &(usize, ChannelId)| {
            let closed = |end: &End| end.streams.get(channel).is_some_and(|stream| stream.closed);
            closed(&world.ends[*opener]) && closed(&world.ends[1 - *opener])
        };
        if channels.iter().all(over) {
            break;
        }
        assert!(world.now < deadline, "not done in two minutes: {:?}", sums(world));
    }
    for (number, (opener, channel)) in channels.into_iter().enumerate() {
        let there = &world.ends[1 - opener].streams[&channel];
        assert!(there.got == bytes(sizes[number].0, number as u64), "there, channel {number}");
        assert!(there.reset.is_none() && there.ended);
        let back = &world.ends[opener].streams[&channel];
        assert!(back.got == bytes(sizes[number].1, 77 + number as u64), "back, channel {number}");
    }
    for end in &mut world.ends {
        assert_eq!(end.session.flight().1, 0, "nothing is on the way any more");
        end.streams.clear();
    }
}

fn sums(world: &World) -> Vec<String> {
    let sum = |end: &End| {
        let streams: Vec<_> = end
            .streams
            .iter()
            .map(|(id, s)| (id.0, s.sent, s.to_send.len(), s.got.len(), s.ended, s.closed, s.reset))
            .collect();
        format!("{:?} {:?} {:?}", streams, end.session.counters(), end.session.flight())
    };
    world.ends.iter().map(sum).collect()
}

#[test]
fn a_good_wire() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    world.establish();
    exchange(&mut world, &[(0, 0), (1, 0), (0, 1), (5_000_000, 10), (10, 3_000_000), (1486, 1486)]);
    let [one, other] = &world.ends;
    for end in [one, other] {
        let counters = end.session.counters();
        assert_eq!((counters.data_repeated, counters.superfluous, counters.probes), (0, 0, 0));
        assert_eq!((counters.foreign, counters.corrupt, counters.malformed), (0, 0, 0));
    }
    // 5 MB need 3365 datagrams; acknowledgements are few.
    assert!(other.session.counters().control_sent < 3365 / 4, "{:?}", other.session.counters());
}

/// Carriers give a buffer of the datagram's size, and all of it is used.
#[test]
fn a_full_datagram_fills_its_frame() {
    for (check, payload_max) in [(Check::Carrier, 1486), (Check::EndToEnd, 1482)] {
        let mut world = World::new(GOOD, 3, check, 1 << 20);
        world.establish();
        let (now, session) = (world.now, &mut world.ends[0].session);
        let channel = session.open(b"").expect("a session");
        session.write(channel, &bytes(4000, 0)).expect("a channel");
        let mut frame = vec![0; DatagramSize::ETHERNET.get()];
        let mut payloads = Vec::new();
        while let Some(length) = session.transmit(now, &mut frame) {
            let header = Header::read(&frame[..length], 1486 - payload_max);
            payloads.extend(header.map(|(_, payload)| (payload.len(), length)));
        }
        let full = (payload_max, DatagramSize::ETHERNET.get());
        // The length of the opening goes first.
        let rest = 4002 - 2 * payload_max;
        assert_eq!(payloads, [full, full, (rest, rest + 14 + 1486 - payload_max)], "{check:?}");
    }
}

#[test]
fn pieces_that_frames_are_padded_for_arrive_as_they_are() {
    for check in [Check::Carrier, Check::EndToEnd] {
        let mut world = World::new(GOOD, 3, check, 1 << 20);
        world.establish();
        let sizes: Vec<_> = (0..60).map(|bytes| (bytes, 60 - bytes)).collect();
        exchange(&mut world, &sizes);
        for end in &world.ends {
            let counters = end.session.counters();
            assert_eq!((counters.malformed, counters.corrupt, counters.superfluous), (0, 0, 0));
        }
    }
}

#[test]
fn places_wrap() {
    let mut world = World::new(Faults { loss: 10, ..GOOD }, 3, Check::Carrier, 1 << 20);
    for (end, me) in world.ends.iter_mut().zip([1, 2]) {
        // The first channel of each end begins here.
        *end = End::new(config(me, 3 - me, u64::from(u32::MAX - 70_000)));
    }
    world.establish();
    exchange(&mut world, &[(200_000, 200_000), (200_000, 200_000)]);
}

#[test]
fn a_burst_needs_no_slow_start() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    world.establish();
    let begun = world.now;
    let channel = world.ends[0].open(b"", bytes(60_000, 0), true);
    let there = |world: &World| {
        world.ends[1].streams.get(&channel).is_some_and(|stream| stream.got.len() == 60_000)
    };
    assert!(world.run(Duration::from_secs(1), there));
    let took = world.now.since(begun);
    // 41 frames on the wire and one way; the clock is read at the event after it.
    let wire = Duration::from_nanos(8 * (60_000 + 41 * 52)) + DELAY;
    assert!(
        took <= wire + Duration::from_micros(20),
        "{took:?} instead of {wire:?}: {:?}",
        sums(&world)
    );
}

#[test]
fn one_loss_costs_about_a_round_trip() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    world.establish();
    world.ends[0].open(b"", bytes(2_000_000, 0), true);
    world.run(Duration::from_millis(3), |_| false);
    world.faults.loss = 1000;
    let busy = world.sent;
    world.run(Duration::from_micros(20), |_| false);
    world.faults.loss = 0;
    let begun = world.now;
    assert!(world.sent == busy, "something was lost");
    let through =
        |world: &World| world.ends[1].streams.values().any(|stream| stream.got.len() == 2_000_000);
    assert!(world.run(Duration::from_secs(1), through));
    let counters = world.ends[0].session.counters();
    assert!(counters.data_repeated > 0 && counters.probes == 0, "{counters:?}");
    let wire = Duration::from_millis(17);
    assert!(world.now.since(begun) < wire, "{:?}", world.now.since(begun));
}

#[test]
fn a_lazy_reader_is_not_overrun_and_wakes_the_sender() {
    let mut world = World::new(GOOD, 9, Check::Carrier, 64 * 1024);
    world.establish();
    world.ends[1].lazy = true;
    let channel = world.ends[0].open(b"", bytes(1_000_000, 0), true);
    world.run(Duration::from_secs(2), |_| false);
    let sent = world.ends[0].session.counters().data_sent;
    assert!(sent < 70, "{sent} datagrams for a window of 64 KiB");
    assert_eq!(world.ends[1].session.counters().superfluous, 0);
    world.ends[1].lazy = false;
    let all = |world: &World| world.ends[1].streams[&channel].got.len() == 1_000_000;
    assert!(world.run(Duration::from_secs(2), all));
}

#[test]
fn a_narrow_path_is_found_at_set_up() {
    let mut world = World::new(Faults { passes: 1400, ..GOOD }, 3, Check::Carrier, 1 << 20);
    world.establish();
    assert_eq!(world.ends[0].session.datagram(), DatagramSize::new(1380));
    assert_eq!(world.ends[1].session.datagram(), DatagramSize::new(1380));
    exchange(&mut world, &[(200_000, 200_000)]);
}

#[test]
fn a_path_that_narrows_and_widens_on_the_way() {
    let mut world = World::new(GOOD, 3, Check::EndToEnd, 1 << 20);
    world.establish();
    let channel = world.ends[0].open(b"", bytes(3_000_000, 0), true);
    world.run(Duration::from_millis(2), |_| false);
    world.faults.passes = 1300;
    let all = |world: &World| world.ends[1].streams[&channel].got.len() == 3_000_000;
    assert!(world.run(Duration::from_secs(20), all), "{:?}", sums(&world));
    assert!(world.ends[1].streams[&channel].got == bytes(3_000_000, 0));
    assert!(world.ends[0].session.datagram() <= DatagramSize::new(1300));
    world.faults.passes = 70_000;
    let wide = |world: &World| world.ends[0].session.datagram() == DatagramSize::ETHERNET;
    assert!(world.run(Duration::from_secs(20), wide));
}

#[test]
fn silence_stalls_then_resumes() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    world.establish();
    let channel = world.ends[0].open(b"", bytes(3_000_000, 0), true);
    world.run(Duration::from_millis(2), |_| false);
    world.faults.loss = 1000;
    world.run(Duration::from_millis(1500), |_| false);
    assert_eq!(world.ends[0].stalls, 1);
    world.faults.loss = 0;
    let all = |world: &World| world.ends[1].streams[&channel].got.len() == 3_000_000;
    assert!(world.run(Duration::from_secs(2), all));
    assert!(world.ends.iter().all(|end| end.losses.is_empty()));
}

#[test]
fn a_lost_peer_resets_everything_and_comes_back() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    world.establish();
    let channel = world.ends[0].open(b"", bytes(9_000_000, 0), true);
    world.run(Duration::from_millis(2), |_| false);
    world.faults.loss = 1000;
    let lost = |world: &World| world.ends.iter().all(|end| end.losses == [Loss::Silent]);
    assert!(world.run(Duration::from_secs(10), lost));
    assert_eq!(world.ends[0].streams[&channel].reset, Some(ResetReason::PeerLost));
    assert_eq!(world.ends[1].streams[&channel].reset, Some(ResetReason::PeerLost));
    world.faults.loss = 0;
    world.establish();
    world.forget();
    exchange(&mut world, &[(100_000, 100_000)]);
}

#[test]
fn a_restarted_peer_is_noticed_at_once_and_old_datagrams_do_nothing() {
    for victim in 0..2 {
        let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
        world.establish();
        let channel = world.ends[0].open(b"", bytes(9_000_000, 0), true);
        world.run(Duration::from_millis(5), |_| false);
        world.history.clear();
        world.run(Duration::from_millis(5), |_| false);
        let old = std::mem::take(&mut world.history);
        let begun = world.now;
        world.crash(victim, 4242);
        let noticed = |world: &World| world.ends[1 - victim].losses == [Loss::Restarted];
        assert!(world.run(Duration::from_secs(1), noticed), "{:?}", sums(&world));
        assert!(world.now.since(begun) < Duration::from_millis(100));
        let stream = &world.ends[1 - victim].streams[&channel];
        assert_eq!(stream.reset, Some(ResetReason::PeerRestarted));
        world.establish();
        world.forget();
        for (to, datagram) in old {
            world.ends[to].session.receive(&datagram, world.now);
        }
        exchange(&mut world, &[(100_000, 100_000)]);
    }
}

#[test]
fn both_crash_and_go_on() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    world.establish();
    world.ends[0].open(b"", bytes(9_000_000, 0), true);
    world.run(Duration::from_millis(5), |_| false);
    world.crash(0, 555);
    world.crash(1, 556);
    world.establish();
    exchange(&mut world, &[(100_000, 100_000), (7, 7)]);
}

#[test]
fn a_stranger_gets_no_session() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    let key = Key::new([8; 32]);
    world.ends[1] = End::new(Config { key, ..config(2, 1, 9) });
    world.ends[0].session.call(world.now);
    world.ends[1].session.call(world.now);
    world.run(Duration::from_secs(5), |_| false);
    assert!(world.ends.iter().all(|end| !end.session.is_established()));
    // The one with the smaller id does not even look at the other's calls while it calls itself.
    assert!(world.ends[1].session.counters().foreign > 0);
}

#[test]
fn a_repeated_set_up_changes_nothing() {
    let mut world = World::new(GOOD, 3, Check::Carrier, 1 << 20);
    world.establish();
    let old = world.history.clone();
    let channel = world.ends[0].open(b"x", bytes(100, 0), false);
    world.run(Duration::from_millis(10), |_| false);
    for (to, datagram) in old {
        world.ends[to].session.receive(&datagram, world.now);
    }
    world.run(Duration::from_millis(100), |_| false);
    assert!(world.ends.iter().all(|end| end.losses.is_empty()));
    assert_eq!(world.ends[1].streams[&channel].got.len(), 100);
}

#[test]
fn resets_and_goodbyes_arrive() {
    let mut world = World::new(Faults { loss: 300, ..GOOD }, 11, Check::Carrier, 1 << 20);
    world.establish();
    let channel = world.ends[0].open(b"", bytes(100, 0), false);
    let there = |world: &World| world.ends[1].streams.contains_key(&channel);
    assert!(world.run(Duration::from_secs(5), there));
    let now = world.now;
    world.ends[1].session.reset(channel, ResetReason::Refused, now);
    world.ends[1].streams.clear();
    let reset = |world: &World| world.ends[0].streams[&channel].reset.is_some();
    assert!(world.run(Duration::from_secs(5), reset));
    assert_eq!(world.ends[0].streams[&channel].reset, Some(ResetReason::Refused));
    world.faults.loss = 0;
    world.ends[0].streams.clear();
    world.ends[0].open(b"", bytes(100, 0), false);
    world.run(Duration::from_millis(50), |_| false);
    let now = world.now;
    world.ends[1].session.leave(now);
    let left = |world: &World| world.ends[0].losses == [Loss::Left];
    assert!(world.run(Duration::from_secs(1), left));
}

#[test]
fn many_channels_share() {
    let mut world = World::new(GOOD, 5, Check::Carrier, 1 << 20);
    world.establish();
    let sizes: Vec<_> = (0..200).map(|number| (3000 + number * 11, number * 7)).collect();
    exchange(&mut world, &sizes);
    exchange(&mut world, &sizes);
}

fn any_faults() -> impl Strategy<Value = Faults> {
    (0_u64..120, 0_u64..100, 0_u64..300, 0_u64..50, prop_oneof![Just(70_000_usize), Just(1300)])
        .prop_map(|(loss, doubles, disorder, damage, passes)| Faults {
            loss,
            doubles,
            disorder,
            damage,
            passes,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever the wire does, what arrives is what was sent, and everything arrives.
    #[test]
    fn a_bad_wire(
        faults in any_faults(),
        seed in any::<u64>(),
        window in prop_oneof![Just(64_u32 << 10), Just(1 << 20)],
        sizes in proptest::collection::vec((0_usize..150_000, 0_usize..60_000), 1..5),
    ) {
        let mut world = World::new(faults, seed, Check::EndToEnd, window);
        world.establish();
        exchange(&mut world, &sizes);
    }

    /// Crashes at any time: what has arrived is a part of what was sent, and the ends find together again.
    #[test]
    fn crashes(
        faults in any_faults(),
        seed in any::<u64>(),
        times in proptest::collection::vec((0_u64..8_000, 0_usize..2), 1..4),
    ) {
        let mut world = World::new(faults, seed, Check::EndToEnd, 1 << 20);
        world.establish();
        for (number, (micros, victim)) in times.into_iter().enumerate() {
            let opener = number % 2;
            let sent = bytes(400_000, 1);
            let channel = world.ends[opener].open(b"o", sent.clone(), true);
            world.run(Duration::from_micros(micros), |_| false);
            for end in &world.ends {
                let got = end.streams.get(&channel).map_or(&[][..], |stream| &stream.got);
                prop_assert!(sent.starts_with(got));
            }
            world.crash(victim, 1000 + number as u64);
            // The other end notices by the new set-up.
            let noticed = |world: &World| {
                world.ends.iter().all(|end| end.session.is_established())
                    && world.ends[1 - victim].streams.get(&channel).is_none_or(|s| s.reset.is_some() || s.closed)
            };
            prop_assert!(world.run(Duration::from_secs(20), noticed), "{:?}", sums(&world));
            world.forget();
        }
        exchange(&mut world, &[(50_000, 50_000)]);
    }

    /// Any bytes may come: from strangers, and within a session.
    #[test]
    fn no_datagram_is_too_strange(
        datagrams in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..80), any::<bool>(), 0_u16..4), 1..60),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(GOOD, seed, Check::Carrier, 1 << 20);
        world.establish();
        let channel = world.ends[0].open(b"x", bytes(30_000, 0), false);
        world.run(Duration::from_micros(400), |_| false);
        let known = world.history.last().and_then(|(_, datagram)| Header::read(datagram, 0));
        let tag = known.map(|(header, _)| header.session).expect("something was sent");
        for (mut datagram, insider, number) in datagrams {
            if insider && datagram.len() >= HEADER_BYTES_MAX {
                // Of one of the three forms.
                let code = [3, 5, 6][usize::from(datagram[0] >> 4) % 3];
                datagram[0] = (code << 4) | (datagram[0] & 0xf);
                let told = usize::from(code != 6) * 2;
                datagram[10 + told..][..2].copy_from_slice(&tag.0.to_be_bytes());
                datagram[12 + told..][..2].copy_from_slice(&(channel.0 + number).to_be_bytes());
                if told > 0 {
                    let mut length = (datagram.len() - HEADER_BYTES_MAX) as u16;
                    if code == 3 {
                        length = length.min(31);
                    }
                    datagram[2..4].copy_from_slice(&length.to_be_bytes());
                }
            }
            for end in 0..2 {
                world.ends[end].session.receive(&datagram, world.now);
            }
            world.step();
        }
        world.run(Duration::from_millis(100), |_| false);
    }
}

//! Which way to a peer: tried, measured, chosen.
//!
//! ```text
//!  set up in UDP ──▶ neighbour? ── no ──▶ UDP
//!                        │ yes
//!                    a full frame goes there and comes back? ── no ──▶ UDP
//!                        │ yes
//!                    race: some milliseconds as fast as it goes, first by one, then by the other
//!                        └──▶ UDP if it is more than a tenth faster, else Ethernet
//! ```
//!
//! Ethernet wins a near tie: its header is 28 bytes shorter, which a short race cannot measure, and its round trip is
//! half of UDP's. A race of both ends at once only makes each slower by the same share.

use super::connection::Opening;
use super::hub::{CarrierIndex, Hub, PeerIndex, Way};
use crate::carrier::{Address, CarrierKind, Ethernet, neighbour_of};
use skein_link_core::light::{ChannelId, Event, Moment, ResetReason};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// A way is raced for so long: at 1 Gbit/s that is 1,300 full frames.
const RACE: Duration = Duration::from_millis(16);
/// Of which the beginning is not counted: windows open.
const RACE_WARM: Duration = Duration::from_millis(4);
/// How much faster UDP must be, in tenths.
const UDP_ADVANTAGE_TENTHS: u64 = 11;
/// How long the answer to a frame may take, and how often it is tried.
pub(super) const PROOF_WITHIN: Duration = Duration::from_millis(50);
const PROOFS_MAX: u32 = 5;
/// Paths change: so often the choice is made anew, if nobody uses the path.
const CHOICE_HOLDS: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Race {
    channel: ChannelId,
    begun: Moment,
    written: u64,
    /// When counting began, and what had arrived by then.
    from: Option<(Moment, u64)>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// No session.
    Down,
    /// A frame was sent by the other way.
    Proving {
        number: u32,
        due: Moment,
        tries: u32,
    },
    /// Bytes per second of the ways raced so far.
    Racing {
        race: Race,
        udp: Option<u64>,
    },
    Settled {
        until: Moment,
    },
}

/// The choice of way to one peer.
#[derive(Debug)]
pub(super) struct Choice {
    peer: PeerIndex,
    ip: IpAddr,
    state: State,
    /// The way on Ethernet among the hub's, once found.
    ethernet: Option<usize>,
    /// Bytes per second, as last raced: in UDP, on Ethernet.
    pub(super) rates: Option<(u64, u64)>,
}

/// Ethernet carriers by the name of their interface; `None` for one that could not be opened.
pub(super) type Interfaces = HashMap<String, Option<CarrierIndex>>;

impl Choice {
    pub(super) fn new(peer: PeerIndex, ip: IpAddr) -> Self {
        Self { peer, ip, state: State::Down, ethernet: None, rates: None }
    }

    /// Whether it wants to be called again at once.
    pub(super) fn is_racing(&self) -> bool {
        matches!(self.state, State::Racing { .. })
    }

    /// Whether an answer is waited for.
    pub(super) fn is_proving(&self) -> bool {
        matches!(self.state, State::Proving { .. })
    }

    /// A session was set up, by the way in use.
    pub(super) fn on_established(&mut self, hub: &mut Hub, interfaces: Option<&mut Interfaces>) {
        let Some(interfaces) = interfaces else { return self.settle(hub) };
        // Looked up again: the host at this address may be another one now.
        self.ethernet = find_ethernet(hub, self.peer, self.ip, interfaces);
        self.prove(hub, 1);
    }

    pub(super) fn on_lost(&mut self, hub: &mut Hub) {
        self.state = State::Down;
        // The next set-up goes by the way that always works.
        hub.use_way(self.peer, 0);
    }

    /// Nothing is heard by the way in use: back to the one that always works.
    pub(super) fn on_stalled(&mut self, hub: &mut Hub) {
        if hub.current(self.peer).1 == CarrierKind::Ethernet {
            hub.use_way(self.peer, 0);
            self.settle(hub);
        }
    }

    pub(super) fn on_event(&mut self, hub: &mut Hub, event: &Event) {
        match (self.state, event) {
            (State::Proving { number, .. }, Event::Proved { number: answered })
                if number == *answered =>
            {
                self.race(hub, 0, None);
            }
            (State::Racing { race, .. }, Event::Reset { channel, .. })
                if race.channel == *channel =>
            {
                hub.use_way(self.peer, 0);
                self.settle(hub);
            }
            _ => {}
        }
    }

    /// Goes on with what is under way.
    pub(super) fn on_time(&mut self, hub: &mut Hub, is_idle: impl FnOnce() -> bool) {
        match self.state {
            State::Proving { due, tries, .. } if due <= hub.now() => self.prove(hub, tries + 1),
            State::Settled { until } if until <= hub.now() && self.ethernet.is_some() => {
                if is_idle() {
                    self.prove(hub, 1);
                } else {
                    self.settle(hub);
                }
            }
            State::Racing { race, udp } => self.go_on(hub, race, udp),
            State::Down | State::Proving { .. } | State::Settled { .. } => {}
        }
    }

    fn settle(&mut self, hub: &Hub) {
        self.state = State::Settled { until: hub.now() + CHOICE_HOLDS };
    }

    /// Sends a full frame by the way on Ethernet.
    fn prove(&mut self, hub: &mut Hub, tries: u32) {
        let Some(way) = self.ethernet.filter(|_| tries <= PROOFS_MAX) else {
            return self.settle(hub);
        };
        let size = hub.size_of(self.peer, way);
        let mut frame = vec![0; size.get()];
        let Some((number, length)) = hub.session(self.peer).prove(size, &mut frame) else {
            return self.settle(hub);
        };
        hub.send_by(self.peer, way, &frame[..length]);
        self.state = State::Proving { number, due: hub.now() + PROOF_WITHIN, tries };
    }

    fn race(&mut self, hub: &mut Hub, way: usize, udp: Option<u64>) {
        hub.use_way(self.peer, way);
        let begun = hub.now();
        match hub.session(self.peer).open(&Opening::Race.write()) {
            Ok(channel) => {
                let race = Race { channel, begun, written: 0, from: None };
                self.state = State::Racing { race, udp };
            }
            Err(_) => self.settle(hub),
        }
    }

    fn go_on(&mut self, hub: &mut Hub, mut race: Race, udp: Option<u64>) {
        let now = hub.now();
        let session = hub.session(self.peer);
        let block = [0; 16 * 1024];
        while let Ok(taken @ 1..) = session.write(race.channel, &block) {
            race.written += taken as u64;
        }
        let queued = session.room(race.channel).map_or(0, |(_, queued)| queued);
        let arrived = race.written.saturating_sub(queued);
        let ran = now.since(race.begun);
        if race.from.is_none() && ran >= RACE_WARM {
            race.from = Some((now, arrived));
        }
        if ran < RACE {
            self.state = State::Racing { race, udp };
            return;
        }
        let (from, before) = race.from.unwrap_or((race.begun, 0));
        let nanos = u64::try_from(now.since(from).as_nanos()).unwrap_or(u64::MAX).max(1);
        let rate = u128::from(arrived.saturating_sub(before)) * 1_000_000_000 / u128::from(nanos);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        session.reset(race.channel, ResetReason::Aborted, now);
        match (udp, self.ethernet) {
            (None, Some(way)) => self.race(hub, way, Some(rate)),
            (Some(udp), _) => {
                self.rates = Some((udp, rate));
                if prefers_udp(udp, rate) {
                    hub.use_way(self.peer, 0);
                }
                self.settle(hub);
            }
            (None, None) => self.settle(hub),
        }
    }
}

/// On a slow wire the race ends before what the first way has queued has drained, and the second shows no rate: then a full
/// frame has passed there and back all the same, and the shorter header decides. Should it not carry, a stall takes us back.
fn prefers_udp(udp: u64, ethernet: u64) -> bool {
    ethernet > 0 && udp.saturating_mul(10) > ethernet.saturating_mul(UDP_ADVANTAGE_TENTHS)
}

fn find_ethernet(
    hub: &mut Hub,
    peer: PeerIndex,
    ip: IpAddr,
    interfaces: &mut Interfaces,
) -> Option<usize> {
    let neighbour = neighbour_of(ip)?;
    let open = || Ethernet::open(&neighbour.interface, neighbour.mtu).ok();
    let carrier = *interfaces
        .entry(neighbour.interface.clone())
        .or_insert_with(|| open().map(|carrier| hub.add_carrier(Box::new(carrier))));
    let way = Way { carrier: carrier?, address: Address::Mac(neighbour.mac) };
    if let Some(known) = hub.ways(peer).iter().position(|have| *have == way) {
        return Some(known);
    }
    hub.add_way(peer, way);
    Some(hub.ways(peer).len() - 1)
}

#[cfg(test)]
mod tests {
    use super::prefers_udp;

    #[test]
    fn a_near_tie_goes_to_ethernet() {
        // Full wire, 1 Gbit/s: the shorter header wins.
        assert!(!prefers_udp(118_000_000, 120_000_000));
        assert!(!prefers_udp(125_000_000, 120_000_000));
        // A slow wire: nothing was measured.
        assert!(!prefers_udp(2_000_000, 0));
        // No wire at all: fewer system calls win.
        assert!(prefers_udp(2_000_000_000, 300_000_000));
    }
}

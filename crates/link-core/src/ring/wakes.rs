//! Whether small messages to another host are better off on TCP.
//!
//! A receiver that sleeps is woken by a bell, and a bell is a byte on TCP that the receiver's node asks for: it comes a round trip after
//! the message. Where messages take bells, the message itself might as well be those bytes. Whether the receiver sleeps is the
//! program's affair and may change, so the ring is tried again after a while. (Within a host a bell costs less, and is counted by
//! [`super::Bells`].)
//!
//! Time is nanoseconds of the caller's clock; there is no clock in here.

/// So many writes are judged together.
const WRITES: u32 = 32;
/// So many of them with a bell are too many: one costs as much as ten messages without.
const BELLS_MAX: u32 = WRITES / 8;
/// Of messages larger than this, on average, the copy that the ring saves is worth more than a bell.
const SMALL: u64 = 4 << 10;
/// How long TCP has them, and how long at most after the ring was tried again and again: a trial is one judgement.
const HOLD_NS: (u64, u64) = (500_000_000, 8_000_000_000);

/// What a direction's sender knows of its receiver's sleep. It lives where [`super::Tx`] does, and under the same lock.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Wakes {
    writes: u32,
    bells: u32,
    bytes: u64,
    /// Where the last bell was seen, if one was in this phase of the ring.
    bell: Option<u64>,
    prefers_tcp: bool,
    hold: u64,
    until: u64,
}

impl Wakes {
    /// Whether small messages go to TCP.
    pub const fn prefers_tcp(&self) -> bool {
        self.prefers_tcp
    }

    /// Looks at the clock; of use while TCP is preferred.
    pub fn look(&mut self, now: u64) {
        if self.prefers_tcp && now >= self.until {
            self.prefers_tcp = false;
            self.begin();
        }
    }

    /// A write went to the ring; `bell` is the TCP position behind the last bell.
    pub fn on_ring(&mut self, bytes: u64, bell: u64, now: impl FnOnce() -> u64) {
        self.bells += u32::from(self.bell.is_some_and(|before| before != bell));
        self.bell = Some(bell);
        let is_enough = self.count(bytes);
        let are_small = self.bytes < SMALL * u64::from(self.writes);
        let is_worse = are_small && self.bells >= BELLS_MAX;
        // That there are too many is often known long before the last of them, and each costs a round trip.
        if !is_enough && !is_worse {
            return;
        }
        if is_worse {
            self.prefers_tcp = true;
            self.hold = (self.hold * 2).clamp(HOLD_NS.0, HOLD_NS.1);
            self.until = now().saturating_add(self.hold);
        } else {
            self.hold = 0;
        }
        self.begin();
    }

    /// A write went to TCP.
    pub fn on_tcp(&mut self, bytes: u64) {
        self.bell = None;
        if self.prefers_tcp && self.count(bytes) {
            // Not for bulk.
            self.prefers_tcp = self.bytes < SMALL * u64::from(WRITES);
            self.begin();
        }
    }

    /// Whether that is enough to judge.
    fn count(&mut self, bytes: u64) -> bool {
        self.writes += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.writes >= WRITES
    }

    fn begin(&mut self) {
        (self.writes, self.bells, self.bytes, self.bell) = (0, 0, 0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    /// Writes of so many bytes, one each millisecond, for `millis`; a bell for each `per_bell`. How many went to TCP.
    fn run(wakes: &mut Wakes, clock: &mut u64, millis: u64, bytes: u64, per_bell: u64) -> u64 {
        let mut on_tcp = 0;
        for number in 0..millis {
            *clock += MILLI;
            wakes.look(*clock);
            if wakes.prefers_tcp() {
                wakes.on_tcp(bytes);
                on_tcp += 1;
            } else {
                wakes.on_ring(bytes, number / per_bell, || *clock);
            }
        }
        on_tcp
    }

    #[test]
    fn messages_to_one_who_sleeps_take_tcp() {
        let (mut wakes, mut clock) = (Wakes::default(), 7);
        // A bell for each, and now and then the ring again.
        let on_tcp = run(&mut wakes, &mut clock, 60_000, 100, 1);
        assert!((59_000..59_970).contains(&on_tcp), "{on_tcp}");
        // It does not sleep any more: the ring, after eight seconds at most.
        run(&mut wakes, &mut clock, 9_000, 100, 100);
        assert_eq!(run(&mut wakes, &mut clock, 1_000, 100, 100), 0);
    }

    #[test]
    fn large_ones_and_those_to_one_who_is_awake_take_the_ring() {
        for (bytes, per_bell) in [(100, 10), (100, 1000), (60_000, 1)] {
            let (mut wakes, mut clock) = (Wakes::default(), 7);
            assert_eq!(
                run(&mut wakes, &mut clock, 5_000, bytes, per_bell),
                0,
                "{bytes}, {per_bell}"
            );
        }
        // Small ones first.
        let (mut wakes, mut clock) = (Wakes::default(), 7);
        run(&mut wakes, &mut clock, 100, 100, 1);
        assert!(wakes.prefers_tcp());
        assert!(run(&mut wakes, &mut clock, 1_000, 60_000, 1) <= 64);
    }

    #[test]
    fn a_few_bells_are_many() {
        let (mut wakes, mut clock) = (Wakes::default(), 7);
        for number in 0..64 {
            clock += MILLI;
            wakes.on_ring(100, number / 4, || clock);
        }
        assert!(wakes.prefers_tcp());
    }
}

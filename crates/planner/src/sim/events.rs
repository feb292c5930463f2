//! The pending events: earliest first, and in the order of their making when they are due together.

use dary_heap::QuaternaryHeap;
use std::cmp::Ordering;

/// Simulated time, nanoseconds since the start of the run.
pub(crate) type Nanos = u64;

/// Nanoseconds of so many seconds; at least 0, at most 292 years: what is further off never happens, and the sum of two is still a
/// time. (Over a signed number, which processors convert in one step.)
#[inline]
pub(crate) fn nanos(secs: f64) -> Nanos {
    ((secs * 1e9) as i64).max(0) as Nanos
}

/// Seconds of so many nanoseconds, up to 292 years.
#[inline]
pub(crate) fn secs(nanos: Nanos) -> f64 {
    nanos as i64 as f64 * 1e-9
}

/// What is to happen. A token that the addressee no longer has makes an event void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A user sends a request.
    Arrival { user: u32 },
    /// A replica is done with a request.
    Served { service: u32, slot: u32, token: u32 },
    /// A replica listens.
    Started { service: u32, slot: u32, token: u32 },
    /// A node fails.
    Failure { node: u32 },
    /// A node is known to fail soon.
    Warning { node: u32 },
    /// A node works again.
    Repaired { node: u32 },
    /// Others use more or less of a node.
    Background { node: u32 },
    /// A transfer is through.
    Transferred { flow: u32, token: u32 },
    /// A transfer's last byte arrives.
    Delivered { flow: u32 },
    /// The policy asked to be asked again.
    Plan { service: u32, token: u32 },
    /// A cell of the statistics ends.
    Cell,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    at: Nanos,
    number: u64,
    due: Due,
}

impl Pending {
    /// Time in the upper half, number in the lower: one comparison orders both.
    fn key(&self) -> u128 {
        u128::from(self.at) << 64 | u128::from(self.number)
    }
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Pending {}
impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pending {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its greatest first.
        other.key().cmp(&self.key())
    }
}

/// Events that are kept in order: enough for all of a small system, few enough that a new one soon finds its place.
const NEAR: usize = 64;

/// The pending events: the nearest in order, so that a new one is put among them in a few steps and the next is taken in one, and
/// those behind them in a heap.
#[derive(Debug)]
pub(super) struct Events {
    /// The nearest, the next one last.
    near: [Pending; NEAR],
    /// How many they are.
    count: usize,
    /// Those behind them.
    far: QuaternaryHeap<Pending>,
    /// When the first of the heap is due; beyond all times when there is none.
    horizon: Nanos,
    made: u64,
}

impl Default for Events {
    fn default() -> Self {
        let none = Pending { at: 0, number: 0, due: Due::Cell };
        Self {
            near: [none; NEAR],
            count: 0,
            far: QuaternaryHeap::new(),
            horizon: Nanos::MAX,
            made: 0,
        }
    }
}

impl Events {
    /// Adds an event. It is the youngest: among those that are due with it, it is the last.
    #[inline]
    pub(super) fn add(&mut self, at: Nanos, due: Due) {
        self.made += 1;
        let pending = Pending { at, number: self.made, due };
        if at >= self.horizon {
            return self.add_far(pending);
        }
        if self.count == NEAR && self.spill() <= at {
            return self.add_far(pending);
        }
        let mut place = self.count.min(NEAR - 1);
        self.count = place + 1;
        while place > 0 && self.near[place - 1].at <= at {
            self.near[place] = self.near[place - 1];
            place -= 1;
        }
        self.near[place] = pending;
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<(Nanos, Due)> {
        if self.count == 0 {
            self.come_near();
        }
        self.count = self.count.checked_sub(1)?;
        let first = &self.near[self.count];
        Some((first.at, first.due))
    }

    #[inline(never)]
    fn add_far(&mut self, pending: Pending) {
        self.horizon = self.horizon.min(pending.at);
        self.far.push(pending);
    }

    /// Makes room for more of the nearest; the horizon then.
    #[cold]
    fn spill(&mut self) -> Nanos {
        let kept = NEAR / 2;
        self.far.extend(&self.near[..NEAR - kept]);
        self.horizon = self.near[NEAR - kept - 1].at;
        self.near.copy_within(NEAR - kept.., 0);
        self.count = kept;
        self.horizon
    }

    /// Brings the nearest of the heap into order.
    #[inline(never)]
    fn come_near(&mut self) {
        while self.count < NEAR / 2
            && let Some(next) = self.far.pop()
        {
            self.near[self.count] = next;
            self.count += 1;
        }
        self.near[..self.count].reverse();
        self.horizon = self.far.peek().map_or(Nanos::MAX, |next| next.at);
    }

    /// How many were made so far.
    #[cfg(test)]
    pub(super) fn made(&self) -> u64 {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};
    use std::collections::BTreeSet;

    #[test]
    fn events_come_by_time_and_then_by_age() {
        let mut events = Events::default();
        for (at, node) in [(5, 1), (3, 2), (5, 3), (0, 4), (3, 5)] {
            events.add(at, Due::Failure { node });
        }
        let order: Vec<_> = std::iter::from_fn(|| events.next()).collect();
        let node = |node| Due::Failure { node };
        let expect = [(0, node(4)), (3, node(2)), (3, node(5)), (5, node(1)), (5, node(3))];
        assert_eq!(order, expect);
        assert_eq!(events.made(), 5);
    }

    #[test]
    fn any_number_of_events_come_in_order() {
        let mut stream = Stream::new(3, 0, 0, Purpose::Request);
        for most in [1, 10, NEAR, NEAR + 1, 3 * NEAR, 1000] {
            let (mut events, mut pending, mut now) = (Events::default(), BTreeSet::new(), 0);
            for number in 0..20 * most as u32 {
                // Near and far ahead, many at the same time.
                let at = now
                    + [stream.below(3), stream.below(100), stream.below(5000)][number as usize % 3]
                        as u64;
                events.add(at, Due::Failure { node: number });
                pending.insert((at, number));
                while pending.len() > stream.below(2 * most) {
                    let expect = pending.pop_first().map(|(at, node)| (at, Due::Failure { node }));
                    assert_eq!(events.next(), expect);
                    now = expect.map_or(now, |(at, _)| at);
                }
            }
        }
    }
}

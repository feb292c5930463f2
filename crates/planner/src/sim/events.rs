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
    /// Time in the upper half, number in the lower: one comparison orders both.
    key: u128,
    due: Due,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
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
        other.key.cmp(&self.key)
    }
}

/// The pending events. The one that was given last stays the first of the heap until the next is added or asked for: most events make
/// another, which then takes its place in one step instead of two.
#[derive(Debug, Default)]
pub(super) struct Events {
    heap: QuaternaryHeap<Pending>,
    given: bool,
    made: u64,
}

impl Events {
    #[inline]
    pub(super) fn add(&mut self, at: Nanos, due: Due) {
        self.made += 1;
        let pending = Pending { key: u128::from(at) << 64 | u128::from(self.made), due };
        if !std::mem::take(&mut self.given) {
            self.heap.push(pending);
        } else if let Some(mut first) = self.heap.peek_mut() {
            *first = pending;
        }
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<(Nanos, Due)> {
        if std::mem::take(&mut self.given) {
            self.heap.pop();
        }
        let first = self.heap.peek()?;
        self.given = true;
        Some(((first.key >> 64) as Nanos, first.due))
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
}

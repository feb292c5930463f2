//! Connections whose other end is on another host: what this side asks of the node, and waits for.
//!
//! The two paths of such a connection are not ordered by themselves (`skein_link_core::ring::far`). Where a byte has come whose
//! meaning is still on its way, the call waits for that: a round trip, whatever the program has set, for there is no
//! readiness that the kernel could tell of it. If the node does not answer, the connection is cut.

use crate::sys;
use core::sync::atomic::Ordering;
use skein_link_core::ring::{Behind, Direction, Segment};

/// The longest wait for the node, nanoseconds. A lost peer is noticed after 3 s and cut; this is for a node that is no more.
const PATIENCE_NS: u64 = 5_000_000_000;
/// One sleep of it, milliseconds: so long a node that dies goes unnoticed.
const SLEEP_MS: u32 = 50;
/// Looks before the first sleep.
const LOOKS: u32 = 2000;

/// Wakes the node if it sleeps: something has changed in the segment.
#[inline]
pub(crate) fn call(segment: &Segment) {
    if segment.reach() == skein_link_core::ring::Reach::Far && segment.header().call_node() {
        sys::futex_wake(segment.header().calls().as_ptr());
    }
}

/// Waits until the condition holds: whether it does. It may depend on what the node writes to this direction.
pub(crate) fn wait(segment: &Segment, dir: &Direction, holds: impl FnMut() -> bool) -> bool {
    wait_for(PATIENCE_NS, segment, dir, holds)
}

/// As [`wait`], for at most that many nanoseconds.
pub(crate) fn wait_for(
    patience: u64,
    segment: &Segment,
    dir: &Direction,
    mut holds: impl FnMut() -> bool,
) -> bool {
    for _ in 0..LOOKS {
        if holds() {
            return true;
        }
        core::hint::spin_loop();
    }
    let begun = sys::nanos();
    loop {
        let news = dir.news().load(Ordering::SeqCst);
        dir.listen();
        if holds() {
            return true;
        }
        if segment.header().behind() != Behind::Node || sys::nanos() - begun > patience {
            return false;
        }
        sys::futex_wait(dir.news().as_ptr(), news, SLEEP_MS);
    }
}

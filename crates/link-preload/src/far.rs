//! Connections whose other end is on another host: what this side asks of the node, and waits for.
//!
//! The two paths of such a connection are not ordered by themselves (`skein_link_core::ring::far`). Where a byte has come whose
//! meaning is still on its way, the call waits for that: a round trip, whatever the program has set, for there is no
//! readiness that the kernel could tell of it. If the node does not answer, the connection is cut.

use crate::sys;
use core::sync::atomic::{AtomicU64, Ordering};
use skein_link_core::ring::{Behind, Direction, Segment};

/// The longest wait for the node, nanoseconds. A lost peer is noticed after 3 s and cut; this is for a node that is no more.
pub(crate) const PATIENCE_NS: u64 = 5_000_000_000;
/// The same for a node that another connection of this process has waited for in vain: a server that has hundreds of them must not
/// stand for as many times five seconds.
const SILENT_NS: u64 = 50_000_000;
/// When a wait was last in vain, nanoseconds. What was mapped before has the same node.
static SILENT_AT: AtomicU64 = AtomicU64::new(0);
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

/// Waits until the condition holds: whether it does. It is one that a node which lives brings about, by what it writes to this
/// direction.
pub(crate) fn wait(segment: &Segment, dir: &Direction, mut holds: impl FnMut() -> bool) -> bool {
    if holds() {
        return true;
    }
    let is_silent = segment.header().mapped_at() < SILENT_AT.load(Ordering::Relaxed);
    let patience = if is_silent { SILENT_NS } else { PATIENCE_NS };
    let held = wait_for(patience, segment, dir, holds);
    if held && is_silent {
        // It was only slow.
        SILENT_AT.store(0, Ordering::Relaxed);
    } else if !held && segment.header().behind() == Behind::Node {
        SILENT_AT.store(sys::nanos(), Ordering::Relaxed);
    }
    held
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

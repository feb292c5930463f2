//! Whether the nodes behind connections to other hosts still live.
//!
//! A node that is killed tells nobody. The other host's node cuts the connection then; if both are killed, nobody does, and what
//! a program waits for never comes. A living node counts a word of the segment up, some times a second
//! ([`skein_link_core::ring::Header::beat`]). A process that has such connections sleeps some seconds at a time, and looks in between
//! whether the words have changed: a call that waits goes on waiting where it was.
//!
//! It is counted in looks, not in time: after a pause of the whole host the first look finds nothing new, and the next one does.

use crate::conn::{self, Conn};
use crate::side::Stage;
use crate::{leave, sys};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use libc::c_int;
use skein_link_core::ring::{Behind, Reach, Reason};

/// The longest sleep of a process that has such connections, nanoseconds: one wake-up of each waiting thread in so long.
pub(crate) const SLICE_NS: u64 = 3_000_000_000;
/// Between two looks, nanoseconds: a little less, so that each slice has one.
const LOOK_EVERY_NS: u64 = 2_500_000_000;
/// A node whose word stands still for so many looks in a row is no more: five seconds, where the other host's node takes three of
/// silence for its end.
const STILL_MOST: u8 = 2;
/// Of waits that ended with something, every so many are followed by a reading of the clock.
const ENDS_PER_LOOK: u32 = 32;

/// Connections of this process whose other end is far.
static FAR: AtomicU32 = AtomicU32::new(0);
/// When it was looked last, nanoseconds.
static LOOKED_AT: AtomicU64 = AtomicU64::new(0);
/// Waits that ended with something.
static ENDS: AtomicU32 = AtomicU32::new(0);

/// What was seen of one connection's node.
pub(crate) struct Pulse {
    beats: AtomicU32,
    still: AtomicU8,
}

impl Pulse {
    pub(crate) const fn new() -> Self {
        Self { beats: AtomicU32::new(0), still: AtomicU8::new(0) }
    }
}

/// One more connection whose other end is far.
pub(crate) fn add(pulse: &Pulse) {
    pulse.beats.store(0, Ordering::Relaxed);
    pulse.still.store(0, Ordering::Relaxed);
    FAR.fetch_add(1, Ordering::Relaxed);
}

/// One is gone.
pub(crate) fn remove() {
    FAR.fetch_sub(1, Ordering::Relaxed);
}

/// Whether this process has any.
#[inline]
pub(crate) fn is_needed() -> bool {
    FAR.load(Ordering::Relaxed) != 0
}

/// After a call that waited, or might have: looks if it is time. Waits that ended with something come often.
#[inline]
pub(crate) fn after(ended_with_something: bool) {
    if is_needed()
        && (!ended_with_something
            || ENDS.fetch_add(1, Ordering::Relaxed).is_multiple_of(ENDS_PER_LOOK))
    {
        look();
    }
}

/// Looks at all connections of this process if it is time, and cuts those whose node is no more.
#[cold]
fn look() {
    let (now, last) = (sys::nanos(), LOOKED_AT.load(Ordering::Relaxed));
    let is_time = now.saturating_sub(last) >= LOOK_EVERY_NS;
    if is_time
        && LOOKED_AT.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        conn::for_each_connection(|conn| look_at(conn));
    }
}

fn look_at(conn: &Conn) {
    let side = conn.side();
    if side.stage() != Stage::Counting || side.aborted().is_some() {
        return;
    }
    let Some(segment) = conn.segment().filter(|segment| segment.reach() == Reach::Far) else {
        return;
    };
    let beats = segment.header().beats();
    // Zero: a node of an earlier release, which does not count. Not agreed, or at an end: all that there is goes by TCP.
    let header = segment.header();
    if beats == 0 || header.behind() != Behind::Node || !header.is_live() {
        return;
    }
    let pulse = conn.pulse();
    if pulse.beats.swap(beats, Ordering::Relaxed) != beats {
        pulse.still.store(0, Ordering::Relaxed);
        return;
    }
    if pulse.still.fetch_add(1, Ordering::Relaxed) + 1 >= STILL_MOST
        && let Some(fd) = conn.any_fd()
    {
        leave::abort(conn, fd, Reason::Lost);
    }
}

/// Waits as `wait` does, which is given nanoseconds and answers zero when they have passed: for so long in all, `None` for ever.
pub(crate) fn in_slices(total: Option<u64>, mut wait: impl FnMut(u64) -> c_int) -> c_int {
    let until = total.map(|total| sys::nanos().saturating_add(total));
    loop {
        let left = until.map(|until| until.saturating_sub(sys::nanos()));
        let result = wait(left.map_or(SLICE_NS, |left| left.min(SLICE_NS)));
        after(result != 0);
        if result != 0 || left.is_some_and(|left| left <= SLICE_NS) {
            return result;
        }
    }
}

/// Whether a wait for so long is to be in slices.
#[inline]
pub(crate) fn is_long(total: Option<u64>) -> bool {
    is_needed() && total.is_none_or(|total| total > SLICE_NS)
}

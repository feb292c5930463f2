//! Connections whose socket may be readable although there is nothing to read: a bell was left in the queue because the
//! next bytes are likely to come soon, and then neither side makes a system call. Before this process waits in the kernel
//! for readiness, they are settled.

use crate::conn::{self, Conn};
use crate::side::Stage;
use crate::{doze, recv, spin};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// How many there may be. A process that reads from more connections than this between two waits settles the others
/// at once.
const PLACES: usize = 64;

static LIST: [AtomicU32; PLACES] = [const { AtomicU32::new(0) }; PLACES];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether a connection may be left unsettled. Not one with edges: a byte that lies there makes no new edge. Not one that
/// blocks and is polled, perhaps by another thread right now: it would be told to read, and the read would block.
pub(crate) fn is_lazy(conn: &Conn) -> bool {
    conn.edges.load(Ordering::Relaxed) == 0
        && (conn.polled.load(Ordering::Relaxed) == 0
            || conn.nonblocking.load(Ordering::Relaxed) != 0)
}

/// Notes an unsettled connection. `false`: no place; settle it now.
pub(crate) fn remember(conn: &Conn) -> bool {
    if conn.listed.load(Ordering::Relaxed) != 0 {
        return true;
    }
    let word = conn.slot() + 1;
    for place in &LIST {
        if place.load(Ordering::Relaxed) == 0
            && place.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            COUNT.fetch_add(1, Ordering::Relaxed);
            conn.listed.store(1, Ordering::Relaxed);
            return true;
        }
    }
    false
}

/// How long it pays to spin before a wait for readiness, nanoseconds.
static SPIN: AtomicU32 = AtomicU32::new(0);

/// Sets the budget for spinning.
pub(crate) fn start(spin: u32) {
    SPIN.store(spin, Ordering::Relaxed);
}

/// Before the process waits in the kernel.
#[inline]
pub(crate) fn all() {
    if COUNT.load(Ordering::Relaxed) != 0 {
        each();
    }
}

/// Before the process ends: whoever dozes at the other end of one of its connections looks at what the kernel says.
pub(crate) fn at_end() {
    all();
    conn::for_each_connection(|conn| doze::wake_both(conn));
}

/// Before the process waits in the kernel for readiness. If bytes come while it pays to wait for them, the kernel is asked
/// with their bell still in the queue and answers at once, and their sender has not had to ring.
#[inline]
pub(crate) fn before_wait() {
    if COUNT.load(Ordering::Relaxed) != 0 {
        spin::until(&SPIN, any_stirs);
        each();
    }
}

fn any_stirs() -> bool {
    LIST.iter().any(|place| {
        let word = place.load(Ordering::Relaxed);
        word != 0
            && conn::by_slot(word - 1).is_some_and(|conn| {
                conn.side().stage() == Stage::Counting && recv::in_ring(&conn) != 0
            })
    })
}

#[cold]
fn each() {
    for place in &LIST {
        let word = place.load(Ordering::Acquire);
        if word == 0 {
            continue;
        }
        let held = conn::by_slot(word - 1);
        if held.as_ref().is_some_and(|conn| conn.segment().is_some() && recv::in_ring(conn) != 0) {
            // Readable, and rightly so.
            continue;
        }
        if place.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        COUNT.fetch_sub(1, Ordering::Relaxed);
        if let Some(conn) = held {
            conn.listed.store(0, Ordering::Relaxed);
            if let Some(fd) = conn.any_fd() {
                recv::settle_now(&conn, fd);
            }
        }
    }
}

/// Settles one, which is waited for from now on.
#[inline]
pub(crate) fn now(conn: &Conn, fd: libc::c_int) {
    if recv::seems_unsettled(conn) {
        recv::settle_now(conn, fd);
    }
}

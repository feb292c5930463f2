//! Connections whose socket may be readable although there is nothing to read: a bell was left in the queue because the
//! next bytes are likely to come soon, and then neither side makes a system call. Before this process waits in the kernel
//! for readiness, they are settled.

use crate::conn::{self, Conn};
use crate::recv;
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
        && (conn.polled.load(Ordering::Relaxed) == 0 || conn.nonblocking.load(Ordering::Relaxed) != 0)
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

/// Settles all.
#[inline]
pub(crate) fn all() {
    if COUNT.load(Ordering::Relaxed) != 0 {
        each();
    }
}

#[cold]
fn each() {
    for place in &LIST {
        let word = place.swap(0, Ordering::AcqRel);
        if word == 0 {
            continue;
        }
        COUNT.fetch_sub(1, Ordering::Relaxed);
        if let Some(conn) = conn::by_slot(word - 1) {
            conn.listed.store(0, Ordering::Relaxed);
            let fd = conn.any_fd.load(Ordering::Relaxed);
            if fd >= 0 {
                recv::settle_now(&conn, fd);
            }
        }
    }
}

/// Settles one, which is waited for from now on.
pub(crate) fn now(conn: &Conn, fd: libc::c_int) {
    recv::settle_now(conn, fd);
}

//! Dozing: a short sleep of a reader that leaves its bell in the queue.
//!
//! Waking a sleeper through the kernel's TCP costs more than the sleep itself saves: a byte is sent, read and the socket
//! emptied again. So a reader that no one polls for sleeps a little on a word of the segment first, with its socket still
//! readable. Its sender wakes it with one call; if nothing comes, it settles and sleeps in the kernel as ever, where
//! timeouts, shutdown and the death of the peer are seen.

use crate::conn::Conn;
use crate::kernel::{self, Handlers};
use crate::sys;
use core::sync::atomic::Ordering;
use libc::c_int;
use skein_link_core::ring::{Direction, Rx};

/// How long, milliseconds. A program that is killed does not wake its peer, which learns of it so much later.
const DOZE_MS: u32 = 2;

/// How a doze ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doze {
    /// There may be something to read.
    Woken,
    /// Nothing came, or this connection must not doze: sleep in the kernel.
    Over,
    /// By a signal's handler that wants calls to end.
    Interrupted,
}

/// Dozes until the other end writes. The caller holds no lock; `rx` is a copy of the receiver's state.
pub(crate) fn doze(conn: &Conn, fd: c_int, rx: &Rx) -> Doze {
    let Some(segment) = conn.segment() else { return Doze::Over };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    let may = !inward.is_far()
        // Who polls for it must find it unreadable while it is empty, and readable when it is not.
        && conn.polled.load(Ordering::Relaxed) == 0
        && conn.edges.load(Ordering::Relaxed) == 0
        && conn.side().processes.load(Ordering::Relaxed) == 1
        && rx.is_unsettled(dir);
    if !may {
        return Doze::Over;
    }
    let handlers = kernel::handlers();
    if handlers == Handlers::Mixed {
        // Only the kernel knows which of them ends a call.
        return Doze::Over;
    }
    dir.doze();
    if rx.stirs(dir) {
        return Doze::Woken;
    }
    dir.count_sleep();
    let result = sys::futex_wait(dir.dozing().as_ptr(), 1, DOZE_MS);
    if rx.stirs(dir) {
        return Doze::Woken;
    }
    if result != -(libc::EINTR as isize) {
        return Doze::Over;
    }
    // Calls with a timeout do not go on, whatever the handler says (signal(7)).
    let ends = handlers == Handlers::End || kernel::timeout_ms(fd, libc::SO_RCVTIMEO).is_some();
    if ends { Doze::Interrupted } else { Doze::Woken }
}

/// After a change that a dozing reader must see.
#[inline]
pub(crate) fn wake(dir: &Direction) {
    if dir.take_dozing() {
        sys::futex_wake(dir.dozing().as_ptr());
    }
}

/// Wakes who dozes at either end: the connection is about to end.
pub(crate) fn wake_both(conn: &Conn) {
    if let Some(segment) = conn.segment() {
        let (out, inward) = conn.pipes(&segment);
        wake(out.direction());
        wake(inward.direction());
    }
}

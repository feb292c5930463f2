//! Bells in the socket's queue: dropping them makes the socket unreadable while there is nothing to read.

use super::Part;
use super::call::Call;
use crate::conn::Conn;
use crate::side::Stage;
use crate::{far, sys};
use core::sync::atomic::Ordering;
use libc::c_int;
use skein_link_core::ring::{Broken, Next, Settled};

/// How long a bell that was announced is waited for, milliseconds at a time, and how often. Its sender is between two
/// instructions; only one that is stopped or starved takes longer, and then a program may wake for nothing, once.
const BELL_WAIT_MS: u32 = 20;
const BELL_WAITS: u32 = 50;

/// How long a bell that is on its way is waited for before its socket is closed, nanoseconds: one that comes later makes the
/// kernel answer with a reset.
const LAST_BELL_NS: u64 = 20_000_000;

impl Call<'_> {
    /// Makes the socket unreadable if the ring is empty: whether it is, and whether there were bells to drop and they are
    /// dropped.
    pub(super) fn settle(&mut self) -> Result<(bool, bool), Broken> {
        let (quiet, drop) = match self.rx.settle(self.pipe)? {
            Settled::Quiet { drop } => (true, drop),
            Settled::Bytes { drop } => {
                // The node may have seen the bell unarmed, and ask for none.
                far::call(self.segment);
                (false, drop)
            }
            // A bell is on its way: the socket is readable soon, if it is not yet.
            Settled::Asked => return Ok((false, false)),
        };
        let dropped = drop > 0
            && self.drop_bells(drop).is_none()
            && self.conn.side().error.load(Ordering::Relaxed) == 0;
        Ok((quiet, dropped))
    }

    /// Reads bells and drops them. Answers what else came instead.
    pub(super) fn drop_bells(&mut self, bells: u64) -> Option<Part> {
        let mut left = bells as usize;
        let mut waits = 0;
        let mut buffer = [0u8; 8];
        while left > 0 {
            let len = left.min(buffer.len());
            let result = sys::recv(self.fd, &mut buffer[..len], 0);
            match usize::try_from(result) {
                Ok(0) => break,
                Ok(bytes) => {
                    left -= bytes;
                    self.rx.took(bytes as u64);
                    continue;
                }
                Err(_) if result == -(libc::EAGAIN as isize) => {
                    if self.pipe.is_far() && self.dir().phase() != self.rx.phase() {
                        // Announced by another way: they make the socket readable when they come.
                        return Some(Part::Nothing(None));
                    }
                }
                Err(_) if result == -(libc::EINTR as isize) => continue,
                Err(_) => {
                    // The sender died between announcing and sending, or the connection broke; told when it is due.
                    self.conn.side().error.store((-result) as c_int, Ordering::Release);
                    break;
                }
            }
            if waits == BELL_WAITS {
                return Some(Part::Nothing(None));
            }
            waits += 1;
            sys::poll(self.fd, libc::POLLIN, BELL_WAIT_MS);
        }
        self.rx.took(left as u64);
        None
    }
}

/// Before the last descriptor is closed: a settled socket ends with a FIN.
pub(crate) fn settle_last(conn: &Conn, fd: c_int) {
    if let Some(segment) = conn.segment()
        && conn.pipes(&segment).1.is_far()
    {
        let dir = conn.pipes(&segment).1.direction();
        far::wait_for(LAST_BELL_NS, &segment, dir, || !dir.is_asked());
    }
    settle_now(conn, fd);
}

/// Whether a bell may lie in the socket's queue although the ring is empty: a glance without a lock. Who reads right now in
/// another thread settles by himself.
pub(crate) fn seems_unsettled(conn: &Conn) -> bool {
    conn.side().stage() == Stage::Counting
        && conn
            .segment()
            .is_some_and(|segment| conn.pipes(&segment).1.direction().seems_unsettled())
}

/// Makes a connection's socket unreadable if there is nothing to read: before the program waits in the kernel, or closes.
pub(crate) fn settle_now(conn: &Conn, fd: c_int) {
    let Some(segment) = (conn.side().stage() == Stage::Counting).then(|| conn.segment()).flatten()
    else {
        return;
    };
    // Somebody else in there settles by himself.
    let Ok(mut rx) = conn.side().try_receiver() else {
        return;
    };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    if !rx.is_unsettled(dir) || !dir.enter(sys::yield_now) {
        return;
    }
    let mut call = Call { conn, fd, segment: &segment, rx: &mut rx, pipe: inward };
    if matches!(call.rx.next(inward), Ok(Next::Empty)) {
        // An error shows when the program reads.
        let _ = call.settle();
    }
    dir.leave();
}

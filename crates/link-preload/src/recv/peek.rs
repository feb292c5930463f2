//! Looking at what has come without taking it.

use super::call::Call;
use super::{Part, Quiet};
use crate::buffers::Buffers;
use crate::conn::Conn;
use crate::side::Stage;
use crate::sys;
use libc::c_int;
use skein_link_core::ring::{Broken, Next, Rx};

/// So much of a socket's queue is looked at, bytes, where not all of it is to be shown.
const PEEK_MOST: usize = 4096;

/// Parts of what is unread that are counted: more than there can be phases that were not seen, of three parts each.
const LOOKS: usize = 128;

impl Call<'_> {
    /// As `read`, but everything stays where it is.
    pub(super) fn peek(
        &mut self,
        buffers: &Buffers<'_>,
        flags: c_int,
        quiet: Quiet,
    ) -> Result<Part, Broken> {
        loop {
            match self.rx.next(self.pipe)? {
                Next::Ring { bytes } => {
                    let count = bytes.min(buffers.left());
                    self.copy_out(self.rx, buffers, flags, count);
                    let mut ahead = *self.rx;
                    ahead.pass(count);
                    return self.peek_on(ahead, buffers, count, flags);
                }
                Next::Tcp { limit } => {
                    let Some(part) = self.tcp(buffers, flags, limit)? else { continue };
                    let Part::Got(bytes) = part else {
                        return Ok(part);
                    };
                    if bytes as u64 != limit {
                        return Ok(part);
                    }
                    let mut ahead = *self.rx;
                    ahead.took(bytes as u64);
                    return self.peek_on(ahead, buffers, bytes, flags);
                }
                Next::Bells { bytes } => {
                    if let Some(part) = self.drop_bells(bytes) {
                        return Ok(part);
                    }
                }
                Next::Empty => {
                    if quiet == Quiet::Leave {
                        return Ok(Part::Nothing(Some(*self.rx)));
                    }
                    if let Some(part) = self.quiet()? {
                        return Ok(part);
                    }
                }
            }
        }
    }

    /// What follows the `done` bytes that a peek has seen is visible too, whichever way it came. `ahead` has gone past them.
    pub(super) fn peek_on(
        &self,
        mut ahead: Rx,
        buffers: &Buffers<'_>,
        done: usize,
        flags: c_int,
    ) -> Result<Part, Broken> {
        let mut rest = *buffers;
        rest.advance(done);
        while rest.left() > 0 {
            match ahead.look(self.pipe)? {
                Next::Ring { bytes } => {
                    let count = bytes.min(rest.left());
                    self.copy_out(&ahead, &rest, flags, count);
                    ahead.pass(count);
                    rest.advance(count);
                }
                Next::Bells { bytes } => ahead.took(bytes),
                Next::Tcp { limit } => {
                    let skip = ahead.tcp().saturating_sub(self.rx.tcp());
                    let count = behind(self.fd, skip, &rest, flags, limit);
                    ahead.took(count as u64);
                    rest.advance(count);
                    if (count as u64) < limit {
                        break;
                    }
                }
                Next::Empty => break,
            }
        }
        Ok(Part::Got(rest.done() - buffers.done()))
    }
}

/// Shows at most `limit` bytes of the socket's queue that lie behind `skip` others; how many.
fn behind(fd: c_int, skip: u64, rest: &Buffers<'_>, flags: c_int, limit: u64) -> usize {
    let mut seen = [0u8; PEEK_MOST];
    let Ok(skip) = usize::try_from(skip) else { return 0 };
    let most = usize::try_from(limit).unwrap_or(usize::MAX).min(rest.left());
    let most = most.saturating_add(skip).min(PEEK_MOST);
    let count = sys::recv(fd, &mut seen[..most], libc::MSG_PEEK);
    let Some(mut shown) = usize::try_from(count).ok().and_then(|count| seen.get(skip..count))
    else {
        return 0;
    };
    let count = shown.len();
    if flags & libc::MSG_TRUNC == 0 {
        // SAFETY: the program's buffers, in the call that it made with them.
        unsafe {
            rest.each(|piece| {
                let (now, later) = shown.split_at(piece.len().min(shown.len()));
                piece[..now.len()].copy_from_slice(now);
                shown = later;
                now.len()
            });
        }
    }
    count
}

/// Bytes that a `recv` would find now: for FIONREAD.
pub(crate) fn available(conn: &Conn, fd: c_int) -> Option<usize> {
    let segment = (conn.side().stage() == Stage::Counting).then(|| conn.segment()).flatten()?;
    let mut rx = conn.side().receiver().ok()?;
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    if !dir.enter(sys::yield_now) {
        return None;
    }
    // As far as the receiver is, it has told its sender.
    let _ = rx.next(inward);
    let mut ahead = *rx;
    let mut queued = u64::try_from(sys::queued(fd)).unwrap_or(0);
    let mut sum = 0;
    for _ in 0..LOOKS {
        match ahead.look(inward) {
            Ok(Next::Ring { bytes }) => {
                ahead.pass(bytes);
                sum += bytes;
            }
            Ok(Next::Bells { bytes }) if bytes <= queued => {
                ahead.took(bytes);
                queued -= bytes;
            }
            Ok(Next::Tcp { limit }) => {
                let bytes = queued.min(limit);
                ahead.took(bytes);
                (queued, sum) = (queued - bytes, sum + bytes as usize);
                if bytes < limit {
                    break;
                }
            }
            _ => break,
        }
    }
    dir.leave();
    Some(sum)
}

/// Bytes in the ring towards us, at a glance.
pub(crate) fn in_ring(conn: &Conn) -> u64 {
    let Some(segment) = conn.segment() else { return 0 };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    dir.head().wrapping_sub(dir.tail())
}

//! Receiving: from TCP and ring in the order in which the bytes were sent.

mod bells;
mod call;
mod end;
mod peek;
mod refuse;

pub(crate) use bells::{seems_unsettled, settle_last, settle_now};
pub(crate) use peek::{available, in_ring};
pub(crate) use refuse::refuse;

use crate::buffers::Buffers;
use crate::conn::Conn;
use crate::doze::{self, Doze};
use crate::kernel;
use crate::side::{Guard, Stage, Taken};
use crate::sleep::{Waited, rest, sleep};
use crate::{attach, leave, real, spin, sys, watch};
use call::{Call, tcp};
use core::sync::atomic::Ordering;
use libc::c_int;
use skein_link_core::ring::{Broken, Reason, Rx};

/// What to do when there is nothing to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quiet {
    /// Answer so at once; the socket may stay readable.
    Leave,
    /// Make the socket unreadable first, and look for the end of the connection.
    Settle,
}

/// How a part of a call went.
enum Part {
    /// That many bytes came.
    Got(usize),
    /// Nothing now. On the ring: a copy of the receiver's state, to spin on.
    Nothing(Option<Rx>),
    /// The peer has ended.
    End,
    /// An error number.
    Error(c_int),
}

/// Receives as `recvmsg` does, into the buffers. The answer is a count or a negative error number.
pub(crate) fn recv(conn: &Conn, fd: c_int, mut buffers: Buffers<'_>, flags: c_int) -> isize {
    attach::advance(conn, fd, 0);
    let mut quiet = Quiet::Leave;
    let mut blocks = None;
    let mut has_slept = match wait_first(conn, fd, flags) {
        Ok(has_slept) => has_slept,
        Err(error) if error == 0 || is_shut(conn, fd, error) => return 0,
        Err(error) => return -(error as isize),
    };
    loop {
        let part = match conn.side().receiver() {
            Ok(guard) => part(conn, fd, guard, &buffers, flags, quiet),
            Err(Taken::Self_ | Taken::Other) => Part::Error(libc::EAGAIN),
        };
        let error = match part {
            Part::Got(bytes) => {
                conn.idle.end();
                note_read(conn, bytes, has_slept);
                if conn.is_far() && flags & libc::MSG_PEEK == 0 {
                    conn.rest.took(bytes);
                }
                if conn.side().stage() != Stage::Counting {
                    attach::advance(conn, fd, bytes);
                }
                if flags & libc::MSG_PEEK != 0 {
                    if flags & libc::MSG_WAITALL == 0 || bytes == buffers.left() {
                        return bytes as isize;
                    }
                    // The kernel waits for all of them too; there is no call for "more than these".
                    return wait_all(conn, fd, buffers, flags);
                }
                buffers.advance(bytes);
                if buffers.left() == 0 || flags & libc::MSG_WAITALL == 0 {
                    return buffers.done() as isize;
                }
                quiet = Quiet::Leave;
                continue;
            }
            Part::End => return buffers.done() as isize,
            Part::Error(error) => {
                if is_end(error) {
                    // What is written from here on is TCP's to answer.
                    conn.side().shut.store(1, Ordering::Relaxed);
                    conn.side().end_told.store(1, Ordering::Release);
                }
                error
            }
            Part::Nothing(Some(_)) if quiet == Quiet::Leave && may_say_empty(conn, flags) => {
                libc::EAGAIN
            }
            Part::Nothing(ring) if *blocks.get_or_insert_with(|| waits(conn, fd, flags)) => {
                has_slept |= ring.is_none();
                match wait(conn, fd, ring, &mut quiet) {
                    Waited::Look => {
                        // The peer may have woken us to have its bytes back.
                        attach::advance(conn, fd, 0);
                        continue;
                    }
                    Waited::End => return buffers.done() as isize,
                    Waited::Error(error) => error,
                }
            }
            Part::Nothing(ring) => {
                conn.nonblocking.fetch_max(1, Ordering::Relaxed);
                if quiet == Quiet::Leave && ring.is_some() {
                    quiet = Quiet::Settle;
                    continue;
                }
                watch::after(true);
                libc::EAGAIN
            }
        };
        let is_told = buffers.done() == 0 && !is_shut(conn, fd, error);
        return if is_told { -(error as isize) } else { buffers.done() as isize };
    }
}

/// Whether an error is only that another thread has closed the descriptor meanwhile, having shut receiving down before: then the call
/// is told the end.
fn is_shut(conn: &Conn, fd: c_int, error: c_int) -> bool {
    matches!(error, libc::EBADF | libc::ENOTSOCK)
        && conn.side().read_shut.load(Ordering::Acquire) != 0
        && conn.was_closed(fd)
}

/// A read of so many bytes is one of a stream.
const MANY: usize = 16 << 10;

/// A call that waits takes at least so long, nanoseconds: to sleep and to be woken. One that finds bytes takes a quarter of that.
const SLEPT_NS: u64 = 2000;

/// Notes whether bytes had to be waited for on TCP, a message at a time.
fn note_read(conn: &Conn, bytes: usize, has_slept: bool) {
    let awaits = u8::from(has_slept && bytes < MANY);
    if conn.awaits.load(Ordering::Relaxed) != awaits {
        conn.awaits.store(awaits, Ordering::Relaxed);
    }
}

/// Waits before looking, which saves a system call, where the last read had to wait: whether it slept, or the error number that the
/// call answers; zero for the end.
fn wait_first(conn: &Conn, fd: c_int, flags: c_int) -> Result<bool, c_int> {
    if !awaits(conn, flags) {
        return Ok(false);
    }
    let begun = sys::nanos();
    match sleep(conn, fd) {
        // The peer may have woken us to have its bytes back.
        Waited::Look => attach::advance(conn, fd, 0),
        Waited::End => return Err(0),
        Waited::Error(error) => return Err(error),
    }
    Ok(sys::nanos() - begun >= SLEPT_NS)
}

/// Whether a read is to wait in the kernel before it looks: the last one had to, on TCP, and this one may. If the bytes come on the
/// ring meanwhile, their bell wakes it.
fn awaits(conn: &Conn, flags: c_int) -> bool {
    let side = conn.side();
    conn.awaits.load(Ordering::Relaxed) != 0
        && flags & (libc::MSG_DONTWAIT | libc::MSG_PEEK) == 0
        && conn.blocking.load(Ordering::Relaxed) != 0
        && side.processes.load(Ordering::Relaxed) == 1
        && side.aborted().is_none()
        && side.error.load(Ordering::Relaxed) == 0
        && conn.segment().is_none_or(|segment| {
            let dir = conn.pipes(&segment).1.direction();
            let phase = dir.phase();
            !phase.on_ring() && dir.seen() == phase
        })
}

/// Waits for bytes: on the ring by spinning, then dozing; in the kernel once the socket is settled. Bytes of TCP are not looked for
/// again and again: each look is a system call, and takes from the sender what he needs to send them.
fn wait(conn: &Conn, fd: c_int, ring: Option<Rx>, quiet: &mut Quiet) -> Waited {
    let Some(rx) = ring.filter(|_| *quiet == Quiet::Leave) else {
        *quiet = Quiet::Leave;
        let rested = if ring.is_none() { rest(conn, fd) } else { None };
        return rested.unwrap_or_else(|| sleep(conn, fd));
    };
    if spin_for(conn, &rx) {
        return Waited::Look;
    }
    match doze::doze(conn, fd, &rx) {
        Doze::Interrupted => return Waited::Error(libc::EINTR),
        Doze::Woken => {}
        Doze::Over => *quiet = Quiet::Settle,
    }
    // By another thread; the number may be somebody else's by now, or in a moment.
    let is_shut = conn.side().read_shut.load(Ordering::Acquire) != 0;
    match (conn.was_closed(fd), is_shut && !stirs(conn, &rx)) {
        (_, true) => Waited::End,
        (true, false) => Waited::Error(libc::EBADF),
        (false, false) => Waited::Look,
    }
}

/// Whether the call may wait. The kernel need not be asked if this process has said so and shares the socket with none.
fn waits(conn: &Conn, fd: c_int, flags: c_int) -> bool {
    if conn.side().processes.load(Ordering::Relaxed) == 1 {
        if conn.nonblocking.load(Ordering::Relaxed) == KNOWN_NONBLOCKING {
            return false;
        }
        if conn.blocking.load(Ordering::Relaxed) != 0 {
            return flags & libc::MSG_DONTWAIT == 0;
        }
    }
    kernel::blocks(fd, flags)
}

/// The program has set the socket not to block, with a call that the library saw.
pub(crate) const KNOWN_NONBLOCKING: u8 = 2;

/// Whether a call that does not wait may answer from the ring alone: the program does not let the kernel tell it when to
/// read, so that the end of the connection may be told by one of the next calls.
fn may_say_empty(conn: &Conn, flags: c_int) -> bool {
    let waits_not = flags & libc::MSG_DONTWAIT != 0
        || (conn.nonblocking.load(Ordering::Relaxed) == KNOWN_NONBLOCKING
            && conn.side().processes.load(Ordering::Relaxed) == 1);
    waits_not
        && conn.polled.load(Ordering::Relaxed) == 0
        && conn.edges.load(Ordering::Relaxed) == 0
        // Who has shut his reading is told the end at once.
        && conn.side().read_shut.load(Ordering::Relaxed) == 0
        && conn.idle.may_go_on()
}

fn stirs(conn: &Conn, rx: &Rx) -> bool {
    conn.segment().is_some_and(|segment| rx.stirs(conn.pipes(&segment).1.direction()))
}

/// Spins for bytes in the ring.
fn spin_for(conn: &Conn, rx: &Rx) -> bool {
    let Some(segment) = conn.segment() else {
        return false;
    };
    let (_, inward) = conn.pipes(&segment);
    spin::until(&conn.spin_read, || rx.stirs(inward.direction()))
}

/// `MSG_PEEK | MSG_WAITALL`: looks again until there is enough, the end, or an error.
fn wait_all(conn: &Conn, fd: c_int, buffers: Buffers<'_>, flags: c_int) -> isize {
    let flags = flags & !libc::MSG_WAITALL;
    let mut last = recv(conn, fd, buffers, flags);
    while last > 0 && (last as usize) < buffers.left() && kernel::blocks(fd, flags) {
        // Readable already, so that the kernel has no event for the next byte: look each millisecond.
        let mut none = [];
        // SAFETY: no descriptors; only the time.
        unsafe { real::poll(none.as_mut_ptr(), 0, 1) };
        let again = recv(conn, fd, buffers, flags);
        let ended = again == last
            && kernel::tcp_info(fd).is_none_or(|info| info.state != kernel::ESTABLISHED);
        // More are there than a look across changes of path can show.
        let hidden = again == last && available(conn, fd).is_some_and(|b| b >= buffers.left());
        if again <= 0 || ended || hidden {
            return last.max(again);
        }
        last = again;
    }
    last
}

fn part(
    conn: &Conn,
    fd: c_int,
    mut rx: Guard<'_, Rx>,
    buffers: &Buffers<'_>,
    flags: c_int,
    quiet: Quiet,
) -> Part {
    let side = conn.side();
    if let Some(error) = side.aborted() {
        return Part::Error(error);
    }
    let Some(segment) = (side.stage() == Stage::Counting).then(|| conn.segment()).flatten() else {
        return match side.error.swap(0, Ordering::AcqRel) {
            0 => tcp(fd, buffers, flags, u64::MAX),
            error => Part::Error(error),
        };
    };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    if rx.orphaned {
        match kernel::read_position(fd) {
            Some(position) => rx.recover(dir, position),
            None => return Part::Error(leave::abort(conn, fd, Reason::Broken)),
        }
    }
    if !dir.enter(sys::yield_now) {
        if kernel::tcp_info(fd).is_some_and(|info| info.state == kernel::ESTABLISHED) {
            // The sender was stopped between two stores. Its bytes, if there are any, have rung: a wait ends at once.
            return Part::Nothing(None);
        }
        dir.enter_after_death();
    }
    let mut call = Call { conn, fd, segment: &segment, rx: &mut rx, pipe: inward };
    let part = if flags & libc::MSG_PEEK != 0 {
        call.peek(buffers, flags, quiet)
    } else {
        call.read(*buffers, flags, quiet)
    };
    dir.leave();
    part.unwrap_or_else(|broken| Part::Error(leave::abort(conn, fd, reason(broken))))
}

pub(crate) const fn reason(broken: Broken) -> Reason {
    match broken {
        Broken::Index => Reason::Broken,
        Broken::Foreign => Reason::Foreign,
    }
}

/// Whether an error says that the peer is no more.
const fn is_end(error: c_int) -> bool {
    matches!(error, libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT)
}

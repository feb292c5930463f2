//! Leaving the ring for good: a step back to TCP, or the end of the connection where that cannot be done cleanly.

use crate::conn::Conn;
use crate::kernel;
use crate::side::Stage;
use crate::{conn, far, recv, send, sys};
use core::sync::atomic::{AtomicBool, Ordering};
use libc::c_int;
use skein_link_core::ring::{Behind, Busy, Hello, Pipe, Reason, Refusal, Tx};

/// How long the peer is given to take back bytes that are in the ring and cannot be read by who reads next, milliseconds.
/// Its library does so in its next call; a program that computes for longer loses the connection. On a busy host a call
/// may wait some hundreds of them for a processor, and late is better than cut.
const RECALL_MS: u64 = 1000;
/// How long the nodes of a far connection are given, milliseconds: so long the other host's node takes to see that ours is no more.
const NODES_MS: u64 = 3000;

/// No connection of this process is accelerated any more.
static FROZEN: AtomicBool = AtomicBool::new(false);

/// Whether new connections stay on TCP.
pub(crate) fn is_frozen() -> bool {
    FROZEN.load(Ordering::Relaxed)
}

/// Ends the connection with an error at both ends, because bytes may be missing or double. The answer is the error.
pub(crate) fn abort(conn: &Conn, fd: c_int, reason: Reason) -> c_int {
    let side = conn.side();
    side.aborted.store(libc::ECONNRESET, Ordering::Release);
    if let Some(segment) = conn.segment() {
        segment.header().leave(conn.role(), reason);
        segment.header().set_hello(conn.role(), Hello::Gone);
        far::call(&segment);
    }
    kernel::cut(fd);
    libc::ECONNRESET
}

/// Takes a connection back to TCP for good, so that whoever uses the socket next without the library finds plain TCP.
/// If bytes in the ring cannot be had back in time, the connection is aborted.
pub(crate) fn step_back(conn: &Conn, fd: c_int, reason: Reason) {
    let side = conn.side();
    {
        let (Ok(receiver), Ok(sender)) = (side.receiver(), side.sender()) else {
            // In a signal's handler that interrupted a call on this very connection: no clean way out.
            if side.stage() == Stage::Counting {
                abort(conn, fd, Reason::Stuck);
            }
            return;
        };
        match side.stage() {
            Stage::Never => return,
            Stage::Candidate | Stage::Pending => {
                if let Some(segment) = conn.segment() {
                    segment.header().leave(conn.role(), reason);
                }
                conn.say_gone();
                side.set_stage(Stage::Never);
                return;
            }
            Stage::Counting => side.forbidden.store(1, Ordering::Relaxed),
        }
        drop((receiver, sender));
    }
    if side.aborted().is_some() {
        return;
    }
    if !clear_ring(conn, fd) || !send::onto_tcp(conn, fd) {
        abort(conn, fd, Reason::Stuck);
        return;
    }
    if let Some(segment) = conn.segment() {
        segment.header().leave(conn.role(), reason);
    }
    restore_options(conn, fd);
    side.set_stage(Stage::Never);
}

/// Makes sure that the ring towards us is empty and stays so.
fn clear_ring(conn: &Conn, fd: c_int) -> bool {
    if !hear_refusal(conn) {
        return false;
    }
    match recv::refuse(conn, fd, false) {
        Ok(true) => return true,
        Ok(false) => {}
        Err(_) => return false,
    }
    if recv::refuse(conn, fd, true).is_err() || !send::wake(conn, fd) {
        return false;
    }
    let begun = sys::nanos();
    while sys::nanos() - begun < RECALL_MS * 1_000_000 {
        match recv::refuse(conn, fd, true) {
            Ok(true) => return true,
            Ok(false) => {}
            Err(_) => return false,
        }
        sys::futex_wait(conn.side().forbidden.as_ptr(), 1, 1);
    }
    false
}

/// Where the other end is far: refuses, and waits until its node has heard it and all that was on its way is here.
fn hear_refusal(conn: &Conn) -> bool {
    let Some(segment) = conn.segment() else { return true };
    let (_, inward) = conn.pipes(&segment);
    if !inward.is_far() {
        return true;
    }
    let dir = inward.direction();
    dir.refuse(Refusal::NoMore);
    far::call(&segment);
    let is_calm =
        || (dir.is_calm() && !dir.is_asked()) || segment.header().behind() == Behind::Nobody;
    far::wait_for(NODES_MS * 1_000_000, &segment, dir, is_calm) || is_calm()
}

/// The peer leaves and cannot read what is in our ring: goes to TCP and sends it again there.
pub(crate) fn give_back(conn: &Conn, fd: c_int, tx: &mut Tx, out: Pipe<'_>) -> Result<(), Busy> {
    let dir = out.direction();
    let (head, tail) = (tx.head(), dir.tail());
    let Some(left) = head.checked_sub(tail).filter(|left| *left <= out.capacity() as u64) else {
        abort(conn, fd, Reason::Broken);
        return Ok(());
    };
    if !tx.is_seen(dir) {
        // It has not come to these bytes; what it can read on TCP lies before them.
        abort(conn, fd, Reason::Stuck);
        return Ok(());
    }
    tx.back_to_tcp(dir, tail)?;
    let mut chunk = [0u8; 4096];
    let mut at = tail;
    let mut waits = 0;
    while at < tail + left {
        let len = ((tail + left - at) as usize).min(chunk.len());
        out.copy(at, &mut chunk[..len]);
        let piece = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: len };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let result = sys::sendmsg(fd, &sys::header(&[piece]), flags);
        match u64::try_from(result) {
            Ok(bytes) => {
                tx.sent(dir, bytes);
                at += bytes;
            }
            Err(_) if result == -(libc::EAGAIN as isize) && waits < 20 => {
                waits += 1;
                sys::poll(fd, libc::POLLOUT, 10);
            }
            Err(_) => {
                abort(conn, fd, Reason::Stuck);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Gives the kernel the options that the program wanted and that the bells could not bear.
fn restore_options(conn: &Conn, fd: c_int) {
    let side = conn.side();
    let options = [(libc::TCP_NODELAY, &side.nodelay), (libc::TCP_CORK, &side.cork)];
    for (name, value) in options {
        sys::set_option(fd, libc::IPPROTO_TCP, name, value.load(Ordering::Relaxed));
    }
}

/// Takes all connections of this process back, and accelerates none any more.
pub(crate) fn freeze(reason: Reason) {
    FROZEN.store(true, Ordering::SeqCst);
    conn::for_each(0, c_int::MAX, |fd, conn| {
        step_back(conn, fd, reason);
    });
}

/// Before a program without the library, or with another memory, gets this process's sockets: those that it inherits.
pub(crate) fn inherited() {
    conn::for_each(0, c_int::MAX, |fd, conn| {
        let flags = sys::fcntl(fd, libc::F_GETFD, 0);
        if flags >= 0 && flags as c_int & libc::FD_CLOEXEC == 0 {
            step_back(conn, fd, Reason::Exec);
        }
    });
}

//! Sleeping in the kernel until bytes come.
//!
//! The socket is settled, or on TCP: it is readable when there is something to read, and the kernel alone knows of timeouts, signals,
//! the connection's end and the thread's.

use crate::conn::Conn;
use crate::kernel::{self, Handlers};
use crate::{real, sys, watch};
use core::sync::atomic::Ordering;
use libc::c_int;
use skein_link_core::ring::Rest;

/// A receive buffer that holds what comes during a rest, bytes: half of it is data, and 60 µs of 60 Gbit/s are as much. The kernel
/// gives a stream that needs it up to six times that.
const ROOMY: u64 = 1 << 20;

/// How waiting for bytes ended.
pub(crate) enum Waited {
    /// Look again.
    Look,
    /// With the connection.
    End,
    /// With an error number for the program.
    Error(c_int),
}

/// Rests instead of sleeping, where a stream comes ([`Rest`]). `None`: it does not.
pub(crate) fn rest(conn: &Conn, fd: c_int) -> Option<Waited> {
    let side = conn.side();
    let rests = conn.is_far()
        && side.processes.load(Ordering::Relaxed) == 1
        && side.receive_timeout_ms().is_none()
        // Only the kernel knows which of them ends a call.
        && kernel::handlers() != Handlers::Mixed
        && conn.rest.begins(|| kernel::receive_buffer(fd) >= ROOMY);
    if !rests {
        return None;
    }
    let result = sys::sleep(Rest::NANOS);
    Some(if conn.was_closed(fd) {
        // By another thread, as in `sleep`.
        match side.read_shut.load(Ordering::Acquire) {
            0 => Waited::Error(libc::EBADF),
            _ => Waited::End,
        }
    } else if result == -(libc::EINTR as isize) && kernel::wants_eintr() {
        Waited::Error(libc::EINTR)
    } else {
        Waited::Look
    })
}

/// Sleeps in the kernel until the socket is readable: with its timeouts, its restarts after signals, its shutdown by
/// another thread, as a point of cancellation.
pub(crate) fn sleep(conn: &Conn, fd: c_int) -> Waited {
    let mut has_ended = false;
    if let Some(segment) = conn.segment() {
        conn.pipes(&segment).1.direction().count_sleep();
        if conn.pipes(&segment).1.is_far()
            && let Some(waited) = sleep_in_slices(conn, fd, &mut has_ended)
        {
            return waited;
        }
    }
    let mut byte = 0u8;
    let place = (&raw mut byte).cast();
    // SAFETY: one byte of ours. A thread that is cancelled here unwinds through our frames, whose destructors only count
    // references down.
    let result = unsafe { real::recv(fd, place, 1, libc::MSG_PEEK) };
    let error = if result < 0 { sys::errno() } else { 0 };
    if conn.was_closed(fd) {
        // By another thread: the kernel's answer is the last of this descriptor, and its bytes are out of reach.
        return match result {
            0 => Waited::End,
            1.. => Waited::Error(libc::EBADF),
            _ if has_ended => Waited::End,
            _ => Waited::Error(error),
        };
    }
    match error {
        0 => Waited::Look,
        libc::EINTR | libc::EAGAIN => Waited::Error(error),
        error => {
            // Bytes in the ring come before the error.
            conn.side().error.store(error, Ordering::Release);
            Waited::Look
        }
    }
}

/// The same some seconds at a time, with a look at the node in between. `None`: [`sleep`] is to do it, where only the kernel knows
/// whether a signal ends the wait, or it has more to say than that there are bytes: `has_ended`, perhaps.
fn sleep_in_slices(conn: &Conn, fd: c_int, has_ended: &mut bool) -> Option<Waited> {
    const BYTES: i16 = libc::POLLIN | libc::POLLRDHUP;
    let side = conn.side();
    let total = side.receive_timeout_ms().map(|ms| ms.saturating_mul(1_000_000));
    // Calls with a timeout do not go on after a signal, whatever its handler says (signal(7)).
    if total.is_none() && kernel::handlers() == Handlers::Mixed {
        return None;
    }
    let mut set = libc::pollfd { fd, events: BYTES, revents: 0 };
    loop {
        let result = watch::in_slices(total, |slice| {
            if conn.was_closed(fd) || side.aborted().is_some() {
                return 1;
            }
            // SAFETY: one entry of ours. A thread that is cancelled here unwinds as in `sleep`.
            unsafe { real::poll(&raw mut set, 1, slice.div_ceil(1_000_000) as c_int) }
        });
        let error = if result < 0 { sys::errno() } else { 0 };
        *has_ended = set.revents & libc::POLLRDHUP != 0;
        if side.aborted().is_some() {
            return Some(Waited::Look);
        }
        if conn.was_closed(fd) {
            // By another thread, as in `sleep`.
            return Some(if *has_ended { Waited::End } else { Waited::Error(libc::EBADF) });
        }
        match (result, error) {
            (0, _) => return Some(Waited::Error(libc::EAGAIN)),
            (1.., _) if set.revents & !BYTES == 0 => return Some(Waited::Look),
            (_, libc::EINTR) if total.is_some() || kernel::wants_eintr() => {
                return Some(Waited::Error(libc::EINTR));
            }
            (_, libc::EINTR) => {}
            _ => return None,
        }
    }
}

//! Lists of messages: several in one call.

use super::io::{before_passing, pieces, recvmsg, sendmsg};
use crate::{conn, real, sys};
use core::sync::atomic::Ordering;
use libc::{c_int, c_uint, mmsghdr, timespec};

/// # Safety
/// As `recvmmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmmsg(
    fd: c_int,
    list: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    if !conn::is_ours(fd) || list.is_null() {
        // SAFETY: the same call.
        return unsafe { real::recvmmsg(fd, list, count, flags, timeout) };
    }
    // SAFETY: null, or the program's time.
    let Ok(mut patience) = Patience::of(unsafe { timeout.as_mut() }) else {
        return sys::answer(-(libc::EINVAL as isize)) as c_int;
    };
    let mut flags = flags;
    for index in 0..count {
        // SAFETY: the program's list of `count` headers.
        let entry = unsafe { &mut *list.add(index as usize) };
        // SAFETY: the program's header.
        let result = unsafe { recvmsg(fd, &raw mut entry.msg_hdr, flags & !libc::MSG_WAITFORONE) };
        if result < 0 && index > 0 {
            defer_error(fd);
        }
        if result < 0 {
            return if index > 0 { index as c_int } else { -1 };
        }
        entry.msg_len = result as c_uint;
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        if patience.is_over() {
            return index as c_int + 1;
        }
    }
    count as c_int
}

/// What is left of the time that a program gives a call for several messages. The kernel looks at it after each of them only, and
/// so do we.
struct Patience<'a> {
    /// The program's time, and when it is over, nanoseconds.
    until: Option<(&'a mut timespec, u64)>,
}

impl<'a> Patience<'a> {
    /// `Err`: it is no time.
    fn of(timeout: Option<&'a mut timespec>) -> Result<Self, ()> {
        let Some(time) = timeout else { return Ok(Self { until: None }) };
        let (Ok(seconds), 0..1_000_000_000) = (u64::try_from(time.tv_sec), time.tv_nsec) else {
            return Err(());
        };
        let total = seconds.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64);
        Ok(Self { until: Some((time, sys::nanos().saturating_add(total))) })
    }

    /// Tells the program what is left, and whether that is nothing.
    fn is_over(&mut self) -> bool {
        let Some((time, until)) = &mut self.until else { return false };
        let left = until.saturating_sub(sys::nanos());
        time.tv_sec = (left / 1_000_000_000) as i64;
        time.tv_nsec = (left % 1_000_000_000) as i64;
        left == 0
    }
}

/// The call that has just failed was one of several, the first of which succeeded: its error is told by the next call.
fn defer_error(fd: c_int) {
    let error = sys::errno();
    if !matches!(error, libc::EAGAIN | libc::EINTR)
        && let Some(held) = conn::get(fd)
    {
        held.side().error.store(error, Ordering::Release);
    }
}

/// Messages that one `sendmmsg` takes at most (`UIO_MAXIOV` of the kernel).
const LIST_MOST: c_uint = 1024;

/// # Safety
/// As `sendmmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmmsg(
    fd: c_int,
    list: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    if !conn::is_ours(fd) || list.is_null() {
        for index in 0..if list.is_null() { 0 } else { count } {
            // SAFETY: the program's list of `count` headers.
            unsafe { before_passing(&(*list.add(index as usize)).msg_hdr) };
        }
        // SAFETY: the same call.
        return unsafe { real::sendmmsg(fd, list, count, flags) };
    }
    let count = count.min(LIST_MOST);
    for index in 0..count {
        // SAFETY: the program's list of `count` headers.
        let entry = unsafe { &mut *list.add(index as usize) };
        // SAFETY: the program's header.
        let result = unsafe { sendmsg(fd, &raw const entry.msg_hdr, flags) };
        if result < 0 {
            return if index > 0 { index as c_int } else { -1 };
        }
        entry.msg_len = result as c_uint;
        // SAFETY: the program's list.
        let list = unsafe { pieces(entry.msg_hdr.msg_iov, entry.msg_hdr.msg_iovlen) };
        let sum = list.unwrap_or_default().iter().map(|piece| piece.iov_len).sum::<usize>();
        if (result as usize) < sum {
            // No message goes before the rest of another.
            return index as c_int + 1;
        }
    }
    count as c_int
}

//! Calls that move bytes.

use crate::buffers::Buffers;
use crate::conn::{self, Held};
use crate::leave;
use crate::{real, recv, send, sys};
use libc::{c_int, c_void, iovec, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t};
use skein_link_core::ring::Reason;

/// Flags of `send` with which the ring has nothing to do differently.
const SEND_PLAIN: c_int = libc::MSG_DONTWAIT
    | libc::MSG_NOSIGNAL
    | libc::MSG_MORE
    | libc::MSG_EOR
    | libc::MSG_DONTROUTE
    | libc::MSG_CONFIRM;
/// Flags of `recv` that it knows.
const RECV_PLAIN: c_int = libc::MSG_DONTWAIT
    | libc::MSG_PEEK
    | libc::MSG_WAITALL
    | libc::MSG_TRUNC
    | libc::MSG_NOSIGNAL
    | libc::MSG_CMSG_CLOEXEC;

/// The connection, if a send with these flags can be ours. One that cannot goes to TCP first.
#[inline]
fn sender(fd: c_int, flags: c_int) -> Option<Held> {
    let held = conn::get(fd)?;
    if flags & !SEND_PLAIN == 0 {
        return Some(held);
    }
    let reason = if flags & libc::MSG_OOB != 0 { Reason::OutOfBand } else { Reason::Call };
    leave::step_back(&held, fd, reason);
    conn::forget(fd);
    None
}

#[inline]
fn receiver(fd: c_int, flags: c_int) -> Option<Held> {
    let held = conn::get(fd)?;
    if flags & !RECV_PLAIN == 0 {
        return Some(held);
    }
    if flags & (libc::MSG_ERRQUEUE | libc::MSG_OOB) != 0 {
        // The queue of errors is the kernel's alone and has nothing to do with bytes. Nor has an urgent byte: its sender has
        // left the ring for good before it sent one.
        return None;
    }
    leave::step_back(&held, fd, Reason::Call);
    conn::forget(fd);
    None
}

pub(super) fn one(buf: *const c_void, len: size_t) -> [iovec; 1] {
    [iovec { iov_base: buf.cast_mut(), iov_len: len }]
}

/// The program's list of buffers.
///
/// # Safety
/// As `readv`: `list` points at `count` pieces.
pub(super) unsafe fn pieces<'a>(list: *const iovec, count: usize) -> Option<&'a [iovec]> {
    if list.is_null() || count == 0 || count > 1024 {
        return None;
    }
    // SAFETY: the caller's.
    let list = unsafe { core::slice::from_raw_parts(list, count) };
    // Empty calls, and sums that no call may have, are the kernel's to answer.
    let sum = list.iter().try_fold(0usize, |sum, piece| sum.checked_add(piece.iov_len))?;
    (sum > 0 && sum <= isize::MAX as usize).then_some(list)
}

/// Sends a list of pieces, if the connection is ours.
///
/// # Safety
/// The pieces are valid.
#[inline]
unsafe fn send_list(fd: c_int, list: Option<&[iovec]>, flags: c_int) -> Option<ssize_t> {
    let held = sender(fd, flags)?;
    // SAFETY: the caller's.
    let buffers = unsafe { Buffers::new(list?) };
    Some(sys::answer(send::send(&held, fd, buffers, flags)))
}

/// # Safety
/// The pieces are valid.
#[inline]
unsafe fn recv_list(fd: c_int, list: Option<&[iovec]>, flags: c_int) -> Option<ssize_t> {
    let held = receiver(fd, flags)?;
    // SAFETY: the caller's.
    let buffers = unsafe { Buffers::new(list?) };
    Some(sys::answer(recv::recv(&held, fd, buffers, flags)))
}

/// # Safety
/// As `read(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
    if conn::is_ours(fd) && len > 0 {
        // SAFETY: the program's buffer.
        if let Some(result) = unsafe { recv_list(fd, Some(&one(buf, len)), 0) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::read(fd, buf, len) }
}

/// # Safety
/// As `write(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
    if conn::is_ours(fd) && len > 0 {
        // SAFETY: the program's buffer.
        if let Some(result) = unsafe { send_list(fd, Some(&one(buf, len)), 0) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::write(fd, buf, len) }
}

/// # Safety
/// As `readv(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn readv(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
    if conn::is_ours(fd) {
        // SAFETY: the program's list.
        if let Some(result) = unsafe { recv_list(fd, pieces(list, count as usize), 0) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::readv(fd, list, count) }
}

/// # Safety
/// As `writev(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
    if conn::is_ours(fd) {
        // SAFETY: the program's list.
        if let Some(result) = unsafe { send_list(fd, pieces(list, count as usize), 0) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::writev(fd, list, count) }
}

/// # Safety
/// As `preadv2(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn preadv2(
    fd: c_int,
    list: *const iovec,
    count: c_int,
    at: off_t,
    flags: c_int,
) -> ssize_t {
    if at == -1 && conn::is_ours(fd) {
        let wait = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: the program's list.
        if let Some(result) = unsafe { recv_list(fd, pieces(list, count as usize), wait) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::preadv2(fd, list, count, at, flags) }
}

/// # Safety
/// As `pwritev2(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pwritev2(
    fd: c_int,
    list: *const iovec,
    count: c_int,
    at: off_t,
    flags: c_int,
) -> ssize_t {
    if at == -1 && conn::is_ours(fd) {
        let wait = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: the program's list.
        if let Some(result) = unsafe { send_list(fd, pieces(list, count as usize), wait) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::pwritev2(fd, list, count, at, flags) }
}

/// # Safety
/// As `recv(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recv(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    if conn::is_ours(fd) && len > 0 {
        // SAFETY: the program's buffer.
        if let Some(result) = unsafe { recv_list(fd, Some(&one(buf, len)), flags) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::recv(fd, buf, len, flags) }
}

/// # Safety
/// As `send(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn send(
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    if conn::is_ours(fd) && len > 0 {
        // SAFETY: the program's buffer.
        if let Some(result) = unsafe { send_list(fd, Some(&one(buf, len)), flags) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::send(fd, buf, len, flags) }
}

/// # Safety
/// As `recvfrom(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    if conn::is_ours(fd) && len > 0 {
        // SAFETY: the program's buffer.
        if let Some(result) = unsafe { recv_list(fd, Some(&one(buf, len)), flags) } {
            if result >= 0 && !address.is_null() && !address_len.is_null() {
                // SAFETY: the program's. A stream has no sender's address: the kernel says length zero.
                unsafe { *address_len = 0 };
            }
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::recvfrom(fd, buf, len, flags, address, address_len) }
}

/// # Safety
/// As `sendto(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    if flags & libc::MSG_FASTOPEN != 0 {
        // Connects with data in the SYN: never ours.
        // SAFETY: the same call.
        return unsafe { real::sendto(fd, buf, len, flags, address, address_len) };
    }
    if conn::is_ours(fd) && len > 0 {
        // SAFETY: the program's buffer. A connected stream ignores the address.
        if let Some(result) = unsafe { send_list(fd, Some(&one(buf, len)), flags) } {
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::sendto(fd, buf, len, flags, address, address_len) }
}

/// # Safety
/// As `recvmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if conn::is_ours(fd) && !message.is_null() {
        // SAFETY: the program's header.
        let header = unsafe { &mut *message };
        // SAFETY: the program's list.
        let list = unsafe { pieces(header.msg_iov, header.msg_iovlen) };
        // SAFETY: as above.
        if let Some(result) = unsafe { recv_list(fd, list, flags) } {
            if result >= 0 {
                if !header.msg_name.is_null() {
                    header.msg_namelen = 0;
                }
                header.msg_controllen = 0;
                header.msg_flags = 0;
            }
            return result;
        }
    }
    // SAFETY: the same call.
    unsafe { real::recvmsg(fd, message, flags) }
}

/// Before descriptors go to another process: those of ours step back, for it may not have the library.
///
/// # Safety
/// A valid header, as for `sendmsg`.
pub(super) unsafe fn before_passing(message: &msghdr) {
    if message.msg_control.is_null() || message.msg_controllen == 0 {
        return;
    }
    // SAFETY: the program's control messages, walked as the kernel does.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: within the control buffer, says CMSG_FIRSTHDR or CMSG_NXTHDR.
        let header = unsafe { &*control };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the data follow the header.
            let data = unsafe { libc::CMSG_DATA(control) }.cast::<c_int>();
            let count = header.cmsg_len.saturating_sub(size_of::<libc::cmsghdr>()) / 4;
            for index in 0..count {
                // SAFETY: `cmsg_len` says that they are there.
                let fd = unsafe { data.add(index).read_unaligned() };
                if let Some(held) = conn::get(fd) {
                    leave::step_back(&held, fd, Reason::Passed);
                    conn::forget(fd);
                }
            }
        }
        // SAFETY: as CMSG_FIRSTHDR.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
}

/// # Safety
/// As `sendmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmsg(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    if !message.is_null() {
        // SAFETY: the program's header.
        let header = unsafe { &*message };
        if conn::is_ours(fd) {
            // SAFETY: the program's list.
            let list = unsafe { pieces(header.msg_iov, header.msg_iovlen) };
            // Control messages on TCP are marks and time stamps, which need the kernel.
            let odd = if header.msg_controllen > 0 { libc::MSG_CTRUNC } else { 0 };
            // SAFETY: as above.
            if let Some(result) = unsafe { send_list(fd, list, flags | odd) } {
                return result;
            }
        } else {
            // SAFETY: the program's header.
            unsafe { before_passing(header) };
        }
    }
    // SAFETY: the same call.
    unsafe { real::sendmsg(fd, message, flags) }
}

// What `_FORTIFY_SOURCE` makes of the above: with the size of the buffer, to stop a call that would overrun it.

fn fortified(len: size_t, room: size_t) {
    if len > room {
        // SAFETY: ends the process, as the C library would.
        unsafe { libc::abort() }
    }
}

/// # Safety
/// As `read(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read_chk(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    room: size_t,
) -> ssize_t {
    fortified(len, room);
    // SAFETY: the same call.
    unsafe { read(fd, buf, len) }
}

/// # Safety
/// As `recv(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recv_chk(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    fortified(len, room);
    // SAFETY: the same call.
    unsafe { recv(fd, buf, len, flags) }
}

/// # Safety
/// As `recvfrom(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    fortified(len, room);
    // SAFETY: the same call.
    unsafe { recvfrom(fd, buf, len, flags, address, address_len) }
}

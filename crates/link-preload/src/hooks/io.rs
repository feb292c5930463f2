//! Calls that move bytes.

use crate::buffers::Buffers;
use crate::conn::{self, Held};
use crate::leave;
use crate::{real, recv, send, sys};
use core::sync::atomic::Ordering;
use libc::{
    c_int, c_uint, c_void, iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t,
    timespec,
};
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

fn one(buf: *const c_void, len: size_t) -> [iovec; 1] {
    [iovec { iov_base: buf.cast_mut(), iov_len: len }]
}

/// The program's list of buffers.
///
/// # Safety
/// As `readv`: `list` points at `count` pieces.
unsafe fn pieces<'a>(list: *const iovec, count: usize) -> Option<&'a [iovec]> {
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
unsafe fn before_passing(message: &msghdr) {
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

/// # Safety
/// As `sendfile(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile(
    out: c_int,
    from: c_int,
    at: *mut off_t,
    len: size_t,
) -> ssize_t {
    if let Some(held) = conn::get(out) {
        // SAFETY: the program's offset.
        if let Some(result) = unsafe { send_file(&held, out, from, at, len) } {
            return sys::answer(result);
        }
        leave::step_back(&held, out, Reason::Call);
        conn::forget(out);
    }
    // SAFETY: the same call.
    unsafe { real::sendfile(out, from, at, len) }
}

/// # Safety
/// As `sendfile64(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile64(
    out: c_int,
    from: c_int,
    at: *mut off_t,
    len: size_t,
) -> ssize_t {
    // SAFETY: the same function on 64-bit systems.
    unsafe { sendfile(out, from, at, len) }
}

/// Bytes of a file that are copied at a time.
const FILE_CHUNK: usize = 32 << 10;
/// What one `sendfile` moves at most (`MAX_RW_COUNT` of the kernel).
const FILE_MOST: usize = 0x7fff_f000;

/// Sends from a file by reading it. `None`: the file cannot be read at a position.
///
/// # Safety
/// `at` is null or the program's offset.
unsafe fn send_file(
    held: &Held,
    out: c_int,
    from: c_int,
    at: *mut off_t,
    len: size_t,
) -> Option<isize> {
    let start = if at.is_null() {
        sys::lseek(from, 0, libc::SEEK_CUR) as i64
    } else {
        // SAFETY: the program's.
        unsafe { *at }
    };
    if start < 0 {
        return None;
    }
    let len = len.min(FILE_MOST);
    let mut chunk = [0u8; FILE_CHUNK];
    let mut done = 0;
    let mut end = 0;
    while done < len {
        let want = (len - done).min(FILE_CHUNK);
        let got = sys::pread(from, &mut chunk[..want], start + done as i64);
        if got < 0 && done == 0 {
            return None;
        }
        if got <= 0 {
            break;
        }
        let list = one(chunk.as_ptr().cast(), got as usize);
        // SAFETY: the chunk is ours.
        let buffers = unsafe { Buffers::new(&list) };
        let sent = send::send(held, out, buffers, 0);
        if sent < 0 {
            end = sent;
            break;
        }
        done += sent as usize;
        if sent < got {
            break;
        }
    }
    if at.is_null() {
        sys::lseek(from, start + done as i64, libc::SEEK_SET);
    } else {
        // SAFETY: the program's.
        unsafe { *at = start + done as i64 };
    }
    Some(if done > 0 { done as isize } else { end })
}

/// # Safety
/// As `splice(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn splice(
    from: c_int,
    from_at: *mut i64,
    to: c_int,
    to_at: *mut i64,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    for fd in [from, to] {
        if let Some(held) = conn::get(fd) {
            leave::step_back(&held, fd, Reason::Call);
            conn::forget(fd);
        }
    }
    // SAFETY: the same call.
    unsafe { real::splice(from, from_at, to, to_at, len, flags) }
}

/// The C library's own threads will read and write.
///
/// # Safety
/// A control block of the program.
unsafe fn before_aio(block: *const libc::aiocb) {
    if !block.is_null() {
        // SAFETY: the caller's.
        let fd = unsafe { (*block).aio_fildes };
        if let Some(held) = conn::get(fd) {
            leave::step_back(&held, fd, Reason::Call);
            conn::forget(fd);
        }
    }
}

/// # Safety
/// As `aio_read(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_read(block: *mut libc::aiocb) -> c_int {
    // SAFETY: the program's block.
    unsafe { before_aio(block) };
    // SAFETY: the same call.
    unsafe { real::aio_read(block) }
}

/// # Safety
/// As `aio_write(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_write(block: *mut libc::aiocb) -> c_int {
    // SAFETY: the program's block.
    unsafe { before_aio(block) };
    // SAFETY: the same call.
    unsafe { real::aio_write(block) }
}

/// # Safety
/// As `aio_read(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_read64(block: *mut libc::aiocb) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { aio_read(block) }
}

/// # Safety
/// As `aio_write(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_write64(block: *mut libc::aiocb) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { aio_write(block) }
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

//! Calls that make, copy and end descriptors.

use crate::conn::{self, Held};
use crate::kernel::Opener;
use crate::{attach, doze, leave, real, recv, settle, sys};
use core::sync::atomic::Ordering;
use libc::{c_char, c_int, c_uint, c_ulong, c_void, sockaddr, socklen_t};
use skein_link_core::ring::Reason;

/// # Safety
/// As `connect(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn connect(
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: the program's address.
    let family = if address.is_null() || len < 2 { 0 } else { unsafe { (*address).sa_family } };
    let family = c_int::from(family);
    if family == libc::AF_UNSPEC {
        conn::forget(fd);
    }
    // SAFETY: the same call.
    let result = unsafe { real::connect(fd, address, len) };
    if family == libc::AF_INET || family == libc::AF_INET6 {
        let error = sys::errno();
        if result == 0 || error == libc::EINPROGRESS || error == libc::EINTR {
            attach::track(fd, Opener::Us);
        }
        sys::set_errno(error);
    }
    result
}

/// A descriptor that the kernel has just made: if the number was ours, its socket was closed behind our back.
#[inline]
fn fresh(fd: c_int) -> c_int {
    conn::forget(fd);
    fd
}

fn accepted(fd: c_int, nonblocking: bool) -> c_int {
    if fd >= 0 {
        let error = sys::errno();
        conn::forget(fd);
        attach::track(fd, Opener::Peer);
        if nonblocking && let Some(held) = conn::get(fd) {
            held.set_nonblocking(true);
        }
        sys::set_errno(error);
    }
    fd
}

/// # Safety
/// As `accept(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    settle::all();
    // SAFETY: the same call.
    accepted(unsafe { real::accept(fd, address, len) }, false)
}

/// # Safety
/// As `accept4(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    settle::all();
    // SAFETY: the same call.
    let made = unsafe { real::accept4(fd, address, len, flags) };
    accepted(made, flags & libc::SOCK_NONBLOCK != 0)
}

/// # Safety
/// As `shutdown(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    let (reads, writes) = (how != libc::SHUT_WR, how != libc::SHUT_RD);
    let mut before = 0;
    // Before it is: a reader that it wakes looks at this.
    if let Some(held) = conn::get(fd) {
        let side = held.side();
        if writes {
            side.shut.store(1, Ordering::Release);
            if let Some(segment) = held.segment() {
                segment.header().set_shut(held.role());
            }
        }
        if reads {
            before = side.read_shut.swap(1, Ordering::AcqRel);
        }
    }
    // SAFETY: the same call.
    let result = unsafe { real::shutdown(fd, how) };
    let error = sys::errno();
    if let Some(held) = conn::get(fd) {
        // What an earlier call has shut stays so.
        if result != 0 && reads {
            held.side().read_shut.store(before, Ordering::Release);
        }
        doze::wake_both(&held);
        sys::set_errno(error);
    }
    result
}

/// What must be done before a descriptor is closed: the last one leaves a settled socket, so that the kernel ends the
/// connection with a FIN, or with a reset if there is something that nobody read.
fn before_close(held: &Held, fd: c_int) {
    if held.entries() <= 1 {
        recv::settle_last(held, fd);
    }
    if held.is_last() {
        held.say_gone();
    }
}

#[inline]
fn closing(fd: c_int) {
    if let Some(held) = conn::get(fd) {
        before_close(&held, fd);
        held.note_closing(fd);
        conn::forget(fd);
    }
}

/// # Safety
/// As `close(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    closing(fd);
    // SAFETY: the same call.
    unsafe { real::close(fd) }
}

/// # Safety
/// As `close_range(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const UNSHARE: c_int = 2;
    // Marks only; or an error.
    if flags & !UNSHARE == 0 {
        let (first, last) = (range_end(first), range_end(last));
        conn::for_each(first, last, |fd, _| closing(fd));
    }
    // SAFETY: the same call.
    unsafe { real::close_range(first, last, flags) }
}

fn range_end(fd: c_uint) -> c_int {
    c_int::try_from(fd).unwrap_or(super::LAST)
}

/// # Safety
/// As `closefrom(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn closefrom(first: c_int) {
    conn::for_each(first, super::LAST, |fd, _| closing(fd));
    // SAFETY: the same call.
    unsafe { real::closefrom(first) }
}

/// # Safety
/// As `dup(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup(fd: c_int) -> c_int {
    // SAFETY: the same call.
    let made = unsafe { real::dup(fd) };
    if made >= 0 {
        conn::copy(fd, made);
    }
    made
}

/// What happens to the target before, and to the table after, a duplication onto a number.
fn onto(from: c_int, to: c_int, is_valid: bool, call: impl FnOnce() -> c_int) -> c_int {
    if from == to || (!conn::is_ours(from) && !conn::is_ours(to)) {
        return call();
    }
    if is_valid && sys::fcntl(from, libc::F_GETFD, 0) >= 0 {
        closing(to);
    }
    let made = call();
    if made >= 0 {
        conn::copy(from, made);
    }
    made
}

/// # Safety
/// As `dup2(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup2(from: c_int, to: c_int) -> c_int {
    // SAFETY: the same call.
    onto(from, to, true, || unsafe { real::dup2(from, to) })
}

/// # Safety
/// As `dup3(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: the same call.
    onto(from, to, flags & !libc::O_CLOEXEC == 0, || unsafe { real::dup3(from, to, flags) })
}

/// The kernel signals each byte that comes: as with edges, a bell that was left in the queue would hide the next one.
pub(super) fn signals_arrivals(held: &Held, fd: c_int) {
    held.polled.store(1, Ordering::Relaxed);
    held.edges.store(1, Ordering::Relaxed);
    settle::now(held, fd);
}

/// # Safety
/// As `fcntl(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    // SAFETY: the same call.
    let result = unsafe { real::fcntl(fd, command, argument) };
    if result < 0 {
        return result;
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => conn::copy(fd, result),
        libc::F_SETFL => {
            if let Some(held) = conn::get(fd) {
                let flags = argument as c_int;
                held.set_nonblocking(flags & libc::O_NONBLOCK != 0);
                if flags & libc::O_ASYNC != 0 {
                    signals_arrivals(&held, fd);
                }
            }
        }
        _ => {}
    }
    result
}

/// # Safety
/// As `fcntl(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl64(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { fcntl(fd, command, argument) }
}

/// # Safety
/// As `fdopen(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fdopen(fd: c_int, mode: *const c_char) -> *mut c_void {
    if let Some(held) = conn::get(fd) {
        // The C library reads and writes streams without its own public functions.
        leave::step_back(&held, fd, Reason::Stdio);
        conn::forget(fd);
    }
    // SAFETY: the same call.
    unsafe { real::fdopen(fd, mode) }
}

// What makes descriptors: their numbers are not ours, whatever happened to the former owner of the number.

/// # Safety
/// As `socket(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the same call.
    fresh(unsafe { real::socket(domain, kind, protocol) })
}

/// # Safety
/// As `socketpair(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn socketpair(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    // SAFETY: the same call.
    let result = unsafe { real::socketpair(domain, kind, protocol, pair) };
    // SAFETY: two numbers, if the call succeeded.
    unsafe { fresh_pair(result, pair) }
}

/// # Safety
/// `pair` is the program's, written by a call that answered `result`.
unsafe fn fresh_pair(result: c_int, pair: *const c_int) -> c_int {
    if result == 0 {
        for index in 0..2 {
            // SAFETY: the caller's.
            fresh(unsafe { *pair.add(index) });
        }
    }
    result
}

/// # Safety
/// As `pipe(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pipe(pair: *mut c_int) -> c_int {
    // SAFETY: the same call.
    let result = unsafe { real::pipe(pair) };
    // SAFETY: as above.
    unsafe { fresh_pair(result, pair) }
}

/// # Safety
/// As `pipe2(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pipe2(pair: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: the same call.
    let result = unsafe { real::pipe2(pair, flags) };
    // SAFETY: as above.
    unsafe { fresh_pair(result, pair) }
}

/// # Safety
/// As `open(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the same call.
    fresh(unsafe { real::open(path, flags, mode) })
}

/// # Safety
/// As `open(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    fresh(unsafe { real::open(path, flags, mode) })
}

/// # Safety
/// As `openat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn openat(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    // SAFETY: the same call.
    fresh(unsafe { real::openat(dir, path, flags, mode) })
}

/// # Safety
/// As `openat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn openat64(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    fresh(unsafe { real::openat(dir, path, flags, mode) })
}

/// # Safety
/// As `epoll_create(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create(size: c_int) -> c_int {
    // SAFETY: the same call.
    fresh(unsafe { real::epoll_create(size) })
}

/// # Safety
/// As `epoll_create1(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: the same call.
    fresh(unsafe { real::epoll_create1(flags) })
}

/// # Safety
/// As `eventfd(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn eventfd(value: c_uint, flags: c_int) -> c_int {
    // SAFETY: the same call.
    fresh(unsafe { real::eventfd(value, flags) })
}

//! Calls that wait for readiness. The kernel's answer is the truth; here only what might make it answer too early is
//! settled before, and connections are marked as waited for.

use crate::{conn, real, settle};
use core::sync::atomic::Ordering;
use libc::{c_int, c_ulong, epoll_event, fd_set, nfds_t, pollfd, sigset_t, timespec, timeval};

/// Before a call that may wait, or only looks.
fn wait(waits: bool) {
    if waits { settle::before_wait() } else { settle::all() }
}

/// Marks the connections of a set as polled.
///
/// # Safety
/// As `poll(2)`.
unsafe fn mark(set: *const pollfd, count: nfds_t) {
    if set.is_null() {
        return;
    }
    for index in 0..count as usize {
        // SAFETY: the program's set of `count` entries.
        let fd = unsafe { (*set.add(index)).fd };
        mark_one(fd);
    }
}

fn mark_one(fd: c_int) {
    if let Some(held) = conn::get(fd)
        && held.polled.load(Ordering::Relaxed) == 0
    {
        held.polled.store(1, Ordering::Relaxed);
        settle::now(&held, fd);
    }
}

/// # Safety
/// As `select(2)`.
unsafe fn mark_set(count: c_int, set: *const fd_set) {
    if set.is_null() {
        return;
    }
    let words = set.cast::<c_ulong>();
    let bits = c_ulong::BITS as usize;
    let count = usize::try_from(count).unwrap_or(0);
    for index in 0..count.div_ceil(bits) {
        // SAFETY: the program's set has at least `count` bits.
        let mut word = unsafe { *words.add(index) };
        while word != 0 {
            let bit = word.trailing_zeros() as usize;
            word &= word - 1;
            if index * bits + bit < count {
                mark_one((index * bits + bit) as c_int);
            }
        }
    }
}

/// # Safety
/// As `poll(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn poll(set: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the program's set.
    unsafe { mark(set, count) };
    wait(timeout != 0);
    // SAFETY: the same call.
    unsafe { real::poll(set, count, timeout) }
}

/// # Safety
/// As `ppoll(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ppoll(
    set: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the program's set.
    unsafe { mark(set, count) };
    settle::before_wait();
    // SAFETY: the same call.
    unsafe { real::ppoll(set, count, timeout, mask) }
}

/// # Safety
/// As `poll(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll_chk(
    set: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
    _room: usize,
) -> c_int {
    // SAFETY: the same call.
    unsafe { poll(set, count, timeout) }
}

/// # Safety
/// As `ppoll(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __ppoll_chk(
    set: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    _room: usize,
) -> c_int {
    // SAFETY: the same call.
    unsafe { ppoll(set, count, timeout, mask) }
}

/// # Safety
/// As `select(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn select(
    count: c_int,
    readable: *mut fd_set,
    writable: *mut fd_set,
    other: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the program's set.
    unsafe { mark_set(count, readable) };
    settle::before_wait();
    // SAFETY: the same call.
    unsafe { real::select(count, readable, writable, other, timeout) }
}

/// # Safety
/// As `pselect(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pselect(
    count: c_int,
    readable: *mut fd_set,
    writable: *mut fd_set,
    other: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the program's set.
    unsafe { mark_set(count, readable) };
    settle::before_wait();
    // SAFETY: the same call.
    unsafe { real::pselect(count, readable, writable, other, timeout, mask) }
}

/// # Safety
/// As `epoll_ctl(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_ctl(
    set: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    if operation != libc::EPOLL_CTL_DEL
        && !event.is_null()
        && let Some(held) = conn::get(fd)
    {
        // SAFETY: the program's event; it may be packed.
        let events = unsafe { (&raw const (*event).events).read_unaligned() };
        held.polled.store(1, Ordering::Relaxed);
        if events & libc::EPOLLET as u32 != 0 {
            held.edges.store(1, Ordering::Relaxed);
        }
        settle::now(&held, fd);
    }
    // SAFETY: the same call.
    unsafe { real::epoll_ctl(set, operation, fd, event) }
}

/// # Safety
/// As `epoll_wait(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_wait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: c_int,
) -> c_int {
    wait(timeout != 0);
    // SAFETY: the same call.
    unsafe { real::epoll_wait(set, events, count, timeout) }
}

/// # Safety
/// As `epoll_pwait(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    wait(timeout != 0);
    // SAFETY: the same call.
    unsafe { real::epoll_pwait(set, events, count, timeout, mask) }
}

/// # Safety
/// As `epoll_pwait2(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait2(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    settle::before_wait();
    // SAFETY: the same call.
    unsafe { real::epoll_pwait2(set, events, count, timeout, mask) }
}

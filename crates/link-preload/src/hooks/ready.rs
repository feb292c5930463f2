//! Calls that wait for readiness. The kernel's answer is the truth; here only what might make it answer too early is
//! settled before, and connections are marked as waited for. Where there are connections to other hosts, long waits are made of
//! several, with a look in between at whether their nodes live ([`watch`]).

use crate::{conn, real, settle, sys, watch};
use core::sync::atomic::Ordering;
use libc::{c_int, c_ulong, epoll_event, fd_set, nfds_t, pollfd, sigset_t, timespec, timeval};

/// Before a call that may wait, or only looks.
fn wait(waits: bool) {
    if waits { settle::before_wait() } else { settle::all() }
}

/// Milliseconds of a call, or what is left of them, rounded up: nobody is woken before his time.
fn millis(nanos: u64) -> c_int {
    c_int::try_from(nanos.div_ceil(1_000_000)).unwrap_or(c_int::MAX)
}

/// Nanoseconds of a timeout in milliseconds; `None`: for ever.
fn nanos_of_millis(timeout: c_int) -> Option<u64> {
    u64::try_from(timeout).ok().map(|ms| ms * 1_000_000)
}

/// Nanoseconds of a time in seconds and parts of a second. What is none is short, and left to the kernel.
fn nanos_of(seconds: i64, parts: i64, parts_in_second: u64) -> u64 {
    match (u64::try_from(seconds), u64::try_from(parts)) {
        (Ok(seconds), Ok(parts)) if parts < parts_in_second => {
            let part = 1_000_000_000 / parts_in_second;
            seconds.saturating_mul(1_000_000_000).saturating_add(parts * part)
        }
        _ => 0,
    }
}

/// # Safety
/// Null, or a time.
unsafe fn nanos_of_timespec(time: *const timespec) -> Option<u64> {
    // SAFETY: the caller's.
    let time = unsafe { time.as_ref() }?;
    Some(nanos_of(time.tv_sec, time.tv_nsec, 1_000_000_000))
}

/// # Safety
/// Null, or a time.
unsafe fn nanos_of_timeval(time: *const timeval) -> Option<u64> {
    // SAFETY: the caller's.
    let time = unsafe { time.as_ref() }?;
    Some(nanos_of(time.tv_sec, time.tv_usec, 1_000_000))
}

fn timespec_of(nanos: u64) -> timespec {
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    timespec { tv_sec: seconds as i64, tv_nsec: rest as i64 }
}

fn timeval_of(nanos: u64) -> timeval {
    let micros = nanos.div_ceil(1000);
    timeval { tv_sec: (micros / 1_000_000) as i64, tv_usec: (micros % 1_000_000) as i64 }
}

/// Waits by a call that is given nanoseconds, or `None` for just what the program has asked for.
fn wait_by(total: Option<u64>, mut call: impl FnMut(Option<u64>) -> c_int) -> c_int {
    if watch::is_long(total) {
        return watch::in_slices(total, |slice| call(Some(slice)));
    }
    let result = call(None);
    watch::after(result != 0);
    result
}

/// Words of a set of `FD_SETSIZE` descriptors. Waits for more are not divided.
const WORDS: usize = libc::FD_SETSIZE / c_ulong::BITS as usize;

/// As [`wait_by`], for `select`: the kernel empties the sets when a slice is over, and the next one needs them as they were.
///
/// # Safety
/// The program's sets for `count` descriptors, or null.
unsafe fn select_by(
    count: c_int,
    sets: [*mut fd_set; 3],
    total: Option<u64>,
    mut call: impl FnMut(Option<u64>) -> c_int,
) -> c_int {
    let words = usize::try_from(count).map_or(0, |count| count.div_ceil(c_ulong::BITS as usize));
    if !watch::is_long(total) || words > WORDS {
        return wait_by(Some(0), call);
    }
    let mut kept: [[c_ulong; WORDS]; 3] = [[0; WORDS]; 3];
    let given = || sets.into_iter().map(<*mut fd_set>::cast::<c_ulong>);
    for (set, kept) in given().zip(&mut kept).filter(|(set, _)| !set.is_null()) {
        // SAFETY: the kernel reads and writes as many words of a set.
        unsafe { core::ptr::copy_nonoverlapping(set, kept.as_mut_ptr(), words) };
    }
    watch::in_slices(total, |slice| {
        for (set, kept) in given().zip(&kept).filter(|(set, _)| !set.is_null()) {
            // SAFETY: as above.
            unsafe { core::ptr::copy_nonoverlapping(kept.as_ptr(), set, words) };
        }
        call(Some(slice))
    })
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
    wait_by(nanos_of_millis(timeout), |slice| {
        // SAFETY: the same call.
        unsafe { real::poll(set, count, slice.map_or(timeout, millis)) }
    })
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
    // SAFETY: the program's time.
    wait_by(unsafe { nanos_of_timespec(timeout) }, |slice| {
        let slice = slice.map(timespec_of);
        let timeout = slice.as_ref().map_or(timeout, core::ptr::from_ref);
        // SAFETY: the same call.
        unsafe { real::ppoll(set, count, timeout, mask) }
    })
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
    // SAFETY: the program's time.
    let total = unsafe { nanos_of_timeval(timeout) };
    let until = total.map(|total| sys::nanos().saturating_add(total));
    let mut is_divided = false;
    let call = |slice: Option<u64>| {
        is_divided = slice.is_some();
        let mut slice = slice.map(timeval_of);
        let timeout = slice.as_mut().map_or(timeout, core::ptr::from_mut);
        // SAFETY: the same call.
        unsafe { real::select(count, readable, writable, other, timeout) }
    };
    // SAFETY: the program's sets.
    let result = unsafe { select_by(count, [readable, writable, other], total, call) };
    if let Some(until) = until.filter(|_| is_divided) {
        // What is left, as the C library tells it.
        let left = timeval_of(until.saturating_sub(sys::nanos()));
        // SAFETY: the program's time, which the C library writes to in each call.
        unsafe { timeout.write(left) };
    }
    result
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
    // SAFETY: the program's time.
    let total = unsafe { nanos_of_timespec(timeout) };
    let call = |slice: Option<u64>| {
        let slice = slice.map(timespec_of);
        let timeout = slice.as_ref().map_or(timeout, core::ptr::from_ref);
        // SAFETY: the same call.
        unsafe { real::pselect(count, readable, writable, other, timeout, mask) }
    };
    // SAFETY: the program's sets.
    unsafe { select_by(count, [readable, writable, other], total, call) }
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
    wait_by(nanos_of_millis(timeout), |slice| {
        // SAFETY: the same call.
        unsafe { real::epoll_wait(set, events, count, slice.map_or(timeout, millis)) }
    })
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
    wait_by(nanos_of_millis(timeout), |slice| {
        // SAFETY: the same call.
        unsafe { real::epoll_pwait(set, events, count, slice.map_or(timeout, millis), mask) }
    })
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
    // SAFETY: the program's time.
    wait_by(unsafe { nanos_of_timespec(timeout) }, |slice| {
        let slice = slice.map(timespec_of);
        let timeout = slice.as_ref().map_or(timeout, core::ptr::from_ref);
        // SAFETY: the same call.
        unsafe { real::epoll_pwait2(set, events, count, timeout, mask) }
    })
}

//! Socket options and `ioctl`.

use super::life::signals_arrivals;
use crate::conn::{self, Held};
use crate::side::Stage;
use crate::{attach, kernel, leave, real, recv};
use core::sync::atomic::Ordering;
use libc::{c_int, c_ulong, c_void, socklen_t};
use skein_link_core::ring::Reason;

const SIOCATMARK: c_ulong = 0x8905;
const FIOASYNC: c_ulong = 0x5452;
/// `TCP_INQ` asks for a control message with each `recvmsg`.
const TCP_INQ: c_int = 36;

/// Options that change what reading and writing mean in a way that only the kernel can do.
fn needs_tcp(level: c_int, name: c_int, value: c_int) -> bool {
    match level {
        libc::SOL_SOCKET => match name {
            libc::SO_RCVLOWAT => value > 1,
            libc::SO_ZEROCOPY | libc::SO_PEEK_OFF => true,
            libc::SO_OOBINLINE => value != 0,
            libc::SO_ATTACH_FILTER | libc::SO_ATTACH_BPF => true,
            libc::SO_TIMESTAMP | libc::SO_TIMESTAMPNS | libc::SO_TIMESTAMPING => value != 0,
            _ => false,
        },
        libc::IPPROTO_TCP => {
            matches!(name, libc::TCP_ULP | libc::TCP_REPAIR | libc::TCP_MD5SIG | TCP_INQ)
        }
        _ => false,
    }
}

/// # Safety
/// As `setsockopt(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    if let Some(held) = conn::get(fd) {
        let number = if value.is_null() || len < 4 {
            0
        } else {
            // SAFETY: the program's value of at least four bytes.
            unsafe { value.cast::<c_int>().read_unaligned() }
        };
        if needs_tcp(level, name, number) {
            leave::step_back(&held, fd, Reason::Option);
            conn::forget(fd);
        } else if level == libc::IPPROTO_TCP
            && held.side().stage() == Stage::Counting
            && !value.is_null()
            && len >= 4
        {
            // The bells need the kernel's at their own values.
            let shadow = match name {
                libc::TCP_NODELAY => Some(&held.side().nodelay),
                libc::TCP_CORK => Some(&held.side().cork),
                _ => None,
            };
            if let Some(shadow) = shadow {
                shadow.store(c_int::from(number != 0), Ordering::Relaxed);
                return 0;
            }
        }
    }
    // SAFETY: the same call.
    let result = unsafe { real::setsockopt(fd, level, name, value, len) };
    if result == 0
        && level == libc::SOL_SOCKET
        && matches!(name, libc::SO_LINGER | libc::SO_RCVTIMEO)
        && let Some(held) = conn::get(fd)
        && let Some(segment) = held.segment()
    {
        if name == libc::SO_RCVTIMEO {
            held.side().set_receive_timeout(kernel::timeout_ms(fd, name));
            return result;
        }
        // SAFETY: the kernel took a `linger` of two numbers.
        let linger = unsafe { value.cast::<[c_int; 2]>().read_unaligned() };
        segment.header().set_resets(held.role(), attach::resets(linger));
    }
    result
}

/// The error that the library has heard from the kernel before the program, if the kernel has none to tell: what the program is told.
///
/// # Safety
/// The kernel has just answered `SO_ERROR` there.
unsafe fn tell_error(held: &Held, value: *mut c_void, len: *const socklen_t) -> c_int {
    // SAFETY: the caller's.
    if unsafe { *len } < 4 {
        return 0;
    }
    // SAFETY: as above.
    let known = unsafe { value.cast::<c_int>().read_unaligned() };
    if known != 0 {
        return known;
    }
    let error = held.side().error.swap(0, Ordering::AcqRel);
    // SAFETY: as above.
    unsafe { value.cast::<c_int>().write_unaligned(error) };
    error
}

/// # Safety
/// As `getsockopt(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the same call.
    let result = unsafe { real::getsockopt(fd, level, name, value, len) };
    if result != 0 {
        return result;
    }
    let Some(held) = conn::get(fd).filter(|held| held.side().stage() == Stage::Counting) else {
        return result;
    };
    if (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR) {
        // SAFETY: the kernel has written both.
        let error = unsafe { tell_error(&held, value, len) };
        if error != 0 {
            held.side().end_told.store(1, Ordering::Release);
        }
    } else if level == libc::IPPROTO_TCP {
        let shadow = match name {
            libc::TCP_NODELAY => Some(&held.side().nodelay),
            libc::TCP_CORK => Some(&held.side().cork),
            _ => None,
        };
        // SAFETY: the kernel has written the value's length there.
        let len = unsafe { *len };
        if let Some(shadow) = shadow
            && len >= 4
        {
            // SAFETY: the program's value, of so many bytes.
            unsafe { value.cast::<c_int>().write_unaligned(shadow.load(Ordering::Relaxed)) };
        }
    }
    result
}

/// # Safety
/// As `ioctl(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int {
    let Some(held) = conn::get(fd) else {
        // SAFETY: the same call.
        return unsafe { real::ioctl(fd, request, argument) };
    };
    // The kernel looks at the lower half only.
    let request = c_ulong::from(request as u32);
    // SAFETY: the same call.
    let result = unsafe { real::ioctl(fd, request, argument) };
    if result != 0 || argument == 0 {
        return result;
    }
    let place = core::ptr::with_exposed_provenance_mut::<c_int>(argument as usize);
    let number = match request {
        // Bytes in the ring come before the mark, which is on TCP.
        SIOCATMARK if recv::in_ring(&held) > 0 => Some(0),
        libc::FIONREAD => recv::available(&held, fd).map(|bytes| bytes as c_int),
        libc::FIONBIO => {
            // SAFETY: the program's number.
            held.set_nonblocking(unsafe { place.read_unaligned() } != 0);
            None
        }
        FIOASYNC => {
            // SAFETY: the program's number.
            if unsafe { place.read_unaligned() } != 0 {
                signals_arrivals(&held, fd);
            }
            None
        }
        _ => None,
    };
    if let Some(number) = number {
        // SAFETY: the program's place, where the kernel has just written.
        unsafe { place.write_unaligned(number) };
    }
    result
}

/// # Safety
/// As `sockatmark(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sockatmark(fd: c_int) -> c_int {
    if conn::get(fd).is_some_and(|held| recv::in_ring(&held) > 0) {
        return 0;
    }
    // SAFETY: the same call.
    unsafe { real::sockatmark(fd) }
}

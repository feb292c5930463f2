//! Calls that install handlers of signals: whether an interrupted call goes on or ends depends on them.

use crate::{kernel, real};
use libc::{c_int, sighandler_t};

/// # Safety
/// As `sigaction(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigaction(
    signal: c_int,
    action: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: the same call.
    let result = unsafe { real::sigaction(signal, action, old) };
    if !action.is_null() {
        kernel::forget_handlers();
    }
    result
}

/// # Safety
/// As `signal(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: the same call.
    let former = unsafe { real::signal(signal, handler) };
    kernel::forget_handlers();
    former
}

/// # Safety
/// As `signal(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn bsd_signal(number: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: the same function.
    unsafe { signal(number, handler) }
}

/// # Safety
/// As `sysv_signal(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: the same call.
    let former = unsafe { real::sysv_signal(signal, handler) };
    kernel::forget_handlers();
    former
}

/// # Safety
/// As `sysv_signal(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __sysv_signal(
    signal: c_int,
    handler: sighandler_t,
) -> sighandler_t {
    // SAFETY: the same function.
    unsafe { sysv_signal(signal, handler) }
}

/// # Safety
/// As `siginterrupt(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn siginterrupt(signal: c_int, ends: c_int) -> c_int {
    // SAFETY: the same call.
    let result = unsafe { real::siginterrupt(signal, ends) };
    kernel::forget_handlers();
    result
}

/// # Safety
/// As `sigset(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigset(signal: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: the same call.
    let former = unsafe { real::sigset(signal, handler) };
    kernel::forget_handlers();
    former
}

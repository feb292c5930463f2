//! The library that `skein link run` loads into a program (`LD_PRELOAD`): its TCP connections to programs that have it too
//! go over shared memory where they can.
//!
//! ```text
//!  program ── hooks ──┬── not ours ───────────────────────────────▶ C library
//!                     └── conn ── send, recv ──┬── ring (skein-link-core)
//!                              attach, leave   └── TCP socket of the program: bytes of TCP phases, bells
//! ```
//!
//! The kernel's socket stays the program's descriptor. What the kernel knows of it is always true enough to wait on
//! (`skein_link_core::ring`, kernel truth), so that readiness, signals, timeouts, inheritance and the end of processes are
//! left to it. Wherever the library does not know a call well enough, the connection steps back to TCP before the call.
//!
//! **Never** in here: an allocation, a thread, a lock that is held while waiting, a descriptor that stays open.

mod attach;
mod buffers;
mod conn;
mod doze;
mod far;
mod hooks;
mod idle;
mod kernel;
mod leave;
mod real;
mod recv;
mod send;
mod settle;
mod side;
mod sleep;
mod spin;
mod sys;
mod watch;

use core::ffi::CStr;
use core::sync::atomic::Ordering;

/// Where the broker listens.
const BROKER: &CStr = c"SKEIN_LINK_BROKER";
/// The longest spin, microseconds; 0: none.
const SPIN: &CStr = c"SKEIN_LINK_SPIN_US";

/// `ring`: the ring is never left for TCP by choice. For tests of the ring, and for comparing.
const PATH: &CStr = c"SKEIN_LINK_PATH";

/// Runs when the library has been loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;
/// Runs when the process ends in order.
#[used]
#[unsafe(link_section = ".fini_array")]
static FINI: extern "C" fn() = fini;

unsafe extern "C" {
    fn __register_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
        dso: *const libc::c_void,
    ) -> libc::c_int;
}

extern "C" fn init() {
    // Unwinding of ours out of a hook would be no better than ending. What may unwind through them is a cancelled thread.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let Some(broker) = environment(BROKER) else {
        return;
    };
    // SAFETY: reads a number of the system.
    let processors = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    let spin = environment(SPIN).and_then(|text| core::str::from_utf8(text).ok()?.parse().ok());
    let spin = spin.map_or(spin::MOST / 2, |us: u32| us.saturating_mul(1000).min(spin::MOST));
    let spin = if processors > 1 { spin } else { 0 };
    spin::START.store(spin, Ordering::Relaxed);
    send::STAYS.store(environment(PATH) == Some(b"ring"), Ordering::Relaxed);
    settle::start(spin);
    // SAFETY: a function without arguments; no handle of a library, for this one is never unloaded.
    unsafe { __register_atfork(Some(hooks::before_fork), None, None, core::ptr::null()) };
    attach::set_broker(broker);
}

extern "C" fn fini() {
    settle::at_end();
}

fn environment(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: nobody else runs yet.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: a C string of the environment, which stays.
    Some(unsafe { CStr::from_ptr(value) }.to_bytes())
}

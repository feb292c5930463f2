//! Calls by which a program gives the kernel's rings of calls (io_uring) something to do, through liburing.
//!
//! The kernel reads and writes sockets by itself then, past every library. So before entries are handed over they are looked at, and
//! connections among them go back to TCP. Connections that are not named there stay as they are: a database that only reads its files so
//! keeps its links. Who sets a ring up by hand (`syscall`, `io_uring_setup`) is not followed: all that the process has goes back.
//!
//! What is read of liburing's `struct io_uring` has been the same since its release 2.0.

use crate::{conn, leave};
use core::ffi::CStr;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use libc::{c_int, c_void};
use skein_link_core::ring::Reason;

/// The first words of liburing's `struct io_uring`.
#[repr(C)]
struct Ring {
    head: *const u32,
    tail: *const u32,
    mask: *const u32,
    entries: *const u32,
    flags: *const u32,
    dropped: *const u32,
    array: *const u32,
    /// Entries of 64 bytes, or of 128 (`SETUP_SQE128`).
    calls: *const u8,
    /// Of these the program has filled those from `first` on, up to `end`.
    first: u32,
    end: u32,
}

/// Place of the flags of its set-up.
const SETUP_AT: usize = 192;
const SETUP_SQE128: u32 = 1 << 10;
/// Bytes of an entry, and places in it: flags, descriptor, the descriptor that `splice` reads from.
const ENTRY: usize = 64;
const ENTRY_FLAGS_AT: usize = 1;
const ENTRY_FD_AT: usize = 4;
const ENTRY_SPLICE_AT: usize = 44;
/// The descriptor is a number of a registered file, which was looked at when it was registered.
const FIXED_FILE: u8 = 1;
const SPLICE: [u8; 2] = [30, 33];

fn step_back(fd: c_int) {
    if let Some(held) = conn::get(fd) {
        leave::step_back(&held, fd, Reason::IoUring);
        conn::forget(fd);
    }
}

/// Takes back the connections that the entries name which are about to be handed over.
///
/// # Safety
/// `ring` is a ring of liburing's, used by this thread.
unsafe fn look_at(ring: *const Ring) {
    // SAFETY: the caller's.
    let (words, setup) =
        unsafe { (&*ring, ring.cast::<u8>().add(SETUP_AT).cast::<u32>().read_unaligned()) };
    // SAFETY: liburing keeps it pointing at the ring's mask.
    let mask = unsafe { words.mask.read_volatile() };
    let size = if setup & SETUP_SQE128 == 0 { ENTRY } else { 2 * ENTRY };
    let count = words.end.wrapping_sub(words.first).min(mask.wrapping_add(1));
    for number in 0..count {
        let place = (words.first.wrapping_add(number) & mask) as usize * size;
        // SAFETY: an entry of the ring, which has `mask + 1` of them.
        let (kind, flags, fd, from) = unsafe {
            let entry = words.calls.add(place);
            (
                entry.read(),
                entry.add(ENTRY_FLAGS_AT).read(),
                entry.add(ENTRY_FD_AT).cast::<c_int>().read_unaligned(),
                entry.add(ENTRY_SPLICE_AT).cast::<c_int>().read_unaligned(),
            )
        };
        if flags & FIXED_FILE == 0 {
            step_back(fd);
        }
        if SPLICE.contains(&kind) {
            step_back(from);
        }
    }
}

/// # Safety
/// `files` points at `count` descriptors, or nowhere.
unsafe fn look_at_files(files: *const c_int, count: usize) {
    for at in 0..if files.is_null() { 0 } else { count } {
        // SAFETY: the caller's.
        step_back(unsafe { files.add(at).read() });
    }
}

/// What a call hands to the kernel.
#[derive(Clone, Copy)]
enum Hands {
    /// The entries that the program has filled; the ring is the first word.
    Entries,
    /// Descriptors to be registered: which words are the list and its length.
    Files { list: usize, count: usize },
    /// A ring by hand: what it is for is not seen.
    Anything,
}

/// Before such a call.
///
/// # Safety
/// The words are those of a call of liburing's that hands this over, in progress.
unsafe fn before(hands: Hands, words: [usize; 5]) {
    match hands {
        // SAFETY: the caller's: the first word is the program's ring.
        Hands::Entries => unsafe { look_at(words[0] as *const Ring) },
        Hands::Files { list, count } => {
            // SAFETY: the caller's: a list of the program's and its length, an `unsigned`.
            unsafe { look_at_files(words[list] as *const c_int, words[count] as u32 as usize) }
        }
        Hands::Anything => leave::freeze(Reason::IoUring),
    }
}

/// Names of the library; it may have been loaded by a library that was loaded late, and then is not behind ours.
const LIBRARIES: [&CStr; 3] = [c"liburing.so.2", c"liburing-ffi.so.2", c"liburing.so.1"];

fn resolve(place: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = place.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: a C string; RTLD_NEXT looks behind this library.
    let mut found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    for library in LIBRARIES {
        if found.is_null() {
            // SAFETY: C strings; the library is not loaded if it is not yet.
            found = unsafe {
                let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
                match libc::dlopen(library.as_ptr(), flags) {
                    handle if handle.is_null() => null_mut(),
                    handle => libc::dlsym(handle, name.as_ptr()),
                }
            };
        }
    }
    place.store(found, Ordering::Relaxed);
    found
}

/// A function of liburing, called with as many words as registers hold: it takes those that it has.
macro_rules! uring {
    ($($name:ident: $hands:expr;)*) => {
        $(
            /// # Safety
            /// As liburing's.
            #[unsafe(no_mangle)]
            pub unsafe extern "C-unwind" fn $name(
                a: usize,
                b: usize,
                c: usize,
                d: usize,
                e: usize,
                f: usize,
            ) -> c_int {
                static PLACE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
                const NAME: &CStr = match CStr::from_bytes_with_nul(
                    concat!(stringify!($name), "\0").as_bytes(),
                ) {
                    Ok(name) => name,
                    Err(_) => panic!("a name has no zero byte"),
                };
                let found = resolve(&PLACE, NAME);
                if found.is_null() {
                    return -libc::ENOSYS;
                }
                if conn::are_any() {
                    // SAFETY: the program's words, in the call that it made with them.
                    unsafe { before($hands, [a, b, c, d, e]) };
                }
                type Function =
                    unsafe extern "C-unwind" fn(usize, usize, usize, usize, usize, usize) -> c_int;
                // SAFETY: a function of words that answers an int; a pointer to a function is one to data.
                let function = unsafe { core::mem::transmute::<*mut c_void, Function>(found) };
                // SAFETY: the same call.
                unsafe { function(a, b, c, d, e, f) }
            }
        )*
    };
}

uring! {
    io_uring_submit: Hands::Entries;
    io_uring_submit_and_wait: Hands::Entries;
    io_uring_submit_and_wait_timeout: Hands::Entries;
    io_uring_submit_and_wait_min_timeout: Hands::Entries;
    io_uring_submit_and_wait_reg: Hands::Entries;
    io_uring_submit_and_get_events: Hands::Entries;
    io_uring_wait_cqes: Hands::Entries;
    io_uring_wait_cqes_min_timeout: Hands::Entries;
    io_uring_wait_cqe_timeout: Hands::Entries;
    io_uring_register_files: Hands::Files { list: 1, count: 2 };
    io_uring_register_files_tags: Hands::Files { list: 1, count: 3 };
    io_uring_register_files_update: Hands::Files { list: 2, count: 3 };
    io_uring_register_files_update_tag: Hands::Files { list: 2, count: 4 };
    io_uring_setup: Hands::Anything;
}

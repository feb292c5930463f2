//! What goes to or from a socket past the program's memory: files, pipes, the C library's own threads.

use super::io::one;
use crate::buffers::Buffers;
use crate::conn::{self, Held};
use crate::{leave, real, send, sys};
use libc::{c_int, c_uint, off_t, size_t, ssize_t};
use skein_link_core::ring::Reason;

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

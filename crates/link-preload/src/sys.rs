//! System calls without the C library: no cancellation point, no `errno`, none of our own hooks. For everything that is
//! done under a lock. Each answers a result or a negative error number.

use core::arch::asm;
use core::ptr;
use libc::{c_int, c_long, iovec, msghdr, pollfd, sockaddr, socklen_t, timespec};

/// A system call.
///
/// # Safety
/// As the call itself: pointers among the arguments are valid for what the kernel does with them.
unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention; `rcx` and `r11` are what it changes. Validity is the caller's.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

fn fd(fd: c_int) -> usize {
    fd as isize as usize
}

pub(crate) fn sendmsg(sock: c_int, message: &msghdr, flags: c_int) -> isize {
    let args = [fd(sock), ptr::from_ref(message).addr(), flags as usize, 0, 0, 0];
    // SAFETY: the header is ours; its buffers are the program's, and a bad one is answered with EFAULT.
    unsafe { call(libc::SYS_sendmsg, args) }
}

/// As [`sendmsg`] with a single buffer, which costs the kernel less.
pub(crate) fn send(sock: c_int, piece: iovec, flags: c_int) -> isize {
    let args = [fd(sock), piece.iov_base.addr(), piece.iov_len, flags as usize, 0, 0];
    // SAFETY: the buffer is the program's, and a bad one is answered with EFAULT.
    unsafe { call(libc::SYS_sendto, args) }
}

/// As [`recvmsg`] with a single buffer.
pub(crate) fn recv_piece(sock: c_int, piece: iovec, flags: c_int) -> isize {
    let args = [fd(sock), piece.iov_base.addr(), piece.iov_len, flags as usize, 0, 0];
    // SAFETY: as above.
    unsafe { call(libc::SYS_recvfrom, args) }
}

pub(crate) fn recvmsg(sock: c_int, message: &mut msghdr, flags: c_int) -> isize {
    let args = [fd(sock), ptr::from_mut(message).addr(), flags as usize, 0, 0, 0];
    // SAFETY: as above.
    unsafe { call(libc::SYS_recvmsg, args) }
}

/// Sends one byte without waiting and without a signal.
pub(crate) fn send_byte(sock: c_int, byte: u8) -> isize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let args = [fd(sock), ptr::from_ref(&byte).addr(), 1, flags as usize, 0, 0];
    // SAFETY: one byte of ours.
    unsafe { call(libc::SYS_sendto, args) }
}

/// Receives without waiting.
pub(crate) fn recv(sock: c_int, into: &mut [u8], flags: c_int) -> isize {
    let flags = (flags | libc::MSG_DONTWAIT) as usize;
    let args = [fd(sock), into.as_mut_ptr().addr(), into.len(), flags, 0, 0];
    // SAFETY: a buffer of ours.
    unsafe { call(libc::SYS_recvfrom, args) }
}

/// A socket option of a plain type.
pub(crate) fn get_option<T: Copy>(sock: c_int, level: c_int, name: c_int, value: &mut T) -> isize {
    let mut len = size_of::<T>() as socklen_t;
    let value = ptr::from_mut(value).addr();
    let len = ptr::from_mut(&mut len).addr();
    // SAFETY: the kernel writes at most `size_of::<T>()` bytes, and callers use types of integers only.
    unsafe { call(libc::SYS_getsockopt, [fd(sock), level as usize, name as usize, value, len, 0]) }
}

pub(crate) fn set_option(sock: c_int, level: c_int, name: c_int, value: c_int) -> isize {
    let value = ptr::from_ref(&value).addr();
    // SAFETY: four bytes of ours.
    unsafe { call(libc::SYS_setsockopt, [fd(sock), level as usize, name as usize, value, 4, 0]) }
}

pub(crate) fn fcntl(file: c_int, command: c_int, argument: c_int) -> isize {
    // SAFETY: only commands with an integer are used.
    unsafe { call(libc::SYS_fcntl, [fd(file), command as usize, argument as usize, 0, 0, 0]) }
}

pub(crate) fn shutdown(sock: c_int, how: c_int) -> isize {
    // SAFETY: numbers only.
    unsafe { call(libc::SYS_shutdown, [fd(sock), how as usize, 0, 0, 0, 0]) }
}

/// Bytes in a socket's receive queue.
pub(crate) fn queued(sock: c_int) -> isize {
    ask(sock, libc::FIONREAD)
}

/// Bytes in a socket's send queue: not sent, or not acknowledged.
pub(crate) fn unacknowledged(sock: c_int) -> isize {
    ask(sock, libc::TIOCOUTQ)
}

/// An `ioctl` that answers a number.
fn ask(sock: c_int, request: libc::c_ulong) -> isize {
    let mut bytes: c_int = 0;
    let place = ptr::from_mut(&mut bytes).addr();
    // SAFETY: the kernel writes an int.
    let result = unsafe { call(libc::SYS_ioctl, [fd(sock), request as usize, place, 0, 0, 0]) };
    if result < 0 { result } else { bytes as isize }
}

/// Waits until a socket is ready, or for that long.
pub(crate) fn poll(sock: c_int, events: i16, timeout_ms: u32) -> isize {
    let mut set = pollfd { fd: sock, events, revents: 0 };
    let mut time = millis(timeout_ms);
    let (set, time) = (ptr::from_mut(&mut set).addr(), ptr::from_mut(&mut time).addr());
    // SAFETY: one entry and one time of ours; no signal mask.
    unsafe { call(libc::SYS_ppoll, [set, 1, time, 0, 0, 0]) }
}

/// Sleeps by the clock; `-EINTR` after a signal.
pub(crate) fn sleep(nanos: u32) -> isize {
    let time = timespec { tv_sec: 0, tv_nsec: i64::from(nanos) };
    // SAFETY: a time of ours; what would be left of it nobody asks.
    unsafe { call(libc::SYS_nanosleep, [(&raw const time).addr(), 0, 0, 0, 0, 0]) }
}

fn millis(ms: u32) -> timespec {
    timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 }
}

/// Sleeps while the word has this value, at most that long.
pub(crate) fn futex_wait(word: *const u32, value: u32, timeout_ms: u32) -> isize {
    let mut time = millis(timeout_ms);
    let time = ptr::from_mut(&mut time).addr();
    let args = [word.addr(), libc::FUTEX_WAIT as usize, value as usize, time, 0, 0];
    // SAFETY: a futex on any address is safe; a bad one is answered with EFAULT.
    unsafe { call(libc::SYS_futex, args) }
}

pub(crate) fn futex_wake(word: *const u32) {
    let args = [word.addr(), libc::FUTEX_WAKE as usize, i32::MAX as usize, 0, 0, 0];
    // SAFETY: as above.
    unsafe { call(libc::SYS_futex, args) };
}

pub(crate) fn yield_now() {
    // SAFETY: no arguments.
    unsafe { call(libc::SYS_sched_yield, [0; 6]) };
}

pub(crate) fn close(file: c_int) {
    // SAFETY: the caller's own descriptor.
    unsafe { call(libc::SYS_close, [fd(file), 0, 0, 0, 0, 0]) };
}

pub(crate) fn socket(domain: c_int, kind: c_int) -> isize {
    // SAFETY: integers.
    unsafe { call(libc::SYS_socket, [domain as usize, kind as usize, 0, 0, 0, 0]) }
}

/// # Safety
/// `address` points at `len` bytes.
pub(crate) unsafe fn connect(sock: c_int, address: *const sockaddr, len: socklen_t) -> isize {
    // SAFETY: the caller's.
    unsafe { call(libc::SYS_connect, [fd(sock), address.addr(), len as usize, 0, 0, 0]) }
}

/// Sets both timeouts of a socket.
pub(crate) fn set_timeouts(sock: c_int, ms: u32) {
    let time = libc::timeval { tv_sec: i64::from(ms / 1000), tv_usec: i64::from(ms % 1000) * 1000 };
    let place = ptr::from_ref(&time).addr();
    for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let args = [fd(sock), libc::SOL_SOCKET as usize, name as usize, place, 16, 0];
        // SAFETY: 16 bytes of ours.
        unsafe { call(libc::SYS_setsockopt, args) };
    }
}

/// Maps shared memory: of a file, or fresh (`-1`). Null if it cannot be.
pub(crate) fn map(file: c_int, len: usize) -> *mut u8 {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let anonymous = if file < 0 { libc::MAP_ANONYMOUS } else { 0 };
    let flags = (libc::MAP_SHARED | anonymous) as usize;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let result = unsafe { call(libc::SYS_mmap, [0, len, protection, flags, fd(file), 0]) };
    if (-4095..0).contains(&result) {
        ptr::null_mut()
    } else {
        ptr::with_exposed_provenance_mut(result as usize)
    }
}

/// # Safety
/// Nothing uses the mapping any more.
pub(crate) unsafe fn unmap(base: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe { call(libc::SYS_munmap, [base.addr(), len, 0, 0, 0, 0]) };
}

/// Size of a file, or a negative error number.
pub(crate) fn size(file: c_int) -> isize {
    // SAFETY: all-zero is a valid `stat`.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    let place = ptr::from_mut(&mut stat).addr();
    // SAFETY: the kernel fills one `stat`.
    let result = unsafe { call(libc::SYS_fstat, [fd(file), place, 0, 0, 0, 0]) };
    if result < 0 { result } else { stat.st_size as isize }
}

/// Positioned read of a file.
pub(crate) fn pread(file: c_int, into: &mut [u8], at: i64) -> isize {
    let args = [fd(file), into.as_mut_ptr().addr(), into.len(), at as usize, 0, 0];
    // SAFETY: a buffer of ours.
    unsafe { call(libc::SYS_pread64, args) }
}

pub(crate) fn lseek(file: c_int, offset: i64, whence: c_int) -> isize {
    // SAFETY: integers.
    unsafe { call(libc::SYS_lseek, [fd(file), offset as usize, whence as usize, 0, 0, 0]) }
}

/// The monotonic clock, nanoseconds.
pub(crate) fn nanos() -> u64 {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the C library's, answered without a system call; not one of our hooks.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// A header for these buffers.
pub(crate) fn header(buffers: &[iovec]) -> msghdr {
    // SAFETY: all-zero is a valid header without address, buffers and control data.
    let mut message: msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len();
    message
}

/// Sets the C library's error number and answers -1, or the result.
pub(crate) fn answer(result: isize) -> isize {
    if result < 0 {
        set_errno((-result) as c_int);
        -1
    } else {
        result
    }
}

pub(crate) fn errno() -> c_int {
    // SAFETY: the thread's own error number.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(number: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = number };
}

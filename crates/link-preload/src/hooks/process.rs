//! Calls that start, change and end processes.

use crate::conn;
use crate::leave;
use crate::{kernel, real, settle, sys};
use core::sync::atomic::Ordering;
use libc::{
    c_char, c_int, c_long, c_ulong, c_void, pid_t, posix_spawn_file_actions_t, posix_spawnattr_t,
};
use skein_link_core::ring::Reason;

/// Before a fork: the child holds every connection too.
pub(crate) extern "C" fn before_fork() {
    conn::for_each_connection(|held| {
        held.side().processes.fetch_add(1, Ordering::AcqRel);
    });
}

/// # Safety
/// As `vfork(2)`. The child may call anything then, as after `fork`: the memory is its own, so that what it does to our
/// tables is not done to the parent's. The parent waits until it has started a program or ended, as with `vfork`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfork() -> pid_t {
    let mut pair = [0; 2];
    // SAFETY: two numbers of ours.
    let piped = unsafe { real::pipe2(pair.as_mut_ptr(), libc::O_CLOEXEC) } == 0;
    // SAFETY: the C library's, with its handlers.
    let child = unsafe { real::fork() };
    if piped {
        let error = sys::errno();
        if child == 0 {
            sys::close(pair[0]);
        } else {
            sys::close(pair[1]);
            if child > 0 {
                let mut byte = 0u8;
                // SAFETY: one byte of ours. The end of the pipe is the end of the child's life before its program.
                while unsafe { real::read(pair[0], (&raw mut byte).cast(), 1) } < 0
                    && sys::errno() == libc::EINTR
                {}
            }
            sys::close(pair[0]);
        }
        sys::set_errno(error);
    }
    child
}

/// # Safety
/// As `_Fork(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _Fork() -> pid_t {
    before_fork();
    // SAFETY: the same call.
    unsafe { real::_Fork() }
}

/// # Safety
/// As `execve(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execve(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> c_int {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::execve(path, argv, envp) }
}

/// What a program must not find in its sockets is taken out of them; those that close now are settled first. So it is for
/// children that share our memory until their program starts: they run none of our hooks.
pub(super) fn before_exec() {
    settle::all();
    leave::inherited();
}

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// # Safety
/// As `execv(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execv(path: *const c_char, argv: *const *const c_char) -> c_int {
    before_exec();
    // SAFETY: the same call, as the C library makes it.
    unsafe { real::execve(path, argv, environ) }
}

/// # Safety
/// As `execvp(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvp(path: *const c_char, argv: *const *const c_char) -> c_int {
    before_exec();
    // SAFETY: the same call, as the C library makes it.
    unsafe { real::execvpe(path, argv, environ) }
}

/// # Safety
/// As `execvpe(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvpe(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> c_int {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::execvpe(path, argv, envp) }
}

/// # Safety
/// As `fexecve(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fexecve(
    fd: c_int,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> c_int {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::fexecve(fd, argv, envp) }
}

/// # Safety
/// As `execveat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execveat(
    dir: c_int,
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    flags: c_int,
) -> c_int {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::execveat(dir, path, argv, envp, flags) }
}

/// # Safety
/// As `posix_spawn(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    argv: *const *mut c_char,
    envp: *const *mut c_char,
) -> c_int {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::posix_spawn(pid, path, actions, attributes, argv, envp) }
}

/// # Safety
/// As `posix_spawn_file_actions_adddup2(3)`: the child will have this descriptor under a number that it keeps.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawn_file_actions_adddup2(
    actions: *mut posix_spawn_file_actions_t,
    fd: c_int,
    to: c_int,
) -> c_int {
    if let Some(held) = conn::get(fd) {
        leave::step_back(&held, fd, Reason::Passed);
    }
    // SAFETY: the same call.
    unsafe { real::posix_spawn_file_actions_adddup2(actions, fd, to) }
}

/// # Safety
/// As `posix_spawnp(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawnp(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    argv: *const *mut c_char,
    envp: *const *mut c_char,
) -> c_int {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::posix_spawnp(pid, path, actions, attributes, argv, envp) }
}

/// # Safety
/// As `system(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn system(command: *const c_char) -> c_int {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::system(command) }
}

/// # Safety
/// As `popen(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void {
    before_exec();
    // SAFETY: the same call.
    unsafe { real::popen(command, mode) }
}

/// # Safety
/// As `_exit(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _exit(status: c_int) {
    settle::at_end();
    // SAFETY: the same call.
    unsafe { real::_exit(status) }
}

/// # Safety
/// As `_Exit(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _Exit(status: c_int) {
    settle::at_end();
    // SAFETY: the same call.
    unsafe { real::_Exit(status) }
}

/// # Safety
/// As `quick_exit(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn quick_exit(status: c_int) {
    settle::at_end();
    // SAFETY: the same call.
    unsafe { real::quick_exit(status) }
}

/// # Safety
/// As `prctl(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn prctl(
    option: c_int,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        leave::freeze(Reason::Sandbox);
    }
    // SAFETY: the same call.
    unsafe { real::prctl(option, a, b, c, d) }
}

/// # Safety
/// As `syscall(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn syscall(
    number: c_long,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
    e: c_ulong,
    f: c_ulong,
) -> c_long {
    match number {
        libc::SYS_seccomp => leave::freeze(Reason::Sandbox),
        libc::SYS_io_uring_setup => leave::freeze(Reason::IoUring),
        libc::SYS_execve | libc::SYS_execveat => before_exec(),
        // Raw calls on a socket of ours: what they do to it, the library must not have done before.
        libc::SYS_read
        | libc::SYS_write
        | libc::SYS_readv
        | libc::SYS_writev
        | libc::SYS_recvfrom
        | libc::SYS_sendto
        | libc::SYS_recvmsg
        | libc::SYS_sendmsg
        | libc::SYS_close
        | libc::SYS_dup
        | libc::SYS_dup3
        | libc::SYS_sendfile
        | libc::SYS_preadv2
        | libc::SYS_pwritev2
        | libc::SYS_recvmmsg
        | libc::SYS_sendmmsg => {
            raw(a as c_int);
        }
        libc::SYS_splice => {
            raw(a as c_int);
            raw(c as c_int);
        }
        libc::SYS_close_range => conn::for_each(a as c_int, b as c_int, |fd, _| raw(fd)),
        libc::SYS_fcntl | libc::SYS_ioctl => {
            if let Some(held) = conn::get(a as c_int) {
                held.doubt_blocking();
            }
        }
        libc::SYS_rt_sigaction => kernel::forget_handlers(),
        libc::SYS_fork | libc::SYS_clone | libc::SYS_clone3 => before_fork(),
        _ => {}
    }
    // SAFETY: the same call.
    unsafe { real::syscall(number, a, b, c, d, e, f) }
}

fn raw(fd: c_int) {
    if let Some(held) = conn::get(fd) {
        leave::step_back(&held, fd, Reason::Call);
        conn::forget(fd);
    }
}

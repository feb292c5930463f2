//! Functions with as many arguments as the caller likes. They are entered, something is done first, and the C library's are
//! jumped to with all registers and the stack as they were.

use super::process::before_exec;
use crate::conn;
use crate::{leave, real};
use core::arch::naked_asm;
use core::sync::atomic::AtomicPtr;
use libc::{c_int, c_void};
use skein_link_core::ring::Reason;

macro_rules! variadic {
    ($($name:ident, $before:ident, $c_name:literal, $first:expr;)*) => {
        $(
            extern "C" fn $before(argument: usize) -> *mut c_void {
                static PLACE: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
                let first: fn(usize) = $first;
                first(argument);
                real::resolve(&PLACE, $c_name)
            }

            /// # Safety
            /// As the C library's function of this name.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                // The six registers of arguments, and the number of floating ones. Seven pushes align the stack; the first
                // argument is still in its register.
                naked_asm!(
                    "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                    "call {before}",
                    "mov r11, rax",
                    "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                    "jmp r11",
                    before = sym $before,
                )
            }
        )*
    };
}

variadic! {
    execl, before_execl, c"execl", |_| before_exec();
    execle, before_execle, c"execle", |_| before_exec();
    execlp, before_execlp, c"execlp", |_| before_exec();
    dprintf, before_dprintf, c"dprintf", before_print;
    __dprintf_chk, before_dprintf_chk, c"__dprintf_chk", before_print;
    vdprintf, before_vdprintf, c"vdprintf", before_print;
    __vdprintf_chk, before_vdprintf_chk, c"__vdprintf_chk", before_print;
}

/// The C library formats and writes by itself.
fn before_print(fd: usize) {
    let fd = fd as c_int;
    if let Some(held) = conn::get(fd) {
        leave::step_back(&held, fd, Reason::Stdio);
        conn::forget(fd);
    }
}

//! Functions with as many arguments as the caller likes. They are entered, something is done first, and the C library's are
//! jumped to with all registers and the stack as they were.

use super::process::before_exec;
use crate::real;
use core::arch::naked_asm;
use core::sync::atomic::AtomicPtr;
use libc::c_void;

macro_rules! variadic {
    ($($name:ident, $before:ident, $c_name:literal;)*) => {
        $(
            extern "C" fn $before() -> *mut c_void {
                static PLACE: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
                before_exec();
                real::resolve(&PLACE, $c_name)
            }

            /// # Safety
            /// As the C library's function of this name.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                // The six registers of arguments, and the number of floating ones. Seven pushes align the stack.
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
    execl, before_execl, c"execl";
    execle, before_execle, c"execle";
    execlp, before_execlp, c"execlp";
}

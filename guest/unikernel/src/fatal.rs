//! The ways a machine ends that nobody asked for. Each says why, on log and serial port, and exits
//! with the code that `docs/guest-abi.md` gives it.

use core::fmt::{self, Write};

use crate::arch::cpu;
use crate::arch::interrupts::Frame;
use crate::log_output;

/// Exit codes, as written to the exit port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Orderly stop.
    Stopped = 0x10,
    /// Panic.
    Panic = 0x11,
    /// The machine cannot start.
    Fatal = 0x12,
    /// Out of memory.
    OutOfMemory = 0x13,
    /// CPU exception.
    Exception = 0x14,
}

/// Ends the machine after telling the host which code follows.
pub(crate) fn end(code: ExitCode) -> ! {
    crate::host::tell_stopping(code as u8);
    log_output::flush();
    cpu::exit(code as u8)
}

/// Ends a machine that cannot start.
pub(crate) fn fatal(reason: fmt::Arguments<'_>) -> ! {
    log_output::last_words(format_args!("fatal: {reason}\n"));
    end(ExitCode::Fatal)
}

const EXCEPTIONS: [&str; 22] = [
    "divide error",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid instruction",
    "no coprocessor",
    "double fault",
    "coprocessor overrun",
    "invalid task state",
    "segment not present",
    "stack segment",
    "general protection",
    "page fault",
    "reserved",
    "floating point",
    "alignment check",
    "machine check",
    "SIMD floating point",
    "virtualization",
    "control protection",
];

/// Registers in the order of a frame.
const REGISTERS: [&str; 15] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Prints the registers of an exception and ends the machine.
pub(crate) fn exception(frame: &Frame) -> ! {
    log_output::last_words(format_args!("{}", Report { frame, address: cpu::fault_address() }));
    end(ExitCode::Exception)
}

struct Report<'a> {
    frame: &'a Frame,
    address: u64,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frame, address } = self;
        let name = EXCEPTIONS.get(frame.vector as usize).unwrap_or(&"reserved");
        write!(f, "exception: {name} ({}) at {:#x}", frame.vector, frame.rip)?;
        write!(f, " error={:#x} address={address:#x}", frame.error)?;
        if frame.vector == 14 && is_stack_guard(*address) {
            f.write_str(" (stack overflow)")?;
        }
        write!(f, " rsp={:#x} rflags={:#x}", frame.rsp, frame.rflags)?;
        for (name, value) in REGISTERS.iter().zip(frame.general) {
            write!(f, " {name}={value:#x}")?;
        }
        f.write_char('\n')
    }
}

#[cfg(skein_guest)]
fn is_stack_guard(address: u64) -> bool {
    let layout = crate::arch::layout::Layout::get();
    (layout.__data_end as u64..layout.__stack_start as u64).contains(&address)
}

#[cfg(not(skein_guest))]
fn is_stack_guard(_address: u64) -> bool {
    false
}

/// How the standard library's panic for a failed allocation begins.
const OUT_OF_MEMORY: &str = "memory allocation of ";

/// Whether a message is that of a failed allocation. Looks at its first bytes only, without
/// allocating.
fn says_out_of_memory(message: &dyn fmt::Display) -> bool {
    struct Prefix<'a>(&'a str);
    impl fmt::Write for Prefix<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let common = self.0.len().min(text.len());
            if self.0.as_bytes()[..common] != text.as_bytes()[..common] {
                return Err(fmt::Error);
            }
            self.0 = self.0.get(common..).unwrap_or_default();
            Ok(())
        }
    }
    let mut prefix = Prefix(OUT_OF_MEMORY);
    write!(prefix, "{message}").is_ok() && prefix.0.is_empty()
}

/// Prints message and place of a panic and ends the machine.
pub(crate) fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let message = info.message();
    let code = if crate::heap::was_exhausted() && says_out_of_memory(&message) {
        ExitCode::OutOfMemory
    } else {
        ExitCode::Panic
    };
    let place = info.location();
    let (file, line) = place.map_or(("unknown", 0), |place| (place.file(), place.line()));
    log_output::last_words(format_args!("panic: {message} at {file}:{line}\n"));
    end(code)
}

#[cfg(skein_guest)]
#[panic_handler]
fn on_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    panic(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_message_of_a_failed_allocation() {
        assert!(says_out_of_memory(&format_args!("memory allocation of {} bytes failed", 7)));
        assert!(!says_out_of_memory(&"memory"));
        assert!(!says_out_of_memory(&"no memory allocation of 1"));
        assert!(!says_out_of_memory(&""));
    }
}

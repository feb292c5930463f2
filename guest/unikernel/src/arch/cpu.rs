//! Single instructions with a safe face, and the end of the machine.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdtsc, CpuidResult};

/// QEMU's `isa-debug-exit`: a byte written here ends the machine.
const EXIT_PORT: u16 = 0x501;

/// Reads the time stamp counter.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: the instruction exists on every x86-64 CPU and has no effect on memory.
    unsafe { _rdtsc() }
}

/// CPU identification, leaf `leaf`. Hypervisor leaves are read only after leaf 0x40000000 named its
/// bound.
pub(crate) fn cpuid(leaf: u32) -> CpuidResult {
    __cpuid(leaf)
}

/// Writes a byte to an IO port.
pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: the board's ports are the serial line and the exit device; neither touches memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads a byte from an IO port.
pub(crate) fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as for `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// Address of the last page fault.
pub(crate) fn fault_address() -> u64 {
    let value;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) }
    value
}

/// Sleeps until an interrupt, with interrupts enabled only for that time. An interrupt that came
/// before the call wakes at once: `sti` takes effect after the instruction that follows it.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: interrupt handlers run on a stack of their own and touch nothing but atomics. Without
    // `nomem`, the compiler assumes that memory changed.
    unsafe { asm!("sti", "hlt", "cli") }
}

/// Ends the machine: the host sees `(value << 1) | 1` as QEMU's exit status. On a board without the
/// exit device it sleeps for ever.
pub(crate) fn exit(value: u8) -> ! {
    out8(EXIT_PORT, value);
    loop {
        // SAFETY: with interrupts disabled this never continues, which is the intention.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

//! Exceptions and device interrupts.
//!
//! Interrupts are enabled only while the CPU sleeps ([`super::cpu::wait_for_interrupt`]), and every
//! handler runs on a stack of its own (IST), so no code is interrupted that keeps data below its
//! stack pointer. A device's handler only notes that the device asked; the main loop does the work.
//!
//! Device lines are edge-triggered at the IOAPIC. An edge that comes while interrupts are disabled
//! waits in the local APIC; the main loop acknowledges a device *before* it looks at its queues, so
//! nothing is lost.

use core::sync::atomic::{AtomicU32, Ordering};

/// virtio-mmio slots of a `microvm` without ACPI.
pub(crate) const SLOTS: usize = 8;
/// Line of slot 0 at the IOAPIC.
const FIRST_LINE: u32 = 5;
/// Vectors 0x20.. belong to the slots, then the timer.
const FIRST_VECTOR: u8 = 0x20;
const TIMER_VECTOR: u8 = FIRST_VECTOR + SLOTS as u8;
/// Low four bits set, as the local APIC wants it.
const SPURIOUS_VECTOR: u8 = 0x3f;
const VECTORS: usize = 64;

const APIC: usize = 0xfee0_0000;
const APIC_SPURIOUS: usize = 0xf0;
const APIC_TIMER: usize = 0x320;
const APIC_TIMER_INITIAL: usize = 0x380;
const APIC_TIMER_CURRENT: usize = 0x390;
const APIC_TIMER_DIVIDE: usize = 0x3e0;
const APIC_ENABLE: u32 = 1 << 8;
/// Divide by 16.
const APIC_DIVIDE_16: u32 = 0b0011;
/// The local APIC's timer counts at 1 GHz under QEMU and KVM alike, so one step is 16 ns.
pub(crate) const TIMER_STEP_NS: u64 = 16;

const IOAPIC_SELECT: usize = 0xfec0_0000;
const IOAPIC_WINDOW: usize = 0xfec0_0010;
const IOAPIC_REDIRECTION: u32 = 0x10;

/// One bit per slot whose device asked for attention since [`take_pending`].
static PENDING: AtomicU32 = AtomicU32::new(0);

/// Takes the set of slots (bit i: slot i) whose devices interrupted since the last call.
pub(crate) fn take_pending() -> u32 {
    PENDING.swap(0, Ordering::Relaxed)
}

fn apic_write(register: usize, value: u32) {
    // SAFETY: the register is inside the local APIC's page, which is mapped.
    unsafe { ((APIC + register) as *mut u32).write_volatile(value) }
}

fn apic_read(register: usize) -> u32 {
    // SAFETY: as for `apic_write`.
    unsafe { ((APIC + register) as *const u32).read_volatile() }
}

fn ioapic_write(register: u32, value: u32) {
    // SAFETY: both registers are inside the IOAPIC's page, which is mapped; the window shows what
    // was selected.
    unsafe { (IOAPIC_SELECT as *mut u32).write_volatile(register) }
    // SAFETY: as above.
    unsafe { (IOAPIC_WINDOW as *mut u32).write_volatile(value) }
}

/// Enables the local APIC with its timer free-running, so that the clock can be calibrated against
/// it.
pub(crate) fn enable_apic() {
    apic_write(APIC_SPURIOUS, APIC_ENABLE | u32::from(SPURIOUS_VECTOR));
    apic_write(APIC_TIMER_DIVIDE, APIC_DIVIDE_16);
    apic_write(APIC_TIMER, u32::from(TIMER_VECTOR));
    start_timer(u32::MAX);
}

/// Lets the device of `slot` interrupt.
pub(crate) fn enable_slot(slot: usize) {
    let line = FIRST_LINE + slot as u32;
    ioapic_write(IOAPIC_REDIRECTION + 2 * line + 1, 0);
    // Edge-triggered, active high, fixed delivery to CPU 0.
    ioapic_write(IOAPIC_REDIRECTION + 2 * line, u32::from(FIRST_VECTOR) + slot as u32);
}

/// Starts the timer: one interrupt after `steps` steps of [`TIMER_STEP_NS`]; 0 stops it.
pub(crate) fn start_timer(steps: u32) {
    apic_write(APIC_TIMER_INITIAL, steps);
}

/// Steps left until the timer fires; 0 once it has.
pub(crate) fn timer_left() -> u32 {
    apic_read(APIC_TIMER_CURRENT)
}

/// Registers at an exception, as the entry code pushed them.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Frame {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 to r15.
    pub(crate) general: [u64; 15],
    /// Exception number.
    pub(crate) vector: u64,
    /// Error code, 0 for exceptions without one.
    pub(crate) error: u64,
    /// Where it happened.
    pub(crate) rip: u64,
    cs: u64,
    /// CPU flags.
    pub(crate) rflags: u64,
    /// Stack pointer.
    pub(crate) rsp: u64,
    ss: u64,
}

#[cfg(skein_guest)]
pub(crate) use guest::install;

#[cfg(skein_guest)]
mod guest {
    use super::{FIRST_VECTOR, Frame, PENDING, SLOTS, SPURIOUS_VECTOR, TIMER_VECTOR, VECTORS};
    use crate::arch::layout::Layout;
    use core::arch::{asm, global_asm};

    /// IST numbers: exceptions must not land on a stack that may have overflown.
    const FAULT_STACK: u8 = 1;
    const INTERRUPT_STACK: u8 = 2;
    const CODE_SELECTOR: u16 = 8;
    const TASK_SELECTOR: u16 = 24;

    // One short stub per vector. Exceptions push their number (after a 0 where the CPU pushes no
    // error code) and go to Rust; device stubs set the slot's bit, end the interrupt and return.
    global_asm!(
        r#"
    .section .text.interrupts, "ax", @progbits
    .global exception_stubs
    .balign 16
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if !((vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    pushq $0
    .endif
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
    .endr

exception_common:
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
    pushq %r11
    pushq %r10
    pushq %r9
    pushq %r8
    pushq %rbp
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rbx
    pushq %rax
    movq %rsp, %rdi
    andq $-16, %rsp
    call {exception}
    ud2

    .balign 32
    .global slot_stubs
slot_stubs:
    .set slot, 0
    .rept {slots}
    .balign 32
    pushq %rax
    lock orl $(1 << slot), {pending}
    movl $0xfee000b0, %eax          /* end of interrupt */
    movl $0, (%rax)
    popq %rax
    iretq
    .set slot, slot + 1
    .endr

    .balign 16
    .global timer_stub
timer_stub:
    pushq %rax
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

    .balign 16
    .global spurious_stub
spurious_stub:
    iretq
    "#,
        exception = sym exception,
        slots = const SLOTS,
        pending = sym PENDING,
        options(att_syntax)
    );

    unsafe extern "C" {
        static exception_stubs: u8;
        static slot_stubs: u8;
        static timer_stub: u8;
        static spurious_stub: u8;
    }

    const EXCEPTION_STUB_SIZE: usize = 16;
    const SLOT_STUB_SIZE: usize = 32;

    extern "C" fn exception(frame: *const Frame) -> ! {
        // SAFETY: the entry code passes the registers it has just pushed.
        let frame = unsafe { &*frame };
        crate::fatal::exception(frame)
    }

    #[repr(C, align(16))]
    #[derive(Clone, Copy)]
    struct Gate([u64; 2]);

    impl Gate {
        fn new(handler: usize, stack: u8) -> Self {
            let handler = handler as u64;
            // Present interrupt gate of privilege 0.
            let low = handler & 0xffff
                | u64::from(CODE_SELECTOR) << 16
                | u64::from(stack) << 32
                | 0x8e << 40
                | (handler >> 16 & 0xffff) << 48;
            Self([low, handler >> 32])
        }
    }

    #[repr(C, packed)]
    struct TaskState {
        reserved: u32,
        privilege_stacks: [u64; 3],
        reserved_2: u64,
        interrupt_stacks: [u64; 7],
        reserved_3: [u16; 5],
        io_map: u16,
    }

    #[repr(C, packed)]
    struct TablePointer {
        limit: u16,
        address: u64,
    }

    static mut GATES: [Gate; VECTORS] = [Gate([0; 2]); VECTORS];
    static mut TASK: TaskState = TaskState {
        reserved: 0,
        privilege_stacks: [0; 3],
        reserved_2: 0,
        interrupt_stacks: [0; 7],
        reserved_3: [0; 5],
        io_map: size_of::<TaskState>() as u16,
    };
    static mut DESCRIPTORS: [u64; 5] = [0, 0x00af_9a00_0000_ffff, 0x00cf_9200_0000_ffff, 0, 0];

    /// Installs descriptor, task and interrupt tables. From here on exceptions are reported.
    ///
    /// # Safety
    /// To be called once, before anything else uses these tables.
    pub(crate) unsafe fn install(layout: &Layout) {
        let mut stacks = [0; 7];
        stacks[usize::from(FAULT_STACK) - 1] = layout.__fault_stack_end as u64;
        stacks[usize::from(INTERRUPT_STACK) - 1] = layout.__interrupt_stack_end as u64;
        // SAFETY: nobody else uses the table yet.
        unsafe { (&raw mut TASK.interrupt_stacks).write_unaligned(stacks) };
        let task = &raw const TASK as u64;
        // Available 64-bit task state segment.
        let low = (size_of::<TaskState>() as u64 - 1)
            | (task & 0xff_ffff) << 16
            | 0x89 << 40
            | (task >> 24 & 0xff) << 56;
        // SAFETY: as above.
        unsafe { (&raw mut DESCRIPTORS[3]).write(low) };
        // SAFETY: as above.
        unsafe { (&raw mut DESCRIPTORS[4]).write(task >> 32) };
        let set = |vector: usize, handler: usize, stack| {
            // SAFETY: as above; the index is checked.
            unsafe { (&raw mut GATES[vector]).write(Gate::new(handler, stack)) };
        };
        for vector in 0..32 {
            let stub = &raw const exception_stubs as usize + EXCEPTION_STUB_SIZE * vector;
            set(vector, stub, FAULT_STACK);
        }
        for slot in 0..SLOTS {
            let stub = &raw const slot_stubs as usize + SLOT_STUB_SIZE * slot;
            set(usize::from(FIRST_VECTOR) + slot, stub, INTERRUPT_STACK);
        }
        set(usize::from(TIMER_VECTOR), &raw const timer_stub as usize, INTERRUPT_STACK);
        set(usize::from(SPURIOUS_VECTOR), &raw const spurious_stub as usize, INTERRUPT_STACK);
        let descriptors = TablePointer { limit: 5 * 8 - 1, address: &raw const DESCRIPTORS as u64 };
        let gates =
            TablePointer { limit: (VECTORS * 16 - 1) as u16, address: &raw const GATES as u64 };
        // SAFETY: the tables are complete and stay where they are; the selectors in use keep their
        // meaning.
        unsafe {
            asm!(
                "lgdt [{descriptors}]", "ltr {task:x}", "lidt [{gates}]",
                descriptors = in(reg) &raw const descriptors,
                task = in(reg) TASK_SELECTOR,
                gates = in(reg) &raw const gates,
                options(nostack)
            );
        }
    }
}

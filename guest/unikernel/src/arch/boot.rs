//! From PVH entry (32 bits, no paging) to Rust (64 bits, first GiB mapped as it lies).
//!
//! The tables made here let everything be read, written and executed; [`super::paging`] replaces
//! them with strict ones before anything from outside is looked at.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4                         /* length of the name */
    .long 8                         /* length of the entry address */
    .long 18                        /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad _pvh_start

    .section .text.boot, "ax", @progbits
    .code32
    .global _pvh_start
_pvh_start:
    cli
    cld
    movl $__stack_end, %esp
    movl %ebx, %esi                 /* start info, kept for Rust */
    rdtsc
    movl %eax, BOOT_TSC
    movl %edx, BOOT_TSC+4

    movl $(boot_pdpt + 3), boot_pml4
    movl $(boot_pd + 3), boot_pdpt
    movl $boot_pd, %edi             /* 512 pages of 2 MiB: present, writable, large */
    movl $0x83, %eax
    movl $512, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b

    movl %cr4, %eax                 /* PAE, and SSE with its exceptions */
    orl $((1 << 5) | (1 << 9) | (1 << 10)), %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          /* EFER: long mode, no-execute */
    rdmsr
    orl $((1 << 8) | (1 << 11)), %eax
    wrmsr
    movl %cr0, %eax                 /* paging, write protection, no x87 emulation */
    andl $~((1 << 2) | (1 << 3)), %eax
    orl $((1 << 31) | (1 << 16) | (1 << 1)), %eax
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $2f

    .code64
2:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl %esi, %edi
    xorl %ebp, %ebp
    call {start}
    ud2

    .section .rodata.boot, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        /* code, 64 bits */
    .quad 0x00cf92000000ffff        /* data */
boot_gdt_pointer:
    .word 23
    .long boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4096
    .balign 8
    .global BOOT_TSC
BOOT_TSC: .skip 8
    "#,
    start = sym start,
    options(att_syntax)
);

unsafe extern "C" {
    static BOOT_TSC: u64;
}

/// First Rust code of a machine.
extern "C" fn start(start_info: u32) -> ! {
    // SAFETY: the entry code wrote the counter before it called this function, and nobody writes it
    // again.
    let entry_tsc = unsafe { BOOT_TSC };
    crate::machine::run(start_info, entry_tsc)
}

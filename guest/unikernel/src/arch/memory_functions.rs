//! The functions that compiled code calls for copying, filling and comparing memory.
//!
//! Written in assembly for two reasons: Rust loops of this kind are recognised by the compiler and replaced
//! by calls to these very functions; and string instructions (`rep movsb`) cost one emulated step per byte
//! where there is no hardware virtualisation. Blocks of 64 bytes go through SSE registers, the rest by words.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.memory, "ax", @progbits
    .global memcpy
    .type memcpy, @function
memcpy:
    mov rax, rdi
.Lforward:
    cmp rdx, 16
    jb .Lcopy_small
    cmp rdx, 32
    jbe .Lcopy_32
    sub rdx, 64
    jb .Lcopy_tail
    .balign 16
.Lcopy_block:
    movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + 32]
    movups xmm3, [rsi + 48]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + 32], xmm2
    movups [rdi + 48], xmm3
    add rsi, 64
    add rdi, 64
    sub rdx, 64
    jae .Lcopy_block
.Lcopy_tail:
    add rdx, 64                     /* 0..=63 left; the first 16 of all are behind or at rdi */
    jz .Lcopy_done
    cmp rdx, 16
    jb .Lcopy_small
.Lcopy_16:
    movups xmm0, [rsi]
    movups [rdi], xmm0
    add rsi, 16
    add rdi, 16
    sub rdx, 16
    cmp rdx, 16
    jae .Lcopy_16
.Lcopy_small:
    test dl, 8
    jz 7f
    mov rcx, [rsi]
    mov [rdi], rcx
    add rsi, 8
    add rdi, 8
7:  test dl, 4
    jz 2f
    mov ecx, [rsi]
    mov [rdi], ecx
    add rsi, 4
    add rdi, 4
2:  test dl, 2
    jz 3f
    movzx ecx, word ptr [rsi]
    mov [rdi], cx
    add rsi, 2
    add rdi, 2
3:  test dl, 1
    jz .Lcopy_done
    movzx ecx, byte ptr [rsi]
    mov [rdi], cl
.Lcopy_done:
    ret
.Lcopy_32:                          /* 16..=32: two blocks that may overlap */
    movups xmm0, [rsi]
    movups xmm1, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + rdx - 16], xmm1
    ret

    .global memmove
    .type memmove, @function
memmove:
    mov rax, rdi
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx                    /* destination inside source: backward, else forward is safe */
    jae .Lforward
    test rcx, rcx
    jz .Lcopy_done
    add rsi, rdx
    add rdi, rdx
    sub rdx, 16
    jb 2f
7:  movups xmm0, [rsi - 16]
    movups [rdi - 16], xmm0
    sub rsi, 16
    sub rdi, 16
    sub rdx, 16
    jae 7b
2:  add rdx, 16
    jz .Lcopy_done
3:  movzx ecx, byte ptr [rsi - 1]
    mov [rdi - 1], cl
    dec rsi
    dec rdi
    dec rdx
    jnz 3b
    ret

    .global memset
    .type memset, @function
memset:
    mov rax, rdi
    movzx ecx, sil
    mov rsi, 0x0101010101010101
    imul rcx, rsi
    cmp rdx, 8
    jb 4f
    movq xmm0, rcx
    punpcklqdq xmm0, xmm0
    sub rdx, 64
    jb 2f
7:  movups [rdi], xmm0
    movups [rdi + 16], xmm0
    movups [rdi + 32], xmm0
    movups [rdi + 48], xmm0
    add rdi, 64
    sub rdx, 64
    jae 7b
2:  add rdx, 64
3:  cmp rdx, 8
    jb 4f
    mov [rdi], rcx
    add rdi, 8
    sub rdx, 8
    jmp 3b
4:  test rdx, rdx
    jz 6f
5:  mov [rdi], cl
    inc rdi
    dec rdx
    jnz 5b
6:  ret

    .global memcmp
    .type memcmp, @function
    .global bcmp
    .type bcmp, @function
memcmp:
bcmp:
    sub rdx, 8
    jb 2f
7:  mov rax, [rdi]
    mov rcx, [rsi]
    cmp rax, rcx
    jne 5f
    add rdi, 8
    add rsi, 8
    sub rdx, 8
    jae 7b
2:  add rdx, 8
    jz 4f
3:  movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    sub eax, ecx
    jne 6f
    inc rdi
    inc rsi
    dec rdx
    jnz 3b
4:  xor eax, eax
    ret
5:  bswap rax                       /* the first differing byte decides */
    bswap rcx
    cmp rax, rcx
    sbb eax, eax
    or eax, 1
6:  ret

    .global strlen
    .type strlen, @function
strlen:
    xor eax, eax
    jmp 2f
7:  inc rax
2:  cmp byte ptr [rdi + rax], 0
    jne 7b
    ret
    "#
);

//! The smallest guests there are: a few instructions in an ELF file with a PVH note, made byte by
//! byte. The probe boots one to see whether KVM runs guests as compilers make them; tests boot
//! others.
//!
//! ```text
//! 0x0000  ELF header, two program headers (code, note), the note itself
//! 0x1000  the code, loaded at and entered at 0x100000 in 32-bit protected mode, paging off
//! ```

/// Where the code is loaded and entered.
const LOAD_ADDRESS: u32 = 0x0010_0000;
/// Where the note would be loaded if it were; behind the code, so that segments do not overlap.
const NOTE_ADDRESS: u32 = LOAD_ADDRESS + 0x1_0000;
const CODE_OFFSET: usize = 0x1000;
/// Xen's note that carries the 32-bit entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Where [`TinyGuest::long_mode`] builds its page tables: behind the code, and free memory in any
/// machine.
const TABLES: u32 = 0x0020_0000;

/// A guest made of single instructions: of 32 bits, until [`TinyGuest::long_mode`].
#[derive(Debug, Clone, Default)]
pub struct TinyGuest {
    code: Vec<u8>,
}

impl TinyGuest {
    /// A guest that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prints a text on the serial port, waiting for the port before each byte.
    #[must_use]
    pub fn print(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self.code.extend([0x66, 0xba, 0xfd, 0x03]); // mov dx, 0x3fd (line status)
            self.code.extend([0xec]); //                   in al, dx
            self.code.extend([0xa8, 0x20]); //             test al, 0x20 (transmitter empty)
            self.code.extend([0x74, 0xfb]); //             jz back to in
            self.code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8 (data)
            self.code.extend([0xb0, byte]); //             mov al, byte
            self.code.extend([0xee]); //                   out dx, al
        }
        self
    }

    /// Waits until something is typed on the serial port, and takes one byte of it.
    #[must_use]
    pub fn await_key(mut self) -> Self {
        self.code.extend([0x66, 0xba, 0xfd, 0x03]); // mov dx, 0x3fd (line status)
        self.code.extend([0xec]); //                   in al, dx
        self.code.extend([0xa8, 0x01]); //             test al, 1 (data ready)
        self.code.extend([0x74, 0xfb]); //             jz back to in
        self.code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8 (data)
        self.code.extend([0xec]); //                   in al, dx
        self
    }

    /// Ends the machine with a code, as `docs/guest-abi.md` defines it.
    #[must_use]
    pub fn exit(mut self, code: u8) -> Self {
        self.code.extend([0x66, 0xba, 0x01, 0x05]); // mov dx, 0x501
        self.code.extend([0xb0, code]); //             mov al, code
        self.code.extend([0xee]); //                   out dx, al
        self
    }

    /// Switches to 64 bits with paging, the first 2 MiB of memory mapped to itself. The
    /// instructions of the other methods mean the same there, except those of [`Self::forever`] and
    /// [`Self::triple_fault`].
    #[must_use]
    pub fn long_mode(mut self) -> Self {
        const PRESENT_WRITABLE: u32 = 0x3;
        const LARGE_PAGE: u32 = 0x80;
        for (at, entry) in [
            (TABLES, (TABLES + 0x1000) | PRESENT_WRITABLE), //          level 4 -> level 3
            (TABLES + 0x1000, (TABLES + 0x2000) | PRESENT_WRITABLE), // level 3 -> level 2
            (TABLES + 0x2000, PRESENT_WRITABLE | LARGE_PAGE), //        level 2: 2 MiB at 0
        ] {
            for (at, half) in [(at, entry), (at + 4, 0)] {
                self.code.extend([0xc7, 0x05]); // mov dword [at], half
                self.code.extend(at.to_le_bytes());
                self.code.extend(half.to_le_bytes());
            }
        }
        self.code.push(0xb8); //                                     mov eax, TABLES
        self.code.extend(TABLES.to_le_bytes());
        self.code.extend([0x0f, 0x22, 0xd8]); //                     mov cr3, eax
        self.code.extend([0x0f, 0x20, 0xe0]); //                     mov eax, cr4
        self.code.extend([0x83, 0xc8, 0x20]); //                     or eax, 0x20 (PAE)
        self.code.extend([0x0f, 0x22, 0xe0]); //                     mov cr4, eax
        self.code.extend([0xb9, 0x80, 0x00, 0x00, 0xc0]); //         mov ecx, 0xc0000080 (EFER)
        self.code.extend([0x0f, 0x32]); //                           rdmsr
        self.code.extend([0x0d, 0x00, 0x01, 0x00, 0x00]); //         or eax, 0x100 (LME)
        self.code.extend([0x0f, 0x30]); //                           wrmsr
        self.code.extend([0x0f, 0x20, 0xc0]); //                     mov eax, cr0
        self.code.extend([0x0d, 0x01, 0x00, 0x00, 0x80]); //         or eax, 0x80000001 (PG, PE)
        self.code.extend([0x0f, 0x22, 0xc0]); //                     mov cr0, eax
        self.code.extend([0xeb, 22]); //                             jmp over the tables that follow
        let gdt = self.here();
        self.code.extend(0u64.to_le_bytes());
        self.code.extend(0x00af_9a00_0000_ffff_u64.to_le_bytes()); // selector 8: code of 64 bits
        let pointer = self.here();
        self.code.extend(15u16.to_le_bytes());
        self.code.extend(gdt.to_le_bytes());
        self.code.extend([0x0f, 0x01, 0x15]); //                     lgdt [pointer]
        self.code.extend(pointer.to_le_bytes());
        let after = self.here() + 7;
        self.code.push(0xea); //                                     jmp 8:after
        self.code.extend(after.to_le_bytes());
        self.code.extend(8u16.to_le_bytes());
        self
    }

    /// Computes with SSE, which every compiler uses for 64 bits. Only after [`Self::long_mode`].
    #[must_use]
    pub fn sse(mut self) -> Self {
        self.code.extend([0x0f, 0x20, 0xc0]); //                     mov rax, cr0
        self.code.extend([0x48, 0x83, 0xe0, 0xfb]); //               and rax, ~4 (EM)
        self.code.extend([0x48, 0x83, 0xc8, 0x02]); //               or rax, 2 (MP)
        self.code.extend([0x0f, 0x22, 0xc0]); //                     mov cr0, rax
        self.code.extend([0x0f, 0x20, 0xe0]); //                     mov rax, cr4
        self.code.extend([0x48, 0x0d, 0x00, 0x06, 0x00, 0x00]); //   or rax, 0x600 (OSFXSR, OSXMMEXCPT)
        self.code.extend([0x0f, 0x22, 0xe0]); //                     mov cr4, rax
        self.code.extend([0x0f, 0x57, 0xc0]); //                     xorps xmm0, xmm0
        self.code.extend([0x66, 0x0f, 0xef, 0xc0]); //               pxor xmm0, xmm0
        self
    }

    /// Address of the next instruction.
    fn here(&self) -> u32 {
        LOAD_ADDRESS + u32::try_from(self.code.len()).unwrap_or(0)
    }

    /// Resets the processor by a triple fault: no interrupt table, and an invalid instruction.
    #[must_use]
    pub fn triple_fault(mut self) -> Self {
        self.code.extend([0xbc, 0x00, 0x00, 0x20, 0x00]); // mov esp, 0x200000
        self.code.extend([0x6a, 0x00, 0x6a, 0x00]); //       push 0, push 0: a table of no entries
        self.code.extend([0x0f, 0x01, 0x1c, 0x24]); //       lidt [esp]
        self.code.extend([0x0f, 0x0b]); //                   ud2
        self
    }

    /// Goes back to the beginning for ever.
    #[must_use]
    pub fn forever(mut self) -> Self {
        let back = i32::try_from(self.code.len() + 5).unwrap_or(0);
        self.code.push(0xe9); // jmp
        self.code.extend((-back).to_le_bytes());
        self
    }

    /// The ELF file. A guest that runs past its last instruction halts for ever, using no processor
    /// time.
    pub fn elf(mut self) -> Vec<u8> {
        self.code.extend([0xfa, 0xf4, 0xeb, 0xfd]); // cli; hlt; jmp back to hlt
        let note = note();
        let code_bytes = self.code.len() as u64;
        let headers = 64 + 2 * 56;
        let mut file = Vec::with_capacity(CODE_OFFSET + self.code.len());
        file.extend(b"\x7fELF\x02\x01\x01");
        file.extend([0; 9]);
        file.extend(2u16.to_le_bytes()); // executable
        file.extend(62u16.to_le_bytes()); // x86-64
        file.extend(1u32.to_le_bytes());
        for number in [u64::from(LOAD_ADDRESS), 64, 0] {
            file.extend(number.to_le_bytes()); // entry, program headers, section headers
        }
        file.extend(0u32.to_le_bytes());
        for number in [64u16, 56, 2, 0, 0, 0] {
            file.extend(number.to_le_bytes());
        }
        let code_at = CODE_OFFSET as u64;
        program_header(&mut file, (1, 5), (code_at, LOAD_ADDRESS), code_bytes, 0x1000);
        program_header(&mut file, (4, 4), (headers, NOTE_ADDRESS), note.len() as u64, 4);
        file.extend(note);
        file.resize(CODE_OFFSET, 0);
        file.extend(self.code);
        file
    }
}

fn note() -> Vec<u8> {
    let mut note = Vec::new();
    for number in [4, 4, XEN_ELFNOTE_PHYS32_ENTRY] {
        note.extend(u32::to_le_bytes(number)); // length of the name, of the value, type
    }
    note.extend(b"Xen\0");
    note.extend(LOAD_ADDRESS.to_le_bytes());
    note
}

fn program_header(
    file: &mut Vec<u8>,
    (kind, flags): (u32, u32),
    (offset, address): (u64, u32),
    bytes: u64,
    align: u64,
) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    let address = u64::from(address);
    for number in [offset, address, address, bytes, bytes, align] {
        file.extend(number.to_le_bytes());
    }
}

//! Checks that a file is a kernel which boots by PVH, before anybody waits for a machine that never
//! comes up. Pure.

use object::LittleEndian as LE;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PF_X, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

/// Largest kernel file, bytes. A unikernel has about 1 MiB; data belongs into modules.
pub const KERNEL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Where a kernel must end: QEMU's firmware and devices are above.
const ADDRESS_MAX: u64 = 0xc000_0000;
/// Segments of a kernel. A linker makes fewer than ten; more would only cost time.
const SEGMENTS_MAX: usize = 64;
/// Notes looked at before giving up.
const NOTES_MAX: usize = 64;
/// Xen's note that carries the 32-bit entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// What is known of a kernel that can boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelInfo {
    /// Physical address where it is entered.
    pub entry: u32,
    /// Physical address after the last byte it occupies: the memory it needs before it allocates
    /// anything.
    pub memory_end: u64,
}

/// Why a file is no kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Larger than [`KERNEL_BYTES_MAX`].
    #[error(
        "the kernel has {bytes} bytes, and {KERNEL_BYTES_MAX} are allowed: put data into modules"
    )]
    TooLarge {
        /// Its length, bytes.
        bytes: u64,
    },
    /// Not an ELF file.
    #[error("the kernel is not an ELF file")]
    NotElf,
    /// ELF for something else.
    #[error("the kernel is not a 64-bit x86-64 ELF executable: {what}")]
    WrongMachine {
        /// What it is instead.
        what: String,
    },
    /// Cut off, or its tables point outside of it.
    #[error("the kernel is cut off or damaged: {what}")]
    Truncated {
        /// What is missing.
        what: &'static str,
    },
    /// Without the note that QEMU enters a kernel by.
    #[error("the kernel has no PVH note: link it with the Skein unikernel library")]
    NoPvh,
    /// Segments that cannot be loaded.
    #[error("segment {index} of the kernel cannot be loaded: {what}")]
    Segment {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The entry point is not in the kernel's code.
    #[error("the kernel is entered at {entry:#x}, where it has no code")]
    Entry {
        /// Where.
        entry: u64,
    },
}

impl KernelError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "IMAGE_TOO_LARGE",
            Self::NotElf => "IMAGE_NOT_ELF",
            Self::WrongMachine { .. } => "IMAGE_WRONG_MACHINE",
            Self::Truncated { .. } => "IMAGE_TRUNCATED",
            Self::NoPvh => "IMAGE_NO_PVH",
            Self::Segment { .. } => "IMAGE_SEGMENT_INVALID",
            Self::Entry { .. } => "IMAGE_ENTRY_INVALID",
        }
    }
}

/// Checks that `bytes` are a kernel QEMU can boot.
///
/// # Errors
/// [`KernelError`] with the first fault.
pub fn check_kernel(bytes: &[u8]) -> Result<KernelInfo, KernelError> {
    let length = bytes.len() as u64;
    if length > KERNEL_BYTES_MAX {
        return Err(KernelError::TooLarge { bytes: length });
    }
    let header = header(bytes)?;
    let truncated = |what| KernelError::Truncated { what };
    let segments =
        header.program_headers(LE, bytes).map_err(|_| truncated("the program headers"))?;
    if segments.len() > SEGMENTS_MAX {
        return Err(truncated("it claims too many program headers"));
    }
    let mut memory_end = 0;
    for (index, segment) in segments.iter().enumerate() {
        if segment.p_type(LE) == PT_LOAD {
            memory_end = memory_end.max(check_segment(index, segment, length)?);
        }
    }
    if memory_end == 0 {
        return Err(truncated("it has nothing to load"));
    }
    let entry = entry(segments, bytes)?;
    let holds = |segment: &ProgramHeader64<LE>| {
        let begin = segment.p_paddr(LE);
        segment.p_type(LE) == PT_LOAD
            && segment.p_flags(LE).0 & PF_X.0 != 0
            && (begin..begin.saturating_add(segment.p_filesz(LE))).contains(&entry)
    };
    let outside = KernelError::Entry { entry };
    if !segments.iter().any(holds) {
        return Err(outside);
    }
    let entry = u32::try_from(entry).map_err(|_| outside)?;
    Ok(KernelInfo { entry, memory_end })
}

fn header(bytes: &[u8]) -> Result<&FileHeader64<LE>, KernelError> {
    let wrong = |what: &str| KernelError::WrongMachine { what: what.to_owned() };
    if bytes.len() < 4 || &bytes[..4] != b"\x7fELF" {
        return Err(KernelError::NotElf);
    }
    match bytes.get(4..6) {
        Some([2, 1]) => {}
        Some([1, _]) => return Err(wrong("it has 32 bits")),
        Some([2, _]) => return Err(wrong("it is big-endian")),
        _ => return Err(KernelError::Truncated { what: "the header" }),
    }
    let header = FileHeader64::<LE>::parse(bytes)
        .map_err(|_| KernelError::Truncated { what: "the header" })?;
    if header.e_machine(LE) != EM_X86_64 {
        return Err(wrong(&format!("its machine is number {}", header.e_machine(LE).0)));
    }
    if header.e_type(LE) != ET_EXEC {
        return Err(wrong("it is not a static executable; link with -no-pie"));
    }
    Ok(header)
}

/// The physical address after the segment.
fn check_segment(
    index: usize,
    segment: &ProgramHeader64<LE>,
    file_bytes: u64,
) -> Result<u64, KernelError> {
    let bad = |what| KernelError::Segment { index, what };
    let (in_file, in_memory) = (segment.p_filesz(LE), segment.p_memsz(LE));
    let file_end = segment.p_offset(LE).checked_add(in_file);
    if file_end.is_none_or(|end| end > file_bytes) {
        return Err(KernelError::Truncated { what: "a segment's data" });
    }
    if in_memory < in_file {
        return Err(bad("it has more bytes in the file than in memory"));
    }
    match segment.p_paddr(LE).checked_add(in_memory) {
        Some(end) if end <= ADDRESS_MAX => Ok(end),
        _ => Err(bad("it ends above 3 GiB")),
    }
}

/// The address in the PVH note.
fn entry(segments: &[ProgramHeader64<LE>], bytes: &[u8]) -> Result<u64, KernelError> {
    let mut seen = 0;
    for segment in segments {
        let damaged = |_| KernelError::Truncated { what: "the notes" };
        let Some(mut notes) = segment.notes(LE, bytes).map_err(damaged)? else { continue };
        while let Some(note) = notes.next().map_err(damaged)? {
            seen += 1;
            if seen > NOTES_MAX {
                return Err(KernelError::NoPvh);
            }
            if note.name() == b"Xen" && note.n_type(LE).0 == XEN_ELFNOTE_PHYS32_ENTRY {
                return match *note.desc() {
                    [a, b, c, d] => Ok(u32::from_le_bytes([a, b, c, d]).into()),
                    [a, b, c, d, e, f, g, h] => Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
                    _ => Err(KernelError::Truncated { what: "the PVH note" }),
                };
            }
        }
    }
    Err(KernelError::NoPvh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TinyGuest;
    use proptest::prelude::*;

    fn tiny() -> Vec<u8> {
        TinyGuest::new().exit(0x10).elf()
    }

    /// The code for a kernel with the bytes at `at` replaced.
    fn check(at: usize, bytes: &[u8], expect: &str) {
        let mut kernel = tiny();
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
        let code = check_kernel(&kernel).map_or_else(|error| error.code(), |_| "ok");
        assert_eq!(code, expect, "{bytes:?} at {at:#x}");
    }

    #[test]
    fn the_smallest_kernel() {
        let info = check_kernel(&tiny()).expect("a kernel");
        assert_eq!(info.entry, 0x10_0000);
        assert!(info.memory_end > 0x10_0000 && info.memory_end < 0x10_0100);
    }

    #[test]
    fn what_is_wrong_is_said() {
        const LOAD: usize = 64;
        const NOTE: usize = 64 + 56;
        let note_data = 64 + 2 * 56;
        check(0, b"\x7fELG", "IMAGE_NOT_ELF");
        check(4, &[1], "IMAGE_WRONG_MACHINE");
        check(5, &[2], "IMAGE_WRONG_MACHINE");
        check(18, &[183, 0], "IMAGE_WRONG_MACHINE");
        check(16, &[3, 0], "IMAGE_WRONG_MACHINE");
        check(32, &[0xff; 8], "IMAGE_TRUNCATED"); // program headers
        check(56, &[0xff, 0xff], "IMAGE_TRUNCATED"); // their number
        check(LOAD, &[0; 4], "IMAGE_TRUNCATED"); // nothing to load
        check(LOAD + 4, &[4], "IMAGE_ENTRY_INVALID"); // not executable
        check(LOAD + 8, &[0xff; 8], "IMAGE_TRUNCATED"); // offset
        check(LOAD + 24, &[0xff; 8], "IMAGE_SEGMENT_INVALID"); // address
        check(LOAD + 32, &[0, 0, 0, 1], "IMAGE_TRUNCATED"); // size in file
        check(LOAD + 40, &[0; 8], "IMAGE_SEGMENT_INVALID"); // size in memory
        check(NOTE, &[0; 4], "IMAGE_NO_PVH");
        check(note_data, &[0xff; 4], "IMAGE_TRUNCATED"); // length of the note's name
        check(note_data + 8, &[17], "IMAGE_NO_PVH"); // its type
        check(note_data + 12, b"Xem", "IMAGE_NO_PVH");
        check(note_data + 16, &[0, 0, 0x20, 0], "IMAGE_ENTRY_INVALID");
    }

    #[test]
    fn a_kernel_cut_anywhere_is_refused() {
        let kernel = tiny();
        for length in 0..kernel.len() {
            let error = check_kernel(&kernel[..length]).expect_err("cut");
            let known = ["IMAGE_NOT_ELF", "IMAGE_TRUNCATED"].contains(&error.code());
            assert!(known, "{length}: {error}");
        }
        let huge = vec![0; KERNEL_BYTES_MAX as usize + 1];
        assert_eq!(check_kernel(&huge).map_err(|e| e.code()), Err("IMAGE_TOO_LARGE"));
    }

    #[test]
    fn a_program_of_the_host_is_no_kernel() {
        let own = std::fs::read(std::env::current_exe().expect("path")).expect("read");
        let own = &own[..own.len().min(KERNEL_BYTES_MAX as usize)];
        assert_eq!(check_kernel(own).map_err(|e| e.code()), Err("IMAGE_WRONG_MACHINE"));
    }

    proptest! {
        #[test]
        fn damage_is_answered(
            changes in proptest::collection::vec((0usize..300, any::<u8>()), 1..12),
        ) {
            let mut kernel = tiny();
            for (at, byte) in changes {
                kernel[at] = byte;
            }
            if let Ok(info) = check_kernel(&kernel) {
                prop_assert!(info.memory_end <= ADDRESS_MAX);
                prop_assert!(u64::from(info.entry) < info.memory_end);
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let elf = [b"\x7fELF\x02\x01\x01".as_slice(), &bytes].concat();
            let _ = check_kernel(&bytes);
            let _ = check_kernel(&elf);
        }
    }
}

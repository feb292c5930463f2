//! What the host hands over at boot (Xen's `hvm_start_info`, version 1).

/// First word of the structure.
const MAGIC: u32 = 0x336e_c578;
/// Memory map entry of ordinary memory.
const KIND_RAM: u32 = 1;
/// 8: QEMU's `microvm` lists 3 to 5 regions of which at most 3 are RAM.
const REGIONS_MAX: usize = 8;

/// A range of physical memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Region {
    /// First address.
    pub(crate) start: usize,
    /// Address after the last.
    pub(crate) end: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_count: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ModuleEntry {
    start: u64,
    size: u64,
    command_line: u64,
    reserved: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// A copy of what is needed of the start info, so that the memory it lies in can be given up.
pub(crate) struct BootInfo {
    regions: [Region; REGIONS_MAX],
    region_count: usize,
    /// The module archive, if there is one.
    pub(crate) module: Option<Region>,
    command_line: [u8; skein_wire::COMMAND_LINE_MAX + 1],
}

impl BootInfo {
    /// Ranges of RAM, as the host gave them.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// The command line up to its NUL; one byte longer than allowed when it is too long.
    pub(crate) fn command_line(&self) -> &[u8] {
        let length = self.command_line.iter().position(|byte| *byte == 0);
        &self.command_line[..length.unwrap_or(self.command_line.len())]
    }

    /// Copies the start info. `None` when it is not one.
    ///
    /// # Safety
    /// `address` must be what the boot protocol passed, and all it points to must be mapped and
    /// unchanged.
    pub(crate) unsafe fn read(address: u32) -> Option<Self> {
        // SAFETY: the caller vouches for the address; the protocol aligns the structure.
        let info = unsafe { *(address as usize as *const StartInfo) };
        if info.magic != MAGIC || info.version < 1 || info.memory_map == 0 {
            return None;
        }
        let mut boot = Self {
            regions: [Region::default(); REGIONS_MAX],
            region_count: 0,
            module: None,
            command_line: [0; skein_wire::COMMAND_LINE_MAX + 1],
        };
        let map = info.memory_map as usize as *const MemoryEntry;
        for index in 0..info.memory_map_count as usize {
            // SAFETY: the host wrote `memory_map_count` entries there.
            let entry = unsafe { *map.add(index) };
            if entry.kind == KIND_RAM && boot.region_count < REGIONS_MAX {
                boot.regions[boot.region_count] = region(entry.start, entry.size)?;
                boot.region_count += 1;
            }
        }
        if info.module_count > 0 {
            // SAFETY: the host wrote `module_count` entries there.
            let entry = unsafe { *(info.modules as usize as *const ModuleEntry) };
            boot.module = (entry.size > 0).then(|| region(entry.start, entry.size)).flatten();
        }
        if info.command_line != 0 {
            let text = info.command_line as usize as *const u8;
            for (index, byte) in boot.command_line.iter_mut().enumerate() {
                // SAFETY: reading stops at the NUL that ends the text.
                *byte = unsafe { *text.add(index) };
                if *byte == 0 {
                    break;
                }
            }
        }
        Some(boot)
    }
}

fn region(start: u64, size: u64) -> Option<Region> {
    let end = start.checked_add(size)?;
    Some(Region { start: usize::try_from(start).ok()?, end: usize::try_from(end).ok()? })
}

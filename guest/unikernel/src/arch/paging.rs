//! The final page tables: everything lies where it lies physically, and has only the rights it
//! needs.
//!
//! ```text
//! 0 .. 1 MiB                 not mapped (null, firmware)
//! code                       read, execute
//! constants                  read
//! data                       read, write
//! guard | stack | guard ...  guards not mapped, stacks read, write
//! tables, heap               read, write
//! module archive             read
//! devices                    read, write, not cached
//! ```

use super::pvh::Region;

const PAGE: usize = 4096;
const LARGE: usize = 512 * PAGE;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const NO_CACHE: u64 = 1 << 4;
const LARGE_PAGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What may be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Fetch instructions, read.
    Code,
    /// Read.
    Constant,
    /// Read, write.
    Data,
    /// Read, write, past the caches.
    Device,
}

impl Rights {
    fn bits(self) -> u64 {
        match self {
            Self::Code => PRESENT,
            Self::Constant => PRESENT | NO_EXECUTE,
            Self::Data => PRESENT | WRITE | NO_EXECUTE,
            Self::Device => PRESENT | WRITE | NO_EXECUTE | NO_CACHE | WRITE_THROUGH,
        }
    }
}

type Table = [u64; 512];

/// Page tables in the making. They take pages from the front of `free`.
pub(crate) struct Tables {
    root: *mut Table,
    free: Region,
}

impl Tables {
    /// Empty tables.
    ///
    /// # Safety
    /// `free` must be page-aligned memory that is mapped where it lies, writable, and used by
    /// nobody else.
    pub(crate) unsafe fn new(free: Region) -> Self {
        let mut tables = Self { root: core::ptr::null_mut(), free };
        tables.root = tables.page();
        tables
    }

    /// The memory not taken for tables.
    pub(crate) fn free(&self) -> Region {
        self.free
    }

    /// Physical address of the top table, for CR3.
    pub(crate) fn root(&self) -> usize {
        self.root as usize
    }

    /// Maps a page-aligned range that is not mapped yet, in large pages where it can.
    ///
    /// # Panics
    /// When memory for tables runs out, or a part is mapped already in pages of another size.
    pub(crate) fn map(&mut self, range: Region, rights: Rights) {
        let mut at = range.start;
        while at < range.end {
            let large = at.is_multiple_of(LARGE) && range.end - at >= LARGE;
            let (level, size) = if large { (1, LARGE) } else { (0, PAGE) };
            let entry = self.entry(at, level);
            let size_bit = if large { LARGE_PAGE } else { 0 };
            // SAFETY: `entry` points into a table that `self` owns.
            unsafe { *entry = at as u64 | rights.bits() | size_bit };
            at += size;
        }
    }

    /// The entry for `address` in the table of `level` (0: pages, 1: large pages), making tables on
    /// the way.
    fn entry(&mut self, address: usize, level: u32) -> *mut u64 {
        let mut table = self.root;
        for depth in (level + 1..4).rev() {
            let slot = &raw mut (*self.table(table))[index(address, depth)];
            // SAFETY: `slot` points into a table that `self` owns.
            let value = unsafe { *slot };
            table = if value & PRESENT == 0 {
                let next = self.page();
                // SAFETY: as above. Rights are restricted at the last level only.
                unsafe { *slot = next as u64 | PRESENT | WRITE };
                next
            } else {
                assert!(value & LARGE_PAGE == 0, "{address:#x} is mapped already");
                (value & ADDRESS) as usize as *mut Table
            };
        }
        &raw mut (*self.table(table))[index(address, level)]
    }

    #[expect(clippy::unused_self, reason = "ties the reference to the tables")]
    fn table(&mut self, table: *mut Table) -> &mut Table {
        // SAFETY: all tables come from `page`, are initialised there, and are reached only through
        // `self`.
        unsafe { &mut *table }
    }

    fn page(&mut self) -> *mut Table {
        assert!(self.free.end - self.free.start >= PAGE, "no memory for page tables");
        let page = self.free.start as *mut Table;
        self.free.start += PAGE;
        // SAFETY: the page was taken from memory that `new` was promised.
        unsafe { page.write([0; 512]) };
        page
    }
}

fn index(address: usize, level: u32) -> usize {
    address >> (12 + 9 * level) & 511
}

/// Switches to `tables`.
///
/// # Safety
/// They must map the running code, its stack and every live value where they are now.
#[cfg(skein_guest)]
pub(crate) unsafe fn activate(tables: &Tables) {
    // SAFETY: the caller vouches for the tables.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) tables.root(), options(nostack)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::alloc::{Layout, alloc, dealloc};

    /// What the hardware would find: the physical address and entry bits of the page that holds
    /// `address`.
    fn walk(tables: &Tables, address: usize) -> Option<(usize, u64)> {
        let mut table = tables.root;
        for level in (0..4).rev() {
            // SAFETY: the test's tables are alive and only read.
            let value = unsafe { (*table)[index(address, level)] };
            if value & PRESENT == 0 {
                return None;
            }
            if level == 0 || value & LARGE_PAGE != 0 {
                let size = if level == 0 { PAGE } else { LARGE };
                return Some(((value & ADDRESS) as usize + address % size, value));
            }
            table = (value & ADDRESS) as usize as *mut Table;
        }
        None
    }

    #[test]
    fn maps_what_was_asked_and_nothing_else() {
        let layout = Layout::from_size_align(16 * PAGE, PAGE).unwrap();
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc(layout) };
        let free = Region { start: memory as usize, end: memory as usize + layout.size() };
        // SAFETY: the memory was allocated for this.
        let mut tables = unsafe { Tables::new(free) };
        tables.map(Region { start: 0x10_0000, end: 0x10_3000 }, Rights::Code);
        tables.map(Region { start: 0x10_4000, end: 0x60_1000 }, Rights::Data);
        tables.map(Region { start: 0xfee0_0000, end: 0xff00_0000 }, Rights::Device);
        assert_eq!(walk(&tables, 0), None);
        assert_eq!(walk(&tables, 0x10_3000), None);
        assert_eq!(walk(&tables, 0x60_1000), None);
        for address in
            [0x10_0000, 0x10_2fff, 0x10_4000, 0x3f_ffff, 0x40_1234, 0x60_0fff, 0xfee0_00f0]
        {
            let (physical, bits) = walk(&tables, address).unwrap();
            assert_eq!(physical, address);
            assert!(
                bits & WRITE == 0 || bits & NO_EXECUTE != 0,
                "{address:#x} is writable and executable"
            );
        }
        assert_eq!(walk(&tables, 0x10_0000).unwrap().1 & (WRITE | NO_EXECUTE), 0);
        assert_ne!(walk(&tables, 0x40_0000).unwrap().1 & LARGE_PAGE, 0);
        // SAFETY: allocated above with this layout; the tables are not used any more.
        unsafe { dealloc(memory, layout) };
    }
}

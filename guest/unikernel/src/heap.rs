//! The heap.
//!
//! It grows on demand from the bottom of free memory upwards, in steps: a page of the machine that
//! was never touched costs the host nothing, and the allocator writes at both ends of what it is
//! given.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use crate::arch::pvh::Region;
use crate::sync::SingleCore;

/// 256 KiB: what a small service needs in all, so that most machines grow once.
const STEP: usize = 256 << 10;

/// Memory that the allocator has not been given yet.
#[derive(Debug)]
struct Reserve {
    heap_end: Option<NonNull<u8>>,
    free: Region,
    /// Regions to be used when `free` is exhausted (memory above 4 GiB).
    later: Option<Region>,
}

// SAFETY: the pointer is only handed back to the allocator that gave it out.
unsafe impl Send for Reserve {}

// SAFETY: `acquire` uses nothing but the allocator it is passed.
unsafe impl Source for Reserve {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let (left, heap_end) = (talc.source.free, talc.source.heap_end);
        if left.end - left.start < 4096 {
            let next = talc.source.later.take().ok_or(())?;
            (talc.source.free, talc.source.heap_end) = (next, None);
            return Ok(());
        }
        // Room for the block, its alignment, and the allocator's own table in a new heap.
        let wanted = layout.size().saturating_add(layout.align()).saturating_add(8192);
        let end = left.start.saturating_add(wanted.max(STEP)).min(left.end);
        let end_pointer = end as *mut u8;
        let grown = match heap_end {
            // SAFETY: the memory from the heap's end on is free, was kept for this, and lies
            // directly behind.
            Some(heap_end) => Some(unsafe { talc.extend(heap_end, end_pointer) }),
            // SAFETY: the region is free memory that belongs to nobody else.
            None => unsafe { talc.claim(left.start as *mut u8, end - left.start) },
        };
        talc.source.free.start = end;
        talc.source.heap_end = Some(grown.ok_or(())?);
        Ok(())
    }
}

/// The allocator with counters that can be read without its lock.
struct Heap(TalcLock<SingleCore, Reserve>);

static TOTAL: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

#[cfg_attr(skein_guest, global_allocator)]
static HEAP: Heap =
    Heap(TalcLock::new(Reserve { heap_end: None, free: Region { start: 0, end: 0 }, later: None }));

// SAFETY: every call goes to the allocator underneath, which keeps the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed through.
        let block = unsafe { self.0.alloc(layout) };
        if block.is_null() {
            EXHAUSTED.store(true, Ordering::Relaxed);
        } else {
            USED.fetch_add(layout.size(), Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: passed through.
        unsafe { self.0.dealloc(block, layout) };
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: passed through.
        let moved = unsafe { self.0.realloc(block, layout, new_size) };
        if moved.is_null() {
            EXHAUSTED.store(true, Ordering::Relaxed);
        } else {
            USED.fetch_add(new_size, Ordering::Relaxed);
            USED.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        moved
    }
}

/// Gives `first`, and then `later`, to the heap.
///
/// # Safety
/// Both must be mapped, writable memory that nobody else uses, ever. To be called once.
pub(crate) unsafe fn init(first: Region, later: Option<Region>) {
    let size = |region: Region| region.end - region.start;
    TOTAL.store(size(first) + later.map_or(0, size), Ordering::Relaxed);
    let mut talc = HEAP.0.lock();
    talc.source = Reserve { heap_end: None, free: first, later };
}

/// Bytes the heap may grow to.
pub(crate) fn total() -> usize {
    TOTAL.load(Ordering::Relaxed)
}

/// Bytes in use.
pub(crate) fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

/// Whether an allocation has ever failed.
pub(crate) fn was_exhausted() -> bool {
    EXHAUSTED.load(Ordering::Relaxed)
}

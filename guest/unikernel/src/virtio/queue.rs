//! Queues whose buffers belong to them.
//!
//! ```text
//! receive:   posted (device writes) -> filled (peek, read) -> posted again
//! transmit:  free -> written -> sent (device reads) -> free
//! ```

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::NonNull;

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::Device;

/// Memory for devices: they see it where the CPU sees it.
pub(super) struct Identity;

// SAFETY: `dma_alloc` gives out zeroed, page-aligned heap blocks, which are unique until freed;
// addresses are physical addresses, because everything is mapped where it lies.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: queues ask for at least one page.
        let block = unsafe { alloc_zeroed(layout(pages)) };
        // Address 0 is how the crate is told that there is no memory.
        NonNull::new(block).map_or((0, NonNull::dangling()), |block| (address(block), block))
    }

    unsafe fn dma_dealloc(_: PhysAddr, block: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller returns what `dma_alloc` gave for the same number of pages.
        unsafe { dealloc(block.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as usize as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        address(buffer.cast())
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn address(pointer: NonNull<u8>) -> PhysAddr {
    pointer.as_ptr() as usize as PhysAddr
}

fn layout(pages: usize) -> Layout {
    // Sizes come from the constants below, far from any overflow.
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap_or(Layout::new::<u8>())
}

/// 16 entries in every queue: network frames each way are eleven at most, consoles and entropy need
/// fewer. One size for all makes one piece of code for all, and at boot every instruction that runs
/// for the first time costs about a microsecond.
pub(crate) const ENTRIES: usize = 16;

/// Buffers of one size, and which of them the descriptor `token` carries.
struct Buffers {
    memory: NonNull<u8>,
    size: usize,
    owner: [u16; ENTRIES],
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Never freed: devices live as long as the machine.
    fn new(size: usize) -> Self {
        let memory = alloc::vec![0_u8; ENTRIES * size].leak();
        Self { memory: NonNull::from(memory).cast(), size, owner: [0; ENTRIES] }
    }

    /// Buffer `index` while the device does not have it.
    #[expect(clippy::mut_from_ref, reason = "buffers are disjoint; each call says why it is alone")]
    unsafe fn get(&self, index: u16) -> &mut [u8] {
        assert!(usize::from(index) < ENTRIES);
        // SAFETY: the index was checked, so this is inside the block.
        let start = unsafe { self.memory.add(usize::from(index) * self.size) };
        // SAFETY: the caller vouches that nobody else uses this buffer now.
        unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), self.size) }
    }

    /// The buffer that descriptor `token` carries. A device that invents a token gets the machine
    /// ended.
    fn of(&self, token: u16) -> u16 {
        self.owner[usize::from(token)]
    }
}

/// Setting up a queue of a device that offers it can only fail for lack of memory.
#[inline(never)]
fn virtqueue(device: &mut Device, index: u16) -> VirtQueue<Identity, ENTRIES> {
    match VirtQueue::new(&mut device.transport, index, false, false) {
        Ok(queue) => queue,
        Err(error) => panic!("queue {index} of virtio slot {}: {error}", device.slot),
    }
}

/// Buffers that the device fills.
pub(crate) struct ReceiveQueue {
    queue: VirtQueue<Identity, ENTRIES>,
    buffers: Buffers,
    index: u16,
    posted: bool,
}

impl ReceiveQueue {
    /// Sets queue `index` up with buffers of `size` bytes, of which `count` are posted.
    #[inline(never)]
    pub(crate) fn new(device: &mut Device, index: u16, size: usize, count: u16) -> Self {
        let queue = virtqueue(device, index);
        let mut this = Self { queue, buffers: Buffers::new(size), index, posted: true };
        (0..count.min(ENTRIES as u16)).for_each(|buffer| this.post(buffer));
        this
    }

    #[inline(never)]
    fn post(&mut self, buffer: u16) {
        // SAFETY: the buffer is not posted: it is new, or was taken back by `take`.
        let memory = unsafe { self.buffers.get(buffer) };
        // SAFETY: nothing reads or writes the buffer until `take` has taken it back.
        if let Ok(token) = unsafe { self.queue.add(&[], &mut [memory]) } {
            self.buffers.owner[usize::from(token)] = buffer;
            self.posted = true;
        }
    }

    /// Whether a filled buffer waits.
    pub(crate) fn has_filled(&self) -> bool {
        self.queue.can_pop()
    }

    /// Passes the oldest filled buffer to `read` and posts it again.
    pub(crate) fn take<R>(&mut self, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let token = self.queue.peek_used()?;
        let buffer = self.buffers.of(token);
        // SAFETY: the device has finished with it, and `pop_used` is about to say so.
        let memory = unsafe { self.buffers.get(buffer) };
        // SAFETY: the same buffer was given to `add` for this token.
        let length = unsafe { self.queue.pop_used(token, &[], &mut [memory]) }.ok()?;
        // SAFETY: the device no longer has it.
        let memory = unsafe { self.buffers.get(buffer) };
        // A device may claim to have written more than there is.
        let length = (length as usize).min(memory.len());
        let result = read(&memory[..length]);
        self.post(buffer);
        Some(result)
    }

    /// Tells the device about buffers posted since the last call, if it wants to know.
    pub(crate) fn notify(&mut self, device: &mut Device) {
        if core::mem::take(&mut self.posted) && self.queue.should_notify() {
            device.notify(self.index);
        }
    }
}

/// Buffers that the device sends.
pub(crate) struct TransmitQueue {
    queue: VirtQueue<Identity, ENTRIES>,
    buffers: Buffers,
    index: u16,
    free: [u16; ENTRIES],
    free_count: usize,
    written: bool,
}

impl TransmitQueue {
    /// Sets queue `index` up with buffers of `size` bytes.
    #[inline(never)]
    pub(crate) fn new(device: &mut Device, index: u16, size: usize) -> Self {
        let mut queue = virtqueue(device, index);
        queue.set_dev_notify(false);
        let free = core::array::from_fn(|buffer| buffer as u16);
        Self {
            queue,
            buffers: Buffers::new(size),
            index,
            free,
            free_count: ENTRIES,
            written: false,
        }
    }

    /// Takes back what the device has sent.
    fn reclaim(&mut self) {
        while let Some(token) = self.queue.peek_used() {
            let buffer = self.buffers.of(token);
            // SAFETY: the device has finished with it, and `pop_used` is about to say so.
            let memory = unsafe { self.buffers.get(buffer) };
            // SAFETY: a prefix of the same buffer was given to `add` for this token, and lengths
            // are not used.
            if unsafe { self.queue.pop_used(token, &[memory], &mut []) }.is_err() {
                return;
            }
            self.free[self.free_count] = buffer;
            self.free_count += 1;
        }
    }

    /// Whether a buffer is free. When none is, the device is asked to interrupt as soon as it has
    /// sent one.
    pub(crate) fn can_send(&mut self) -> bool {
        if self.free_count < ENTRIES {
            self.reclaim();
        }
        if self.free_count == 0 {
            self.queue.set_dev_notify(true);
            self.reclaim();
        }
        if self.free_count > 0 {
            self.queue.set_dev_notify(false);
        }
        self.free_count > 0
    }

    /// Whether everything has been sent.
    pub(crate) fn is_drained(&mut self) -> bool {
        self.reclaim();
        self.free_count == ENTRIES
    }

    /// Lets `write` fill `length` bytes and queues them. `None` when no buffer is free or `length`
    /// is too much.
    pub(crate) fn send<R>(
        &mut self,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> Option<R> {
        if length == 0 || length > self.buffers.size || !self.can_send() {
            return None;
        }
        self.free_count -= 1;
        let buffer = self.free[self.free_count];
        // SAFETY: it is free, so the device does not have it.
        let memory = unsafe { &mut self.buffers.get(buffer)[..length] };
        let result = write(memory);
        // SAFETY: nothing writes the buffer until `reclaim` has taken it back.
        match unsafe { self.queue.add(&[memory], &mut []) } {
            Ok(token) => {
                self.buffers.owner[usize::from(token)] = buffer;
                self.written = true;
            }
            Err(_) => {
                self.free[self.free_count] = buffer;
                self.free_count += 1;
            }
        }
        Some(result)
    }

    /// Tells the device about everything queued since the last call, if it wants to know.
    pub(crate) fn notify(&mut self, device: &mut Device) {
        if core::mem::take(&mut self.written) && self.queue.should_notify() {
            device.notify(self.index);
        }
    }
}

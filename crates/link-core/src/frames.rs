//! Frames of a packet socket, read where the kernel puts them (packet(7), `PACKET_RX_RING`).
//!
//! ```text
//!  slots:  [ header, frame | header, frame | header | header | ... ]
//!                            ▲ the next to read        status of each: the kernel's, or ours
//! ```
//!
//! The kernel copies a frame into the next slot that is its own and then makes that ours; we read it and give it back. To look for a
//! frame is to read a word of memory, where a system call would cost as much as a frame's way through the kernel to there.

#![expect(unsafe_code, reason = "memory that the kernel writes to")]

extern crate std;

use core::mem::size_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// 8 MiB for all slots, of which none is given back while the ring lives: 4,096 full frames of 1500 bytes, 49 ms at 1 Gbit/s, and
/// more than one session ever has on the way.
const BYTES: usize = 8 << 20;
/// The kernel allocates slots in blocks of so many bytes, a multiple of every page size there is.
const BLOCK: usize = 64 << 10;
/// What the kernel puts before a frame at most: its header, the address of the sender, and room so that what is behind the
/// Ethernet header is aligned.
const BEFORE: usize = 96;

/// Slots with frames, mapped while the value lives.
#[derive(Debug)]
pub struct Frames {
    base: NonNull<u8>,
    slots: usize,
    slot_bytes: usize,
    next: usize,
}

// SAFETY: nobody else in this process has the memory, and it is not bound to a thread.
unsafe impl Send for Frames {}

impl Frames {
    /// Gives a packet socket a ring for frames of at most `frame_bytes`, Ethernet header included. Longer ones are dropped. What waited
    /// in the socket is gone, and `recv` gives errors only from now on.
    ///
    /// # Errors
    /// What the kernel says; the socket is as before.
    pub fn of(socket: BorrowedFd<'_>, frame_bytes: usize) -> io::Result<Self> {
        let slot_bytes = slot_bytes(frame_bytes);
        let block = slot_bytes.max(BLOCK);
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        set(socket, libc::PACKET_VERSION, &version)?;
        let bytes = BYTES.max(block);
        let wanted = libc::tpacket_req {
            tp_block_size: block as u32,
            tp_block_nr: (bytes / block) as u32,
            tp_frame_size: slot_bytes as u32,
            tp_frame_nr: (bytes / slot_bytes) as u32,
        };
        set(socket, libc::PACKET_RX_RING, &wanted)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (nowhere, flags) = (core::ptr::null_mut(), libc::MAP_SHARED);
        // SAFETY: a new mapping at a place that the kernel chooses.
        let base = unsafe { libc::mmap(nowhere, bytes, protection, flags, socket.as_raw_fd(), 0) };
        match NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED) {
            Some(base) => Ok(Self { base, slots: bytes / slot_bytes, slot_bytes, next: 0 }),
            None => {
                let error = io::Error::last_os_error();
                let none = libc::tpacket_req {
                    tp_block_size: 0,
                    tp_block_nr: 0,
                    tp_frame_size: 0,
                    tp_frame_nr: 0,
                };
                set(socket, libc::PACKET_RX_RING, &none)?;
                Err(error)
            }
        }
    }

    /// Gives the next frame to `take`; whether there was one. One that did not fit its slot is not given.
    pub fn read(&mut self, take: impl FnOnce(&[u8])) -> bool {
        // SAFETY: `next` is below `slots`, so it is the beginning of a slot of the mapping.
        let slot = unsafe { self.base.add(self.next * self.slot_bytes) };
        // SAFETY: a slot begins with its status, is aligned to 16 bytes, and lives as long as `self`; all access to the word is
        // atomic here, and in the kernel a single store.
        let status = unsafe { AtomicU32::from_ptr(slot.cast().as_ptr()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: the slot holds a header and is ours until its status says otherwise: the kernel wrote it before.
        let header = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
        let (start, length) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        let fits = start >= size_of::<libc::tpacket2_hdr>() && start + length <= self.slot_bytes;
        if fits && header.tp_len == header.tp_snaplen {
            // SAFETY: within the slot, as was just seen, and nobody writes to it before its status says that it is the kernel's.
            take(unsafe { core::slice::from_raw_parts(slot.add(start).as_ptr(), length) });
        }
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
        true
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this length; frames borrow the value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.slots * self.slot_bytes) };
    }
}

/// Bytes of a slot: a power of two, so that slots fill blocks.
const fn slot_bytes(frame_bytes: usize) -> usize {
    (BEFORE + frame_bytes).next_power_of_two()
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let (descriptor, bytes) = (socket.as_raw_fd(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the value is borrowed for the call, and as long as is said.
    let result = unsafe {
        libc::setsockopt(descriptor, libc::SOL_PACKET, option, (&raw const *value).cast(), bytes)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const SLOTS: usize = 4;

    /// A ring in ordinary memory, to which the test is the kernel.
    fn ring(frame_bytes: usize) -> Frames {
        let slot_bytes = slot_bytes(frame_bytes);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let bytes = SLOTS * slot_bytes;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let base = unsafe { libc::mmap(core::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        let base = NonNull::new(base.cast()).expect("a mapping");
        Frames { base, slots: SLOTS, slot_bytes, next: 0 }
    }

    /// Puts a frame into a slot, of which the header says what it is told to.
    fn put(frames: &Frames, slot: usize, frame: &[u8], length: usize, start: u16) {
        let header = libc::tpacket2_hdr {
            tp_status: libc::TP_STATUS_USER,
            tp_len: length as u32,
            tp_snaplen: frame.len() as u32,
            tp_mac: start,
            tp_net: 0,
            tp_sec: 0,
            tp_nsec: 0,
            tp_vlan_tci: 0,
            tp_vlan_tpid: 0,
            tp_padding: [0; 4],
        };
        // SAFETY: one of the ring's slots.
        let place = unsafe { frames.base.add(slot * frames.slot_bytes) };
        // SAFETY: the slot is longer than a header.
        unsafe { place.cast().write(header) };
        for (at, byte) in frame.iter().enumerate().take(frames.slot_bytes - usize::from(start)) {
            // SAFETY: within the slot.
            unsafe { place.add(usize::from(start) + at).write(*byte) };
        }
    }

    fn read(frames: &mut Frames) -> (bool, Option<Vec<u8>>) {
        let mut got = None;
        let any = frames.read(|frame| got = Some(frame.to_vec()));
        (any, got)
    }

    #[test]
    fn frames_come_in_order_and_slots_go_back() {
        let mut frames = ring(100);
        assert_eq!(read(&mut frames), (false, None));
        for turn in 0..3_u8 {
            for slot in 0..SLOTS {
                put(&frames, slot, &[turn, slot as u8], 2, 66);
            }
            for slot in 0..SLOTS {
                assert_eq!(read(&mut frames), (true, Some([turn, slot as u8].to_vec())));
            }
            assert_eq!(read(&mut frames), (false, None));
        }
    }

    #[test]
    fn what_is_not_whole_is_left_out() {
        let mut frames = ring(100);
        put(&frames, 0, &[1; 50], 51, 66);
        // Headers that no kernel writes.
        put(&frames, 1, &[1; 400], 400, 66);
        put(&frames, 2, &[1; 4], 4, 2);
        put(&frames, 3, &[2; 4], 4, 66);
        for _ in 0..3 {
            assert_eq!(read(&mut frames), (true, None));
        }
        assert_eq!(read(&mut frames), (true, Some([2; 4].to_vec())));
    }

    #[test]
    fn slots_hold_full_frames_and_fill_blocks() {
        for (frame, expect) in [(14 + 1500, 2048), (14 + 9000, 16_384), (14 + 65_000, 65_536)] {
            assert_eq!(slot_bytes(frame), expect);
            assert_eq!(BLOCK.max(expect) % expect, 0);
            assert_eq!(BYTES % expect, 0);
        }
        let before = size_of::<libc::tpacket2_hdr>() + size_of::<libc::sockaddr_ll>();
        assert!(before.next_multiple_of(16) + 16 + 14 <= BEFORE);
    }
}

//! What a Linux host's broker needs and what takes `unsafe`: memory files that are mapped, and the network namespace of a
//! socket.

#![expect(unsafe_code, reason = "system calls with pointers")]

extern crate std;

use super::{Segment, SegmentError, segment_len};
use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A segment in a memory file of this process, mapped while the value lives.
#[derive(Debug)]
pub struct Memory {
    file: OwnedFd,
    segment: Segment,
}

impl Memory {
    /// A fresh segment, sealed: nobody who gets the file can make it shorter under another's feet.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` for a capacity that cannot be.
    pub fn create(capacity: usize) -> io::Result<Self> {
        let invalid = |error: SegmentError| io::Error::new(io::ErrorKind::InvalidInput, error);
        let len = segment_len(capacity);
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: a C string and flags.
        let file = unsafe { libc::memfd_create(c"skein-link".as_ptr(), flags) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        let size = i64::try_from(len).map_err(|_| invalid(SegmentError::Capacity))?;
        // SAFETY: a descriptor and a number.
        if unsafe { libc::ftruncate(file.as_raw_fd(), size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: a descriptor and numbers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let base = map(file.as_fd(), len)?;
        // SAFETY: mapped with this length until `drop`.
        match unsafe { Segment::create(base, len, capacity) } {
            Ok(segment) => Ok(Self { file, segment }),
            Err(error) => {
                // SAFETY: just mapped, used by nobody.
                unsafe { libc::munmap(base.as_ptr().cast(), len) };
                Err(invalid(error))
            }
        }
    }

    /// The segment.
    pub const fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The file, to be handed to the ends.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `create`; references into it borrow the value.
        unsafe { libc::munmap(self.segment.base().as_ptr().cast(), self.segment.len()) };
    }
}

fn map(file: BorrowedFd<'_>, len: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let base = unsafe {
        libc::mmap(core::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::Other))
}

/// The network namespace that a socket belongs to, as a number that is unique until the host restarts.
///
/// # Errors
/// What the kernel says (Linux before 5.14 does not know).
pub fn network_namespace(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// `SO_NETNS_COOKIE`.
    const NAME: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut len: libc::socklen_t = 8;
    // SAFETY: eight bytes and their length, ours.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            NAME,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

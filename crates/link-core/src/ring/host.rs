//! What a Linux host's broker needs and what takes `unsafe`: memory files that are mapped, futexes in them, and the network
//! namespace of a socket.

#![expect(unsafe_code, reason = "system calls with pointers")]

extern crate std;

use super::atomic::AtomicU32;
use super::{Reach, Segment, SegmentError, segment_len};
use core::ptr::NonNull;
use core::time::Duration;
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
    pub fn create(capacity: usize, reach: Reach) -> io::Result<Self> {
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
        match unsafe { Segment::create(base, len, capacity, reach) } {
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

/// Futexes that [`wait_any`] takes at most: the kernel's `FUTEX_WAITV_MAX`.
pub const WAIT_MAX: usize = 128;

/// Sleeps until one of the words, which other processes may share, is woken or has another value than the one beside it.
///
/// # Errors
/// What the kernel says; `Unsupported` from Linux before 5.16, which cannot wait for several.
pub fn wait_any(words: &[(&AtomicU32, u32)]) -> io::Result<()> {
    /// `struct futex_waitv` of linux/futex.h.
    #[repr(C)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    /// A 32-bit futex, not private to the process.
    const FUTEX2_SIZE_U32: u32 = 2;
    let waiter = |(word, value): &(&AtomicU32, u32)| Waiter {
        value: u64::from(*value),
        address: word.as_ptr().addr() as u64,
        flags: FUTEX2_SIZE_U32,
        reserved: 0,
    };
    let waiters: std::vec::Vec<_> = words.iter().map(waiter).collect();
    // SAFETY: the entries are ours, and the words are borrowed for the whole call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiters.as_ptr(),
            waiters.len(),
            0,
            core::ptr::null::<libc::timespec>(),
            libc::CLOCK_MONOTONIC,
        )
    };
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(()),
        error if error.raw_os_error() == Some(libc::ENOSYS) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        error => Err(error),
    }
}

/// Wakes all who sleep on a word, in any process.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: a futex on a word that is borrowed.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
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

/// The network namespace that a socket belongs to, as a file for `setns`.
///
/// # Errors
/// What the kernel says: it takes CAP_NET_ADMIN in that namespace.
pub fn network_namespace_file(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// Of linux/sockios.h.
    const SIOCGSKNS: libc::c_ulong = 0x894C;
    // SAFETY: a descriptor and a number; the call takes no pointer.
    let file = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// How long ago a TCP connection last heard of its peer: an acknowledgement, alone or with data. As fine as the kernel's clock
/// ticks, 1 to 10 ms.
///
/// # Errors
/// What the kernel says: it is no TCP socket.
pub fn last_heard(socket: BorrowedFd<'_>) -> io::Result<Duration> {
    // SAFETY: all-zero is a valid value of plain numbers.
    let mut info: libc::tcp_info = unsafe { core::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: a structure of ours and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// Bytes that a TCP connection's peer has acknowledged, and those that came from it, since the connection began. The kernel counts SYN
/// and FIN too.
///
/// # Errors
/// What the kernel says: it is no TCP socket. `Unsupported` from one that does not count them.
pub fn tcp_bytes(socket: BorrowedFd<'_>) -> io::Result<[u64; 2]> {
    /// Up to `tcpi_bytes_received`, in words of 64 bits (linux/tcp.h); the libc crate's structure ends before.
    const WORDS: usize = 17;
    const ACKNOWLEDGED: usize = 15;
    let mut info = [0u64; WORDS];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: memory of ours and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < size_of_val(&info) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok([info[ACKNOWLEDGED], info[ACKNOWLEDGED + 1]])
}

//! What one side of a connection knows: in memory that this side's processes share after a fork and nobody else maps.

use crate::kernel::Opener;
use crate::sys;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use libc::{c_int, pthread_mutex_t};
use skein_link_core::ring::{Bells, Choice, Rx, Tx, Wakes};

/// Bytes of a side's page.
const LEN: usize = 4096;

/// How far a connection is on its way to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// On TCP; nothing asked yet.
    Candidate,
    /// A segment is mapped; the other end is not known to be there.
    Pending,
    /// TCP bytes are counted; when the other end counts too, phases may change.
    Counting,
    /// On TCP for ever.
    Never,
}

impl Stage {
    const fn of(word: u32) -> Self {
        match word {
            0 => Self::Candidate,
            1 => Self::Pending,
            2 => Self::Counting,
            _ => Self::Never,
        }
    }
}

/// What the sender knows.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Sender {
    pub(crate) tx: Tx,
    /// Of use where the other end is on another host.
    pub(crate) choice: Choice,
    pub(crate) wakes: Wakes,
    /// Of use where it is on this one.
    pub(crate) bells: Bells,
}

/// The page.
#[repr(C)]
pub(crate) struct Side {
    sender: Lock<Sender>,
    receiver: Lock<Rx>,
    /// Processes that hold the connection; not lowered by one that was killed.
    pub(crate) processes: AtomicU32,
    stage: AtomicU32,
    /// Calls that moved bytes before the broker was asked, and the bytes.
    calls: AtomicU32,
    bytes: AtomicU64,
    /// When the broker may be asked again, nanoseconds.
    pub(crate) ask_at: AtomicU64,
    /// The program has shut its sending down.
    pub(crate) shut: AtomicU32,
    /// 1: this end made the connection.
    opened: AtomicU32,
    /// The program has shut its receiving down.
    pub(crate) read_shut: AtomicU32,
    /// No more changes to the ring on this side's account.
    pub(crate) forbidden: AtomicU32,
    /// The error of an aborted connection, for every further call.
    pub(crate) aborted: AtomicI32,
    /// An error that the kernel has told us and the program shall hear after the bytes that came before it.
    pub(crate) error: AtomicI32,
    /// 1: the program has been told of the end of a connection whose peer is gone, or of its reset.
    pub(crate) end_told: AtomicU32,
    /// The program's TCP_NODELAY and TCP_CORK.
    pub(crate) nodelay: AtomicI32,
    pub(crate) cork: AtomicI32,
    /// When the kernel's state of the connection was last looked at while writing, nanoseconds.
    pub(crate) looked_at: AtomicU64,
    /// How long calls wait for bytes, milliseconds (`SO_RCVTIMEO`); zero: for ever.
    receive_ms: AtomicU64,
    /// Writes to the ring that rang no bell.
    pub(crate) writes: AtomicU32,
}

const _: () = assert!(size_of::<Side>() <= LEN);

/// A lock between processes that survives the death of its owner, and what it guards.
#[repr(C)]
struct Lock<T> {
    mutex: UnsafeCell<pthread_mutex_t>,
    /// Stack address of the owner's call; tells an owner that left by `longjmp`.
    frame: UnsafeCell<usize>,
    value: UnsafeCell<T>,
}

/// Why a lock was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// By somebody else, who will be done soon.
    Other,
    /// By this very thread: we are in a handler of a signal that interrupted it.
    Self_,
}

/// The value, for as long as the lock is held.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
    /// The former owner died or jumped away in between: what it left may be half done.
    pub(crate) orphaned: bool,
}

impl<T> Lock<T> {
    fn init(&self, value: T) {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised first and destroyed last, and the page is ours alone as yet.
        unsafe {
            libc::pthread_mutexattr_init(attributes.as_mut_ptr());
            libc::pthread_mutexattr_settype(
                attributes.as_mut_ptr(),
                libc::PTHREAD_MUTEX_ERRORCHECK,
            );
            libc::pthread_mutexattr_setpshared(
                attributes.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            );
            libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
            libc::pthread_mutex_init(self.mutex.get(), attributes.as_ptr());
            libc::pthread_mutexattr_destroy(attributes.as_mut_ptr());
        }
        // SAFETY: as above.
        unsafe { *self.value.get() = value };
    }

    #[inline]
    fn take(&self, wait: bool) -> Result<Guard<'_, T>, Taken> {
        let here = 0u8;
        let frame = (&raw const here).addr();
        // SAFETY: initialised by `init` before the page is shared.
        let result = unsafe {
            if wait {
                libc::pthread_mutex_lock(self.mutex.get())
            } else {
                libc::pthread_mutex_trylock(self.mutex.get())
            }
        };
        let orphaned = match result {
            0 => false,
            libc::EOWNERDEAD => {
                // SAFETY: just locked.
                unsafe { libc::pthread_mutex_consistent(self.mutex.get()) };
                true
            }
            libc::EDEADLK => {
                // SAFETY: only this thread, which holds the lock, writes it.
                let owner = unsafe { *self.frame.get() };
                // Stacks grow down: a handler's frame lies below its victim's. Above, the victim is gone. An alternate
                // signal stack may lie anywhere; then at worst a broken handler is taken for a jump.
                if frame < owner {
                    return Err(Taken::Self_);
                }
                true
            }
            _ => return Err(Taken::Other),
        };
        // SAFETY: locked.
        unsafe { *self.frame.get() = frame };
        Ok(Guard { lock: self, orphaned })
    }
}

impl<T> core::ops::Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> core::ops::DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: held by this thread.
        unsafe { libc::pthread_mutex_unlock(self.lock.mutex.get()) };
    }
}

impl Side {
    /// A page of its own. `None`: no memory.
    pub(crate) fn new() -> Option<NonNull<Self>> {
        let page = NonNull::new(sys::map(-1, LEN))?.cast::<Self>();
        // SAFETY: fresh zeroed memory of more than the type's size, aligned to a page; zero is valid for every field.
        let side = unsafe { page.as_ref() };
        side.sender.init(Sender::default());
        side.receiver.init(Rx::default());
        side.processes.store(1, Ordering::Relaxed);
        Some(page)
    }

    /// Gives the page back.
    ///
    /// # Safety
    /// Nothing in this process uses it any more.
    pub(crate) unsafe fn free(page: NonNull<Self>) {
        // SAFETY: the caller's.
        unsafe { sys::unmap(page.as_ptr().cast(), LEN) };
    }

    #[inline]
    pub(crate) fn sender(&self) -> Result<Guard<'_, Sender>, Taken> {
        self.sender.take(true)
    }

    #[inline]
    pub(crate) fn receiver(&self) -> Result<Guard<'_, Rx>, Taken> {
        self.receiver.take(true)
    }

    /// The sender's lock, if it is free.
    pub(crate) fn try_sender(&self) -> Result<Guard<'_, Sender>, Taken> {
        self.sender.take(false)
    }

    /// The receiver's lock, if it is free.
    pub(crate) fn try_receiver(&self) -> Result<Guard<'_, Rx>, Taken> {
        self.receiver.take(false)
    }

    #[inline]
    pub(crate) fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Ordering::Acquire))
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        let word = match stage {
            Stage::Candidate => 0,
            Stage::Pending => 1,
            Stage::Counting => 2,
            Stage::Never => 3,
        };
        self.stage.store(word, Ordering::Release);
    }

    /// Counts a call before the broker was asked; whether that is enough to ask.
    pub(crate) fn count(&self, bytes: usize, enough: (u32, u64)) -> bool {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        calls >= enough.0 || bytes >= enough.1
    }

    pub(crate) fn set_opener(&self, opener: Opener) {
        self.opened.store(u32::from(opener == Opener::Us), Ordering::Relaxed);
    }

    /// Which end made the connection.
    pub(crate) fn opener(&self) -> Opener {
        if self.opened.load(Ordering::Relaxed) != 0 { Opener::Us } else { Opener::Peer }
    }

    /// Notes how long calls of the program wait for bytes, milliseconds.
    pub(crate) fn set_receive_timeout(&self, timeout_ms: Option<u64>) {
        // One of less than a millisecond is one all the same.
        let word = timeout_ms.map_or(0, |ms| ms.max(1));
        self.receive_ms.store(word, Ordering::Relaxed);
    }

    /// How long calls of the program wait for bytes, milliseconds.
    pub(crate) fn receive_timeout_ms(&self) -> Option<u64> {
        Some(self.receive_ms.load(Ordering::Relaxed)).filter(|ms| *ms != 0)
    }

    pub(crate) fn aborted(&self) -> Option<c_int> {
        match self.aborted.load(Ordering::Acquire) {
            0 => None,
            error => Some(error),
        }
    }
}

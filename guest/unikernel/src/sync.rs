//! The lock of a machine with one CPU.

use core::sync::atomic::{AtomicBool, Ordering};

/// A lock that is never waited for: there is nobody else who could hold it, so finding it taken is
/// a bug.
pub(crate) struct SingleCore(AtomicBool);

// SAFETY: `lock` and `try_lock` succeed only for the one who changes the flag from false to true,
// and the flag stays true until `unlock`.
unsafe impl lock_api::RawMutex for SingleCore {
    const INIT: Self = Self(AtomicBool::new(false));

    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        assert!(self.try_lock(), "a lock was taken twice");
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A value that one piece of code uses at a time.
pub(crate) type Mutex<T> = lock_api::Mutex<SingleCore, T>;

//! A program that reads again and again without waiting, while nothing comes.
//!
//! Most of these calls answer from the ring alone. After a while the kernel is asked too, for it alone knows of the
//! connection's end; and where somebody else wants the processor - perhaps the very program whose bytes are awaited - the
//! calls give way to him.

use crate::sys;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Calls between two readings of the clock, which costs as much as one or two of them.
const CALLS: u8 = 32;
/// How long the kernel is not asked, nanoseconds: several round trips of programs that both look without waiting.
const ASK_AFTER: u64 = 20_000;
/// A gap between two readings that only another process on this processor explains, nanoseconds.
const PREEMPTED: u64 = 15_000;
/// So many readings after such a gap each give way: with 32 calls between them about a tenth of a millisecond.
const YIELDS: u8 = 128;

/// What is known of the calls since bytes came last. Racy by design: two threads that read from one socket may count
/// a little wrong.
pub(crate) struct Idle {
    calls: AtomicU8,
    yields: AtomicU8,
    /// When the kernel was asked last, or the first reading; 0: none yet.
    since: AtomicU64,
    /// The latest reading.
    latest: AtomicU64,
}

impl Idle {
    pub(crate) const fn new() -> Self {
        Self {
            calls: AtomicU8::new(0),
            yields: AtomicU8::new(0),
            since: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        }
    }

    /// Bytes have come.
    #[inline]
    pub(crate) fn end(&self) {
        self.calls.store(1, Ordering::Relaxed);
        self.since.store(0, Ordering::Relaxed);
    }

    /// Another call without bytes: whether it may answer without asking the kernel.
    #[inline]
    pub(crate) fn may_go_on(&self) -> bool {
        let calls = self.calls.load(Ordering::Relaxed);
        self.calls.store(calls.wrapping_add(1), Ordering::Relaxed);
        !calls.is_multiple_of(CALLS) || self.read_clock()
    }

    #[cold]
    fn read_clock(&self) -> bool {
        let now = sys::nanos();
        let since = self.since.load(Ordering::Relaxed);
        let latest = self.latest.swap(now, Ordering::Relaxed);
        if since == 0 {
            self.since.store(now, Ordering::Relaxed);
            return true;
        }
        if now.wrapping_sub(latest) > PREEMPTED {
            self.yields.store(YIELDS, Ordering::Relaxed);
        }
        let yields = self.yields.load(Ordering::Relaxed);
        if yields > 0 {
            self.yields.store(yields - 1, Ordering::Relaxed);
            sys::yield_now();
            self.latest.store(sys::nanos(), Ordering::Relaxed);
        }
        if now.wrapping_sub(since) < ASK_AFTER {
            return true;
        }
        self.since.store(now, Ordering::Relaxed);
        false
    }
}

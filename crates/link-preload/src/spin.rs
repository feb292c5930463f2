//! Spinning with a budget that learns: it grows while spinning pays and shrinks while it does not, or while others want
//! the processor.

use crate::sys;
use core::sync::atomic::{AtomicU32, Ordering};

/// The longest spin, nanoseconds. A sleep and a wake-up cost about that much on both sides together.
pub(crate) const MOST: u32 = 40_000;
/// The shortest: now and then a spin must be tried, or a budget of nothing would never learn that it pays again.
const LEAST: u32 = 500;
/// One spin in so many is a long one although short ones failed.
const PROBE: u64 = 64;
/// Looks between two readings of the clock (which costs as much as about ten looks).
const LOOKS: u32 = 32;
/// A gap between two readings of the clock that only another process on this processor explains, nanoseconds.
const PREEMPTED: u64 = 15_000;

/// The budget that every connection begins with, nanoseconds; zero: no spinning at all.
pub(crate) static START: AtomicU32 = AtomicU32::new(0);

/// Spins until the condition holds: whether it did within the budget.
pub(crate) fn until(budget: &AtomicU32, mut holds: impl FnMut() -> bool) -> bool {
    if holds() {
        return true;
    }
    let allowed = budget.load(Ordering::Relaxed);
    if allowed == 0 {
        return false;
    }
    let begun = sys::nanos();
    let allowed = if allowed <= LEAST && begun.is_multiple_of(PROBE) { MOST / 2 } else { allowed };
    let mut last = begun;
    loop {
        for _ in 0..LOOKS {
            core::hint::spin_loop();
            if holds() {
                // Room for one that takes twice as long as this one.
                let took = (last - begun) as u32;
                let wanted = took.saturating_mul(2).max(allowed).saturating_add(LEAST);
                budget.store(wanted.min(MOST), Ordering::Relaxed);
                return true;
            }
        }
        let now = sys::nanos();
        let preempted = now - last > PREEMPTED;
        last = now;
        if preempted || now - begun > u64::from(allowed) {
            let less = if preempted { allowed / 4 } else { allowed / 2 };
            budget.store(less.max(LEAST), Ordering::Relaxed);
            return holds();
        }
    }
}

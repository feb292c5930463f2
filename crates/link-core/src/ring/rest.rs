//! When a reader of a stream rests instead of being woken for each piece.
//!
//! A reader that waits in the kernel is woken for the first bytes that come. Where nothing but the processor limits a stream,
//! that is once in some tens of KiB: to wake it costs the sender, and whoever acts for him, an interrupt to another processor, and
//! the reader two changes of context and an acknowledgement, for a read that finds little. One that sleeps by the clock for a
//! moment finds many bytes at once, and nobody has to wake it; interfaces moderate their interrupts for the same reason.
//!
//! A rest is too long by some tens of microseconds where it is the last: at the end of a message. So it has to be earned by
//! far more bytes than come in that time, and an answer of the reader's begins the count anew.

use core::sync::atomic::{AtomicU64, Ordering};

/// So many bytes must have come without an answer: a millisecond or more at any rate that Ethernet has today.
const EARNED: u64 = 4 << 20;
/// A rest that brings fewer bytes does not pay: with [`Rest::NANOS`], 2 Gbit/s.
const ENOUGH: u64 = 16 << 10;

/// What is counted of a connection's reads. Two threads that read at the same time may rest once too often.
#[derive(Debug, Default)]
pub struct Rest {
    /// Bytes since the count began.
    bytes: AtomicU64,
    /// How many they were at the latest rest; 0: there was none.
    rested_at: AtomicU64,
}

impl Rest {
    /// How long a rest is, nanoseconds. Linux adds up to 50 µs to it unless the thread has set its timers otherwise (`PR_SET_TIMERSLACK`).
    pub const NANOS: u32 = 10_000;

    /// Nothing has come.
    pub const fn new() -> Self {
        Self { bytes: AtomicU64::new(0), rested_at: AtomicU64::new(0) }
    }

    /// So many bytes have come.
    pub fn took(&self, bytes: usize) {
        let before = self.bytes.load(Ordering::Relaxed);
        self.bytes.store(before.saturating_add(bytes as u64), Ordering::Relaxed);
    }

    /// The program answers: what comes now may be a message that is waited for.
    pub fn end(&self) {
        if self.bytes.load(Ordering::Relaxed) != 0 {
            self.bytes.store(0, Ordering::Relaxed);
            self.rested_at.store(0, Ordering::Relaxed);
        }
    }

    /// Nothing is there: whether to rest before the next look. Each wait asks once. `fits`: whether the socket's buffer holds
    /// what comes during a rest; asked before the first one.
    pub fn begins(&self, fits: impl FnOnce() -> bool) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        if bytes < EARNED {
            return false;
        }
        let pays = match self.rested_at.load(Ordering::Relaxed) {
            0 => fits(),
            before => bytes - before.min(bytes) >= ENOUGH,
        };
        if pays {
            self.rested_at.store(bytes, Ordering::Relaxed);
        } else {
            self.end();
        }
        pays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many waits, before each of which so many bytes came: how many were rests.
    fn waits(rest: &Rest, count: usize, bytes: usize) -> usize {
        let once = |_: &usize| {
            rest.took(bytes);
            rest.begins(|| true)
        };
        (0..count).filter(once).count()
    }

    #[test]
    fn a_stream_rests_once_it_has_earned_it() {
        let rest = Rest::new();
        let earning = (EARNED / (64 << 10)) as usize - 1;
        assert_eq!(waits(&rest, earning, 64 << 10), 0);
        assert_eq!(waits(&rest, 1000, 64 << 10), 1000);
    }

    #[test]
    fn a_slow_stream_rests_once_in_what_it_takes_to_earn_it() {
        let rest = Rest::new();
        let count = (20 * EARNED / 8192) as usize;
        let rests = waits(&rest, count, 8192);
        assert!((1..=20).contains(&rests), "{rests}");
    }

    #[test]
    fn a_rest_without_bytes_is_the_last() {
        let rest = Rest::new();
        waits(&rest, 1000, 64 << 10);
        assert!(!rest.begins(|| true));
        assert_eq!(waits(&rest, 10, 64 << 10), 0, "it is to be earned again");
    }

    #[test]
    fn who_answers_does_not_rest() {
        let rest = Rest::new();
        for _ in 0..1000 {
            // A message of a MiB, in pieces, and its answer.
            assert_eq!(waits(&rest, 16, 64 << 10), 0);
            rest.end();
        }
    }

    #[test]
    fn a_small_buffer_does_not_rest() {
        let rest = Rest::new();
        rest.took(1 << 30);
        assert!(!rest.begins(|| false));
        assert!(!rest.begins(|| true), "it is to be earned again");
    }
}

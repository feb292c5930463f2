//! How much a path reorders, learned from mistakes.
//!
//! A datagram that three later ones have overtaken counts as lost at once: on one queue that is so. Where several
//! processors hand frames on, it is not; then something comes twice, the receiver says so, and both bounds
//! grow (as the reordering window of RFC 8985, section 6.2, does). Where sixteen losses in a row were real, they shrink.

use core::time::Duration;

/// RFC 9002, section 6.1.1.
const DATAGRAMS_MIN: u64 = 3;
/// Beyond so many, time alone decides.
const DATAGRAMS_MAX: u64 = 1 << 12;
/// What the kernel takes to hand a frame from one processor to another.
const TIME_MIN: Duration = Duration::from_micros(50);
/// RFC 8985, section 6.2, step 4.
const LOSSES_TO_FORGET: u32 = 16;

#[derive(Debug)]
pub(crate) struct Disorder {
    datagrams: u64,
    time: Duration,
    real_losses: u32,
}

impl Disorder {
    pub(crate) fn new() -> Self {
        Self { datagrams: DATAGRAMS_MIN, time: TIME_MIN, real_losses: 0 }
    }

    /// Datagrams that may overtake.
    pub(crate) fn datagrams(&self) -> u64 {
        self.datagrams
    }

    /// How much later than a round trip of `smoothed` an acknowledgement may come.
    pub(crate) fn time(&self, smoothed: Duration) -> Duration {
        self.time.max(smoothed / 4)
    }

    /// Something came twice.
    pub(crate) fn on_mistake(&mut self, smoothed: Duration) {
        self.real_losses = 0;
        self.datagrams = (self.datagrams * 4).min(DATAGRAMS_MAX);
        // More than a round trip more would be slower than probing.
        self.time = (self.time * 2).min(smoothed.max(TIME_MIN));
    }

    /// Something was taken for lost.
    pub(crate) fn on_loss(&mut self) {
        self.real_losses += 1;
        if self.real_losses >= LOSSES_TO_FORGET {
            self.real_losses = 0;
            self.datagrams = (self.datagrams / 4).max(DATAGRAMS_MIN);
            self.time = (self.time / 2).max(TIME_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_and_forgets() {
        let mut disorder = Disorder::new();
        let smoothed = Duration::from_micros(400);
        for _ in 0..20 {
            disorder.on_mistake(smoothed);
        }
        assert_eq!((disorder.datagrams(), disorder.time(smoothed)), (DATAGRAMS_MAX, smoothed));
        for _ in 0..LOSSES_TO_FORGET * 8 {
            disorder.on_loss();
        }
        assert_eq!(disorder.datagrams(), DATAGRAMS_MIN);
        assert_eq!(disorder.time(Duration::ZERO), TIME_MIN);
    }
}

//! How much may be on the way, and how long the way is.
//!
//! The window begins with what a path of 10 Gbit/s holds in 50 microseconds, doubles each round trip until the first
//! loss (slow start: RFC 5681), and then grows by one datagram each round trip. A loss is answered as TCP Veno does (Fu
//! and Liew, IEEE JSAC 21(2), 2003): if round trips show that hardly anything waits in queues, the loss is taken for
//! chance and the window shrinks by a fifth; otherwise somebody's queue is full, and it shrinks to seven tenths, as
//! CUBIC does (RFC 9438, section 4.6). So it gives way to TCP where TCP fills the queue, and does not where a wire is
//! merely bad.

use super::time::Moment;
use core::time::Duration;

/// What may be on the way before anything was heard, bytes: 10 Gbit/s for 50 microseconds.
pub const WINDOW_START: u64 = 64 * 1024;
/// The most that may be on the way, bytes: 10 Gbit/s for 3 milliseconds.
const WINDOW_MAX: u64 = 4 * 1024 * 1024;
/// The least, in datagrams: one to be acknowledged and one to show that the former was lost.
const WINDOW_MIN_DATAGRAMS: u64 = 4;
/// Veno's beta, in datagrams: less than this waiting in queues means that a loss was chance.
const QUEUED_BY_CHANCE_DATAGRAMS: u64 = 8;
/// The guess before the first measurement.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(1);

/// The window of a session.
#[derive(Debug)]
pub(crate) struct Congestion {
    window: u64,
    threshold: u64,
    /// Acknowledged since the window last grew, in congestion avoidance.
    acknowledged: u64,
    /// Losses of datagrams sent before this one belong to a loss that was answered.
    answered: u64,
    /// Window and threshold before the last answer, in case it turns out that nothing was lost.
    before: Option<(u64, u64)>,
}

impl Congestion {
    pub(crate) fn new() -> Self {
        Self {
            window: WINDOW_START,
            threshold: WINDOW_MAX,
            acknowledged: 0,
            answered: 0,
            before: None,
        }
    }

    /// Bytes that may be on the way.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// `bytes` have arrived while `in_flight` were on the way; `datagram` is the payload of a full one.
    pub(crate) fn on_acknowledged(&mut self, bytes: u64, in_flight: u64, datagram: u64) {
        // A window that is not used says nothing about the path.
        if in_flight + bytes < self.window / 2 {
            return;
        }
        if self.window < self.threshold {
            self.window += bytes;
        } else {
            self.acknowledged += bytes;
            if self.acknowledged >= self.window {
                self.acknowledged -= self.window;
                self.window += datagram;
            }
        }
        self.window = self.window.min(WINDOW_MAX);
    }

    /// The datagram with transmission number `lost` did not arrive; the next one sent has number `next`.
    pub(crate) fn on_lost(&mut self, lost: u64, next: u64, path: &RoundTrip, datagram: u64) {
        if lost < self.answered {
            return;
        }
        self.answered = next;
        self.before = Some((self.window, self.threshold));
        let queued = path.queued_share(self.window);
        let by_chance = queued < QUEUED_BY_CHANCE_DATAGRAMS * datagram;
        let kept = if by_chance { self.window / 5 * 4 } else { self.window / 10 * 7 };
        self.window = kept.max(WINDOW_MIN_DATAGRAMS * datagram);
        self.threshold = self.window;
        self.acknowledged = 0;
    }

    /// What was taken for lost had only been overtaken: the last answer is taken back (as in RFC 4015).
    pub(crate) fn on_spurious(&mut self) {
        if let Some((window, threshold)) = self.before.take() {
            self.window = self.window.max(window);
            self.threshold = self.threshold.max(threshold);
        }
    }

    /// Nothing was heard through several probes.
    pub(crate) fn on_silence(&mut self, next: u64, datagram: u64) {
        self.threshold = (self.window / 2).max(WINDOW_START);
        self.window = WINDOW_MIN_DATAGRAMS * datagram;
        self.answered = next;
        self.before = None;
    }
}

/// Measured round trips: smoothed mean and deviation as in RFC 6298, and the least.
#[derive(Debug)]
pub(crate) struct RoundTrip {
    smoothed: Duration,
    deviation: Duration,
    least: Duration,
    latest: Duration,
    least_at: Moment,
    measured: bool,
}

/// After so long the least is measured anew: paths change.
const LEAST_KEPT: Duration = Duration::from_secs(10);

impl RoundTrip {
    pub(crate) fn new() -> Self {
        Self {
            smoothed: ROUND_TRIP_GUESS,
            deviation: ROUND_TRIP_GUESS.checked_div(2).unwrap_or_default(),
            least: Duration::MAX,
            latest: ROUND_TRIP_GUESS,
            least_at: Moment::default(),
            measured: false,
        }
    }

    /// A datagram was acknowledged `sample` after it was sent. One that was sent twice gives none (Karn).
    pub(crate) fn on_sample(&mut self, sample: Duration, now: Moment) {
        self.latest = sample;
        if sample <= self.least || now.since(self.least_at) > LEAST_KEPT {
            self.least = sample;
            self.least_at = now;
        }
        if !self.measured {
            self.measured = true;
            self.smoothed = sample;
            self.deviation = sample / 2;
            return;
        }
        let error = self.smoothed.abs_diff(sample);
        self.deviation = (self.deviation * 3 + error) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
    }

    pub(crate) fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// How long after it was sent a datagram is missed without anything that was sent later having come: twice the
    /// round trip, or what RFC 6298 says if that is more.
    pub(crate) fn patience(&self) -> Duration {
        (self.smoothed * 2).max(self.smoothed + self.deviation * 4)
    }

    /// How much of `window` waits in queues, bytes: the share of the round trip that is more than the least.
    fn queued_share(&self, window: u64) -> u64 {
        if !self.measured || self.smoothed.is_zero() {
            return 0;
        }
        let least = self.least.min(self.smoothed);
        let waiting = (self.smoothed - least).as_nanos() as u64;
        let whole = (self.smoothed.as_nanos() as u64).max(1);
        (u128::from(window) * u128::from(waiting) / u128::from(whole)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: u64 = 1486;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_full_queue_costs_more_than_chance() {
        let mut empty = RoundTrip::new();
        empty.on_sample(Duration::from_micros(100), at(1));
        let mut full = RoundTrip::new();
        full.on_sample(Duration::from_micros(100), at(1));
        for millis in 2..40 {
            full.on_sample(Duration::from_micros(900), at(millis));
        }
        let after = |path: &RoundTrip| {
            let mut congestion = Congestion::new();
            congestion.on_lost(7, 50, path, DATAGRAM);
            congestion.on_lost(49, 60, path, DATAGRAM);
            congestion.window()
        };
        assert_eq!(after(&empty), WINDOW_START / 5 * 4, "one answer for one round trip's losses");
        assert_eq!(after(&full), WINDOW_START / 10 * 7);
    }

    #[test]
    fn a_mistake_is_taken_back() {
        let mut congestion = Congestion::new();
        congestion.on_lost(7, 50, &RoundTrip::new(), DATAGRAM);
        congestion.on_spurious();
        assert_eq!(congestion.window(), WINDOW_START);
        congestion.on_lost(60, 70, &RoundTrip::new(), DATAGRAM);
        congestion.on_silence(80, DATAGRAM);
        congestion.on_spurious();
        assert_eq!(congestion.window(), WINDOW_MIN_DATAGRAMS * DATAGRAM);
    }

    #[test]
    fn grows_fast_then_slowly_and_only_when_used() {
        let mut congestion = Congestion::new();
        congestion.on_acknowledged(10_000, 0, DATAGRAM);
        assert_eq!(congestion.window(), WINDOW_START);
        congestion.on_acknowledged(10_000, WINDOW_START, DATAGRAM);
        assert_eq!(congestion.window(), WINDOW_START + 10_000);
        congestion.on_lost(0, 9, &RoundTrip::new(), DATAGRAM);
        let window = congestion.window();
        congestion.on_acknowledged(window - 1, window, DATAGRAM);
        assert_eq!(congestion.window(), window);
        congestion.on_acknowledged(1, window, DATAGRAM);
        assert_eq!(congestion.window(), window + DATAGRAM);
    }

    #[test]
    fn patience_follows_the_path() {
        let mut path = RoundTrip::new();
        for millis in 0..100 {
            path.on_sample(Duration::from_micros(50), at(millis));
        }
        assert!(path.patience() >= Duration::from_micros(100));
        assert!(path.patience() < Duration::from_micros(120));
        assert_eq!(path.smoothed(), Duration::from_micros(50));
    }
}

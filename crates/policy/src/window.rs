//! A time-weighted moving average in constant memory.
//!
//! The load is a step function: it keeps its last value until the next observation. Its integral is kept in
//! [`BUCKETS`] whole buckets and the partly covered oldest one; sums are integers, so that no rounding piles up.

use serde::{Deserialize, Serialize};
use skein_model::Timestamp;
use std::time::Duration;

/// Whole buckets of a window. 16: the oldest is left behind in steps of 6 % of the window, finer than any
/// decision that rounds up to whole machines.
const BUCKETS: usize = 16;

/// Moving average of a load over the last `width`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Width of a bucket, microseconds, at least 1.
    bucket_us: u64,
    /// First observation.
    begun: Timestamp,
    /// Latest observation.
    at: Timestamp,
    /// Load since then.
    value: u32,
    /// Number of the newest bucket since the epoch.
    newest: u64,
    /// Load times microseconds, of each bucket.
    sums: [u64; BUCKETS + 1],
    /// Sum of `sums`.
    total: u64,
}

impl Window {
    /// An empty window of `width`, rounded up to a multiple of 16 microseconds, that begins now.
    pub fn new(width: Duration, now: Timestamp) -> Self {
        let bucket_us = bucket_us(width);
        Self {
            bucket_us,
            begun: now,
            at: now,
            value: 0,
            newest: now.as_micros() / bucket_us,
            sums: [0; BUCKETS + 1],
            total: 0,
        }
    }

    /// Whether this is a window of `width`.
    pub fn has_width(&self, width: Duration) -> bool {
        self.bucket_us == bucket_us(width)
    }

    /// The load from now on. An observation older than the latest is taken as of the latest.
    pub fn observe(&mut self, value: u32, now: Timestamp) {
        self.advance(now);
        self.value = value;
    }

    /// The average over the window that ends with the latest observation, or over the time since the first one
    /// when that is shorter; the load itself when no time has passed.
    pub fn average(&self) -> f64 {
        let age = self.at.since(self.begun).as_micros() as u64;
        let width = self.bucket_us * BUCKETS as u64;
        if age == 0 {
            return f64::from(self.value);
        }
        if age < width {
            return self.total as f64 / age as f64;
        }
        let into_newest = self.at.as_micros() - self.newest * self.bucket_us;
        let oldest = self.sums[slot(self.newest + 1)] as f64;
        let left_behind = oldest * (into_newest as f64 / self.bucket_us as f64);
        (self.total as f64 - left_behind) / width as f64
    }

    /// The load at the latest observation.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// Whether the average is the load, so that it changes only with the load.
    pub fn has_settled(&self) -> bool {
        (self.average() - f64::from(self.value)).abs() <= 1e-6
    }

    fn advance(&mut self, now: Timestamp) {
        if now <= self.at {
            return;
        }
        let newest = now.as_micros() / self.bucket_us;
        let gone = newest - self.newest;
        if gone > BUCKETS as u64 {
            // Everything remembered is older than the window: one load fills it.
            self.sums = [u64::from(self.value) * self.bucket_us; BUCKETS + 1];
            self.total = u64::from(self.value) * self.bucket_us * BUCKETS as u64;
            self.sums[slot(newest)] = 0;
            self.newest = newest;
            self.at = Timestamp::from_micros(newest * self.bucket_us);
        }
        while self.newest < newest {
            let end = (self.newest + 1) * self.bucket_us;
            self.add(end - self.at.as_micros());
            self.newest += 1;
            self.total -= self.sums[slot(self.newest)];
            self.sums[slot(self.newest)] = 0;
            self.at = Timestamp::from_micros(end);
        }
        self.add(now.as_micros() - self.at.as_micros());
        self.at = now;
    }

    fn add(&mut self, span_us: u64) {
        let load = u64::from(self.value) * span_us;
        self.sums[slot(self.newest)] += load;
        self.total += load;
    }
}

const fn slot(bucket: u64) -> usize {
    (bucket % (BUCKETS as u64 + 1)) as usize
}

fn bucket_us(width: Duration) -> u64 {
    u64::try_from(width.as_micros()).unwrap_or(u64::MAX).div_ceil(BUCKETS as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Averages a script of (microsecond, load), read at the end.
    fn check(width_us: u64, script: &[(u64, u32)], end: u64, expect: f64) {
        let mut window = Window::new(Duration::from_micros(width_us), Timestamp::ZERO);
        for (at, load) in script {
            window.observe(*load, Timestamp::from_micros(*at));
        }
        window.observe(window.value(), Timestamp::from_micros(end));
        let is = window.average();
        assert!((is - expect).abs() < 1e-9, "{script:?} until {end}: {is}, not {expect}");
    }

    #[test]
    fn averages_are_weighted_with_time() {
        check(1600, &[], 0, 0.0);
        check(1600, &[(0, 7)], 0, 7.0);
        check(1600, &[(0, 7)], 10, 7.0);
        check(1600, &[(0, 4), (400, 0)], 800, 2.0);
        check(1600, &[(0, 4), (800, 0)], 1600, 2.0);
        check(1600, &[(0, 4), (800, 0)], 1650, 1.875);
        check(1600, &[(0, 4), (800, 0)], 2400, 0.0);
        check(1600, &[(0, 4), (10_000, 8)], 10_800, 6.0);
        check(1600, &[(0, 4), (1_000_000, 8)], 9_000_000, 8.0);
    }

    proptest! {
        #[test]
        fn a_window_is_the_integral_of_its_steps(
            width in 1u64..200, script in proptest::collection::vec((0u64..300, 0u32..50), 1..40)
        ) {
            let width = width * 16;
            let start = Timestamp::from_micros(12_345);
            let mut window = Window::new(Duration::from_micros(width), start);
            let mut steps = vec![];
            let mut now = start;
            for (wait, load) in script {
                now = now + Duration::from_micros(wait);
                window.observe(load, now);
                steps.push((now.as_micros(), load));
            }
            now = now + Duration::from_micros(100);
            window.observe(window.value(), now);
            let from = now.as_micros().saturating_sub(width).max(start.as_micros());
            let ends = steps.iter().skip(1).map(|s| s.0).chain([now.as_micros()]);
            let exact: u64 = steps.iter().zip(ends)
                .map(|((at, load), end)| u64::from(*load) * end.saturating_sub(from.max(*at)))
                .sum();
            let exact = exact as f64 / (now.as_micros() - from) as f64;
            // Inside the oldest bucket the load counts as spread evenly.
            let bucket = 50.0 / 16.0;
            prop_assert!((window.average() - exact).abs() <= bucket + 1e-9);
            let text = serde_json::to_string(&window).unwrap();
            prop_assert_eq!(serde_json::from_str::<Window>(&text).unwrap(), window);
        }
    }
}

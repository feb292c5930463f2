//! A token bucket whose clock is an argument.

use std::time::Duration;

/// Lets `per_second` units through each second, and up to `burst` at once.
#[derive(Debug)]
pub(crate) struct Bucket {
    burst: f64,
    per_second: f64,
    /// Below zero after a unit was taken on credit.
    level: f64,
    at: Duration,
}

impl Bucket {
    /// A full bucket at time `now` (any origin, never going back).
    pub(crate) fn new(per_second: u32, burst: u32, now: Duration) -> Self {
        let burst = f64::from(burst);
        Self { burst, per_second: f64::from(per_second), level: burst, at: now }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.burst);
        self.at = now;
    }

    /// Takes one unit if there is one.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let enough = self.level >= 1.0;
        if enough {
            self.level -= 1.0;
        }
        enough
    }

    /// Takes `units` that were already used, on credit if need be; the answer is how long to use no
    /// more.
    pub(crate) fn charge(&mut self, units: usize, now: Duration) -> Option<Duration> {
        self.fill(now);
        self.level -= units as f64;
        (self.level < 0.0).then(|| Duration::from_secs_f64(-self.level / self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(10, 5, Duration::ZERO);
        let passed = (0..2_000).filter(|ms| bucket.take(Duration::from_millis(*ms))).count();
        assert!((23..=26).contains(&passed), "{passed}");
    }

    #[test]
    fn credit_is_waited_for() {
        let mut bucket = Bucket::new(100, 100, Duration::ZERO);
        assert_eq!(bucket.charge(100, Duration::ZERO), None);
        assert_eq!(bucket.charge(50, Duration::ZERO), Some(Duration::from_millis(500)));
        assert_eq!(bucket.charge(0, Duration::from_millis(500)), None);
    }
}

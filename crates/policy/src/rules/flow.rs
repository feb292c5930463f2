//! Arrivals, ends and work of the latest time: what rates and service times are estimated from.

use crate::core::Load;
use serde::{Deserialize, Serialize};
use skein_model::Timestamp;
use std::time::Duration;

/// Buckets of a window. 16, as in [`crate::Window`].
const BUCKETS: u64 = 16;

/// Running totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Totals {
    /// Jobs accepted.
    arrived: u64,
    /// Jobs ended.
    ended: u64,
    /// Jobs in service times microseconds.
    busy_us: u64,
    /// Jobs in service.
    in_service: u32,
}

/// The totals at the beginning of each of the latest buckets, in constant memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flow {
    /// Width of a bucket, microseconds, at least 1.
    bucket_us: u64,
    begun: Timestamp,
    at: Timestamp,
    /// The counter of accepted jobs as it was last seen.
    accepted: u64,
    now: Totals,
    /// Totals at the beginning of a bucket, by its number modulo their count.
    starts: [Totals; BUCKETS as usize + 1],
    newest: u64,
    /// Service time as of the last window in which one was seen, microseconds.
    service_us: Option<u64>,
}

/// What happened in a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stretch {
    /// Its length, seconds; at least a bucket, so that the first jobs do not look like a flood.
    pub(crate) secs: f64,
    /// Jobs that arrived.
    pub(crate) arrived: f64,
}

impl Stretch {
    /// Arrivals per second.
    pub(crate) fn rate(self) -> f64 {
        self.arrived / self.secs
    }
}

fn bucket_us(window: Duration) -> u64 {
    u64::try_from(window.as_micros()).unwrap_or(u64::MAX).div_ceil(BUCKETS).max(1)
}

impl Flow {
    /// Begins to count, with what is there now.
    pub(crate) fn new(window: Duration, load: Load, now: Timestamp) -> Self {
        let bucket_us = bucket_us(window);
        // A queue that is found has come just now, as far as anybody knows; what came before says nothing of the rate.
        let before = Totals::default();
        let totals = Totals { arrived: load.total().into(), in_service: load.in_service, ..before };
        Self {
            bucket_us,
            begun: now,
            at: now,
            accepted: load.accepted,
            now: totals,
            starts: [before; BUCKETS as usize + 1],
            newest: now.as_micros() / bucket_us,
            service_us: None,
        }
    }

    /// Whether this is of a window so long.
    pub(crate) fn has_window(&self, window: Duration) -> bool {
        self.bucket_us == bucket_us(window)
    }

    /// Takes note of the load.
    pub(crate) fn observe(&mut self, load: Load, now: Timestamp) {
        if now > self.at {
            self.advance(now);
        }
        // A counter that is less than before has begun anew.
        let more = load.accepted.checked_sub(self.accepted).unwrap_or(load.accepted);
        self.accepted = load.accepted;
        let total = u64::from(load.total());
        self.now.arrived = (self.now.arrived + more).max(self.now.ended + total);
        self.now.ended = self.now.arrived - total;
        self.now.in_service = load.in_service;
        let since = self.before(BUCKETS);
        let ends = self.now.ended - since.ended;
        if ends > 0 {
            // Of what is in service half is done, of what was in service when the window began half was.
            let more = f64::from(load.in_service) - f64::from(since.in_service);
            let served = (ends as f64 + more / 2.0).max(0.5);
            self.service_us = Some(((self.now.busy_us - since.busy_us) as f64 / served) as u64);
        }
    }

    fn advance(&mut self, now: Timestamp) {
        let newest = now.as_micros() / self.bucket_us;
        let gone = newest - self.newest;
        if gone > BUCKETS + 1 {
            // Nothing of the former buckets is left; only service went on meanwhile.
            self.newest = newest - BUCKETS - 1;
            let begin = Timestamp::from_micros(self.newest * self.bucket_us);
            self.serve_until(begin);
            self.starts = [self.now; BUCKETS as usize + 1];
        }
        while self.newest < newest {
            self.newest += 1;
            self.serve_until(Timestamp::from_micros(self.newest * self.bucket_us));
            self.starts[slot(self.newest)] = self.now;
        }
        self.serve_until(now);
    }

    fn serve_until(&mut self, now: Timestamp) {
        let span = now.as_micros().saturating_sub(self.at.as_micros());
        self.now.busy_us += u64::from(self.now.in_service) * span;
        self.at = self.at.max(now);
    }

    /// The totals so many buckets ago, at the beginning of that bucket or when counting began.
    fn before(&self, buckets: u64) -> Totals {
        self.starts[slot(self.newest + 1 + BUCKETS - buckets.min(BUCKETS))]
    }

    /// What happened in the last `buckets` whole buckets and the one in progress.
    pub(crate) fn stretch(&self, buckets: u64) -> Stretch {
        let buckets = buckets.min(BUCKETS);
        let begin = (self.newest.saturating_sub(buckets) * self.bucket_us)
            .max(self.begun.as_micros().min(self.at.as_micros()));
        let secs = (self.at.as_micros().saturating_sub(begin)).max(self.bucket_us) as f64 * 1e-6;
        let arrived = (self.now.arrived - self.before(buckets).arrived) as f64;
        Stretch { secs, arrived }
    }

    /// The whole window.
    pub(crate) fn window(&self) -> Stretch {
        self.stretch(BUCKETS)
    }

    /// Its last quarter.
    pub(crate) fn quarter(&self) -> Stretch {
        self.stretch(BUCKETS / 4)
    }

    /// Mean time that a job takes at a machine, seconds; none before the first has ended.
    pub(crate) fn service_secs(&self) -> Option<f64> {
        self.service_us.map(|us| us as f64 * 1e-6)
    }
}

const fn slot(bucket: u64) -> usize {
    (bucket % (BUCKETS + 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(1_000_000 + ms * 1000)
    }

    fn load(waiting: u32, in_service: u32, accepted: u64) -> Load {
        Load { waiting, in_service, accepted }
    }

    #[test]
    fn rates_and_service_times_of_a_regular_service_are_found() {
        // A job every 100 ms, each takes 40 ms; counted before: 7.
        let mut flow = Flow::new(Duration::from_millis(1600), load(0, 0, 7), at(0));
        for job in 1..=200 {
            flow.observe(load(0, 1, 7 + job), at(job * 100));
            flow.observe(load(0, 0, 7 + job), at(job * 100 + 40));
        }
        assert!((flow.window().rate() - 10.0).abs() < 0.7, "{:?}", flow.window());
        assert!((flow.quarter().rate() - 10.0).abs() < 2.1, "{:?}", flow.quarter());
        assert!((flow.service_secs().unwrap() - 0.04).abs() < 0.003);
        // Then silence: the rate falls to nothing, the service time is remembered.
        flow.observe(load(0, 0, 207), at(60_000));
        assert_eq!(flow.window().arrived, 0.0);
        assert!((flow.service_secs().unwrap() - 0.04).abs() < 0.003);
    }

    #[test]
    fn the_first_jobs_are_no_flood_and_a_found_queue_has_arrived() {
        let mut flow = Flow::new(Duration::from_secs(16), load(0, 0, 0), at(0));
        flow.observe(load(2, 0, 2), at(1));
        assert_eq!(flow.window(), Stretch { secs: 1.0, arrived: 2.0 });
        assert_eq!(flow.service_secs(), None);
        let found = Flow::new(Duration::from_secs(16), load(30, 2, 1000), at(0));
        assert_eq!(found.window(), Stretch { secs: 1.0, arrived: 32.0 });
    }

    #[test]
    fn a_counter_that_begins_anew_does_no_harm() {
        let mut flow = Flow::new(Duration::from_secs(16), load(0, 0, 500), at(0));
        flow.observe(load(1, 1, 1), at(100));
        flow.observe(load(0, 0, 2), at(200));
        assert!(flow.window().arrived >= 2.0 && flow.window().arrived < 10.0);
    }
}
